"""What a host says of each way out, before traffic and after: link, PCIe, bond, counters.

Leans on doctor (machine, bonds, which counters tell of losses), ports (counters, pause frames) and verbs. Files, and
`ethtool -S` for what only a driver's own statistics have. Sources: Linux Documentation/ABI/stable/
sysfs-class-infiniband, Documentation/ABI/testing/sysfs-class-net (speed), Documentation/networking/…/mlx5/counters.rst.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as File

from rdmakit.cli.doctor.lossless import LOSSES
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.spread import Bond, read_bond
from rdmakit.cli.ports import COUNTERS, statistics_of
from rdmakit.connect import Path
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import Nic, NicPort

__all__ = ["CNPS", "LOST", "PAUSES", "PortFacts", "facts_of", "grown", "pcie_bytes_per_second", "read_counters"]

CNPS = ("cnp_sent", "cnp_handled", "ecn_marked")
PAUSES = ("rx_pfc", "tx_pfc")
_DISCARDS = ("xmit_discards", "rx_discards", "tx_discards", "rx_dropped", "tx_dropped")
LOST = (*(name for name in LOSSES if name != "local_ack_timeout_err"), "timeouts", *_DISCARDS)


@dataclass(frozen=True)
class PortFacts:
    """One way out as its host describes it. `lag_port`: 0, or which port of a bond; `link`: its own network device.

    `gbs`: of the link, in GB/s, 0 where nobody says; `pcie`: the slot that it shares with other ports, `pcie_gbs` what
    that carries each way before packet headers. `mode`, `policy`, `select`: the bond's. `software`: the CPU carries it.
    """

    name: str
    device: str
    number: int
    lag_port: int
    link: str
    layer: str
    up: bool
    gid: str
    gbs: float
    pcie: str
    pcie_gbs: float
    pcie_said: str
    bond: str
    mode: str
    policy: str
    select: str
    software: bool

    @property
    def hashes(self) -> bool:
        """A bond in which no queue pair can be given a port."""
        return bool(self.lag_port) and self.select != "queue_affinity"

    @property
    def place(self) -> tuple[str, int, int]:
        """What makes it one physical port and not another."""
        return self.device, self.number, self.lag_port


def pcie_bytes_per_second(gigatransfers: float, width: int) -> float:
    """Each way, line coding taken off, packet headers not (PCI Express Base Specification: 8b/10b up to 5 GT/s, then
    128b/130b; 64 GT/s in flits of 242 of 256 B).

    >>> round(pcie_bytes_per_second(16, 16) / 1e9, 1), round(pcie_bytes_per_second(5, 8) / 1e9, 1)
    (31.5, 4.0)
    """
    coded = 0.8 if gigatransfers < 8 else 242 / 256 if gigatransfers >= 64 else 128 / 130
    return gigatransfers * 1e9 * width * coded / 8


def _number(text: str) -> float:
    found = re.match(r"([\d.]+)", text)
    return float(found.group(1)) if found else 0.0


def _links(machine: Machine, bond: Bond) -> list[str]:
    """The bond's network devices by LAG port, which counts PCI functions."""

    def function(name: str) -> str:
        # Emulated ones have no `device` of their own: their folder is below it.
        return str(File(machine.sys, "class/net", name).resolve().parents[1])

    return sorted(bond.slaves, key=lambda name: (function(name), name))


