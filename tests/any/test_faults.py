"""What runs survive: dispatch and combine, puts and signals, under each kind of fault, equal to NumPy bit for bit.

The HCA's own answer to each fault is specified in tests/native/test_faults.cpp and test_many_paths.cpp.
"""

from __future__ import annotations

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from moe import failures, make_inputs
from test_queue import Pair, memory

import rdmakit
from rdmakit.emu.faults import Faults
from rdmakit.ep import reference, verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument, CompletionError, HangError, RdmakitError

# What leaves a path and loses no doorbell is survived. Names in brackets: the faults that must have happened, among
# some 300 messages at least, so that a seed without them is one in a million.
SURVIVED = {
    "loss=0.06": ["loss"],
    "corrupt=0.06": ["corrupt"],
    "duplicate=0.3": ["duplicate"],
    "ack_lost=0.1": ["ack_lost"],
    "doorbell_late=0.3": ["doorbell_late"],
    "loss=0.05,corrupt=0.02,duplicate=0.2,ack_lost=0.06,doorbell_late=0.1": ["loss", "duplicate", "ack_lost"],
    "straggler=1x12": [],
}
SURVIVED_IN_TIME = {
    "delay=20us": ["delay"],
    "port_skew=15us": [],
    "cqe_late=0.3": ["cqe_late"],
    "adaptive_routing,path=30us": ["path"],
    "relaxed_ordering,relaxed=30us": ["relaxed"],
    "adaptive_routing,relaxed_ordering,path=30us,relaxed=20us,loss=0.06,ack_lost=0.05,duplicate=0.2,delay=9us": [
        "path",
        "relaxed",
        "loss",
    ],
}
PLANS = [(policy, plan, happen) for policy in ("fast", "timed") for plan, happen in SURVIVED.items()] + [
    ("timed", plan, happen) for plan, happen in SURVIVED_IN_TIME.items()
]


def normal(world, seed):
    """Three rounds of dispatch and combine with rings of 4 slots; every row compared with NumPy."""
    ranks = len(world.ranks)
    gpus = world.topology.gpus_per_host
    buffer = NormalBuffer(
        world, hidden=128, topk=2, experts=4 * ranks, max_tokens=24, channels=2, slots=4, chunk=2
    )
    rng = np.random.default_rng(seed)
    for turn in range(3):
        tokens = [int(n) for n in rng.integers(8, 25, ranks)]
        x, idx, weights = make_inputs(tokens, 128, 4 * ranks, 2, seed + turn)
        got = buffer.dispatch(x, idx, weights)
        assert not failures(verify.check_dispatched(got, x, idx, weights, 4 * ranks))
        out, _ = buffer.combine([g.recv_x for g in got], [g.handle for g in got])
        assert not failures(verify.check_combined(out, [g.recv_x for g in got], idx, 4 * ranks, gpus))
    return buffer


def low_latency(world, seed):
    ranks = len(world.ranks)
    buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=4 * ranks, max_tokens=8)
    rng = np.random.default_rng(seed)
    for turn in range(3):
        tokens = [int(n) for n in rng.integers(2, 9, ranks)]
        x, idx, weights = make_inputs(tokens, 128, 4 * ranks, 2, seed + turn)
        got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
        assert not failures(verify.check_low_latency(got, x, idx, 4 * ranks, 8, False))
        y = [rng.standard_normal(g.packed_recv_x.shape).astype(ml_dtypes.bfloat16) for g in got]
        out, _ = buffer.combine(y, handles, idx, weights)
        for r, mine in enumerate(out):
            want = reference.low_latency_combine(y, got, idx[r], weights[r], r, 4 * ranks)
            assert want.tobytes() == mine.tobytes(), f"turn {turn}, rank {r}"
    return buffer


@pytest.mark.parametrize(("policy", "plan", "happen"), PLANS)
@pytest.mark.parametrize("layer", [normal, low_latency])
def test_dispatch_and_combine(layer, policy, plan, happen, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=seed, faults=plan)
    buffer = layer(world, seed)
    counts = world.fault_counts
    assert all(counts.get(name) for name in happen), counts
    counters = [side.context.counters for side in buffer.mesh.sides]
    assert sum(c["errors"] for c in counters) == 0
    # Every byte once: what requesters had acknowledged is what responders placed, whatever was sent again.
    qps = [qp.query()["counters"] for side in buffer.mesh.sides for qp in side.qps.values()]
    atomics = 8 * sum(c["atomics"] for c in counters)
    assert sum(q["xmit_payload"] for q in qps) == sum(q["rcv_payload"] for q in qps) - atomics
    if "loss" in plan or "ack_lost" in plan:
        assert sum(c["retries"] for c in counters) > 0


