"""Protocols on a real GPU whose doorbells warps of the same GPU answer (hca_engine.cuh): no NIC, no thread of the host.

Queues, records and registers lie in page-locked memory of the host, or in managed memory that is on the GPU meanwhile.
The rigs, inputs and truths are those of tests/any.
"""

from __future__ import annotations

import numpy as np
import pytest
from lock_rig import WAYS, Transfers, make_lock
from moe import failures, make_inputs
from test_cta_hca import KINDS, RIDE, Side, wqe_of
from test_ep_low_latency import rows_for, wrong_sums
from test_ep_normal import round_trip
from test_world import put

import rdmakit
from rdmakit import gpu
from rdmakit.device import connected_pair
from rdmakit.ep import verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument
from rdmakit.gpu import bench_queue

pytestmark = pytest.mark.gpu
PLACES = ("host", "gpu")


def make_world(place, seed, **options):
    return gpu.World(hosts=2, engine="cta", placement=place, memory=64 << 20, seed=seed, **options)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("doorbell", ["dbrec", "register", "no_dbr"])
@pytest.mark.parametrize("dialect", ["next_index", "last_wqe"])
def test_many_producers_on_one_small_ring(place, doorbell, dialect, seed):
    world = make_world(place, seed, doorbell=doorbell)
    source, sink, ends = put(world, 3000, dialect=dialect)
    assert np.array_equal(source, sink) and ends[0].completed == 3000
    assert ends[0].context.counters["errors"] == 0


@pytest.mark.parametrize("place", PLACES)
def test_sixteen_bit_index_wraps(place, seed):
    world = make_world(place, seed)
    source, sink, ends = put(world, 70_000, sq=256, batch=8)
    assert np.array_equal(source, sink) and ends[0].completed == 70_000


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 8, 13, 96, 256, 500])
def test_every_kind_of_wqe_as_on_the_cpu(place, kind, length, seed):
    """Posted by the host, executed by warps; memory and completions as the HCA model leaves them."""
    outcomes = []
    for make in (lambda: rdmakit.World(hosts=2, seed=seed), lambda: make_world(place, seed)):
        side = Side(make())
        for at, to in ((5, 9), (8, 11)):
            side.near.post_wqe(wqe_of(side, kind, side.near.posted, at, to, length))
        side.world.run()
        outcomes.append(side.outcome())
    for host, cta in zip(*outcomes, strict=True):
        assert host == cta


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_every_strategy_delivers(place, way, seed, rng):
    world = make_world(place, seed, data_in_order=True)
    lock = make_lock(world, way, slots=4, max_payload=9000)
    moved = Transfers(world, [lock], rng.integers(0, 9001, 64), rng)
    moved.launch()
    moved.check()
    assert lock.in_flight == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("fp8", [False, True])
def test_dispatch_and_combine_between_two_hosts(place, fp8, seed):
    world = make_world(place, seed)
    low = LowLatencyBuffer(world, hidden=256, topk=4, experts=16, max_tokens=16)
    normal = NormalBuffer(world, hidden=256, topk=4, experts=16, max_tokens=40, channels=4, slots=16, chunk=4)
    for turn in range(2):
        x, idx, weights = make_inputs([16, 16 - 5 * turn], 256, 16, 4, seed + turn)
        got, handles, _ = low.dispatch(x, idx, use_fp8=fp8)
        assert not failures(verify.check_low_latency(got, x, idx, 16, 16, fp8))
        y = rows_for(got, seed + turn)
        out, _ = low.combine(y, handles, idx, weights)
        assert not wrong_sums(out, y, got, idx, weights, 16)
        assert not round_trip(world, normal, x, idx, weights, 16, seed + turn)[1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("riders", [1, 4])
def test_blocks_ride_in_the_grid_of_an_operation(place, riders, seed):
    words, workers = 3000, 8
    world = make_world(place, seed)
    near, far = connected_pair(world.open(0), world.open(1))
    source, target = world.array(words, np.uint64), world.array(words, np.uint64)
    source[:] = np.random.default_rng(seed).integers(0, 2**63, words, dtype=np.uint64)
    mine, theirs = near.pd.register(source), far.pd.register(target)
    pod = near.device_handle()
    with world.riding(leavers=workers) as handles:
        kernel = world.compile(RIDE, name="ride.cu").get_function("put_and_serve")
        kernel(riders + workers, 64, (handles[0], pod.array, theirs.remote(), mine, words, riders))
        world.run()
    pod.report.raise_for_status()
    assert np.array_equal(source, target) and near.completed == words


def test_a_host_thread_cannot_poll_what_lies_on_the_gpu():
    with pytest.raises(BadArgument, match="placement"):
        gpu.World(placement="gpu")


def test_figures_come_with_right_sums():
    parts = [
        bench_queue.all_processors(wqes=1 << 14),
        bench_queue.shared_queue(wqes=1 << 18),
        bench_queue.one_warp(wqes=1 << 16),
        bench_queue.put_signal(rounds=500),
    ]
    print("\n".join(line for part in parts for line in part["lines"]))
    assert all(part["ok"] for part in parts)
