"""What happened when: marks of device code and NICs of one run, as an array, as a timeline file, as times between
marks.

Leans on emu's trace (rdmakit/emu/run/trace.hpp), measure and show. A WQE's life: reserve, publish, doorbell record,
doorbell, fetched by the NIC, on the wire, executed at the responder, CQE; and a signal that its receiver has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument
from rdmakit.show.perfetto import instant, names, slice_, trace_json

__all__ = ["EVENT", "KINDS", "Timeline", "record"]

# struct TraceEvent and enum class TraceKind, rdmakit/emu/run/trace.hpp
EVENT = np.dtype(
    [
        ("when_ps", "<u8"),
        ("until_ps", "<u8"),
        ("index", "<u8"),
        ("bytes", "<u8"),
        ("kind", "<u4"),
        ("unit", "<u4"),
        ("qpn", "<u4"),
        ("port", "<u4"),
    ]
)
KINDS: Mapping[int, str] = {
    0: "reserve",
    1: "publish",
    2: "doorbell record",
    3: "doorbell",
    4: "signal seen",
    16: "fetched",
    17: "wire",
    18: "executed",
    19: "CQE",
}
MOST = 2_000_000
_NIC, _WIRE = 16, 17


@dataclass(frozen=True)
class Timeline:
    """`events`: an array of EVENT, by time. `kernels`: (name, rank, begin ns, end ns). `left_out`: events that did
    not fit."""

    events: NDArray[Any]
    kernels: tuple[tuple[str, int, float, float], ...]
    left_out: int
    config: Mapping[str, Any]

    def counts(self) -> dict[str, int]:
        """Events of each kind."""
        return {name: int((self.events["kind"] == kind).sum()) for kind, name in KINDS.items()}

    def of(self, kind: str) -> NDArray[Any]:
        """Events of one kind. BadArgument when there is none of that name."""
        for number, name in KINDS.items():
            if name == kind:
                found: NDArray[Any] = self.events[self.events["kind"] == number]
                return found
        raise BadArgument(
            "no such kind of event", value=kind, rule="one of " + ", ".join(KINDS.values()), remedy="choose one"
        )

    def to_json(self, ranks: set[int] | None = None, gpus_per_nic: int = 1) -> str:
        """A Trace Event Format file. GPUs are processes, warps their tracks; NICs are processes, ports and QPs their
        tracks. `ranks`: only these and their NICs.
        """
        found: list[dict[str, Any]] = []
        processes: dict[int, str] = {}
        tracks: dict[tuple[int, int], str] = {}
        most = max((rank for _, rank, _, _ in self.kernels), default=0)
        nics = None if ranks is None else {rank // gpus_per_nic for rank in ranks}
        for name, rank, begin, end in self.kernels:
            if ranks is None or rank in ranks:
                processes[rank + 1] = f"GPU {rank}"
                tracks[rank + 1, 0] = "kernels"
                found.append(slice_(name, begin / 1e3, (end - begin) / 1e3, rank + 1, 0))
        for when, until, index, nbytes, kind, unit, qpn, port in self.events.tolist():
            is_nic = kind >= _NIC
            shown = nics if is_nic else ranks
            if shown is not None and unit not in shown:
                continue
            process = most + 2 + unit if is_nic else unit + 1
            track = (port if kind == _WIRE else 16 + qpn) if is_nic else 1 + port
            processes.setdefault(process, f"NIC {unit}" if is_nic else f"GPU {unit}")
            tracks.setdefault(
                (process, track), (f"port {port}" if kind == _WIRE else f"QP {qpn:#x}") if is_nic else f"warp {port}"
            )
            if kind == _WIRE:
                found.append(
                    slice_(f"QP {qpn:#x}", when / 1e6, (until - when) / 1e6, process, track, wqe=index, bytes=nbytes)
                )
            else:
                found.append(instant(KINDS[kind], when / 1e6, process, track, qp=qpn, index=index))
        header = names(dict(sorted(processes.items())), dict(sorted(tracks.items())))
        return trace_json([*header, *sorted(found, key=lambda e: e["ts"])], **self.config)


def record(world: Any, run: Any, config: Mapping[str, Any], *, most: int = MOST) -> Timeline:
    """Calls `run()` on a timed world and keeps what happens meanwhile. BadArgument for a world without time."""
    if world.policy != "timed":
        raise BadArgument(
            "no clock, no timeline", value=world.policy, rule='policy="timed"', remedy="rdmakit.model.world_of"
        )
    before = len(world.launches)
    world._core.start_trace(most)
    try:
        run()
    finally:
        raw, left_out = world._core.stop_trace()
    events = np.frombuffer(raw, EVENT)
    events = events[np.argsort(events["when_ps"], kind="stable")]
    kernels = tuple((t.kernel, t.rank, t.begin_ns, t.end_ns) for t in world.launches[before:])
    return Timeline(events, kernels, int(left_out), config)
