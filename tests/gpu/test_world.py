"""Protocols on a real GPU whose doorbells an emulated HCA answers: fences and acquires meet real memory.

All ranks share the GPUs that there are. The rigs, inputs and truths are those of tests/any.
"""

from __future__ import annotations

import numpy as np
import pytest
from lock_rig import WAYS, Transfers, make_lock, thousands_under_way
from moe import failures, make_inputs
from test_ep_low_latency import rows_for, wrong_sums
from test_ep_normal import round_trip

import rdmakit
from rdmakit import gpu
from rdmakit.device import QP_HANDLE, connected_pair
from rdmakit.ep import reference, verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument, HangError

pytestmark = pytest.mark.gpu


def put(world, words, *, sq=64, blocks=3, warps=4, batch=7, **handle):
    """`put_words` from host 0 to host 1; source, sink and both queue pairs."""
    ends = connected_pair(world.open_rank(0), world.open_rank(1), sq_wqebbs=sq)
    source, sink = world.array(words, np.uint64), world.array(words, np.uint64, 0xDEAD)
    source[:] = np.random.default_rng(world.seed).integers(0, 2**63, words, dtype=np.uint64)
    from_mr, to_mr = ends[0].pd.register(source), ends[1].pd.register(sink)
    pod = ends[0].device_handle(**handle)
    world.stock_kernel("put_words")(blocks, 32 * warps, (pod.array, to_mr.remote(), from_mr, words, batch))
    world.run()
    pod.report.raise_for_status()
    return source, sink, ends


@pytest.mark.parametrize("doorbell", ["dbrec", "register", "no_dbr"])
@pytest.mark.parametrize("dialect", ["next_index", "last_wqe"])
def test_many_producers_on_one_small_ring(doorbell, dialect, seed):
    """12 warps of real threads share a ring of 64 blocks: it is full most of the time."""
    world = gpu.World(hosts=2, seed=seed, doorbell=doorbell)
    source, sink, ends = put(world, 3000, dialect=dialect)
    assert np.array_equal(source, sink) and ends[0].completed == 3000
    assert ends[0].context.counters["errors"] == 0


def test_sixteen_bit_index_wraps(seed):
    world = gpu.World(hosts=2, seed=seed)
    source, sink, ends = put(world, 70_000, sq=256, batch=8)
    assert np.array_equal(source, sink) and ends[0].completed == 70_000 > 65_536


@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_delivers(way, seed, rng):
    world = gpu.World(hosts=2, seed=seed, data_in_order=True)
    lock = make_lock(world, way, slots=4, max_payload=9000)
    moved = Transfers(world, [lock], rng.integers(0, 9001, 64), rng)
    moved.launch()
    moved.check()
    assert lock.in_flight == 0


@pytest.mark.parametrize("way", ["amo", "imm", "eager-crc", "write"])
def test_thousands_under_way_over_64_queue_pairs_and_two_ports(way, seed, rng):
    world = gpu.World(hosts=2, seed=seed, data_in_order=True)
    thousands_under_way(world, way, rng)


@pytest.mark.parametrize(("hosts", "gpus"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("fp8", [False, True])
def test_normal_dispatch_and_combine(hosts, gpus, fp8, seed):
    ranks, experts, most = hosts * gpus, 8 * hosts * gpus, 40
    world = gpu.World(hosts=hosts, gpus_per_host=gpus, seed=seed)
    buffer = NormalBuffer(world, hidden=256, topk=4, experts=experts, max_tokens=most, channels=4, slots=16, chunk=4)
    for turn in range(2):
        tokens = [max(most - 7 * r * turn, 0) for r in range(ranks)]
        x, idx, weights = make_inputs(tokens, 256, experts, 4, seed + turn)
        sent = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
        _, bad = round_trip(world, buffer, sent, idx, weights, experts, seed + turn)
        assert not bad


@pytest.mark.parametrize(("hosts", "gpus"), [(1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("fp8", [False, True])
def test_low_latency_dispatch_and_combine(hosts, gpus, fp8, seed):
    ranks, experts, most = hosts * gpus, 8 * hosts * gpus, 16
    world = gpu.World(hosts=hosts, gpus_per_host=gpus, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=256, topk=4, experts=experts, max_tokens=most)
    for turn in range(3):
        x, idx, weights = make_inputs([max(most - 5 * r * turn, 0) for r in range(ranks)], 256, experts, 4, seed + turn)
        got, handles, _ = buffer.dispatch(x, idx, use_fp8=fp8)
        assert not failures(verify.check_low_latency(got, x, idx, experts, most, fp8))
        y = rows_for(got, seed + turn)
        out, _ = buffer.combine(y, handles, idx, weights)
        assert not wrong_sums(out, y, got, idx, weights, experts)


def test_a_peer_that_is_late_is_reported(seed):
    """Nobody posts what is waited for: the spin ends, and the report names line and queue pair."""
    world = gpu.World(hosts=2, seed=seed)
    lock = make_lock(world, "amo", slots=4, max_payload=64, timeout_ns=2_000_000)
    moved = Transfers(world, [lock], np.full(8, 64), np.random.default_rng(seed))
    with pytest.raises(HangError, match="credit for the slot of the next ticket"):
        moved.launch(receive=False)


def test_memory_that_a_gpu_does_not_reach_is_refused():
    world = gpu.World(hosts=2, memory=1 << 20)
    with pytest.raises(BadArgument, match="do not reach"):
        world.stock_kernel("put_words")(1, 32, (np.zeros(QP_HANDLE.itemsize, np.uint8), b"\0" * 16, b"\0" * 16, 1, 1))
    with pytest.raises(BadArgument, match="used up"):
        world.array(1 << 21)
    mine = np.arange(4)
    assert world.reachable(mine) is not mine and np.array_equal(world.reachable(mine), mine)
    assert rdmakit.World().reachable(mine) is mine
