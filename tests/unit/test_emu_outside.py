"""Kernels of the CPU runner that wait for what is written outside: by a device's progress, by another thread."""

import multiprocessing
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from rdmakit.device import WATCH, DeviceStatus, Report
from rdmakit.emu.outside import OutsideWorld
from rdmakit.emu.shared_memory import SharedMemory, map_shared
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
// Polls as a user's kernel may, with no primitive of ours in the loop.
RDMAKIT_KERNEL poll(const volatile u64* flag, u64* seen) {
    while (*flag == 0);
    *seen = *flag;
}
RDMAKIT_KERNEL ring(u64* doorbell, u64 value) { mmio_store(doorbell, value); }
"""
UPDATES = r"""
#include <rdmakit/atom.cuh>
using namespace rdmakit;

// Every kind of update, `times` each; words by kind.
RDMAKIT_KERNEL update(u64* words, u64 times, u64 who) {
    if (threadIdx.x != 0) return;
    for (u64 n = 0; n < times; ++n) {
        fetch_add<Scope::sys>(words + 0, 1ull);
        fetch_max<Scope::sys>(words + 1, 2 * n + who);
        fetch_or<Scope::sys>(words + 2, 1ull << (who + 2 * (n % 32)));
        fetch_wrap<Scope::sys>(reinterpret_cast<u32*>(words + 3), 999u);
        for (u64 old = words[4];;) {
            const u64 seen = compare_swap<Scope::sys>(words + 4, old, old + 3);
            if (seen == old) break;
            old = seen;
        }
        words[16 + who] += exchange<Scope::sys>(words + 5, (who << 32 | n) + 1);
        atomicAdd(words + 6, 5ull);
    }
}
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


def test_a_loop_that_polls_waits_for_the_outside(seed):
    world = OutsideWorld(seed=seed, patience_s=30)
    flag, seen = world.array(1, np.uint64), world.array(32, np.uint64)
    polls = world.compile(SOURCE, name="outside.cu", lanes=32).get_function("poll")
    polls(1, 32, (flag, seen))
    timer = threading.Timer(1.5, lambda: flag.__setitem__(0, 77))  # a loop alone is endless after a fifth of that
    timer.start()
    world.run()
    timer.join()
    assert seen[0] == 77


def test_a_loop_that_polls_a_proxied_device_lets_it_work(seed):
    world = OutsideWorld(seed=seed, patience_s=30)
    flag, seen, turns = world.array(1, np.uint64), world.array(1, np.uint64), []

    def progress():
        turns.append(1)
        if len(turns) == 300:
            flag[0] = 5

    world.let_work(Device(progress))
    world.compile(SOURCE, name="outside.cu").get_function("poll")(1, 32, (flag, seen))
    world.run()
    assert seen[0] == 5


def test_a_loop_that_nobody_ends_is_endless_when_patience_ends(seed):
    world = OutsideWorld(seed=seed, patience_s=0.5)
    flag, seen = world.array(1, np.uint64), world.array(1, np.uint64)
    world.compile(SOURCE, name="outside.cu").get_function("poll")(1, 32, (flag, seen))
    began = time.monotonic()
    with pytest.raises(HangError, match="polls memory that nobody writes"):
        world.run()
    assert 0.5 <= time.monotonic() - began < 20


def updates(told, times, who, seed):
    """In a process of its own: `update` on memory that another one made."""
    world = OutsideWorld(seed=seed)
    words = map_shared(told, "words").view(np.uint64)
    while words[15] < 2:  # both at once: the compiler takes its time
        words[13 + who], words[15] = 1, words[13] + words[14]
    world.compile(UPDATES, name="updates.cu").get_function("update")(1, 32, (words, np.uint64(times), np.uint64(who)))
    world.run()


def test_updates_of_two_processes_are_whole(seed):
    times = 200_000
    memory = SharedMemory(4096, "words")
    OutsideWorld().compile(UPDATES, name="updates.cu")  # once
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=updates, args=(memory.told, times, who, seed + who)) for who in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    words = memory.array.view(np.uint64)
    assert words[0] == 2 * times
    assert words[1] == 2 * (times - 1) + 1
    assert words[2] == (1 << 64) - 1
    assert words[3] == 2 * times % 1000
    assert words[4] == 3 * 2 * times
    put = sum((who << 32 | n) + 1 for who in range(2) for n in range(times)) % (1 << 64)
    assert (int(words[16]) + int(words[17]) + int(words[5])) % (1 << 64) == put, "a value was taken twice, or by nobody"
    assert words[6] == 5 * 2 * times


def test_patience_is_a_time(seed):
    for patience in (0, -1, float("inf"), float("nan")):
        with pytest.raises(BadArgument, match="no end of patience"):
            OutsideWorld(patience_s=patience)
    assert "no device yet" in repr(OutsideWorld())
