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
from rdmakit.model.tracks import KINDS, track_events
from rdmakit.show.perfetto import trace_json

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
MOST = 2_000_000


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
        """A Trace Event Format file: see tracks.py. `ranks`: only these and their NICs."""
        return trace_json(track_events(self, ranks, gpus_per_nic), **self.config)


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
