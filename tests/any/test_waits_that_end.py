"""A wait whose time-out is an answer (`Status::absent`): it ends when nobody can go on, unreported, and is no hang."""

from __future__ import annotations

import numpy as np
import pytest
from moe import make_world

from rdmakit.device import WATCH, Report
from rdmakit.device.report import REPORT, DeviceStatus
from rdmakit.errors import HangError

RUNS = [("fast", 1), ("fast", 32), ("timed", 1), ("explore", 1)]
SOURCE = """
#include <rdmakit/report.cuh>
using namespace rdmakit;
// Waits for `from`, and then sets `to`, however that went.
RDMAKIT_KERNEL pass_on(u64* from, u64* to, u64* status, Watch watch, u32 absent) {
    if (block_rank() != 0) return;
    u64 seen = 0;
    Subject who{"a word", 1, 0, 0, 0};
    if (absent != 0) who.late = Status::absent;
    *status = static_cast<u64>(wait_until<Scope::sys>(from, [](u64 v) { return v != 0; }, watch, who, &seen));
    store_release<Scope::sys>(to, u64{1});
}
"""


def world_of(policy, lanes, seed, count):
    """A world of `count` ranks in a chain: rank r waits for word r and sets word r + 1."""
    world = make_world(lanes, hosts=1, gpus_per_host=count, policy=policy, seed=seed)
    words, status = world.array((count + 1,), np.uint64), world.array((count,), np.uint64, 99)
    report = Report(world.array((REPORT.itemsize,), np.uint8))
    kernel = world.compile(SOURCE, name="pass_on.cu").get_function("pass_on")

    def launch(rank, absent):
        watch = np.zeros((), WATCH)
        watch["report"], watch["rank"] = report.address, rank
        watch["timeout_ns"] = 1_000_000 if absent else 5_000_000  # in virtual time it counts
        kernel(1, 32, (words[rank:], words[rank + 1 :], status[rank:], watch[()], absent), rank=rank)

    return world, words, status, report, launch


@pytest.mark.parametrize(("policy", "lanes"), RUNS)
def test_nobody_is_told(policy, lanes, seed):
    world, words, status, report, launch = world_of(policy, lanes, seed, 1)
    launch(0, 1)
    world.run()
    assert status[0] == DeviceStatus.ABSENT and words[1] == 1 and not report


@pytest.mark.parametrize(("policy", "lanes"), RUNS)
def test_only_such_a_wait_ends_so(policy, lanes, seed):
    """Rank 2 waits in vain, too, and that is a hang; rank 0's wait has ended before."""
    world, words, status, report, launch = world_of(policy, lanes, seed, 3)
    launch(0, 1)
    launch(2, 0)
    with pytest.raises(HangError) as caught:
        world.run()
    assert status[0] == DeviceStatus.ABSENT and words[1] == 1
    assert {wait.rank for wait in caught.value.report.waits} == {2}
    assert report.status is DeviceStatus.TIMEOUT and report.rank == 2


@pytest.mark.parametrize(("policy", "lanes"), RUNS)
def test_who_waits_for_one_that_waits_is_answered(policy, lanes, seed):
    """One wait of a chain ends, and all others are answered."""
    world, words, status, report, launch = world_of(policy, lanes, seed, 4)
    for rank in range(4):
        launch(rank, int(rank == 0))
    world.run()
    assert status.tolist() == [DeviceStatus.ABSENT, 0, 0, 0] and words[1:].all() and not report


def test_the_longest_wait_ends_first(seed):
    """In virtual time: rank 1 begins to wait later than rank 0, for rank 0."""
    world, _, status, report, launch = world_of("timed", 1, seed, 2)
    late = world.compile(
        "#include <rdmakit/atom.cuh>\nRDMAKIT_KERNEL late(unsigned ns) { rdmakit::sleep_ns(ns); }", name="late.cu"
    ).get_function("late")
    late(1, 32, (400_000,), rank=1)
    launch(0, 1)
    launch(1, 1)
    world.run()
    assert status.tolist() == [DeviceStatus.ABSENT, 0] and not report
    assert 1_000_000 <= world.now_ns < 1_100_000
