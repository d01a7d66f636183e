"""The files that checks read, copied from a machine into a folder: what `--root` looks at elsewhere, or later.

Leans on errors and verbs.sysfs. Links of sysfs stay links, so that the PCI tree, bonds and functions are told apart in
the copy. What cannot be read is left out. It holds network addresses (GIDs), PCI addresses, versions and counters.
"""

from __future__ import annotations

import os
from pathlib import Path

from rdmakit.errors import BadArgument
from rdmakit.verbs import sysfs

__all__ = ["PATTERNS", "capture"]

_DEVICE, _PORT = "sys/class/infiniband/*", "sys/class/infiniband/*/ports/*"
_NET, _PCI = "sys/class/net/*", "sys/bus/pci/devices/*"
_MODULES = ("ib_uverbs", "mlx5_core", "mlx5_ib", "nvidia", "nvidia_peermem", "nv_peer_mem")
PATTERNS = (
    *(
        f"{_DEVICE}/{name}"
        for name in ("device/driver", "device/physfn", "device/numa_node", "fw_ver", "tc/*/traffic_class")
    ),
    *(f"{_PORT}/{name}" for name in ("state", "phys_state", "rate", "link_layer", "gids/*", "gid_attrs/types/*")),
    *(f"{_PORT}/{name}" for name in ("gid_attrs/ndevs/*", "counters/*", "hw_counters/*")),
    *(f"{_NET}/{name}" for name in ("mtu", "master", "bonding/mode", "bonding/xmit_hash_policy", "bonding/slaves")),
    *(f"{_NET}/{name}" for name in ("bonding_slave/mii_status", "ecn/*/enable/*", "compat/devlink/*")),
    *(f"{_PCI}/{name}" for name in ("vendor", "device", "class", "numa_node", "driver", "physfn", "iommu_group/type")),
    *(f"{_PCI}/{which}_link_{what}" for which in ("current", "max") for what in ("speed", "width")),
    *(f"sys/module/{name}" for name in _MODULES),
    "sys/kernel/debug/mlx5/*/lag/*",
    "sys/kernel/config/rdma_cm/*/ports/*/default_roce_tos",
    *(f"proc/{name}" for name in ("self/limits", "self/status", "sys/kernel/osrelease", "cpuinfo")),
    *(f"proc/driver/nvidia/{name}" for name in ("version", "params", "gpus/*/information")),
    "dev/infiniband/uverbs*",
    "dev/nvidia[0-9]*",
    "dev/dxg",
)
_MOST_BYTES = 1 << 18


def _place(root: Path, into: Path, path: Path) -> bool:
    """Copies one file, or makes one folder, with every link on the way; whether it is there now."""
    here = root
    for part in path.relative_to(root).parts:
        here = here / part
        while here.is_symlink():
            target = (here.parent / os.readlink(here)).resolve()
            if here.parent.name != "proc" and target.is_relative_to(root):  # /proc/self is a process that will be gone
                link = into / here.relative_to(root)
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(os.path.relpath(into / target.relative_to(root), link.parent))
                here = target
            else:
                break
    copy = into / here.relative_to(root)
    try:
        if here.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
        elif "dev" in path.relative_to(root).parts[:1]:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.touch()
        else:
            with open(here, "rb") as file:
                text = file.read(_MOST_BYTES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(text)
    except OSError:
        return False
    return True


def _unset(path: Path) -> bool:
    """Of a GID table, or its attributes: an entry that is not set. There are up to 1024, few of them set."""
    inside = path.parts[-3:]
    if "gids" not in inside and "gid_attrs" not in inside:
        return False
    port = path.parents[2] if "gid_attrs" in inside else path.parents[1]
    text = sysfs.read(port / "gids" / path.name)
    return bool(text) and not text.strip("0:")


def capture(into: str | Path, root: str | Path = "/") -> int:
    """Copy what checks read from the machine at `root` into the new folder `into`; returns how many files.

    BadArgument when the folder has something in it already.
    """
    base, target = Path(root).resolve(), Path(into).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadArgument("the folder is not empty", value=str(into), rule="a capture is one machine at one moment",
                          remedy="name a new folder")  # fmt: skip
    found = 0
    for pattern in PATTERNS:
        for path in sorted(base.glob(pattern)):
            found += not _unset(path) and _place(base, target, path)
    return found
