"""Dispatch and combine over NVLink, on the CPU runner: against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from moe import make_inputs
from nvlink_rig import Rig

from rdmakit.ep import reference

RUNS = [
    *((policy, 1, ranks) for policy in ("fast", "timed", "explore") for ranks in (1, 2, 4)),
    ("fast", 32, 2),
]


def expected(x, idx, weights, experts):
    return [reference.dispatch(x, idx, weights, r, experts) for r in range(len(idx))]


def check_dispatch(rig, sents, want, fp8):
    for sent, truth in zip(sents, want, strict=True):
        n = len(truth.handle.src_token)
        assert sent.rows == n and sent.experts == truth.num_recv_tokens_per_expert.tolist()
        data, scales = truth.recv_x if fp8 else (truth.recv_x, None)
        assert np.array_equal(sent.x[:n].view(np.uint8), data.view(np.uint8))
        assert scales is None or np.array_equal(sent.scales[:n], scales)
        assert np.array_equal(sent.topk[:n], truth.recv_topk_idx)
        assert np.array_equal(sent.weights[:n], truth.recv_topk_weights)
        assert np.array_equal(sent.source[:n], truth.handle.src_token)
        assert (sent.topk[n:] == -1).all()


@pytest.mark.parametrize(("policy", "lanes", "ranks"), RUNS)
@pytest.mark.parametrize("fp8", [False, True])
def test_round_trip(policy, lanes, ranks, fp8, seed):
    """Twice over one engine; tokens differ by rank, one rank may have none; rows are combined where they came."""
    hidden, experts, topk = 256, 4 * ranks, 3
    rig = Rig(ranks, policy=policy, lanes=lanes, seed=seed)
    for turn in range(2):
        tokens = [max(37 - 19 * r * (turn + 1), 0) for r in range(ranks)]
        x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed + turn)
        sents = rig.layouts(idx, experts)
        for r, sent in enumerate(sents):
            local = idx[r] // (experts // ranks)
            goes = np.stack([((local == d) & (idx[r] >= 0)).any(1) for d in range(ranks)], 1)
            assert np.array_equal(sent.is_in_rank[: tokens[r]], goes)
            assert np.array_equal(sent.tokens_per_rank, goes.sum(0))
            assert np.array_equal(sent.tokens_per_expert, np.bincount(idx[r][idx[r] >= 0].ravel(), minlength=experts))
        rig.notify(sents, experts)
        given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
        rig.dispatch(sents, given, idx, weights, experts, room=5 + sum(tokens) if turn else 0)
        want = expected(given, idx, weights, experts)
        check_dispatch(rig, sents, want, fp8)
        if fp8:
            continue
        y = [sent.x[: sent.rows] for sent in sents]
        out, out_weights = rig.combine(sents, y, [sent.weights[: sent.rows] for sent in sents])
        handles = [truth.handle for truth in want]
        for r in range(ranks):
            total, sums = reference.combine(
                [np.array(rows) for rows in y], handles, r, tokens[r], [w.recv_topk_weights for w in want]
            )
            assert np.array_equal(out[r].view(np.uint16), total.view(np.uint16)) and np.array_equal(
                out_weights[r], sums
            )


def two_roundings(y, want, idx, weights, ranks, r, local):
    """Low-latency combine as it is promised: rows of a rank by ascending choice, to BF16; ranks ascending, to BF16."""
    bf16 = y[0].dtype
    total = np.zeros((len(idx[r]), y[0].shape[2]), np.float32)
    for owner in range(ranks):
        part = np.zeros_like(total)
        for t in range(len(idx[r])):
            for k, expert in enumerate(idx[r][t]):
                if expert < 0 or expert // local != owner:
                    continue
                e = int(expert) - owner * local
                begin, n = (
                    int(want[owner].packed_recv_layout_range[e, r]) >> 32,
                    int(want[owner].packed_recv_layout_range[e, r]) & 0xFFFFFFFF,
                )
                row = begin + int(np.flatnonzero(want[owner].packed_recv_src_info[e, begin : begin + n] == t)[0])
                part[t] += weights[r][t, k] * y[owner][e, row].astype(np.float32)
        total += part.astype(bf16).astype(np.float32)
    return total.astype(bf16)


@pytest.mark.parametrize(("policy", "lanes", "ranks"), RUNS)
@pytest.mark.parametrize("halves", [False, True])
def test_low_latency(policy, lanes, ranks, halves, seed):
    """Three times in a row (slots alternate, then are filled anew): BF16, FP8, FP8 with UE8M0 scales."""
    hidden, local, topk, most = 512, 3, 3, 13
    experts = local * ranks
    rig = Rig(ranks, policy=policy, lanes=lanes, seed=seed, ll=(most, hidden))
    for turn, (fp8, ue8m0) in enumerate([(False, False), (True, False), (True, True)]):
        tokens = [max(most - 5 * r * (turn + 1), 0) for r in range(ranks)]
        x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed + turn)
        got = rig.ll_dispatch(x, idx, experts, most, fp8=fp8, round_scale=ue8m0, ue8m0=ue8m0, halves=halves)
        want = [
            reference.low_latency_dispatch(x, idx, r, experts, most, use_fp8=fp8 and not ue8m0) for r in range(ranks)
        ]
        y = []
        for r in range(ranks):
            mine, truth = got[r], want[r]
            assert np.array_equal(mine["count"], truth.packed_recv_count)
            assert np.array_equal(mine["statistics"], 7 + truth.packed_recv_count)
            assert np.array_equal(mine["ranges"], truth.packed_recv_layout_range)
            y.append(rig.array(truth.packed_recv_x.shape, x[0].dtype, np.nan))
            for e in range(local):
                n = int(truth.packed_recv_count[e])
                assert np.array_equal(mine["source"][e, :n], truth.packed_recv_src_info[e, :n])
                rows = mine["x"][e, :n]
                if ue8m0:
                    exponents = mine["scales"][e, :, :n].transpose(1, 0, 2).reshape(n, hidden // 128)
                    scales = np.exp2(exponents.astype(np.float32) - 127)
                    plain = truth.packed_recv_x[e, :n].astype(np.float32).reshape(n, hidden // 128, 128)
                    assert (scales >= np.abs(plain).max(-1) / 448).all() and (
                        scales < np.abs(plain).max(-1) / 224
                    ).all()
                    back = rows.astype(np.float32).reshape(plain.shape) * scales[..., None]
                    assert (np.abs(back - plain) <= np.abs(plain) / 16 + scales[..., None] / 512).all()
                else:
                    assert np.array_equal(rows.view(np.uint8), truth.packed_recv_x[e, :n].view(np.uint8))
                if fp8 and not ue8m0:
                    assert np.array_equal(mine["scales"][e, :, :n].T, truth.packed_recv_scales[e, :n])
                y[r][e, :n] = np.random.default_rng(seed + e).standard_normal((n, hidden)).astype(x[0].dtype)
        out = rig.ll_combine(y, got, weights, halves=halves)
        for r in range(ranks):
            assert np.array_equal(
                out[r].view(np.uint16), two_roundings(y, want, idx, weights, ranks, r, local).view(np.uint16)
            )
