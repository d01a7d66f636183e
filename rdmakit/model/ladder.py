"""The ladder itself: every step on one cluster, side by side, with what each buys and what then is in the way.

Leans on runs, tune and steps. Nothing is fitted here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.model.measure import Measured
from rdmakit.model.preset import Preset
from rdmakit.model.runs import Run, run_all
from rdmakit.model.steps import STEPS, Step
from rdmakit.model.tune import tuned
from rdmakit.model.workload import Workload

__all__ = ["BUSY", "Ladder", "climb"]

BUSY = 0.9  # of the time: a resource that works so much is what the step waits for


@dataclass(frozen=True)
class Ladder:
    """Results of all steps, for one seed or several: `runs[seed][step]`."""

    preset: Preset
    work: Workload
    runs: tuple[tuple[Measured, ...], ...]
    seconds: float

    @cached_property
    def steps(self) -> tuple[Measured, ...]:
        """Of the first seed."""
        return self.runs[0]

    def gbs(self, step: int) -> float:
        """Logical GB/s of a step: the median over seeds."""
        return float(np.median([run[step].logical_gbs for run in self.runs]))

    def band(self, step: int) -> tuple[float, float]:
        """Least and largest over seeds."""
        found = [run[step].logical_gbs for run in self.runs]
        return min(found), max(found)

    @property
    def gain_total(self) -> float:
        """Last step over first, of each seed: the median."""
        return float(np.median([run[-1].logical_gbs / run[0].logical_gbs for run in self.runs]))

    @property
    def gain_band(self) -> tuple[float, float]:
        found = [run[-1].logical_gbs / run[0].logical_gbs for run in self.runs]
        return min(found), max(found)

    def bottlenecks(self, step: int) -> list[str]:
        """Resources of a step that are busy for more than BUSY of the time."""
        return self.steps[step].usage.above(BUSY)

    def in_the_way(self) -> list[str]:
        """Resources that the last step keeps busy for more than BUSY of the time while its ports are not."""
        last = len(self.steps) - 1
        if self._ports >= BUSY:
            return []
        return [name for name in self.bottlenecks(last) if not name.startswith("port ")]

    @property
    def _ports(self) -> float:
        busy = self.steps[-1].usage.busiest
        return max(busy["port send"], busy["port receive"])

    def verdict(self) -> str:
        """A sentence: what the last step waits for, named with how busy it is and the ports are."""
        busy, number = self.steps[-1].usage.busiest, self.steps[-1].step
        named = " and ".join(f"{name} ({busy[name]:.0%} busy)" for name in self.in_the_way())
        if named:
            return f"step {number} is bound by {named}, not by the ports ({self._ports:.0%}): more of those would idle"
        if self._ports >= BUSY:
            return f"step {number} is bound by the ports ({self._ports:.0%} busy)"
        most = max((name for name in busy if not name.startswith("port ")), key=lambda name: busy[name])
        return (
            f"step {number} is bound by nothing that is busy (ports {self._ports:.0%}, {most} {busy[most]:.0%}): "
            f"by latency"
        )


def climb(
    preset: Preset,
    work: Workload,
    *,
    seeds: Sequence[int] = (0,),
    steps: Sequence[Step] = STEPS,
    try_puts: bool = False,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> Ladder:
    """Runs `steps` on the cluster for each seed, each with puts of the size that suits it (puts.py) unless `work` has
    one; with `try_puts` of the size that is found best for it, by the first seed. A seed draws a routing, an order of
    events and the switches' hash seed. BadArgument for no seed; whatever a run raises.
    """
    if not seeds:
        raise BadArgument("no seed", value=(), rule="at least one", remedy="seeds=(0,)")
    began = time.monotonic()
    first = [Run(preset, work, step).seeded(seeds[0]) for step in steps]
    if try_puts:
        first = tuned(first, jobs=jobs, done=done)
    results = run_all([run.seeded(seed - seeds[0]) for seed in seeds for run in first], jobs=jobs, done=done)
    by_seed = tuple(tuple(results[i * len(steps) : (i + 1) * len(steps)]) for i in range(len(seeds)))
    return Ladder(preset, work, by_seed, time.monotonic() - began)
