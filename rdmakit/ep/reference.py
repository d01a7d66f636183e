"""The NumPy truth of MoE dispatch and combine: what every rank must end up with, computed the obvious way.

The semantics are those of DeepEP's `Buffer` (github.com/deepseek-ai/DeepEP, README and tests), seen from
outside all ranks at once: `topk_idx[s]` is what rank s passed. Each function yields *one* rank's result, so
that checking 8 ranks x 4096 tokens x 7168 channels needs one output at a time; a `Sequence` argument may
load its items lazily (each is asked for once, in ascending order). Where an implementation is free, the
reference fixes an order:

* *normal*: a destination's rows are ordered by source rank, then source token; a token arrives once a rank.
  Combine adds rows in float32 by ascending rank and rounds once to BF16 (per host and once more, if asked).
* *low latency*: rows are packed by local expert, then source rank, then token (`sort_low_latency` brings
  another order to this one); combine adds weight * row in float32 by ascending slot and rounds once.

`combine_error_bound` says how far another order of the same sums may stray. Leans on NumPy, `ep.layout`
(checks) and `ep.numerics` (FP8, rounding; its names are offered here too).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep.layout import (
    FP8_BLOCK,
    check_capacity,
    check_fp8,
    check_hidden,
    check_topk_idx,
    check_topk_weights,
)
from rdmakit.ep.numerics import calc_diff, dequantize_fp8, quantize_fp8, rounding_bound
from rdmakit.errors import BadArgument

__all__ = [
    "Dispatched",
    "Handle",
    "LowLatencyDispatched",
    "calc_diff",
    "combine",
    "combine_error_bound",
    "dequantize_fp8",
    "dispatch",
    "dispatch_rows",
    "low_latency_combine",
    "low_latency_dispatch",
    "low_latency_error_bound",
    "make_handle",
    "quantize_fp8",
    "sort_low_latency",
]

Array = NDArray[Any]
Rows = Array | tuple[Array, Array]
"""One rank's tokens: BF16 `[n, hidden]`, or FP8 `[n, hidden]` with float32 scales `[n, hidden/128]`."""


@dataclass(frozen=True)
class Handle:
    """Where rank `rank`'s received rows came from; what combine and the backward pass reuse.

    `src_rank`, `src_token`: int32 `[num_recv]`. `source_begin`: int64 `[num_ranks + 1]`, the rows from
    source s are `source_begin[s]:source_begin[s + 1]`.
    """

    rank: int
    src_rank: NDArray[np.int32]
    src_token: NDArray[np.int32]
    source_begin: NDArray[np.int64]

    def rows_from(self, source: int) -> tuple[slice, NDArray[np.int32]]:
        """The rows that came from `source`, and the token of each."""
        rows = slice(int(self.source_begin[source]), int(self.source_begin[source + 1]))
        return rows, self.src_token[rows]


@dataclass(frozen=True)
class Dispatched:
    """What normal dispatch gives one rank, `num_recv` rows in the order of `handle`.

    `recv_x` as the senders' (BF16, or FP8 with scales); `recv_topk_idx` int64 `[num_recv, top_k]` *local*
    expert or -1; `recv_topk_weights` float32, 0 where the index is -1; `num_recv_tokens_per_expert` int32
    `[E / R]`.
    """

    recv_x: Rows
    recv_topk_idx: NDArray[np.int64]
    recv_topk_weights: NDArray[np.float32]
    num_recv_tokens_per_expert: NDArray[np.int32]
    handle: Handle


