"""How far each GPU is from each NIC: the PCI tree, NUMA nodes, ports, bonds and virtual functions, read from sysfs.

Leans on sysfs. No driver is asked, so it answers in containers and for captured trees (`root`). Distances are those of
`nvidia-smi topo -m`: PIX one switch at most, PXB several, PHB through the CPU's host bridge, NODE between host bridges
of one NUMA node, SYS between nodes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rdmakit.errors import BadArgument
from rdmakit.verbs import sysfs

__all__ = ["DISTANCES", "Gpu", "Nic", "NicPort", "Topology", "distance", "read_topology"]

DISTANCES = ("PIX", "PXB", "PHB", "NODE", "SYS")  # nearest first
_NVIDIA = 0x10DE
_DISPLAY = (0x0300, 0x0302)  # PCI class codes: VGA controller, 3D controller


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU: `index` by PCI address, as CUDA_DEVICE_ORDER=PCI_BUS_ID counts; `path` of bridges above it."""

    index: int
    address: str
    numa_node: int
    path: tuple[str, ...]

    @property
    def name(self) -> str:
        """GPU0 and so on."""
        return f"GPU{self.index}"


@dataclass(frozen=True)
class NicPort:
    """A port of an RDMA device; `bond` is the bonding device that its network device belongs to, or is, or ""."""

    number: int
    state: str
    rate: str
    link_layer: str
    netdev: str
    bond: str


@dataclass(frozen=True)
class Nic:
    """An RDMA device. `virtual_of`: the PCI address of the physical function if it is virtual. Software: no address."""

    name: str
    address: str
    numa_node: int
    driver: str
    ports: tuple[NicPort, ...]
    virtual_of: str
    path: tuple[str, ...]


def distance(a: tuple[str, ...], b: tuple[str, ...], numa_a: int = -1, numa_b: int = -1) -> str:
    """One of DISTANCES between two devices, by their paths from the host bridge down; NUMA node −1: not known.

    >>> distance(("pci0000:00", "00:01.0", "01:00.0"), ("pci0000:00", "00:01.0", "01:00.1"))
    'PIX'
    >>> distance(("pci0000:00", "00:01.0"), ("pci0000:80", "80:01.0"), 0, 1)
    'SYS'
    """
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    if shared == 0 or not a or not b:
        return "NODE" if numa_a == numa_b and numa_a >= 0 else "SYS"
    if shared == 1:
        return "PHB"
    # Below what they share each may have one bridge, its port of the shared switch, before the device itself.
    return "PIX" if max(len(a), len(b)) - shared <= 2 else "PXB"