@pytest.mark.parametrize(("policy", "plan"), [(policy, plan) for policy, plan, _ in PLANS])
def test_put_and_signal(policy, plan, seed):
    """Twenty puts, each with a strong signal: whoever sees signal n sees the data of put n."""
    pair = Pair(512, policy=policy, seed=seed, faults=plan)
    word = pair.world.array((2,), np.uint64)
    word_mr = pair.peer.pd.register(word)
    for turn in range(1, 21):
        data = pair.source.view(np.uint32)
        data[:] = np.random.default_rng(seed + turn).integers(0, 2**32, len(data), dtype=np.uint32)
        watch = pair.handle.array[0]["watch"]
        pair.kernel("wait_and_sum")((1,), (32,), (word, turn, pair.sink, len(data), word[1:], watch), rank=1)
        to, origin = memory(pair.to_mr, pair.to_mr.rkey), memory(pair.from_mr, pair.from_mr.lkey)
        signal = memory(word_mr, word_mr.rkey)
        pair.kernel("put_and_signal")((1,), (32,), (pair.handle.array, to, origin, pair.source.nbytes, signal))
        pair.world.run()
        assert word[0] == turn and word[1] == data.astype(np.uint64).sum()


@pytest.mark.parametrize("policy", ["fast", "timed"])
@pytest.mark.parametrize("layer", [normal, low_latency])
@pytest.mark.parametrize("doorbells", [0.01, 0.2])
def test_a_lost_doorbell_is_survived_or_reported_and_never_wrong(layer, policy, doorbells, seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=seed, faults=Faults(doorbell_lost=doorbells))
    try:
        layer(world, seed)
    except HangError as hang:
        assert world.fault_counts["doorbell_lost"] and hang.rule
    world.faults = ""
    layer(world, seed)  # new queues on the same world


@pytest.mark.parametrize("policy", ["fast", "timed"])
@pytest.mark.parametrize("layer", [normal, low_latency])
def test_a_bond_carries_on_when_a_port_goes_down_in_mid_dispatch(layer, policy, seed):
    plan = "port_down=0.0.1@40msg+1.1.2@60msg,port_up=0.0.1@120msg"
    for lag in ("affinity", "hash"):
        world = rdmakit.World(hosts=2, gpus_per_host=2, lag=lag, policy=policy, seed=seed, faults=plan)
        buffer = layer(world, seed)
        assert world.fault_counts["port_down"] == 2
        assert not world.open(1, 1).ports[1].up
        assert sum(side.context.counters["errors"] for side in buffer.mesh.sides) == 0


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_without_a_bond_the_queue_pair_fails_and_says_why(policy, seed):
    world = rdmakit.World(hosts=2, policy=policy, seed=seed, faults="port_down=0.0.1@20msg")
    with pytest.raises(CompletionError) as caught:
        normal(world, seed)
    assert caught.value.wc_status == "RETRY_EXC_ERR" and "1 at rank 0" in str(caught.value)


def test_a_port_that_comes_back_in_time_is_only_late(seed):
    world = rdmakit.World(hosts=2, policy="timed", seed=seed, faults="port_down=0.0.1@20us,port_up=0.0.1@40us")
    normal(world, seed)
    assert world.fault_counts == {"port_down": 1, "port_up": 1}


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_a_broken_queue_pair_and_a_dead_nic_are_reported(policy, seed):
    for plan in ("qp_error=0.0.1@20msg", "nic_dead=1.0@20msg"):
        world = rdmakit.World(hosts=2, policy=policy, seed=seed, faults=plan)
        with pytest.raises(CompletionError, match="rank"):
            normal(world, seed)


