"""What a round trip between hosts must give, bit for bit; rigs for the CPU runner and for GPUs share it."""

from __future__ import annotations

import numpy as np
from internode_rig import BF16
from moe import make_inputs

from rdmakit.ep import reference
from rdmakit.ep.layout import get_dispatch_layout


def same(found, wanted, what):
    assert found.dtype == wanted.dtype and found.shape == wanted.shape, (what, found.shape, wanted.shape)
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes(), what


def check_received(sents, x, idx, weights, experts, *, topk=True):
    """Rows, in order of source and token; scales, choices, weights, sources."""
    for rank, sent in enumerate(sents):
        want = reference.dispatch(x, idx, weights, rank, experts)
        rows, scales = want.recv_x if isinstance(want.recv_x, tuple) else (want.recv_x, None)
        same(sent.x, rows, f"rows of rank {rank}")
        if scales is not None:
            same(sent.scales, scales, f"scales of rank {rank}")
        same(sent.source, want.handle.src_token, f"sources of rank {rank}")
        if topk:
            same(sent.topk, want.recv_topk_idx.astype(np.int64), f"choices of rank {rank}")
            same(sent.weights, want.recv_topk_weights, f"weights of rank {rank}")


def fresh_rows(sents, hidden, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((sent.rows, hidden), np.float32).astype(BF16) for sent in sents]


def check_combined(rig, sents, idx, y, out, out_weights, weights, experts, bias=()):
    handles = [reference.make_handle(idx, rank, experts) for rank in range(rig.ranks)]
    for rank, sent in enumerate(sents):
        tokens = sent.route.tokens
        want, want_weights = reference.combine(y, handles, rank, tokens, weights, rig.local)
        if bias:
            # The biases are added before the last rounding, which the plain sum has behind it.
            exact = unrounded_sums(y, handles, rank, tokens, rig.local)
            for each in bias:
                exact = exact + each[rank].astype(np.float32)
            want = exact.astype(BF16)
        same(out[rank], want, f"sums of rank {rank}")
        if weights is not None:
            same(out_weights[rank], want_weights, f"summed weights of rank {rank}")


def unrounded_sums(y, handles, rank, tokens, local):
    """What the second stage of combine has before it rounds: partial sums of each host are BF16 already."""
    total = np.zeros((tokens, y[0].shape[1]), np.float32)
    for first in range(0, len(y), local):
        only = [rows if first <= r < first + local else np.zeros_like(rows) for r, rows in enumerate(y)]
        total = total + reference.combine(only, handles, rank, tokens, None, local)[0].astype(np.float32)
    return total


def check_round_trip(rig, tokens, hidden, experts, topk, seed, *, fp8=False, alignment=1, num_sms=6):
    """Layout, counts, dispatch and combine, then both once more by the same route, with biases."""
    x, idx, weights = make_inputs(tokens, hidden, experts, topk, seed)
    sents = rig.layouts(idx, experts)
    for sent, choices, n in zip(sents, idx, tokens, strict=True):
        want = get_dispatch_layout(choices, experts, rig.ranks, rig.local)
        same(sent.per_rank, want.num_tokens_per_rank, "tokens by rank")
        same(sent.per_host, want.num_tokens_per_host, "tokens by host")
        same(sent.per_expert, want.num_tokens_per_expert, "tokens by expert")
        same(sent.in_rank[:n], want.is_token_in_rank, "tokens in ranks")
    rig.notify(sents, tokens, experts, alignment, num_sms)
    for rank, sent in enumerate(sents):
        want = reference.dispatch(x, idx, weights, rank, experts)
        assert sent.rows == len(want.recv_x)
        assert sent.experts == [-(-int(n) // alignment) * alignment for n in want.num_recv_tokens_per_expert]
        assert sent.rank_prefix.tolist() == want.handle.source_begin[1:].tolist()
    given = [reference.quantize_fp8(rows) for rows in x] if fp8 else x
    rig.dispatch(sents, given, idx, weights, num_sms=num_sms)
    check_received(sents, given, idx, weights, experts)
    back = [sent.weights for sent in sents]

    y = fresh_rows(sents, hidden, seed + 1)
    out, out_weights = rig.combine(sents, y, back, num_sms=num_sms)
    check_combined(rig, sents, idx, y, out, out_weights, back, experts)

    again = make_inputs(tokens, hidden, experts, topk, seed + 99)[0]
    given = [reference.quantize_fp8(rows) for rows in again] if fp8 else again
    rig.dispatch(sents, given, cached=True, num_sms=num_sms)
    check_received(sents, given, idx, weights, experts, topk=False)
    rng = np.random.default_rng(seed)
    bias = [[rng.standard_normal((n, hidden), np.float32).astype(BF16) for n in tokens] for _ in range(2)]
    out, out_weights = rig.combine(sents, y, None, bias, num_sms=num_sms)
    check_combined(rig, sents, idx, y, out, out_weights, None, experts, bias)