def make_handle(topk_idx: Sequence[Array], rank: int, num_experts: int) -> Handle:
    """The rows that `rank` receives, from every rank's `topk_idx` (`[num_tokens_s, top_k]`, -1 masked).

    >>> make_handle([np.array([[0], [1]]), np.array([[1]])], rank=1, num_experts=2).src_token.tolist()
    [1, 0]
    """
    first, last = _hosted(rank, len(topk_idx), num_experts)
    tokens = []
    for idx in topk_idx:
        check_topk_idx(idx, num_experts)
        tokens.append(np.flatnonzero(((idx >= first) & (idx < last)).any(1)).astype(np.int32))
    counts = [len(t) for t in tokens]
    return Handle(rank, np.repeat(np.arange(len(counts), dtype=np.int32), counts), np.concatenate(tokens),
                  np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def dispatch_rows(x: Sequence[Rows], handle: Handle) -> Rows:
    """Move rows along a known handle, without indices: DeepEP's cached dispatch.

    This is also the backward pass of combine, whose gradient goes wherever the token went; the backward
    pass of dispatch is `combine` of the received rows' gradients. `x[s]` is rank s's `Rows`.

    >>> handle = make_handle([np.array([[0], [1]])], rank=0, num_experts=2)
    >>> dispatch_rows([np.ones((2, 128), ml_dtypes.bfloat16)], handle).shape
    (2, 128)
    """
    whole: list[Array] = []
    for source, rows in enumerate(x):
        place, tokens = handle.rows_from(source)
        if isinstance(rows, tuple):
            check_fp8(*rows)
        else:
            check_hidden(rows)
        fields = rows if isinstance(rows, tuple) else (rows,)
        if not whole:
            whole = [np.empty((len(handle.src_token), field.shape[1]), field.dtype) for field in fields]
        for received, field in zip(whole, fields, strict=True):
            received[place] = field[tokens]
    return whole[0] if len(whole) == 1 else (whole[0], whole[1])


def dispatch(x: Sequence[Rows], topk_idx: Sequence[Array], topk_weights: Sequence[Array], rank: int,
             num_experts: int) -> Dispatched:
    """Normal dispatch, as `rank` sees it: each token that names one of its experts, once.

    `x[s]`, `topk_idx[s]`, `topk_weights[s]` are rank s's arguments (see `Rows`; int32/int64 and float32
    `[num_tokens_s, top_k]`). Raises `BadArgument` for anything that `ep.layout` refuses.

    >>> x = [np.ones((2, 128), ml_dtypes.bfloat16)]
    >>> got = dispatch(x, [np.array([[1], [0]])], [np.ones((2, 1), np.float32)], rank=0, num_experts=2)
    >>> got.num_recv_tokens_per_expert.tolist()
    [1, 1]
    """
    first, last = _hosted(rank, len(topk_idx), num_experts)
    handle = make_handle(topk_idx, rank, num_experts)
    idx_parts, weight_parts = [], []
    for source, (idx, weights) in enumerate(zip(topk_idx, topk_weights, strict=True)):
        check_topk_weights(weights, idx)
        _, tokens = handle.rows_from(source)
        idx_parts.append(idx[tokens].astype(np.int64))
        weight_parts.append(weights[tokens])
    recv_idx, recv_weights = np.concatenate(idx_parts), np.concatenate(weight_parts)
    here = (recv_idx >= first) & (recv_idx < last)
    local = np.where(here, recv_idx - first, -1)
    return Dispatched(
        recv_x=dispatch_rows(x, handle),
        recv_topk_idx=local,
        recv_topk_weights=np.where(here, recv_weights, np.float32(0)),
        num_recv_tokens_per_expert=np.bincount(local[here], minlength=last - first).astype(np.int32),
        handle=handle,
    )


def combine(y: Sequence[Array], handles: Sequence[Handle], rank: int, num_tokens: int,
            topk_weights: Sequence[Array] | None = None,
            ranks_per_host: int | None = None) -> tuple[Array, NDArray[np.float32] | None]:
    """Normal combine, as source `rank` sees it: each token's rows, summed over the ranks it went to.

    `y[r]` is BF16 `[num_recv_r, hidden]` in the order of `handles[r]`; experts have applied the weights
    already. `topk_weights[r]`, float32 `[num_recv_r, top_k]`, is summed likewise (so that gradients of the
    weights return). Returns BF16 `[num_tokens, hidden]` and float32 `[num_tokens, top_k]` or None; a fully
    masked token gets zeros.

    Order: float32, ascending rank, one rounding to BF16. With `ranks_per_host`, the two stages of a
    forwarding combine: each host's ranks are summed and rounded so, then the partial rows, by ascending
    host, again.

    >>> handles = [make_handle([np.array([[0, 1]])] * 2, r, num_experts=2) for r in range(2)]
    >>> total, _ = combine([np.ones((2, 128), ml_dtypes.bfloat16)] * 2, handles, rank=0, num_tokens=1)
    >>> float(total[0, 0])
    2.0
    """
    total: Array | None = None
    partial: Array | None = None
    for destination, (rows, tokens) in enumerate(_received(y, handles, rank)):
        check_hidden(rows)
        if partial is None:
            partial = np.zeros((num_tokens, rows.shape[1]), np.float32)
        partial[tokens] += rows.astype(np.float32)
        if ranks_per_host and (destination + 1) % ranks_per_host == 0:
            partial = partial.astype(ml_dtypes.bfloat16).astype(np.float32)
            total = partial if total is None else total + partial
            partial = None
    summed = partial if total is None else total
    assert summed is not None, "there is at least one rank"
    weights: Array | None = None
    if topk_weights is not None:
        for rows, tokens in _received(topk_weights, handles, rank):
            if weights is None:
                weights = np.zeros((num_tokens, rows.shape[1]), np.float32)
            weights[tokens] += rows
    return summed.astype(ml_dtypes.bfloat16), weights


def combine_error_bound(y: Sequence[Array], handles: Sequence[Handle], rank: int, num_tokens: int,
                        ranks_per_host: int | None = None) -> NDArray[np.float32]:
    """How far any conforming `combine` may be from the exact sum: float32 `[num_tokens, hidden]`.

    Conforming: the same terms, added in float32 in any order, rounded to BF16 once a stage. With n terms of
    absolute sum S and exact sum s: (n-1) u32 S for the additions and u16 |s| for the rounding (N. Higham,
    Accuracy and Stability, section 4.2), plus u16 S for the per-host stage. Two conforming results differ
    by at most twice this.

    >>> handle = make_handle([np.array([[0]])], rank=0, num_experts=1)
    >>> combine_error_bound([np.ones((1, 128), ml_dtypes.bfloat16)], [handle], 0, 1)[0, 0].item() == 2.0**-8
    True
    """
    total: Array | None = None
    for rows, tokens in _received(y, handles, rank):
        if total is None:
            total = np.zeros((2, num_tokens, rows.shape[1]), np.float32)
        wide = rows.astype(np.float32)
        total[0, tokens] += wide
        total[1, tokens] += np.abs(wide)
    assert total is not None, "there is at least one rank"
    stages = 1 if ranks_per_host is None else 2
    return rounding_bound(total[0], total[1], max_terms=len(handles), stages=stages)


@dataclass(frozen=True)
class LowLatencyDispatched:
    """What low-latency dispatch gives one rank. L = local experts, M = num_max_tokens, R = ranks.

    * `packed_recv_x`: BF16 or FP8 `[L, R * M, hidden]`, rows `[0, packed_recv_count[l])` are valid, others
      zero
    * `packed_recv_scales`: float32 `[L, R * M, hidden/128]` with FP8, else None
    * `packed_recv_count`: int32 `[L]`
    * `packed_recv_src_info`: int32 `[L, R * M]`, each row's token on its source rank; -1 beyond the count
    * `packed_recv_layout_range`: int64 `[L, R]`, `begin << 32 | count` of each source's rows (DeepEP's
      packing)
    """

    packed_recv_x: Array
    packed_recv_scales: NDArray[np.float32] | None
    packed_recv_count: NDArray[np.int32]
    packed_recv_src_info: NDArray[np.int32]
    packed_recv_layout_range: NDArray[np.int64]


def low_latency_dispatch(x: Sequence[Array], topk_idx: Sequence[Array], rank: int, num_experts: int,
                         num_max_tokens: int, use_fp8: bool = False) -> LowLatencyDispatched:
    """Low-latency dispatch, as `rank` sees it: a row for each (token, expert), packed by expert.

    `x[s]` is BF16 `[num_tokens_s, hidden]`, at most `num_max_tokens` tokens; `use_fp8` casts on the way.

    >>> got = low_latency_dispatch([np.ones((2, 128), ml_dtypes.bfloat16)], [np.array([[1], [1]])], 0, 2, 4)
    >>> got.packed_recv_count.tolist(), got.packed_recv_src_info[1].tolist()
    ([0, 2], [0, 1, -1, -1])
    """
    num_ranks = len(topk_idx)
    first, last = _hosted(rank, num_ranks, num_experts)
    rows_max = num_ranks * num_max_tokens
    count = np.zeros(last - first, np.int32)
    src_info = np.full((last - first, rows_max), -1, np.int32)
    ranges = np.zeros((last - first, num_ranks), np.int64)
    packed: Array | None = None
    scales: NDArray[np.float32] | None = None
    for source, (rows, idx) in enumerate(zip(x, topk_idx, strict=True)):
        check_topk_idx(idx, num_experts)
        check_hidden(rows, len(idx))
        check_capacity(np.array([len(idx)]), num_max_tokens, rank=source, buffer="low-latency send buffer")
        if packed is None:
            hidden = rows.shape[1]
            dtype = ml_dtypes.float8_e4m3fn if use_fp8 else ml_dtypes.bfloat16
            packed = np.zeros((last - first, rows_max, hidden), dtype)
            scales = np.zeros((last - first, rows_max, hidden // FP8_BLOCK), np.float32) if use_fp8 else None
        for local in range(last - first):
            tokens = np.flatnonzero((idx == first + local).any(1))
            begin = int(count[local])
            place = slice(begin, begin + len(tokens))
            if scales is None:
                packed[local, place] = rows[tokens]
            else:
                packed[local, place], scales[local, place] = quantize_fp8(rows[tokens])
            src_info[local, place] = tokens
            ranges[local, source] = begin << 32 | len(tokens)
            count[local] += len(tokens)
    assert packed is not None, "there is at least one rank"
    return LowLatencyDispatched(packed, scales, count, src_info, ranges)


def sort_low_latency(got: LowLatencyDispatched) -> LowLatencyDispatched:
    """Reorder an implementation's rows to the reference's order, so that the two compare equal, bit for bit.

    Kernels hand out slots by atomics, so sources may stand in any order and tokens in any order within one.

    >>> got = low_latency_dispatch([np.ones((1, 128), ml_dtypes.bfloat16)], [np.array([[0]])], 0, 1, 2)
    >>> bool((sort_low_latency(got).packed_recv_src_info == got.packed_recv_src_info).all())
    True
    """
    x, info = got.packed_recv_x.copy(), got.packed_recv_src_info.copy()
    ranges = got.packed_recv_layout_range.copy()
    scales = None if got.packed_recv_scales is None else got.packed_recv_scales.copy()
    for local, count in enumerate(got.packed_recv_count.tolist()):
        begins, counts = ranges[local] >> 32, ranges[local] & 0xFFFFFFFF
        places = list(zip(begins.tolist(), counts.tolist(), strict=True))
        order = np.concatenate([b + np.argsort(info[local, b : b + n]) for b, n in places])
        if not np.array_equal(np.sort(order), np.arange(count)):
            raise BadArgument(f"the layout ranges of local expert {local} do not cover its rows once each",
                              value=places, expert=local,
                              rule=f"(begin, count) of the sources partition the {count} received rows",
                              remedy="pass packed_recv_count and packed_recv_layout_range of the same call")
        ranges[local] = (np.cumsum(counts) - counts) << 32 | counts
        for array in (x, info) if scales is None else (x, info, scales):
            array[local, :count] = array[local, order]
    return replace(got, packed_recv_x=x, packed_recv_scales=scales, packed_recv_src_info=info,
                   packed_recv_layout_range=ranges)


def low_latency_combine(y: Sequence[Array], received: Sequence[LowLatencyDispatched], topk_idx: Array,
                        topk_weights: Array, rank: int, num_experts: int) -> Array:
    """Low-latency combine, as source `rank` sees it: `sum_k weight_k * y(expert_k)`, BF16 `[num_tokens,
    hidden]`.

    `y[r]` is BF16, shaped and ordered as `received[r].packed_recv_x`; masked slots count nothing. Float32,
    ascending slot, one rounding to BF16.

    >>> got = low_latency_dispatch([np.ones((1, 128), ml_dtypes.bfloat16)], [np.array([[0, 1]])], 0, 2, 1)
    >>> weights = np.array([[0.25, 0.5]], np.float32)
    >>> low_latency_combine([got.packed_recv_x], [got], np.array([[0, 1]]), weights, 0, 2)[0, 0].item()
    0.75
    """
    total: Array | None = None
    rows = _expert_rows(y, received, topk_idx, rank, num_experts)
    check_topk_weights(topk_weights, topk_idx)
    for slot in range(topk_idx.shape[1]):
        term = rows[:, slot].astype(np.float32) * topk_weights[:, slot, None]
        total = term if total is None else total + term
    assert total is not None, "check_topk_idx refuses top_k == 0"
    return total.astype(ml_dtypes.bfloat16)


def low_latency_error_bound(y: Sequence[Array], received: Sequence[LowLatencyDispatched], topk_idx: Array,
                            topk_weights: Array, rank: int, num_experts: int) -> NDArray[np.float32]:
    """As `combine_error_bound`, for `low_latency_combine`: any order, with or without fused multiply-add.

    >>> got = low_latency_dispatch([np.ones((1, 128), ml_dtypes.bfloat16)], [np.array([[0]])], 0, 1, 1)
    >>> args = [got.packed_recv_x], [got], np.array([[0]]), np.ones((1, 1), np.float32), 0, 1
    >>> bool(low_latency_error_bound(*args).max() < 2.0**-7)
    True
    """
    rows = _expert_rows(y, received, topk_idx, rank, num_experts)
    terms = rows.astype(np.float32) * topk_weights[:, :, None]
    return rounding_bound(terms.sum(1), np.abs(terms).sum(1), max_terms=topk_idx.shape[1] + 1, stages=1)


def _hosted(rank: int, num_ranks: int, num_experts: int) -> tuple[int, int]:
    if not 0 <= rank < num_ranks or num_experts % num_ranks:
        raise BadArgument(f"rank {rank} of {num_ranks} hosts no whole share of {num_experts} experts",
                          value=rank, rule="0 <= rank < num_ranks and num_experts % num_ranks == 0",
                          remedy="pass one topk_idx a rank")
    share = num_experts // num_ranks
    return rank * share, (rank + 1) * share


def _received(y: Sequence[Array], handles: Sequence[Handle],
              rank: int) -> Iterator[tuple[Array, NDArray[np.int32]]]:
    for handle, rows in zip(handles, y, strict=True):
        if len(rows) != len(handle.src_token):
            raise BadArgument(f"rank {handle.rank} combines {len(rows)} rows", value=len(rows),
                              rule=f"it received {len(handle.src_token)}", rank=handle.rank,
                              remedy="pass its rows in the handle's order")
        place, tokens = handle.rows_from(rank)
        yield rows[place], tokens


def _expert_rows(y: Sequence[Array], received: Sequence[LowLatencyDispatched], topk_idx: Array, rank: int,
                 num_experts: int) -> Array:
    check_topk_idx(topk_idx, num_experts)
    share = num_experts // len(received)
    rows: Array | None = None
    for destination, (packed, got) in enumerate(zip(y, received, strict=True)):
        if rows is None:
            rows = np.zeros((*topk_idx.shape, packed.shape[-1]), ml_dtypes.bfloat16)
        for local in range(share):
            begin, count = divmod(int(got.packed_recv_layout_range[local, rank]), 1 << 32)
            tokens = got.packed_recv_src_info[local, begin : begin + count]
            slots = (topk_idx[tokens] == destination * share + local).argmax(1)
            rows[tokens, slots] = packed[local, begin : begin + count]
    assert rows is not None, "there is at least one rank"
    return rows
