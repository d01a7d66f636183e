"""Every scenario that has to hold, holds: a slice of each here, a million schedules and more behind `make explore`.

RDMAKIT_EXPLORE_SECONDS: how long each task of the deep slice runs, by default what makes a million in all and more.
"""

from __future__ import annotations

import faulthandler
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from explore_budget import Task, tasks

from rdmakit.explore import Explorer, known_scenarios

SLICE_SECONDS = 0.25
MILLION = 1_000_000
DEFAULT_SECONDS = 12.0
DEEP_SECONDS = float(os.environ.get("RDMAKIT_EXPLORE_SECONDS", DEFAULT_SECONDS))
SLOW = {"lock-laps"}  # 65,534 transfers before the first schedule


@pytest.mark.parametrize("name", [s.name for s in known_scenarios() if s.holds and s.name not in SLOW])
def test_a_slice_of_each(name, seed):
    """As many schedules as fit, 20 at least."""
    explorer, began, done = Explorer(name), time.perf_counter(), 0
    while done < 400 and (done == 0 or time.perf_counter() - began < SLICE_SECONDS):
        found = explorer.run(20, seed=seed + done)
        assert found.ok, found
        done += found.schedules


def _deep(task: Task, seed: int, seconds: float) -> tuple[int, int, float, str]:
    """In a process of its own."""
    explorer = task.explorer()
    began, done, distinct = time.perf_counter(), 0, 0
    explorer.core.start_over()
    while time.perf_counter() - began < seconds:
        found = explorer.run(200, seed=seed + done)
        done, distinct = done + found.schedules, distinct + found.distinct
        if not found.ok:
            return done, distinct, time.perf_counter() - began, str(found)
    return done, distinct, time.perf_counter() - began, ""


@pytest.fixture(scope="module")
def running(run_seed):
    """All tasks, each running as long as the others, on every core that there is; by name."""
    cores, spawn = len(os.sched_getaffinity(0)), get_context("spawn")
    with ProcessPoolExecutor(cores, mp_context=spawn, initializer=faulthandler.enable) as pool:
        yield {str(task): pool.submit(_deep, task, run_seed, DEEP_SECONDS) for task in tasks()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.explore
@pytest.mark.parametrize("name", [str(task) for task in tasks()])
def test_thousands_of_each(name, running):
    """A test each, since no test may take five minutes. What fails is told with its seed."""
    schedules, distinct, seconds, failure = running[name].result()
    print(f"{schedules} schedules, {distinct} distinct, {seconds:.1f} s")
    assert not failure, failure


@pytest.mark.explore
def test_a_million_in_all(running, capsys, seed):
    results = {name: future.result()[:3] for name, future in running.items() if not future.cancelled()}
    total = sum(result[0] for result in results.values())
    with capsys.disabled():
        for name, (schedules, distinct, seconds) in results.items():
            print(f"\n{name:<80} {schedules:>8} schedules, {distinct:>8} distinct, {seconds:.1f} s", end="")
        distinct = sum(result[1] for result in results.values())
        print(f"\n{total} schedules of {len(results)} tasks, {distinct} distinct; seed {seed}")
    assert total >= MILLION or len(results) < len(tasks()) or DEEP_SECONDS < DEFAULT_SECONDS
