"""What a run says that cannot go on: waits, endless loops, faults, assertions, each with its source line."""

import shutil
import time

import numpy as np
import pytest

import rdmakit
from rdmakit.device import WATCH, Report
from rdmakit.errors import DeviceFault, HangError

POLICIES = ["fast", "timed", "explore"]

SOURCE = r"""
#include <rdmakit/report.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL starve(unsigned* credit, Watch watch, unsigned peer) {
    unsigned seen = 0;
    wait_until(credit + 3, [](unsigned v) { return v >= 5; }, watch, Subject{"credit", 5, 0x41, peer, 2}, &seen);
}
RDMAKIT_KERNEL wild(int* p, long n) {
    p[n] = 1;
}
RDMAKIT_KERNEL deep(int n) {
    volatile char big[70000];
    big[n] = 1;
}
RDMAKIT_KERNEL divide(int* p) { p[0] = p[0] / p[1]; }
"""


def line_of(text):
    return 1 + SOURCE[: SOURCE.index(text)].count("\n")


@pytest.fixture
def world(seed):
    return rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)


def kernel(world, name):
    return world.compile(SOURCE, name="hangs.cu").get_function(name)


# ---- hangs


@pytest.mark.parametrize("policy", POLICIES)
def test_a_hang_says_who_waits_for_what_where(policy, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=seed)
    credit = world.array(8, np.uint32, 4, name="credit of rank 1")
    watch, reports = np.zeros((), WATCH), [Report() for _ in range(3)]
    for rank, report in enumerate(reports):
        watch["report"], watch["rank"] = report.address, rank
        kernel(world, "starve")(2, 64, (credit, watch, 7), rank=rank)
    with pytest.raises(HangError) as caught:
        world.run()
    report = caught.value.report
    assert len(report.waits) == 12 and len(report.groups) == 1
    wait = report.waits[0]
    assert (wait.kernel, wait.what, wait.expected, wait.seen) == ("starve", "credit", 5, 4)
    assert (wait.qpn, wait.peer, wait.channel) == (0x41, 7, 2)
    assert wait.where == "credit of rank 1[3]"
    assert wait.place == f"hangs.cu:{line_of('wait_until(credit')}"
    assert {w.rank for w in report.waits} == {0, 1, 2} and {w.warp for w in report.waits} == {0, 1}
    text = str(caught.value)
    assert "credit of rank 1[3]" in text and "rank 0–2" in text and len(text.splitlines()) < 8
    assert "<table" in report._repr_html_()
    assert all(one and one.status.name == "TIMEOUT" and one.rank == rank for rank, one in enumerate(reports))
    credit[3] = 5  # the world is as good as new
    for one in reports:
        one.clear()
    kernel(world, "starve")(2, 64, (credit, watch, 7))
    assert len(world.run().launches) == 1


def test_a_warp_that_misses_a_barrier_is_told(world):
    source = (
        "#include <rdmakit/warp.cuh>\nusing namespace rdmakit;\n"
        "RDMAKIT_KERNEL uneven(unsigned* never) {\n"
        "  if (warp_id() != 2) return block_sync();\n"
        "  while (load_acquire(never) == 0) sleep_ns(10);\n}\n"
    )
    world.compile(source, name="uneven.cu").get_function("uneven")(1, 128, (np.zeros(1, np.uint32),))
    with pytest.raises(HangError, match="loops for ever") as caught:
        world.run()
    assert caught.value.report.waits[0].warp == 2 and "uneven.cu:5" in str(caught.value)


