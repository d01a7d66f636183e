"""The benchmarks of `rdmakit.gpu.bench_queue` on the CPU runner: what they check is checked here, how fast is not."""

from __future__ import annotations

import time

import numpy as np
import pytest

import rdmakit
from rdmakit.gpu import bench_queue


class _WorldMemory:
    def __init__(self, world):
        self.world = world
        self.kept = []

    def take(self, count, dtype):
        array = self.world.array(count, dtype)
        self.kept.append(array)
        return array, int(array.ctypes.data)

    def upload(self):
        pass

    download = upload


class RunnerPlatform:
    """The CPU runner, as the benchmarks see a GPU of two SMs. `spoil`: is called with the memory before a launch."""

    processors = 2

    def __init__(self, seed=0, policy="fast"):
        self.world = rdmakit.World(seed=seed, policy=policy)

    def memory(self, nbytes):
        self.last = _WorldMemory(self.world)
        return self.last

    def run(self, kernel, grid, block, args):
        began = time.perf_counter()
        self.world.stock_kernel(kernel)(grid, block, args)
        self.world.run()
        return time.perf_counter() - began


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
@pytest.mark.parametrize(("queues", "posters", "batch"), [(1, 1, 32), (1, 12, 32), (6, 3, 64)])
def test_sinks_see_every_wqe_once(policy, queues, posters, batch, seed):
    """The ring of 256 is full most of the time and wraps; sums, numbers and order are those of what was posted."""
    wqes = 500 if policy == "explore" else 3000
    done = bench_queue.rate(
        RunnerPlatform(seed, policy),
        queues=queues,
        posters=posters,
        wqes=wqes,
        batch=batch,
        log_sq=8,
        warps_a_block=4,
    )
    assert done["ok"] and done["at_once"] >= 1


def test_indices_wrap_at_sixteen_bits(seed):
    done = bench_queue.rate(
        RunnerPlatform(seed), queues=1, posters=2, wqes=70_000, batch=64, log_sq=10, warps_a_block=1
    )
    assert done["ok"]


@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_ping_pong_through_the_hca_of_its_own_grid(policy, seed):
    platform = RunnerPlatform(seed, policy)
    for way in bench_queue.WAYS:
        us, right = bench_queue._ping(platform, way, 2, 20)
        assert right and (us > 0) == (policy == "timed")


def test_every_figure_comes_with_its_check(seed):
    platform = RunnerPlatform(seed)
    parts = [
        bench_queue.all_processors(platform, wqes=512),
        bench_queue.shared_queue(platform, wqes=4096, posters=8),
        bench_queue.one_warp(platform, wqes=1024),
        bench_queue.put_signal(platform, warm=1, rounds=10),
    ]
    assert all(part["ok"] and part["lines"] for part in parts)
    figures = {name for part in parts for name in part["figures"]}
    assert {"wqe_per_s_all_sm", "wqe_per_s_shared_qp", "wqe_per_s_one_warp", "put_signal_us"} <= figures


def test_what_is_posted_wrong_is_noticed(seed, monkeypatch):
    """A sink that waits for another opcode, or sums that are others, make the figure wrong."""
    monkeypatch.setattr(bench_queue, "_index_sum", lambda wqes: 1 + wqes * (wqes - 1) // 2)
    done = bench_queue.rate(RunnerPlatform(seed), queues=2, posters=1, wqes=64, batch=32, log_sq=8, warps_a_block=4)
    assert not done["ok"]
    assert np.isfinite(done["rate"])
