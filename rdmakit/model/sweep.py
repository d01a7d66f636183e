"""What if: one parameter through many values, a ladder's step at each.

Leans on ladder. Values run on all cores; with several seeds each value has a median and a band.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.model.ladder import Run, run_all
from rdmakit.model.measure import Measured
from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import Preset
from rdmakit.model.steps import Step
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
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> list[Swept]:
    """Each value of a preset's parameter (text with its unit, or a number in the parameter's own) or of
    WORK_PARAMETERS. `against`: another step, run with the same seeds for the gain. BadArgument for values that make no
    cluster, before anything runs.
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
    runs = []
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
        for seed in seeds:
            hashed = cluster.changed(hash_seed=(cluster.count("hash_seed") + seed) & 0x7FFFFFFF)
            seeded = replace(job, seed=job.seed + seed)
            runs += [Run(hashed, seeded, each, seed) for each in steps]
    results = run_all(runs, jobs=jobs, done=done)
    n = len(seeds) * len(steps)
    found = []
    for i, value in enumerate(values):
        mine = results[i * n : (i + 1) * n]
        baseline = mine[1 :: len(steps)] if against is not None else []
        found.append(Swept(str(value), tuple(mine[:: len(steps)]), tuple(baseline)))
    return found
