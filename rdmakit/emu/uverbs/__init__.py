"""A ConnectX for programs that know nothing of rdmakit: the distribution's own libibverbs and libmlx5 on emulated HCAs.

Leans on tree and on the library `rdmakit.emu._uverbs`, which a process preloads: it answers what libibverbs and libmlx5
ask of the kernel. No root, no module, no container; libmlx5 builds the WQEs, the emulated HCA executes them.

    python -m rdmakit connectx -- ibv_devinfo

Processes in one `preloaded` environment reach each other's queue pairs, and their port counters are summed.
"""

from __future__ import annotations

import ctypes.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from rdmakit.emu.uverbs.tree import Nic, write_tree
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["Nic", "library", "missing", "preloaded"]

_MOST = 16


def library() -> Path:
    """The library to preload. NotAvailable when it has not been built."""
    package = Path(__file__).resolve().parent.parent
    for suffix in EXTENSION_SUFFIXES:
        if (package / f"_uverbs{suffix}").exists():
            return package / f"_uverbs{suffix}"
    raise NotAvailable(
        "the library that stands in for the kernel is not built",
        value=package / "_uverbs*.so",
        rule="it needs Linux's rdma/mlx5-abi.h when rdmakit is built",
        remedy="apt-get install linux-libc-dev, then build rdmakit again: python setup.py build_ext --inplace",
    )


def missing() -> str:
    """Why no program can have these devices here, and what to install; "" if it can."""
    try:
        library()
    except NotAvailable as error:
        return f"{error.what}: {error.remedy}"
    if ctypes.util.find_library("ibverbs") and ctypes.util.find_library("mlx5"):
        return ""
    return "no libibverbs, or none with mlx5: apt-get install libibverbs1 ibverbs-providers"


def default_nics(count: int, lag: str = "none") -> list[Nic]:
    """`mlx5_0` … with one port each, at 10.0.0.1, 10.0.1.1, …; with `lag` ("hash", "affinity") `mlx5_bond_0` …, each a
    bond of two ports.

    >>> default_nics(2)[1]
    Nic(name='mlx5_1', addresses=('10.0.1.1',), numa_node=0, lag='none')
    """
    if not 1 <= count <= _MOST:
        raise BadArgument("no such number of NICs", value=count, rule=f"1 … {_MOST}", remedy="choose fewer")
    name = "mlx5" if lag == "none" else "mlx5_bond"
    return [Nic(f"{name}_{number}", (f"10.0.{number}.1",), lag=lag) for number in range(count)]


@contextmanager
def preloaded(nics: int | Sequence[Nic] = 2) -> Iterator[dict[str, str]]:
    """The environment in which a process finds these devices; its files are there as long as the block lasts."""
    chosen = default_nics(nics) if isinstance(nics, int) else list(nics)
    with tempfile.TemporaryDirectory(prefix="rdmakit-sys-") as root:
        write_tree(Path(root), chosen)
        earlier = os.environ.get("LD_PRELOAD")
        preload = f"{library()}:{earlier}" if earlier else str(library())
        yield {**os.environ, "SYSFS_PATH": root, "LD_PRELOAD": preload}
