"""Every scenario that has to hold, holds: a slice of each here, a million schedules and more behind `make explore`.

RDMAKIT_EXPLORE_SECONDS: how long each task of the deep slice runs at least, by default what makes a million in all.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from explore_budget import Task, tasks

from rdmakit.explore import Explorer, known_scenarios

SLICE_SECONDS = 0.25
MILLION = 1_000_000
DEEP_SECONDS = float(os.environ.get("RDMAKIT_EXPLORE_SECONDS", 12))
SLOW = {"lock-laps"}  # 65,534 transfers before the first schedule


@pytest.mark.parametrize("name", [s.name for s in known_scenarios() if s.holds and s.name not in SLOW])
def test_a_slice_of_each(name, seed):
    """As many schedules as fit, 20 at least."""
    explorer, began, done = Explorer(name), time.perf_counter(), 0
    while done < 400 and (done == 0 or time.perf_counter() - began < SLICE_SECONDS):
        found = explorer.run(20, seed=seed + done)
        assert found.ok, found
        done += found.schedules


def _deep(task: Task, seed: int, seconds: float) -> tuple[str, int, int, float, str]:
    """In a process of its own."""
    explorer = task.explorer()
    began, done, distinct = time.perf_counter(), 0, 0
    explorer.core.start_over()
    while time.perf_counter() - began < seconds:
        found = explorer.run(200, seed=seed + done)
        done, distinct = done + found.schedules, distinct + found.distinct
        if not found.ok:
            return str(task), done, distinct, time.perf_counter() - began, str(found)
    return str(task), done, distinct, time.perf_counter() - began, ""


@pytest.mark.explore
@pytest.mark.timeout(3600)
def test_a_million_schedules_and_more(seed, capsys):
    """Every task runs as long as the others; what has failed is told with its seed."""
    everything = tasks()
    began = time.perf_counter()
    workers = min(len(os.sched_getaffinity(0)), len(everything))
    results = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = [pool.submit(_deep, task, seed, DEEP_SECONDS) for task in everything]
        for future in pending:
            results.append(future.result())
            name, done, distinct, seconds, failure = results[-1]
            with capsys.disabled():
                run = f"{done:>8} schedules, {distinct:>8} distinct, {seconds:5.1f} s"
                print(f"{name:<90} {run}  {failure}", file=sys.stderr)
    total = sum(result[1] for result in results)
    with capsys.disabled():
        print(
            f"\n{total} schedules of {len(results)} tasks, {sum(result[2] for result in results)} distinct, in "
            f"{time.perf_counter() - began:.0f} s by {workers} processes; seed {seed}",
            file=sys.stderr,
        )
    failures = [f"{result[0]}: {result[4]}" for result in results if result[4]]
    assert not failures, "\n".join(failures)
    assert total >= MILLION or DEEP_SECONDS < 12
