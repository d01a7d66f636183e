"""The ladder itself: every step on one cluster, side by side, with what each buys and what then is in the way.

Leans on measure and steps. Steps are independent worlds and run on all cores. Nothing is fitted here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from rdmakit.errors import BadArgument, BadState
from rdmakit.model.cluster_rules import check_one_nic
from rdmakit.model.measure import Measured, measure, wiring_of
from rdmakit.model.preset import Preset
from rdmakit.model.steps import STEPS, Step
from rdmakit.model.workload import Workload

__all__ = ["BUSY", "Ladder", "Run", "climb", "run_all"]

MOST_QPS = 1024  # of two ranks, as make_plan
_DEAF = (signal.SIGINT, signal.SIG_IGN)  # of the pool's processes: who started them ends them
BUSY = 0.9  # of the time: a resource that works so much is what the step waits for


@dataclass(frozen=True)
class Run:
    """One world to run: the same arguments give the same numbers, in whatever process. BadArgument for what no world
    can be: it is known before any of many runs begins.
    """

    preset: Preset
    work: Workload
    step: Step
    seed: int = 0

    def __post_init__(self) -> None:
        check_one_nic(self.preset)
        total = wiring_of(self.step, None).total_qps(self.work.channels)
        if self.work.kernel == "normal" and total > MOST_QPS:
            raise BadArgument(
                f"step {self.step.number} would have {total} queue pairs between two ranks",
                value=f"{self.work.channels} channels",
                rule=f"at most {MOST_QPS}",
                remedy="10 channels are the kernels' default",
            )


def _one(run: Run) -> Measured:
    return measure(run.preset, run.work, run.step, seed=run.seed)


def run_all(
    runs: Sequence[Run], *, jobs: int | None = None, done: Callable[[str], None] | None = None
) -> list[Measured]:
    """Each run's result, in order; on `jobs` processes (default: all cores). `done` is called when one ends. The first
    run that fails raises its error, and the others are given up.
    """
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise BadArgument(
            "jobs make no pool", value=jobs, rule="at least 1, or None for all cores", remedy="leave it out"
        )
    jobs = min(jobs or os.cpu_count() or 1, len(runs))
    results: list[Measured] = []
    if jobs <= 1:
        for run in runs:
            results.append(_one(run))
            if done is not None:
                done(run.step.title)
        return results
    return _on_processes(runs, jobs, done)


def _on_processes(runs: Sequence[Run], jobs: int, done: Callable[[str], None] | None) -> list[Measured]:
    """As they end; whoever is interrupted, or fails, waits for no run that nobody wants any more."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), signal.signal, _DEAF) as pool:
        try:
            waiting = [pool.submit(_one, run) for run in runs]
            step_of = dict(zip(waiting, (run.step.title for run in runs), strict=True))
            for ended in as_completed(waiting):
                ended.result()
                if done is not None:
                    done(step_of[ended])
            return [ended.result() for ended in waiting]
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise BadState(
                    "a process that ran the model has died",
                    value=f"one of {jobs}",
                    rule=str(error),
                    remedy="was it out of memory? fewer jobs: EP256 takes 3.3 GB each",
                ) from error
            raise


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
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> Ladder:
    """Runs `steps` on the cluster for each seed. A seed draws a routing, an order of events and the switches' hash
    seed. BadArgument for no seed; whatever a run raises.
    """
    if not seeds:
        raise BadArgument("no seed", value=(), rule="at least one", remedy="seeds=(0,)")
    began = time.monotonic()
    runs = []
    for seed in seeds:
        cluster = preset.changed(hash_seed=(preset.count("hash_seed") + seed) & 0x7FFFFFFF)
        runs += [Run(cluster, replace(work, seed=work.seed + seed), step, seed) for step in steps]
    results = run_all(runs, jobs=jobs, done=done)
    by_seed = tuple(tuple(results[i * len(steps) : (i + 1) * len(steps)]) for i in range(len(seeds)))
    return Ladder(preset, work, by_seed, time.monotonic() - began)
