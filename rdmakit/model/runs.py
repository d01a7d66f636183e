"""Worlds to run, in whatever process: one or many, on all cores.

Leans on measure and steps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from rdmakit.errors import BadArgument, BadState
from rdmakit.model.cluster_rules import check_one_nic
from rdmakit.model.measure import Measured, measure, wiring_of
from rdmakit.model.preset import Preset
from rdmakit.model.steps import Step
from rdmakit.model.workload import Workload

__all__ = ["Run", "run_all"]

MOST_QPS = 1024  # of two ranks, as make_plan
_DEAF = (signal.SIGINT, signal.SIG_IGN)  # of the pool's processes: who started them ends them


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

    def seeded(self, more: int) -> Run:
        """The same with its seeds, of routing, order of events and hashes, moved on."""
        hashed = self.preset.changed(hash_seed=(self.preset.count("hash_seed") + more) & 0x7FFFFFFF)
        return Run(hashed, replace(self.work, seed=self.work.seed + more), self.step, self.seed + more)


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
