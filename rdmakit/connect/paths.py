"""The ways out of a rank: ports of one device, devices of one port each, or the two ports of a bond, numbered from 1.

Leans on device. A path has the protection domain of its device, so memory that is to leave by any of them is registered
once in each domain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.device import MR, PD, Context, GpuMR
from rdmakit.device import open as open_device
from rdmakit.errors import BadArgument

__all__ = ["Path", "Registered", "domains", "open_paths", "register", "register_gpu"]

_BOND_PORTS = 2  # libmlx5 knows LAG ports 1 and 2 (providers/mlx5/mlx5.c, _mlx5dv_query_qp_lag_port)


@dataclass(frozen=True)
class Path:
    """A way out: `ib_port` is what queue pairs name; `lag_port` 0, or the port of a bond behind it."""

    context: Context
    pd: PD
    ib_port: int
    lag_port: int = 0

    @property
    def physical(self) -> int:
        """The port of its device whose counters it moves."""
        return self.lag_port or self.ib_port

    def __str__(self) -> str:
        port = f"{self.ib_port} (LAG port {self.lag_port})" if self.lag_port else f"{self.ib_port}"
        return f"{self.context.device.name} port {port}"


def open_paths(devices: Sequence[str | Context]) -> list[Path]:
    """Every port of these devices, in order; names are opened by `rdmakit.open`. Ports that are down are there, too."""
    if isinstance(devices, str) or not devices:
        raise BadArgument("no devices", value=devices, rule="a list of names, or of opened devices",
                          remedy='for example ["mlx5_0"], or ["rxe0", "rxe1"]')  # fmt: skip
    found = []
    for named in devices:
        context = open_device(named) if isinstance(named, str) else named
        pd, device = context.alloc_pd(), context.device
        if device.lag == "none":
            found += [Path(context, pd, info.ib_port) for info in device.ports]
        else:
            numbers = [info.number for info in device.ports]
            behind = numbers if len(numbers) > 1 else range(1, _BOND_PORTS + 1)
            found += [Path(context, pd, device.ports[0].ib_port, number) for number in behind]
    return found


def domains(paths: Sequence[Path]) -> list[PD]:
    """The protection domains of the paths, each once, in their order."""
    return list(dict.fromkeys(path.pd for path in paths))


@dataclass(frozen=True)
class Registered:
    """Memory as all paths know it; `lkey(path)` is its key for what leaves there."""

    address: int
    nbytes: int
    mrs: Mapping[PD, MR | GpuMR]

    def lkey(self, path: Path) -> int:
        return self.mrs[path.pd].lkey

    def close(self) -> None:
        """Deregister it everywhere."""
        for mr in self.mrs.values():
            mr.close()

    def told(self, paths: Sequence[Path]) -> dict[str, Any]:
        """What peers need: where it is, and its key on each path."""
        return {"address": self.address, "bytes": self.nbytes, "rkeys": [self.mrs[path.pd].rkey for path in paths]}


def register(paths: Sequence[Path], memory: np.ndarray[Any, Any], **options: Any) -> Registered:
    """Register `memory` with the device of every path; `options` are those of `PD.register`."""
    return Registered(int(memory.ctypes.data), memory.nbytes, _of_all(paths, lambda pd: pd.register(memory, **options)))


def register_gpu(paths: Sequence[Path], address: int, nbytes: int, **options: Any) -> Registered:
    """The same of a GPU's memory; `options` are those of `PD.register_gpu`."""
    mrs = _of_all(paths, lambda pd: pd.register_gpu(address, nbytes, **options))
    return Registered(address, nbytes, mrs)


def _of_all(paths: Sequence[Path], register: Callable[[PD], MR | GpuMR]) -> dict[PD, MR | GpuMR]:
    """A region in each domain, or none of them where one refuses."""
    mrs: dict[PD, MR | GpuMR] = {}
    try:
        for pd in domains(paths):
            mrs[pd] = register(pd)
    except Exception:
        for made in mrs.values():
            made.close()
        raise
    return mrs
