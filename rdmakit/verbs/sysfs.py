"""What the kernel says of RDMA devices in files: attributes, GID tables, counters. Nothing is opened, no driver asked.

Leans on device.endpoint and errors. Every function takes the tree's `root`, "/sys" of this machine by default, so that
captured trees serve as well. libibverbs itself follows SYSFS_PATH (libibverbs/sysfs.c); so does `default_root`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdmakit.device.endpoint import gid_text
from rdmakit.errors import BadArgument

__all__ = [
    "GidEntry",
    "choose_gid",
    "counters",
    "default_root",
    "gid_table",
    "names",
    "of_machine",
    "read",
    "read_int",
    "require_machine",
]

ROCE_V2 = "RoCE v2"  # the other type is "IB/RoCE v1" (drivers/infiniband/core/cache.c)


def default_root() -> Path:
    """SYSFS_PATH, or /sys."""
    return Path(os.environ.get("SYSFS_PATH") or "/sys")


def of_machine(root: Path) -> Path:
    """The tree of the machine whose /sys, /proc and /dev are below `root`: "/" is this one, and follows SYSFS_PATH."""
    return default_root() if root == Path("/") else root / "sys"


def require_machine(root: Path) -> None:
    """BadArgument where there is neither a /sys nor a /proc below `root`."""
    if not any((root / name).is_dir() for name in ("sys", "proc")):
        raise BadArgument("no machine's files", value=str(root), rule="a folder with sys, proc and dev in it",
                          remedy="rdmakit doctor --capture DIR makes one, on the machine in question")  # fmt: skip


_LONGEST = 1 << 16  # bytes; the kernel's attributes are at most a page


def read(path: Path | str) -> str:
    """The stripped text of a file; "" when it cannot be read (missing, or EINVAL as for an unused GID)."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            return os.read(file, _LONGEST).decode(errors="replace").strip()
        finally:
            os.close(file)
    except OSError:
        return ""


def read_int(path: Path, missing: int = -1) -> int:
    """The number in a file, decimal or 0x…; `missing` when there is none."""
    text = read(path).split()
    try:
        return int(text[0], 0) if text else missing
    except ValueError:
        return missing


def names(path: Path) -> list[str]:
    """Entries of a directory, numbers in their order; none when it cannot be read."""
    try:
        found = os.listdir(path)
    except OSError:
        return []
    return sorted(found, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


@dataclass(frozen=True)
class GidEntry:
    """One usable entry of a port's GID table: its index, the GID in IPv6 notation, its type, its network device."""

    index: int
    gid: str
    kind: str
    netdev: str

    @property
    def link_local(self) -> bool:
        """fe80::/10: reaches this link only."""
        return self.gid.lower()[:3] in ("fe8", "fe9", "fea", "feb")

    @property
    def ipv4(self) -> bool:
        """An IPv4-mapped one: RoCE v2 over IPv4."""
        return self.gid.startswith("::ffff:") and "." in self.gid


def gid_table(device: str, port: int, root: Path | None = None) -> list[GidEntry]:
    """The entries that are set, by index. Zero ones, and what cannot be read (EINVAL in containers), are left out."""
    return list(_gids(device, port, root or default_root()))


def _gids(device: str, port: int, root: Path) -> Iterator[GidEntry]:
    """One after the other: a table has up to 1024 places, few of them set."""
    at = f"{root}/class/infiniband/{device}/ports/{port}"
    for name in names(Path(at, "gids")):
        digits = read(f"{at}/gids/{name}").replace(":", "")
        if not name.isdigit() or len(digits) != 32 or int(digits, 16) == 0:
            continue
        kind, netdev = read(f"{at}/gid_attrs/types/{name}"), read(f"{at}/gid_attrs/ndevs/{name}")
        yield GidEntry(int(name), gid_text(bytes.fromhex(digits)), kind, netdev)


def choose_gid(table: list[GidEntry], ethernet: bool) -> GidEntry | None:
    """What a QP should use: on Ethernet RoCE v2, routable before link-local, IPv4 before IPv6, the lowest index.

    On InfiniBand the first. None where nothing fits: RoCE v1 alone does not.

    >>> v2 = [GidEntry(0, "fe80::1", "RoCE v2", ""), GidEntry(3, "::ffff:10.0.0.1", "RoCE v2", "")]
    >>> choose_gid(v2, True).index, choose_gid(v2, False).index
    (3, 0)
    """
    if not ethernet:
        return table[0] if table else None
    usable = [entry for entry in table if entry.kind == ROCE_V2]
    return min(usable, key=lambda e: (e.link_local, not e.ipv4, e.index), default=None)


# Ours → where the kernel has it, in `ports/N`. `*_data` count 4-byte words (InfiniBand specification, 16.1.3.5).
_COUNTERS = {
    "xmit_data": ("counters/port_xmit_data",),
    "rcv_data": ("counters/port_rcv_data",),
    "xmit_packets": ("counters/port_xmit_packets", "hw_counters/sent_pkts"),
    "rcv_packets": ("counters/port_rcv_packets", "hw_counters/rcvd_pkts"),
}


def counters(device: str, port: int, root: Path | None = None) -> dict[str, int]:
    """A port's counters: `xmit_data` and `rcv_data` in 4-byte words, `*_bytes`, `*_packets`, and every hw_counter.

    Where the device counts no data (soft-RoCE) `*_bytes` are those of the network device behind it, with all traffic.
    """
    base = root or default_root()
    at = base / "class/infiniband" / device / "ports" / str(port)
    found = {name: read_int(at / "hw_counters" / name, 0) for name in names(at / "hw_counters") if name != "lifespan"}
    for name, places in _COUNTERS.items():
        found[name] = next((value for place in places if (value := read_int(at / place)) >= 0), 0)
    netdev = next((entry.netdev for entry in _gids(device, port, base) if entry.netdev), "")
    statistics = base / "class/net" / netdev / "statistics"
    counted = (at / "counters/port_xmit_data").exists() or not netdev
    for name, side in (("xmit", "tx"), ("rcv", "rx")):
        found[f"{name}_bytes"] = 4 * found[f"{name}_data"] if counted else read_int(statistics / f"{side}_bytes", 0)
    return found
