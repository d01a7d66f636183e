"""The files that a kernel with ConnectX NICs would show: what libibverbs reads before it opens anything.

Leans on errors. Attribute names and formats: Linux Documentation/ABI/stable/sysfs-class-infiniband. Counters are files
that hold 0; a program on the emulated NICs that opens one reads what has been counted (counters.cpp).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from rdmakit.errors import BadArgument

__all__ = ["LAG_MODES", "Nic", "write_tree"]

LAG_MODES = ("none", "hash", "affinity")

_MAJOR, _FIRST_MINOR = 231, 192  # of /dev/infiniband/uverbs*
_GID_ENTRIES = 4
# Names in ports/N/counters and ports/N/hw_counters, and in a network device's statistics; counters.cpp has the same.
_COUNTERS = ("port_xmit_data", "port_rcv_data", "port_xmit_packets", "port_rcv_packets")
_HW_COUNTERS = (
    "duplicate_request", "out_of_sequence", "packet_seq_err", "implied_nak_seq_err", "local_ack_timeout_err",
    "rx_icrc_encapsulated",
)  # fmt: skip
_STATISTICS = ("tx_bytes", "rx_bytes", "tx_packets", "rx_packets")
_SELECT = {"hash": "hash", "affinity": "queue_affinity"}  # lag_port_select_mode, as devlink names them
# ConnectX-7; libmlx5 recognises its devices by vendor and device.
_MODALIAS = "pci:v000015B3d00001021sv000015B3sd00000023bc02sc00i00"


@dataclass(frozen=True)
class Nic:
    """One device: its name, the IPv4 address of each port, the NUMA node that it says it is on.

    With `lag` ("hash" or "affinity") two physical ports are bonded into one device with one port and one address, as
    mlx5 does it; "hash": the UDP source port chooses the link, "affinity": each queue pair is given one.
    """

    name: str
    addresses: tuple[str, ...]
    numa_node: int = 0
    lag: str = "none"

    def __post_init__(self) -> None:
        if self.lag not in LAG_MODES:
            raise BadArgument("no such LAG mode", value=self.lag, rule=", ".join(LAG_MODES), remedy="choose one")
        if self.lag != "none" and len(self.addresses) != 1:
            raise BadArgument(
                "a bonded device has one port", value=self.addresses, rule="one address", remedy="give the bond's"
            )

    def netdevs(self, number: int) -> tuple[str, ...]:
        """The network devices of the bond's two functions, if it is one; `number` is the device's."""
        return () if self.lag == "none" else (f"enp{number + 1}s0f0np0", f"enp{number + 1}s0f1np1")


def _sysfs_gid(address: str) -> str:
    digits = ipaddress.IPv6Address(f"::ffff:{address}").packed.hex()
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def write_tree(root: Path, nics: list[Nic]) -> None:
    """Make `root` a /sys with these devices; both a link-local and an IPv4 GID of RoCE v2 on each port."""
    verbs, infiniband = root / "class/infiniband_verbs", root / "class/infiniband"
    _write(verbs / "abi_version", "6")
    (root / "wire").touch()  # processes meet there (wire.hpp)
    for number, nic in enumerate(nics):
        pci = root / f"devices/pci0000:00/0000:{number + 1:02x}:00.0"
        for name, text in (
            ("modalias", _MODALIAS), ("vendor", "0x15b3"), ("device", "0x1021"), ("class", "0x020000"),
            ("numa_node", str(nic.numa_node)), ("local_cpulist", "0-1"),
        ):  # fmt: skip
            _write(pci / name, text)
        driver = root / "bus/pci/drivers/mlx5_core"
        driver.mkdir(parents=True, exist_ok=True)
        (pci / "driver").symlink_to(driver)
        _write(verbs / f"uverbs{number}/ibdev", nic.name)
        _write(verbs / f"uverbs{number}/dev", f"{_MAJOR}:{_FIRST_MINOR + number}")
        _write(verbs / f"uverbs{number}/abi_version", "1")
        (verbs / f"uverbs{number}/device").symlink_to(pci)
        at = infiniband / nic.name
        _write(at / "node_type", "1: CA")
        _write(at / "node_guid", f"0200:00ff:fe00:{number + 1:04x}")
        _write(at / "sys_image_guid", f"0200:00ff:fe00:{number + 1:04x}")
        _write(at / "fw_ver", "28.39.1002")
        _write(at / "hca_type", "MT4129")
        _write(at / "board_id", "RDMAKIT0001")
        _write(at / "node_desc", "rdmakit's emulated HCA")
        (at / "device").symlink_to(pci)
        for port, address in enumerate(nic.addresses, 1):
            here = at / f"ports/{port}"
            link_local = f"fe80:0000:0000:0000:0200:00ff:fe{port:02x}:{number + 1:04x}"
            gids = [link_local, _sysfs_gid(address)]
            for index in range(_GID_ENTRIES):
                gid = gids[index] if index < len(gids) else ":".join(["0000"] * 8)
                _write(here / f"gids/{index}", gid)
                _write(here / f"gid_attrs/types/{index}", "RoCE v2")
                if nic.lag != "none":
                    _write(here / f"gid_attrs/ndevs/{index}", f"bond{number}")
            for folder, names in (("counters", _COUNTERS), ("hw_counters", _HW_COUNTERS)):
                for name in names:
                    _write(here / folder / name, "0")
            _write(here / "link_layer", "Ethernet")
            _write(here / "state", "4: ACTIVE")
            _write(here / "phys_state", "5: LinkUp")
            _write(here / "rate", "200 Gb/sec (4X HDR)")
            _write(here / "lid", "0x0")
            _write(here / "pkeys/0", "0xffff")
        if nic.lag != "none":
            _write_bond(root, number, nic)


def _write_bond(root: Path, number: int, nic: Nic) -> None:
    """The bond's network device, and below it one of each PCI function; the RDMA device is the first function's."""
    net, bond = root / "class/net", root / f"devices/virtual/net/bond{number}"
    _write(bond / "bonding/slaves", " ".join(nic.netdevs(number)))
    # Both use all links. A queue pair keeps the link that it is given only while the bond would use it for any flow.
    _write(bond / "bonding/mode", "balance-xor 2" if nic.lag == "hash" else "802.3ad 4")
    _write(bond / "bonding/xmit_hash_policy", "layer3+4 1")
    net.mkdir(parents=True, exist_ok=True)
    (net / bond.name).symlink_to(bond)
    for function, name in enumerate(nic.netdevs(number)):
        here = root / f"devices/pci0000:00/0000:{number + 1:02x}:00.{function}/net/{name}"
        _write(here / "compat/devlink/lag_port_select_mode", _SELECT[nic.lag])
        _write(here / "bonding_slave/mii_status", "up")
        for counter in _STATISTICS:
            _write(here / "statistics" / counter, "0")
        (here / "master").symlink_to(bond)
        (net / name).symlink_to(here)
