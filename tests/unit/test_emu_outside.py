"""Kernels of the CPU runner that wait for what is written outside: by a device's progress, by another thread."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rdmakit.device import WATCH, DeviceStatus, Report
from rdmakit.emu.outside import OutsideWorld
from rdmakit.errors import BadArgument, CompletionError, HangError

SOURCE = r"""
#include <rdmakit/report.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

// Answers each word that grows by one that is twice as large, until it has seen `last`.
RDMAKIT_KERNEL echo(u64* asked, u64* answered, u64 last, Watch watch) {
    for (u64 n = 1; n <= last; ++n) {
        u64 seen = 0;
        const Subject who{"a word from outside", n, 0, 0, 0};
        if (wait_until<Scope::sys>(asked, [n](u64 v) { return v >= n; }, watch, who, &seen) != Status::ok) return;
        store_release<Scope::sys>(answered, 2 * n);
    }
}
RDMAKIT_KERNEL ring(u64* doorbell, u64 value) { mmio_store(doorbell, value); }
"""


class Device:
    """A context whose provider works when it is let to."""

    closed = False

    def __init__(self, progress):
        self._provider = SimpleNamespace(progress=progress)
        self.device = SimpleNamespace(name="made up")


def launched(world, last):
    asked, answered = world.array(1, np.uint64), world.array(1, np.uint64)
    report, watch = Report(), np.zeros((), WATCH)
    watch["report"] = report.address
    echo = world.compile(SOURCE, name="outside.cu").get_function("echo")
    echo(1, 32, (asked, answered, np.uint64(last), watch))
    return asked, answered, report


def test_a_device_that_works_only_when_it_is_let_to(seed):
    world = OutsideWorld(seed=seed)
    asked, answered, report = launched(world, 50)
    seen = []

    def progress():
        seen.append(int(answered[0]))
        asked[0] = seen[-1] // 2 + 1

    world.let_work(Device(progress))
    world.run()
    assert answered[0] == 100 and not report
    assert seen == sorted(seen) and set(seen) >= set(range(0, 100, 2))


def test_another_thread_writes_at_its_own_pace(seed):
    world = OutsideWorld(seed=seed, patience_s=20)
    asked, answered, _ = launched(world, 30)

    def write():
        for n in range(1, 31):
            while answered[0] < 2 * (n - 1):
                time.sleep(0)
            time.sleep(0.001)
            asked[0] = n

    thread = threading.Thread(target=write)
    thread.start()
    world.run()
    thread.join()
    assert answered[0] == 60


def test_patience_has_an_end_and_says_who_waits_for_what(seed):
    world = OutsideWorld(seed=seed, patience_s=0.3)
    asked, _, report = launched(world, 3)
    world.let_work(Device(lambda: asked.__setitem__(0, 2)))
    began = time.monotonic()
    with pytest.raises(HangError, match="a word from outside"):
        world.run()
    assert 0.3 <= time.monotonic() - began < 10
    assert report.status is DeviceStatus.TIMEOUT
    _, answered, _ = launched(world, 1)  # the world goes on, and the device writes 2 to the first word only
    world.look_for(lambda: CompletionError("a queue pair is broken", syndrome=0x13))
    with pytest.raises(CompletionError, match="a queue pair is broken"):
        world.run()
    assert answered[0] == 0


def test_what_is_let_to_work_may_fail(seed):
    world = OutsideWorld(seed=seed)
    launched(world, 1)

    def progress():
        raise OSError("unplugged")

    world.let_work(Device(progress))
    with pytest.raises(OSError, match="unplugged"):
        world.run()


def test_a_register_outside_is_written_as_memory(seed):
    world = OutsideWorld(seed=seed)
    register = np.zeros(1, np.uint64)
    world.compile(SOURCE, name="outside.cu").get_function("ring")(1, 32, (register, np.uint64(0x1234567890ABCDEF)))
    world.run()
    assert register[0] == 0x1234567890ABCDEF


def test_patience_is_a_time(seed):
    for patience in (0, -1, float("inf"), float("nan")):
        with pytest.raises(BadArgument, match="no end of patience"):
            OutsideWorld(patience_s=patience)
    assert "no device yet" in repr(OutsideWorld())
