"""What a run of the world did: its launches with their virtual times, and the faults that it survived.

Leans on the standard library.
"""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["LaunchTime", "Run"]


@dataclass(frozen=True)
class LaunchTime:
    """A launch that has ended; times in ns of virtual time (0 outside the Timed policy)."""

    kernel: str
    rank: int
    begin_ns: float
    end_ns: float

    @property
    def duration_ns(self) -> float:
        """From the first block's start to the last block's end."""
        return self.end_ns - self.begin_ns


class Run:
    """Outcome of `World.run`: `launches` that ended in it, `elapsed_ns` of virtual time, `faults` that happened.

    >>> Run([LaunchTime("put", 0, 0.0, 1500.0)], 2000, {"loss": 3})
    <Run: 1 launch (put), 2.000 µs of virtual time, survived 3 loss>
    """

    def __init__(
        self, launches: list[LaunchTime], elapsed_ns: float, faults: dict[str, int] | None = None
    ) -> None:
        self.launches = launches
        self.elapsed_ns = elapsed_ns
        self.faults = faults or {}

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "kernel": launch.kernel,
                "rank": launch.rank,
                "begin µs": round(launch.begin_ns / 1e3, 3),
                "end µs": round(launch.end_ns / 1e3, 3),
            }
            for launch in self.launches
        ]

    def __repr__(self) -> str:
        plural = "" if len(self.launches) == 1 else "es"
        time = f", {self.elapsed_ns / 1e3:.3f} µs of virtual time" if self.elapsed_ns else ""
        counts = Counter(launch.kernel for launch in self.launches)
        names = ", ".join(kernel if n == 1 else f"{n} × {kernel}" for kernel, n in counts.items())
        survived = ", ".join(f"{n} {name}" for name, n in self.faults.items())
        faults = f", survived {survived}" if survived else ""
        return f"<Run: {len(self.launches)} launch{plural}{f' ({names})' if names else ''}{time}{faults}>"

    def _repr_html_(self) -> str:
        try:
            table = import_module("rdmakit.show").data_table(self._rows(), title=repr(self)[1:-1])
        except ImportError:
            return f"<pre>{html.escape(repr(self))}</pre>"
        return str(table._repr_html_())
