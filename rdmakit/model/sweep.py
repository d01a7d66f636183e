"""What if: one parameter through many values, a ladder's step at each.

Leans on runs and tune. Values run on all cores; with several seeds each value has a median and a band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.model.measure import Measured
from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import Preset
from rdmakit.model.runs import Run, run_all
from rdmakit.model.steps import Step
from rdmakit.model.tune import tuned
from rdmakit.model.workload import Workload

__all__ = ["WORK_PARAMETERS", "Swept", "sweep"]

WORK_PARAMETERS = ("tokens", "channels", "chunk", "slots", "hidden", "seed")  # of the workload, sweepable too


@dataclass(frozen=True)
class Swept:
    """`value` as it was given; results of all seeds, and of the step that they are compared with, if there is one."""

    value: str
    results: tuple[Measured, ...]
    baseline: tuple[Measured, ...] = ()

    def median(self, name: str) -> float:
        """Of a field of Measured, over seeds."""
        return float(np.median([getattr(r, name) for r in self.results]))

    def band(self, name: str) -> tuple[float, float]:
        found = [getattr(r, name) for r in self.results]
        return min(found), max(found)

    @property
    def gains(self) -> list[float]:
        """Logical GB/s over those of the other step, seed by seed: routing and hashes are the same."""
        return [r.logical_gbs / b.logical_gbs for r, b in zip(self.results, self.baseline, strict=True)]

    @property
    def gain(self) -> float:
        """The median."""
        return float(np.median(self.gains))


def sweep(
    preset: Preset,
    work: Workload,
    step: Step,
    parameter: str,
    values: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    against: Step | None = None,
    try_puts: bool = False,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> list[Swept]:
    """Each value of a preset's parameter (text with its unit, or a number in the parameter's own) or of
    WORK_PARAMETERS. `against`: another step, run with the same seeds for the gain. `try_puts`: every value and step
    with puts of the size that is found best for it, by the first seed. BadArgument for values that make no cluster,
    before anything runs.
    """
    if not values or not seeds:
        raise BadArgument(
            "nothing to sweep",
            value=(list(values), list(seeds)),
            rule="at least one value and one seed",
            remedy="for example port_rate=100Gb/s,200Gb/s,400Gb/s",
        )
    if parameter not in PARAMETERS and parameter not in WORK_PARAMETERS:
        raise BadArgument(
            "no parameter of that name",
            value=parameter,
            rule="of a preset, or " + ", ".join(WORK_PARAMETERS),
            remedy="rdmakit plan --parameters lists them",
        )
    steps = [step] if against is None else [step, against]
    first = []
    for value in values:
        cluster, job = preset, work
        if parameter in WORK_PARAMETERS:
            if not str(value).isdigit():
                raise BadArgument(
                    f"{parameter} is a whole number", value=value, rule="digits", remedy="for example 256"
                )
            changed: dict[str, Any] = {parameter: int(value)}
            job = replace(work, **changed)
        else:
            cluster = preset.changed(**{parameter: value})
            job = replace(work, hosts=cluster.count("hosts"), local=cluster.count("gpus_per_host"))
        first += [Run(cluster, job, each).seeded(seeds[0]) for each in steps]
    if try_puts:
        first = tuned(first, jobs=jobs, done=done)
    results = run_all([run.seeded(s - seeds[0]) for run in first for s in seeds], jobs=jobs, done=done)
    n = len(seeds)
    by_run = [tuple(results[i * n : (i + 1) * n]) for i in range(len(first))]
    every = len(steps)
    return [
        Swept(str(value), by_run[i * every], by_run[i * every + 1] if every == 2 else ())
        for i, value in enumerate(values)
    ]