def _described(machine: Machine, nic: Nic, port: NicPort, lag_port: int, gid: str) -> PortFacts:
    bond = read_bond(machine, nic) if lag_port else None
    links = _links(machine, bond) if bond is not None else []
    link = links[lag_port - 1] if 0 < lag_port <= len(links) else port.netdev
    speed = sysfs.read_int(machine.sys / "class/net" / link / "speed", 0) / 8e3 if link and lag_port else 0.0
    at = machine.sys / "bus/pci/devices" / nic.address
    if not at.is_dir():  # the emulated tree has no /sys/bus
        at = machine.sys / "class/infiniband" / nic.name / "device"
    width, pace = sysfs.read_int(at / "current_link_width", 0), _number(sysfs.read(at / "current_link_speed"))
    known = bool(nic.address and width > 0 and pace)
    return PortFacts(
        name=f"{nic.name}/{port.number}" + (f" (LAG port {lag_port})" if lag_port else ""),
        device=nic.name,
        number=port.number,
        lag_port=lag_port,
        link=link,
        layer=port.link_layer,
        up=port.state == "ACTIVE" and not (bond is not None and link in bond.down),
        gid=gid,
        gbs=max(speed, 0.0) or _number(port.rate) / 8,
        pcie=nic.address.rpartition(".")[0],
        pcie_gbs=pcie_bytes_per_second(pace, width) / 1e9 if known else 0.0,
        pcie_said=f"x{width} at {pace:g} GT/s" if known else "",
        bond=bond.name if bond is not None else "",
        mode=bond.mode if bond is not None else "",
        policy=bond.policy if bond is not None else "",
        select=bond.select if bond is not None else "",
        software=machine.emulated or not nic.address,
    )


def facts_of(machine: Machine, paths: Sequence[Path]) -> list[PortFacts]:
    """Of each path, in order; what files do not show of an opened device is left empty."""
    found = []
    for path in paths:
        name, info = path.context.device.name, path.context.ib_port(path.ib_port)
        nic = next((each for each in machine.nics if each.name == name), Nic(name, "", -1, "", (), "", ()))
        up = "ACTIVE" if path.context.port(path.ib_port).up else "DOWN"
        shown = next((port for port in nic.ports if port.number == path.ib_port),
                     NicPort(path.ib_port, up, "", info.link_layer, "", ""))  # fmt: skip
        found.append(_described(machine, nic, shown, path.lag_port, info.gid))
    return found


def read_counters(facts: PortFacts, root: File | None = None) -> dict[str, int]:
    """What this port has counted, by the names of `rdmakit ports` and of the kernel; `xmit_bytes` and `rcv_bytes` only
    where they are this port's alone: of a bond, its network device's, unless that leaves RDMA out.
    """
    base = root or sysfs.default_root()
    at = base / "class/infiniband" / facts.device / "ports" / str(facts.number)
    found = {name: value * unit for name, (where, unit) in COUNTERS.items()
             if (value := sysfs.read_int(at / where)) >= 0}  # fmt: skip
    for name in LOSSES:
        value = sysfs.read_int(at / "hw_counters" / name)
        if value >= 0 and name != "local_ack_timeout_err":
            found[name] = value
    drivers = statistics_of(facts.link) if facts.link and root is None else {}
    net = base / "class/net" / facts.link / "statistics" if facts.link else None
    bytes_of = {"xmit_bytes": "tx", "rcv_bytes": "rx"}
    if facts.lag_port:
        for name, side in bytes_of.items():
            found.pop(name, None)
            own = drivers.get(f"{side}_bytes_phy", -1)
            if own < 0 and facts.software and net is not None:
                own = sysfs.read_int(net / f"{side}_bytes")
            if own >= 0:
                found[name] = own
    elif not (at / "counters/port_xmit_data").exists() and net is not None:  # soft-RoCE
        found |= {name: value for name, side in bytes_of.items()
                  if (value := sysfs.read_int(net / f"{side}_bytes")) >= 0}  # fmt: skip
    if facts.software and net is not None:
        for name in ("rx_dropped", "tx_dropped"):
            value = sysfs.read_int(net / name)
            found |= {name: value} if value >= 0 else {}
    return found | {name: value for name, value in drivers.items() if not name.endswith("_bytes_phy")}


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """What each counter of both readings has grown by; one that was reset counts from 0.

    >>> grown({"a": 3, "b": 9, "c": 1}, {"a": 5, "b": 2})
    {'a': 2, 'b': 2}
    """
    return {name: value - before[name] if value >= before[name] else value
            for name, value in after.items() if name in before}  # fmt: skip
