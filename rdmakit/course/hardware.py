"""Cells that need real hardware: run them where it is, and say why not where it is not, and how to get it.

Leans on `card`, and on emu for the NIC that anybody can have. What is here is read from ``/sys`` and ``/proc``
only: asking must not load a driver. Whoever can ask better (the verbs or the GPU layer) registers a probe under
the same name.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rdmakit.course.card import card

Probe = Callable[[Path], str]
Remedy = Callable[[], str]
_PROBES: dict[str, tuple[Probe, Remedy]] = {}


def requirement(name: str, remedy: Remedy = str) -> Callable[[Probe], Probe]:
    """Register a probe for ``name``: it gets the root of the file system and returns ``""`` or the reason why
    not. ``remedy()`` says what a reader without it can do; ``""`` if nothing.

    >>> @requirement("moon")
    ... def moon(root):
    ...     return "no moon on this machine"
    >>> missing("moon")
    'no moon on this machine'
    """

    def register(probe: Probe) -> Probe:
        _PROBES[name] = probe, remedy
        return probe

    return register


def _infiniband(root: Path) -> Path:
    """Where devices are listed: libibverbs's own SYSFS_PATH counts, if nobody names another root."""
    from rdmakit.verbs import sysfs

    return sysfs.of_machine(root) / "class/infiniband"


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


def _emulated() -> str:
    from rdmakit.emu.uverbs import missing as cannot

    install, command = cannot().rpartition(": ")[2], "rdmakit connectx -- jupyter lab"
    return f"{install}, then {command}" if install else f"{command} has an emulated ConnectX for this cell"


def _lent() -> str:
    return "open the notebook where there is one, in Google Colab for example"


@requirement("gpu", _lent)
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


@requirement("rdma", _emulated)
def _rdma(root: Path) -> str:
    if _entries(_infiniband(root)):
        return ""
    return "no RDMA device here (/sys/class/infiniband is empty)"


@requirement("mlx5", _emulated)
def _mlx5(root: Path) -> str:
    devices = _entries(_infiniband(root))
    if any(_driver(device) == "mlx5_core" for device in devices):
        return ""
    found = ", ".join(f"{d.name} ({_driver(d) or 'no driver'})" for d in devices)
    return f"no mlx5 device here, only {found}" if found else _rdma(root)


def _ports(device: Path) -> int:
    """Physical ones: a bond of two shows one."""
    bonded = (len(name.read_text().split()) for name in device.glob("device/net/*/master/bonding/slaves"))
    return max(len(_entries(device / "ports")), *bonded, 0)


@requirement("dual-port", _emulated)
def _dual_port(root: Path) -> str:
    count = sum(map(_ports, _entries(_infiniband(root))))
    return "" if count >= 2 else f"two RDMA ports are needed; {count} here (/sys/class/infiniband/*/ports)"


def missing(needed: str, root: str | Path = "/") -> str:
    """Why ``needed`` is not here; ``""`` if it is: ``"gpu"``, ``"cupy"``, ``"rdma"``, ``"mlx5"``, ``"dual-port"``,
    or several joined by ``+``.

    An unknown name raises `ValueError`: a typo must not skip a cell for ever.

    >>> missing("rdma", root="/nowhere")
    'no RDMA device here (/sys/class/infiniband is empty)'
    """
    return "; ".join(dict.fromkeys(reason for reason, _ in _lacking(needed, root)))


def _lacking(needed: str, root: str | Path) -> list[tuple[str, Remedy]]:
    """What is not here of it: each reason, and what to do."""
    found = []
    for name in map(str.strip, needed.split("+")):
        if name not in _PROBES:
            raise ValueError(f"unknown requirement {name!r}: there are {', '.join(sorted(_PROBES))}")
        probe, remedy = _PROBES[name]
        if reason := probe(Path(root)):
            found.append((reason, remedy))
    return found


class HardwareCell:
    """Whether a cell may run: true or false, a card with the reason, and a decorator that runs its function
    or not."""

    def __init__(self, needed: str, reason: str, remedy: str = "") -> None:
        self.needed, self.reason, self.remedy = needed, reason, remedy

    def __bool__(self) -> bool:
        return not self.reason

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Run ``function`` at once if the hardware is here, and give what it returns; else this card."""
        return function() if self else self

    def __str__(self) -> str:
        if not self.reason:
            return f"running on real hardware ({self.needed})"
        return f"skipped: {self.reason}" + (f"\nto run it: {self.remedy}" if self.remedy else "")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heading = f"On real hardware: needs {self.needed}"
        said = [("", f"Skipped: {self.reason}." if self.reason else "It is here.")]
        return card(heading, [*said, *([("hint", f"To run it: {self.remedy}.")] if self.remedy else [])])


def hardware_cell(needed: str, root: str | Path = "/") -> HardwareCell:
    """A cell "on real hardware": ``if hardware_cell("mlx5"): …``, or as a decorator of a function without
    arguments.

    Where the hardware is missing, the reason is printed, and how a reader gets it, or an emulated one.

    >>> if hardware_cell("rdma", root="/nowhere"):
    ...     print("never")
    skipped: no RDMA device here (/sys/class/infiniband is empty)
    to run it: ...rdmakit connectx -- jupyter lab...
    """
    remedies = dict.fromkeys(remedy() for _, remedy in _lacking(needed, root))
    cell = HardwareCell(needed, missing(needed, root), "; ".join(filter(None, remedies)))
    if not cell:
        print(cell)
    return cell
