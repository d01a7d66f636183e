"""The files that a kernel with ConnectX NICs would show: what libibverbs reads before it opens anything.

Leans on nothing. Attribute names and formats: Linux Documentation/ABI/stable/sysfs-class-infiniband.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Nic", "write_tree"]

_MAJOR, _FIRST_MINOR = 231, 192  # of /dev/infiniband/uverbs*
_GID_ENTRIES = 4
# ConnectX-7; libmlx5 recognises its devices by vendor and device.
_MODALIAS = "pci:v000015B3d00001021sv000015B3sd00000023bc02sc00i00"


@dataclass(frozen=True)
class Nic:
    """One device: its name, the IPv4 address of each port, the NUMA node that it says it is on."""

    name: str
    addresses: tuple[str, ...]
    numa_node: int = 0


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
    for number, nic in enumerate(nics):
        pci = root / f"devices/pci0000:00/0000:{number + 1:02x}:00.0"
        for name, text in (
            ("modalias", _MODALIAS), ("vendor", "0x15b3"), ("device", "0x1021"), ("class", "0x020000"),
            ("numa_node", str(nic.numa_node)), ("local_cpulist", "0-1"),
        ):  # fmt: skip
            _write(pci / name, text)
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
            _write(here / "link_layer", "Ethernet")
            _write(here / "state", "4: ACTIVE")
            _write(here / "phys_state", "5: LinkUp")
            _write(here / "rate", "200 Gb/sec (4X HDR)")
            _write(here / "lid", "0x0")
            _write(here / "pkeys/0", "0xffff")
