"""What low-latency calls between hosts must give, bit for bit."""

from __future__ import annotations

import numpy as np
from internode_rig import BF16
from moe import make_inputs

from rdmakit.ep import reference


def _rounded(rows):
    """FP8 of rows with scales that are powers of two, and the exponents of those."""
    blocks = rows.astype(np.float32).reshape(len(rows), -1, 128)
    amax = np.maximum(np.abs(blocks).max(-1), np.float32(1e-4))
    exponents = np.ceil(np.log2((amax / np.float32(448)).astype(np.float64)))
    scaled = blocks * np.exp2(-exponents)[..., None].astype(np.float32)
    return scaled.reshape(len(rows), -1).astype("float8_e4m3fn"), (exponents + 127).astype(np.uint8)


def check_low_latency(rig, tokens, most, hidden, local, topk, seed, *, fp8=False, ue8m0=False, halves=False):
    """One dispatch and one combine of so many tokens of each rank, at most `most`; `local` experts a rank."""
    ranks, experts = rig.ranks, local * rig.ranks
    x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed)
    got = rig.ll_dispatch(x, idx, experts, most, fp8=fp8, ue8m0=ue8m0, halves=halves)
    want = [reference.low_latency_dispatch(x, idx, r, experts, most, use_fp8=fp8 and not ue8m0) for r in range(ranks)]
    y = []
    for mine, truth in zip(got, want, strict=True):
        assert np.array_equal(mine["count"], truth.packed_recv_count)
        assert np.array_equal(mine["statistics"], 7 + truth.packed_recv_count)
        assert np.array_equal(mine["ranges"], truth.packed_recv_layout_range)
        y.append(rig.array(truth.packed_recv_x.shape, BF16))
        for e in range(local):
            n = int(truth.packed_recv_count[e])
            assert np.array_equal(mine["source"][e, :n], truth.packed_recv_src_info[e, :n])
            rows = mine["x"][e, :n]
            if ue8m0:
                cast, exponents = _rounded(truth.packed_recv_x[e, :n])
                assert np.array_equal(rows.view(np.uint8), cast.view(np.uint8))
                found = mine["scales"][e, :, :n].transpose(1, 0, 2).reshape(n, hidden // 128)
                assert np.array_equal(found, exponents)
            else:
                assert np.array_equal(rows.view(np.uint8), truth.packed_recv_x[e, :n].view(np.uint8))
            if fp8 and not ue8m0:
                assert np.array_equal(mine["scales"][e, :, :n].T, truth.packed_recv_scales[e, :n])
            y[-1][e, :n] = np.random.default_rng(seed + e).standard_normal((n, hidden)).astype(BF16)
    out = rig.ll_combine(y, got, idx, weights, halves=halves)
    for r in range(ranks):
        truth = reference.low_latency_combine(y, want, idx[r], weights[r], r, experts)
        assert np.array_equal(out[r].view(np.uint16), truth.view(np.uint16))