LOOPS = {
    "volatile": "__global__ void loop(volatile int* flag) {\n    while (*flag == 0) {\n    }\n}",
    "empty": "__global__ void loop(int*) {\n    for (volatile int i = 0;; i = 0) {\n    }\n}",
    "syncwarp": "__global__ void loop(int* flag) {\n    while (true) __syncwarp();\n}",
    "atomic": "__global__ void loop(int* flag) {\n    while (atomicAdd(flag, 0) == 0) {}\n}",
    "primitive": "#include <rdmakit/atom.cuh>\nRDMAKIT_KERNEL loop(unsigned* flag) {\n"
    "    while (rdmakit::load_acquire(flag) == 0) {}\n}",
    "raw in warp mode": "#include <rdmakit/config.cuh>\nRDMAKIT_KERNEL loop(volatile int* flag) {\n"
    "    while (*flag == 0) {}\n}",
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("form", LOOPS)
def test_an_endless_loop_is_preempted_and_told(policy, form, seed):
    world = rdmakit.World(policy=policy, seed=seed)
    code = LOOPS[form]
    flag = world.array(1, np.int32)
    world.compile(code, name="loop.cu").get_function("loop")(2, 64, (flag,))
    began = time.monotonic()
    with pytest.raises(HangError, match="loop loops for ever") as caught:
        world.run()
    assert time.monotonic() - began < 20
    lines = [number for number, text in enumerate(code.splitlines(), 1) if text.startswith("    ")]
    assert caught.value.report.waits[0].line in lines


LONG = [("fast", 1, 200_000), ("fast", 8, 200_000), ("timed", 1, 10_000)]


@pytest.mark.parametrize(("policy", "blocks", "count"), LONG)
def test_many_that_meet_while_one_works_are_no_hang(policy, blocks, count, seed):
    """Thousands of lanes do nothing but meet, for as long as one thread elsewhere counts."""
    world = rdmakit.World(hosts=2, policy=policy, seed=seed)
    module = world.compile(
        "__global__ void wait(volatile int* flag, int* out) { while (*flag == 0) __syncwarp(); atomicAdd(out, 1); }\n"
        "__global__ void count(volatile int* flag, int n) { int k = 0;\n"
        "  while (k < n) k += 1 + (*flag & 2);\n  *flag = 1; }\n"
    )
    flag, out = world.array(1, np.int32), world.array(1, np.int32)
    module.get_function("wait")(blocks, 512, (flag, out))
    module.get_function("count")(1, 1, (flag, np.int32(count)), rank=1)
    world.run()
    assert out[0] == 512 * blocks


@pytest.mark.parametrize("policy", POLICIES)
def test_a_raw_loop_that_somebody_ends_is_no_hang(policy, seed):
    world = rdmakit.World(hosts=2, policy=policy, seed=seed)
    module = world.compile(
        "__global__ void wait(volatile int* flag, int* out) { while (*flag != 3) {} atomicAdd(out, 1); }\n"
        "__global__ void count(volatile int* flag) {\n"
        "  for (int i = 1; i <= 3; ++i) { for (int k = 0; k < 20000; ++k) __nanosleep(10); *flag = i; }\n}\n"
    )
    flag, out = world.array(1, np.int32), world.array(1, np.int32)
    module.get_function("wait")(2, 32, (flag, out))
    module.get_function("count")(1, 1, (flag,), rank=1)
    world.run()
    assert out[0] == 64


# ---- faults


@pytest.mark.parametrize(
    ("name", "arguments", "what", "where"),
    [
        ("wild", (8, 0), "illegal access to address 0x8", "p[n] = 1"),
        ("deep", (1,), "stack overflow", "big"),
        ("divide", (np.zeros(2, np.int32),), "arithmetic fault", "p[0] / p[1]"),
    ],
)
def test_a_fault_names_kernel_thread_and_line(world, name, arguments, what, where):
    kernel(world, name)(2, 64, arguments, rank=1)
    with pytest.raises(DeviceFault, match=what) as caught:
        world.run()
    facts = caught.value.facts
    assert facts["rank"] == 1 and name in caught.value.what
    if "at" in facts:  # addr2line is there
        assert facts["at"] == f"hangs.cu:{line_of(where)}" or name == "deep"
    assert not world.run().launches


def test_assertions_and_traps_end_the_launch_not_the_process(world):
    module = world.compile(
        "__global__ void check(int* p) { assert(p[threadIdx.x] == 0); }\n__global__ void stop() { __trap(); }",
        name="trap.cu",
    )
    module.get_function("check")(1, 32, (np.arange(32, dtype=np.int32),))
    with pytest.raises(DeviceFault, match=r"assertion failed: p\[threadIdx.x\] == 0 \(trap.cu:1\)"):
        world.run()
    module.get_function("stop")(1, 1)
    with pytest.raises(DeviceFault, match="__trap"):
        world.run()


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_an_empty_endless_loop_is_ended_too(policy):
    """g++ puts no look-up into `for (;;) {}`: the thread's own CPU time ends it."""
    world = rdmakit.World(policy=policy)
    spin = world.compile("\n\n__global__ void spin() { for (;;) {} }", name="spin.cu").get_function("spin")
    spin(1, 32)
    with pytest.raises(HangError, match="endless loop") as caught:
        world.run()
    if shutil.which("nm"):  # such a loop has no line of its own: the kernel's first stands for it
        assert caught.value.facts["at"] == "spin.cu:3"
    assert not world.run().launches, "the world can be used again"


def test_a_late_store_to_a_bad_address_is_its_own_fault():
    """Explore delays stores; a wild one must not land, later, outside the kernel."""
    world = rdmakit.World(policy="explore")
    code = "#include <rdmakit/atom.cuh>\nRDMAKIT_KERNEL wild(unsigned* p) { rdmakit::store_relaxed(p, 1u); }\n"
    world.compile(code, name="wild.cu").get_function("wild")(1, 32, (64,))
    with pytest.raises(DeviceFault, match="illegal access"):
        world.run()
