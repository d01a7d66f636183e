"""Low-latency dispatch and combine against NumPy, bit for bit, whole and by halves."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from moe import RUNS, failures, make_inputs, make_world

import rdmakit
from rdmakit.ep import reference, verify
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.errors import BadArgument, BadState


def rows_for(got, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(g.packed_recv_x.shape, np.float32).astype(ml_dtypes.bfloat16) for g in got]


def wrong_sums(out, y, got, idx, weights, experts):
    """Ranks whose combined tokens are not NumPy's; the order of summation is the same, so they must be equal."""
    return [
        r
        for r, mine in enumerate(out)
        if reference.low_latency_combine(y, got, idx[r], weights[r], r, experts).tobytes() != mine.tobytes()
    ]


@pytest.mark.parametrize(("policy", "lanes", "hosts", "gpus"), RUNS)
@pytest.mark.parametrize("fp8", [False, True])
def test_round_trip(policy, lanes, hosts, gpus, fp8, seed):
    ranks, most = hosts * gpus, 4 if policy == "explore" else 16
    experts = (1 if policy == "explore" else 8) * ranks
    topk = min(4, experts)
    world = make_world(lanes, hosts=hosts, gpus_per_host=gpus, policy=policy, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=256, topk=topk, experts=experts, max_tokens=most)
    for turn in range(3):  # both parities of the buffers, and back
        tokens = [max(most - 5 * r * turn, 0) for r in range(ranks)]
        x, idx, weights = make_inputs(tokens, 256, experts, topk, seed + turn)
        got, handles, _ = buffer.dispatch(x, idx, use_fp8=fp8)
        assert not failures(verify.check_low_latency(got, x, idx, experts, most, fp8))
        y = rows_for(got, seed + turn)
        out, _ = buffer.combine(y, handles, idx, weights)
        assert not wrong_sums(out, y, got, idx, weights, experts)


@pytest.mark.parametrize(
    ("hosts", "gpus", "hidden"), [(1, 1, 128), (5, 1, 384), (1, 5, 2048), (2, 2, 7168), (3, 5, 128), (8, 8, 128)]
)
def test_any_rank_count_and_any_multiple_of_128(hosts, gpus, hidden, seed):
    """With ranks that have no token at all, as bytes and as FP8."""
    ranks = hosts * gpus
    world = rdmakit.World(hosts=hosts, gpus_per_host=gpus, seed=seed)
    experts, topk = 2 * ranks, min(4, 2 * ranks)
    buffer = LowLatencyBuffer(world, hidden=hidden, topk=topk, experts=experts, max_tokens=4)
    for fp8 in (False, True):
        x, idx, weights = make_inputs([4 if r % 3 == 0 else r % 2 for r in range(ranks)], hidden, experts, topk, seed)
        got, handles, _ = buffer.dispatch(x, idx, use_fp8=fp8)
        assert not failures(verify.check_low_latency(got, x, idx, experts, 4, fp8))
        y = rows_for(got, seed)
        out, _ = buffer.combine(y, handles, idx, weights)
        assert not wrong_sums(out, y, got, idx, weights, experts)


def test_hooks_split_sending_from_receiving(seed):
    world = rdmakit.World(hosts=2, gpus_per_host=1, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=8, max_tokens=8)
    x, idx, weights = make_inputs([8, 8], 128, 8, 2, seed, masked=0)
    got, handles, receive = buffer.dispatch(x, idx, use_fp8=False, return_hook=True)
    assert all(g.packed_recv_count.sum() == 0 for g in got), "nothing is received before the hook"
    receive()
    assert not failures(verify.check_low_latency(got, x, idx, 8, 8, False))
    y = rows_for(got, seed)
    out, receive = buffer.combine(y, handles, idx, weights, return_hook=True)
    assert not any(o.any() for o in out)
    receive()
    assert not wrong_sums(out, y, got, idx, weights, 8)


def test_zero_copy_rows(seed):
    """Rows written where combine sends from are not copied, and the sums are the same."""
    world = rdmakit.World(hosts=2, gpus_per_host=1, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=8, max_tokens=8)
    x, idx, weights = make_inputs([8, 8], 128, 8, 2, seed)
    got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
    y = []
    for r, fresh in enumerate(rows_for(got, seed)):
        rows = buffer.combine_rows(r)
        rows[:] = fresh
        y.append(rows)
    out, _ = buffer.combine(y, handles, idx, weights)
    assert not wrong_sums(out, y, got, idx, weights, 8)


def test_fp8_cast_of_hard_values(seed):
    """Zeros, subnormals, ties, the largest and tiny blocks: the device's cast is NumPy's, bit for bit."""
    world = rdmakit.World(hosts=1, gpus_per_host=1, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=256, topk=1, experts=1, max_tokens=64)
    bits = np.random.default_rng(seed).integers(0, 1 << 16, (64, 256), dtype=np.uint16)
    bits[(bits & 0x7F80) == 0x7F80] &= 0xBFFF  # neither infinities nor NaNs
    bits[0] = 0
    bits[1] = 0x0001
    x = bits.view(ml_dtypes.bfloat16)
    x[2, :128] = 448.0
    x[3, :128] = np.linspace(-448, 448, 128)
    x[4:20] = (
        x[4:20].astype(np.float32) * 0 + np.random.default_rng(seed).standard_normal((16, 256))
    ).astype(x.dtype)
    idx = np.zeros((64, 1), np.int64)
    got, _, _ = buffer.dispatch([x], [idx], use_fp8=True)
    assert not failures(verify.check_low_latency(got, [x], [idx], 1, 64, True))


def test_bad_input():
    world = rdmakit.World(hosts=2, gpus_per_host=1)
    buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=8, max_tokens=8)
    x, idx, weights = make_inputs([8, 9], 128, 8, 2, 1)
    with pytest.raises(BadArgument, match="max_tokens"):
        buffer.dispatch(x, idx)
    x, idx, weights = make_inputs([8, 8], 128, 8, 2, 1)
    got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
    with pytest.raises(BadArgument):
        buffer.combine([g.packed_recv_x[:, :-1] for g in got], handles, idx, weights)
    with pytest.raises(BadArgument):
        buffer.dispatch(x, [i + 8 for i in idx])


def test_more_under_way_than_the_buffers_hold_is_refused(seed):
    world = rdmakit.World(hosts=2, gpus_per_host=1, seed=seed)
    buffer = LowLatencyBuffer(world, hidden=128, topk=2, experts=8, max_tokens=8)
    x, idx, weights = make_inputs([8, 8], 128, 8, 2, seed)
    sent = [buffer.dispatch(x, idx, use_fp8=False, return_hook=True) for _ in range(2)]
    with pytest.raises(BadState, match="hook"):
        buffer.dispatch(x, idx, use_fp8=False, return_hook=True)
    for got, _, receive in sent:
        receive()
        receive()  # a second call does nothing
        assert not failures(verify.check_low_latency(got, x, idx, 8, 8, False))
    got, handles, _ = sent[1]
    y = rows_for(got, seed)
    out, receive = buffer.combine(y, handles, idx, weights, return_hook=True)
    with pytest.raises(BadState):
        buffer.combine(y, handles, idx, weights)
    receive()
    assert not wrong_sums(out, y, got, idx, weights, 8)
