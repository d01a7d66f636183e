"""What dispatch and combine over NVLink must come to, on any backend: the NumPy truth, bit for bit."""

from __future__ import annotations

import numpy as np
from moe import make_inputs

from rdmakit.ep import reference


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


def check_round_trip(rig, tokens, hidden, experts, topk, seed, *, fp8=False, room=0, masked=0.1, num_sms=3):
    """One dispatch of so many tokens of each rank, and the combine of what came where it came, and of other rows."""
    ranks = rig.ranks
    x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed, masked)
    sents = rig.layouts(idx, experts)
    for r, sent in enumerate(sents):
        local = idx[r] // (experts // ranks)
        goes = np.stack([((local == d) & (idx[r] >= 0)).any(1) for d in range(ranks)], 1)
        assert np.array_equal(sent.is_in_rank[: tokens[r]], goes)
        assert np.array_equal(sent.tokens_per_rank, goes.sum(0))
        assert np.array_equal(sent.tokens_per_expert, np.bincount(idx[r][idx[r] >= 0].ravel(), minlength=experts))
    rig.notify(sents, experts)
    given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
    rig.dispatch(sents, given, idx, weights, experts, room=room, num_sms=num_sms)
    want = expected(given, idx, weights, experts)
    check_dispatch(rig, sents, want, fp8)
    if fp8:
        return
    handles, sent_weights = [truth.handle for truth in want], [truth.recv_topk_weights for truth in want]
    rng = np.random.default_rng(seed)
    others = [rng.standard_normal(truth.recv_x.shape, np.float32).astype(x[0].dtype) for truth in want]
    for y in (None, others):
        out, sums = rig.combine(sents, hidden, y=y, weights=y is None, num_sms=num_sms)
        rows = [truth.recv_x for truth in want] if y is None else y
        for r in range(ranks):
            total, total_weights = reference.combine(rows, handles, r, tokens[r], sent_weights)
            assert np.array_equal(out[r].view(np.uint16), total.view(np.uint16))
            assert y is not None or np.array_equal(sums[r], total_weights)


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


def check_low_latency(rig, tokens, most, hidden, local, topk, seed, *, fp8=False, ue8m0=False, halves=False,
                      dies=()):  # fmt: skip
    """One dispatch and one combine of so many tokens of each rank, at most `most`; `local` experts a rank.

    Ranks that are gone (`rig.gone`), and those that `dies` says will be gone before combine, are as if they had sent
    nothing.
    """
    ranks, experts = rig.ranks, local * rig.ranks
    x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed)
    sent = [np.full_like(chosen, -1) if r in rig.gone else chosen for r, chosen in enumerate(idx)]
    got = rig.ll_dispatch(x, idx, experts, most, fp8=fp8, round_scale=ue8m0, ue8m0=ue8m0, halves=halves)
    want = [
        reference.low_latency_dispatch(x, sent, r, experts, most, use_fp8=fp8 and not ue8m0) for r in range(ranks)
    ]
    y = []
    for r in range(ranks):
        mine, truth = got[r], want[r]
        if r in rig.gone:
            y.append(rig.array(truth.packed_recv_x.shape, x[0].dtype, np.nan))
            continue
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
    rig.gone |= set(dies)
    out = rig.ll_combine(y, got, weights, halves=halves)
    home = [np.where(np.isin(chosen // local, list(rig.gone)), -1, chosen) for chosen in idx]
    for r in set(range(ranks)) - rig.gone:
        assert np.array_equal(
            out[r].view(np.uint16), two_roundings(y, want, home, weights, ranks, r, local).view(np.uint16)
        )