@dataclass(frozen=True)
class Topology:
    """What one host has; `where` is the tree that it was read from."""

    gpus: tuple[Gpu, ...]
    nics: tuple[Nic, ...]
    where: str

    def between(self, gpu: Gpu, nic: Nic) -> str:
        """One of DISTANCES. A software device (soft-RoCE) is as far as can be: its data crosses the CPU."""
        return distance(gpu.path, nic.path, gpu.numa_node, nic.numa_node)

    def nearest(self, gpu: int) -> list[Nic]:
        """The NICs of the smallest distance to a GPU, by name. BadArgument for a GPU that is not there."""
        found = next((each for each in self.gpus if each.index == gpu), None)
        if found is None:
            raise BadArgument("no such GPU", value=gpu, rule=f"{len(self.gpus)} GPUs, counted from 0",
                              remedy="rdmakit info lists them")  # fmt: skip
        if not self.nics:
            return []
        least = min(DISTANCES.index(self.between(found, nic)) for nic in self.nics)
        return [nic for nic in self.nics if DISTANCES.index(self.between(found, nic)) == least]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `distances[GPU name][NIC name]`."""
        return {
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "nics": [asdict(nic) for nic in self.nics],
            "distances": {gpu.name: {nic.name: self.between(gpu, nic) for nic in self.nics} for gpu in self.gpus},
        }

    def draw(self) -> str:
        """A table of distances, then a line for each NIC; one sentence where there is nothing to draw."""
        if not self.gpus and not self.nics:
            return "no NVIDIA GPU and no RDMA device"
        lines = []
        if self.gpus and self.nics:
            wide = max(5, *(len(nic.name) for nic in self.nics)) + 2
            lines.append("".ljust(8) + "".join(nic.name.ljust(wide) for nic in self.nics) + "NUMA  PCI")
            for gpu in self.gpus:
                cells = "".join(self.between(gpu, nic).ljust(wide) for nic in self.nics)
                lines.append(f"{gpu.name:8s}{cells}{_node(gpu.numa_node):6s}{gpu.address}")
        else:
            lines += [f"{gpu.name:8s}NUMA {_node(gpu.numa_node)}, {gpu.address}" for gpu in self.gpus]
        for nic in self.nics:
            ports = "; ".join(_port_text(port) for port in nic.ports) or "no ports"
            of = f", virtual function of {nic.virtual_of}" if nic.virtual_of else ""
            at = f"{nic.address}, NUMA {_node(nic.numa_node)}" if nic.address else "software"
            lines.append(f"{nic.name}: {at}, {nic.driver or 'no driver'}{of}: {ports}")
        return "\n".join(lines)


def _node(number: int) -> str:
    return str(number) if number >= 0 else "?"


def _port_text(port: NicPort) -> str:
    net = f" on {port.netdev}" if port.netdev else ""
    bond = f" of bond {port.bond}" if port.bond else ""
    return f"port {port.number} {port.link_layer} {port.state} {port.rate}{net}{bond}"


def _resolved(link: Path) -> Path | None:
    try:
        return link.resolve(strict=True)
    except OSError:
        return None


def _path(device: Path | None) -> tuple[str, ...]:
    """Host bridge, bridges, device: the components of …/devices/pciDDDD:BB/…; () for what is no PCI device."""
    parts = device.parts if device is not None else ()
    begin = next((i for i, part in enumerate(parts) if part.startswith("pci") and ":" in part), None)
    return parts[begin:] if begin is not None else ()


def _gpus(root: Path) -> tuple[Gpu, ...]:
    at = root / "bus/pci/devices"
    found = [
        address
        for address in sysfs.names(at)
        if sysfs.read_int(at / address / "vendor") == _NVIDIA
        and sysfs.read_int(at / address / "class") >> 8 in _DISPLAY
    ]
    return tuple(
        Gpu(index, address, sysfs.read_int(at / address / "numa_node"), _path(_resolved(at / address)))
        for index, address in enumerate(sorted(found))
    )


def _bond(root: Path, netdev: str) -> str:
    """GIDs of a bonded device may name a member of the bond, or the bond itself (mlx5_ib does)."""
    master = _resolved(root / "class/net" / netdev / "master")
    if master is not None:
        return master.name if (master / "bonding").is_dir() else ""
    return netdev if (root / "class/net" / netdev / "bonding").is_dir() else ""


def _ports(root: Path, device: str) -> tuple[NicPort, ...]:
    at = root / "class/infiniband" / device / "ports"
    found = []
    for number in (int(name) for name in sysfs.names(at) if name.isdigit()):
        here = at / str(number)
        netdev = next((entry.netdev for entry in sysfs.gid_table(device, number, root) if entry.netdev), "")
        bond = _bond(root, netdev) if netdev else ""
        found.append(
            NicPort(
                number=number,
                state=sysfs.read(here / "state").split(":")[-1].strip(),
                rate=sysfs.read(here / "rate"),
                link_layer=sysfs.read(here / "link_layer") or "InfiniBand",
                netdev=netdev,
                bond=bond,
            )
        )
    return tuple(found)


def read_topology(root: str | Path | None = None) -> Topology:
    """The GPUs and RDMA devices of the tree at `root` (SYSFS_PATH, else /sys). What is missing is left out."""
    base = Path(root) if root is not None else sysfs.default_root()
    nics = []
    for name in sysfs.names(base / "class/infiniband"):
        device = _resolved(base / "class/infiniband" / name / "device")
        path = _path(device)
        driver = _resolved(base / "class/infiniband" / name / "device/driver")
        physical = _resolved(base / "class/infiniband" / name / "device/physfn")
        nics.append(
            Nic(
                name=name,
                address=path[-1] if path else "",
                numa_node=sysfs.read_int(device / "numa_node") if path and device is not None else -1,
                driver=driver.name if driver is not None else "",
                ports=_ports(base, name),
                virtual_of=physical.name if physical is not None else "",
                path=path,
            )
        )
    return Topology(_gpus(base), tuple(nics), str(base))