@pytest.mark.parametrize(("policy", "layer"), [("fast", normal), ("timed", normal), ("timed", low_latency)])
def test_same_seed_and_plan_same_run(policy, layer, seed):
    plan = "loss=0.02,duplicate=0.1,ack_lost=0.03,doorbell_late=0.1" + (",delay=3us" if policy == "timed" else "")

    def trace(world_seed, text):
        world = rdmakit.World(hosts=2, gpus_per_host=2, policy=policy, seed=world_seed, faults=text)
        buffer = layer(world, 5)
        return (
            world.now_ns,
            world.fault_counts,
            world.counters,
            [side.context.counters for side in buffer.mesh.sides],
        )

    first = trace(seed, plan)
    assert first == trace(seed, plan)
    assert any(first != trace(other, plan) for other in range(seed + 1, seed + 9))  # lazily: mostly the first
    # A plan that never strikes leaves the schedule as it is.
    assert trace(seed, "loss=0.000000001,budget=0") == trace(seed, "")


def test_several_paths_cost_a_signal_one_round_trip_more(seed):
    """The published observation on multi-path NICs: an atomic is sent when what precedes it is acknowledged."""
    took = []
    for paths in (False, True):
        pair = Pair(8, policy="timed", seed=seed, out_of_order=paths)
        word = pair.world.array((1,), np.uint64)
        word_mr = pair.peer.pd.register(word)
        to, origin = memory(pair.to_mr, pair.to_mr.rkey), memory(pair.from_mr, pair.from_mr.lkey)
        signal = memory(word_mr, word_mr.rkey)
        pair.kernel("put_and_signal")((1,), (32,), (pair.handle.array, to, origin, 64, signal))
        took.append(pair.world.run().elapsed_ns)
        assert word[0] == 1
    round_trip = 2 * 600 + 300  # wire_latency_ps and placement_ps of hca/timing.hpp
    assert round_trip < took[1] - took[0] < 2 * round_trip


def test_budget_ends_the_faults(seed):
    world = rdmakit.World(hosts=2, policy="timed", seed=seed, faults="loss=0.5,budget=3")
    normal(world, seed)
    assert world.fault_counts == {"loss": 3}


def test_runs_tell_what_they_survived(seed):
    pair = Pair(300, policy="fast", seed=seed, faults="loss=0.1")
    pair.kernel("put_words")(
        (1,),
        (32,),
        (pair.handle.array, memory(pair.to_mr, pair.to_mr.rkey), memory(pair.from_mr, pair.from_mr.lkey), 300, 4),
    )
    run = pair.world.run()
    assert run.faults["loss"] == pair.world.fault_counts["loss"] == pair.context.counters["packets_lost"]
    assert f"survived {run.faults['loss']} loss" in repr(run) and "Faults(loss=0.1)" in repr(pair.world)


def test_the_variable_is_a_flag_of_any_script(seed):
    script = "import rdmakit; print(rdmakit.World(hosts=2, seed=1).faults)"
    environment = {**os.environ, "RDMAKIT_FAULTS": "loss=0.25"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "loss=0.25\n"


def test_events_that_the_world_cannot_have_are_refused():
    for plan, said in (
        ("dead=9@20msg", "no such rank"),
        ("port_down=0.0.3@20msg", "no such port"),
        ("port_down=5.0.1@20msg", "no such host"),
        ("nic_dead=0.7@20msg", "no such NIC"),
        ("straggler=4x2", "no such rank"),
        ("dead=1@20us", "needs a clock"),
    ):
        with pytest.raises(BadArgument, match=said):
            rdmakit.World(hosts=2, faults=plan)


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_a_straggler_is_slow(policy, seed):
    """In virtual time by its factor, or so; without a clock it is scheduled more rarely, which results do not show."""
    times = []
    for plan in ("", "straggler=0x10"):
        pair = Pair(200, policy=policy, seed=seed, faults=plan)
        pair.put(blocks=1, warps=1, batch=1)
        assert np.array_equal(pair.source, pair.sink)
        times.append(pair.world.now_ns)
    if policy == "timed":
        assert 5 < times[1] / times[0] < 12


def test_typed_errors_only(seed):
    """Whatever happens in mid-flight, what comes out is a typed error with a remedy or a rule, or the right result."""
    rng = np.random.default_rng(seed)
    events = ("port_down=0.0.1@{}msg", "nic_dead=1.0@{}msg", "qp_error=0.0.0@{}msg", "dead=1@{}msg")
    for event in events:
        world = rdmakit.World(hosts=2, seed=seed, faults="loss=0.02," + event.format(int(rng.integers(1, 200))))
        try:
            low_latency(world, seed)
        except RdmakitError as error:
            assert error.rule or error.remedy
