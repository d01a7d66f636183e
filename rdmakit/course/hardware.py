"""Cells that need real hardware: run them where it is, and say why not where it is not.

Leans on `card`. What is here is read from ``/sys`` and ``/proc`` only: asking must not load a driver. Whoever
can ask better (the verbs or the GPU layer) registers a probe under the same name.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdmakit.course.card import card

Probe = Callable[[Path], str]
_PROBES: dict[str, Probe] = {}


def requirement(name: str) -> Callable[[Probe], Probe]:
    """Register a probe for ``name``: it gets the root of the file system and returns ``""`` or the reason why
    not.

    >>> @requirement("moon")
    ... def moon(root):
    ...     return "no moon on this machine"
    >>> missing("moon")
    'no moon on this machine'
    """

    def register(probe: Probe) -> Probe:
        _PROBES[name] = probe
        return probe

    return register


def _infiniband(root: Path) -> Path:
    """Where devices are listed: libibverbs's own SYSFS_PATH counts, if nobody names another root."""
    sysfs = Path(os.environ.get("SYSFS_PATH") or "/sys") if root == Path("/") else root / "sys"
    return sysfs / "class/infiniband"


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError:
        return []


def _driver(device: Path) -> str:
    try:
        return (device / "device" / "driver").resolve(strict=True).name
    except OSError:
        return ""


@requirement("gpu")
def _gpu(root: Path) -> str:
    if (
        _entries(root / "proc/driver/nvidia/gpus")
        or (root / "dev/nvidia0").exists()
        or (root / "dev/dxg").exists()
    ):
        return ""
    return "no NVIDIA GPU here (neither /proc/driver/nvidia/gpus nor /dev/nvidia0)"


@requirement("cupy")
def _cupy(root: Path) -> str:
    # Looked for, not imported: that would load the driver.
    return "" if importlib.util.find_spec("cupy") else "CuPy is not installed (pip install 'rdmakit[gpu]')"


@requirement("rdma")
def _rdma(root: Path) -> str:
    if _entries(_infiniband(root)):
        return ""
    return "no RDMA device here (/sys/class/infiniband is empty)"


@requirement("mlx5")
def _mlx5(root: Path) -> str:
    devices = _entries(_infiniband(root))
    if any(_driver(device) == "mlx5_core" for device in devices):
        return ""
    found = ", ".join(f"{d.name} ({_driver(d) or 'no driver'})" for d in devices)
    return f"no mlx5 device here, only {found}" if found else _rdma(root)


@requirement("dual-port")
def _dual_port(root: Path) -> str:
    count = sum(len(_entries(device / "ports")) for device in _entries(_infiniband(root)))
    return "" if count >= 2 else f"two RDMA ports are needed; {count} here (/sys/class/infiniband/*/ports)"


def missing(needed: str, root: str | Path = "/") -> str:
    """Why ``needed`` is not here; ``""`` if it is: ``"gpu"``, ``"cupy"``, ``"rdma"``, ``"mlx5"``, ``"dual-port"``,
    or several joined by ``+``.

    An unknown name raises `ValueError`: a typo must not skip a cell for ever.

    >>> missing("rdma", root="/nowhere")
    'no RDMA device here (/sys/class/infiniband is empty)'
    """
    reasons = []
    for name in needed.split("+"):
        if name.strip() not in _PROBES:
            raise ValueError(f"unknown requirement {name.strip()!r}: there are {', '.join(sorted(_PROBES))}")
        reasons.append(_PROBES[name.strip()](Path(root)))
    return "; ".join(dict.fromkeys(filter(None, reasons)))


class HardwareCell:
    """Whether a cell may run: true or false, a card with the reason, and a decorator that runs its function
    or not."""

    def __init__(self, needed: str, reason: str) -> None:
        self.needed, self.reason = needed, reason

    def __bool__(self) -> bool:
        return not self.reason

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` at once if the hardware is here, and give what it returns; else this card."""
        return function() if self else self

    def __str__(self) -> str:
        return f"skipped: {self.reason}" if self.reason else f"running on real hardware ({self.needed})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heading = f"On real hardware: needs {self.needed}"
        return card(heading, [("", f"Skipped: {self.reason}." if self.reason else "It is here.")])


def hardware_cell(needed: str, root: str | Path = "/") -> HardwareCell:
    """A cell "on real hardware": ``if hardware_cell("mlx5"): …``, or as a decorator of a function without
    arguments.

    Where the hardware is missing, the reason is printed.

    >>> if hardware_cell("rdma", root="/nowhere"):
    ...     print("never")
    skipped: no RDMA device here (/sys/class/infiniband is empty)
    """
    cell = HardwareCell(needed, missing(needed, root))
    if not cell:
        print(cell)
    return cell
