"""What `rdmakit bench ports` has measured and read of both ends, in one value; what it says is a function of it.

Leans on bench_ports_facts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rdmakit.cli.bench_ports_facts import PortFacts

__all__ = ["Cause", "Run", "Seen", "max_over_min", "ratio"]


@dataclass(frozen=True)
class Seen:
    """One port: `near` is the sender's end, `far` the receiver's. `alone_gbs`: GB/s of payload by it alone.

    `sent`: bytes that it counted while all worked, None where it counts none alone; `own_share`: of all ports' bytes
    while it was to work alone, those that left by it. `near_grown`, `far_grown`: how its counters grew while all
    worked. `failed`: why its queue pairs broke, or "". `carried`: bytes of payload that the queue pairs planned for it
    carried while all worked, warm-up included.
    """

    number: int
    near: PortFacts
    far: PortFacts
    alone_gbs: float
    qps: int
    source_ports: tuple[int, ...] = ()
    sent: int | None = None
    own_share: float | None = None
    near_grown: dict[str, int] = field(default_factory=dict)
    far_grown: dict[str, int] = field(default_factory=dict)
    failed: str = ""
    carried: int = 0

    @property
    def up(self) -> bool:
        return self.near.up and self.far.up


@dataclass(frozen=True)
class Run:
    """What was measured. `both_gbs`: all ports together. `empty`: the share of refills that found a queue pair with
    nothing under way. `busy`: of all processors, at the sender and at the receiver, 0 … 1.
    """

    ports: tuple[Seen, ...]
    both_gbs: float
    empty: float = 0.0
    busy: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Cause:
    """`name`: for programs; `said`: a sentence; `mend`: commands, or what to do, first things first."""

    name: str
    said: str
    mend: tuple[str, ...]


def ratio(run: Run) -> float:
    """All ports together over the fastest of them alone; 0 when nothing arrived."""
    one = max((port.alone_gbs for port in run.ports), default=0.0)
    return run.both_gbs / one if one else 0.0


def max_over_min(counts: Iterable[int]) -> float:
    """Busiest over idlest; an idle one counts as 1, since JSON has no infinity.

    >>> max_over_min([30, 20]), max_over_min([7, 0]), max_over_min([0, 0])
    (1.5, 7.0, 1.0)
    """
    known = list(counts)
    most = max(known, default=0)
    return most / max(min(known), 1) if most else 1.0
