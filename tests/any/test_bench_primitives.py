"""The benchmarks of primitives on the CPU runner: what they check is checked here, what anything costs is not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from test_bench_queue import _WorldMemory

import rdmakit
from rdmakit.device.report import REPORT, Report
from rdmakit.gpu import bench_copies, bench_primitives
from rdmakit.gpu.bench_machine import Call
from rdmakit.gpu.bench_primitives import FLAG_END, KINDS


class RunnerRegion:
    def __init__(self, world, nbytes):
        self.array = world.array(nbytes, np.uint8)
        self.address, self.nbytes = int(self.array.ctypes.data), nbytes

    def write(self, values):
        flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.array[: flat.nbytes] = flat

    def read(self, dtype, count):
        return self.array[: count * np.dtype(dtype).itemsize].view(dtype).copy()

    def fill(self, byte):
        self.array[:] = byte


class RunnerMachine:
    """Two GPUs of the CPU runner, of four SMs each, or one. `spoil`: is called with every region after a launch."""

    processors = 4
    device = "the CPU runner"

    def __init__(self, seed, policy="fast", gpus=2, spoil=None):
        self.world = rdmakit.World(hosts=1, gpus_per_host=gpus, seed=seed, policy=policy)
        self.missing = {} if gpus > 1 else {"peer": "one GPU"}
        self.regions, self.spoil = [], spoil

    def region(self, where, nbytes):
        assert where not in self.missing
        self.regions.append(RunnerRegion(self.world, nbytes))
        return self.regions[-1]

    def memory(self, nbytes):
        return _WorldMemory(self.world)

    def report(self):
        return Report(self.world.array(REPORT.itemsize, np.uint8))

    def run(self, calls, host=None):
        began = time.perf_counter()
        for number, call in enumerate(calls):
            kernel = self.world.stock_kernel(call.kernel)
            kernel(call.grid, call.block, call.args, shared_mem=call.shared_mem, rank=call.gpu, stream=number)
        self.world.run()
        if self.spoil is not None:
            self.spoil(self.regions)
        return [time.perf_counter() - began] * len(calls)

    def answer(self, call, mine, theirs, rounds):
        """The host's end is one more block of the runner's."""
        end = self.region("local", FLAG_END.itemsize)
        pod = np.zeros(1, FLAG_END)
        pod["mine"], pod["theirs"] = mine.address, theirs.address
        end.write(pod)
        self.run([call, Call(call.kernel, 1, 32, (end.address, *call.args[1:]))])

    def same(self, one, other, nbytes):
        return np.array_equal(one.array[:nbytes], other.array[:nbytes])


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_every_primitive_leaves_what_it_must(policy, seed):
    rounds = 40 if policy == "explore" else 500
    done = bench_primitives.primitives(RunnerMachine(seed, policy), rounds=rounds, repeats=2)
    wrong = [row["name"] for row in done["costs"] if not row["ok"]]
    assert done["ok"] and not wrong, wrong
    if policy == "timed":  # virtual time passes in each, and a wider scope costs more
        figures = done["figures"]
        assert figures["fence_cta_ns"] < figures["fence_gpu_ns"] < figures["fence_sys_ns"]
        assert figures["wqe_post_ns"] > figures["wqe_publish_ns"] > 0
        assert figures["flag_round_trip_peer_ns"] > 0


def test_every_kind_of_primitive_is_measured():
    assert {step.kind for step in bench_primitives.steps()} == set(KINDS)
    names = [step.name for step in bench_primitives.steps()]
    assert len(set(names)) == len(names)


def test_one_gpu_leaves_the_peer_out_and_says_why(seed):
    machine = RunnerMachine(seed, gpus=1)
    done = bench_primitives.primitives(machine, rounds=20, repeats=1)
    assert done["ok"] and not any("peer" in name for name in done["figures"])
    assert done["lines"][-1] == "left out, peer: one GPU"
    found = bench_copies.copies(machine, sms=(1, 2), each=4096, repeats=1)
    assert found["ok"] and {row["way"] for row in found["copies"]} == {"local"}


def test_what_is_left_wrong_is_noticed(seed):
    """A word of each region changed behind a launch: every chain that has memory to be checked tells."""

    def spoil(regions):
        for region in regions:
            if region.nbytes >= 128:  # targets and lines, not the times
                region.array[:] ^= 1

    costs = bench_primitives.single(RunnerMachine(seed, spoil=spoil), rounds=20, repeats=1)
    free = {"empty", "shuffle_shared", "barrier_shared", "proxy_fence_shared", "fetch_add_cta_shared"}
    bare = {f"fence_{scope}" for scope in ("cta", "gpu", "sys")}  # with nothing stored there is nothing to look at
    assert {cost.name for cost in costs if cost.ok} == free | bare


@pytest.mark.parametrize("policy", ["fast", "explore"])
@pytest.mark.parametrize("each", [16, 7168 * 9 + 16, 64 << 10])
def test_copies_are_whole(policy, each, seed):
    """Parts that are no multiple of a chunk, fewer chunks than stages, and more."""
    done = bench_copies.copies(RunnerMachine(seed, policy), sms=(1, 3, 64), each=each, repeats=1, seed=seed)
    assert done["ok"] and {row["sms"] for row in done["copies"]} == {1, 3}
    assert {row["way"] for row in done["copies"]} == {"local", "push", "pull", "push_both"}


def test_a_copy_that_is_not_whole_is_noticed(seed):
    def spoil(regions):
        regions[-1].array[-1] ^= 1

    done = bench_copies.copies(RunnerMachine(seed, spoil=spoil), sms=(2,), each=4096, repeats=1)
    assert not done["ok"] and "WRONG" in "\n".join(done["lines"])
