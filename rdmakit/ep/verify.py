"""Holds what the kernels gave against the NumPy truth, rank by rank: exact where the truth is exact.

Leans on ep.reference and ep.normal's results. Used by the demo, the benchmarks and the tests, so that no number is
printed without a check beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep import reference

__all__ = ["Check", "check_combined", "check_dispatched", "check_low_latency", "check_routing"]

Array = NDArray[Any]


class Check(NamedTuple):
    """One comparison: what of which rank, whether it holds, and how far off it is."""

    what: str
    rank: int
    ok: bool
    detail: str = ""


def _same(what: str, rank: int, got: Any, want: Any) -> Check:
    want = np.asarray(want)
    got = np.asarray(got, want.dtype) if want.dtype.kind == "i" else np.asarray(got)
    if got.shape != want.shape:
        return Check(what, rank, False, f"shape {got.shape}, expected {want.shape}")
    mine, truth = (np.ascontiguousarray(a).view(np.uint8).reshape(len(a), -1) if a.size else a for a in (got, want))
    if want.size == 0 or np.array_equal(mine, truth):
        return Check(what, rank, True, f"{want.size} values, bit for bit")
    bad = np.flatnonzero((mine != truth).any(1))
    return Check(what, rank, False, f"{len(bad)} of {len(want)} rows differ, first {int(bad[0])}")


def check_dispatched(
    got: Sequence[Any],
    x: Sequence[Any],
    topk_idx: Sequence[Array],
    topk_weights: Sequence[Array],
    experts: int,
) -> Iterable[Check]:
    """Every rank's received rows, expert choices, weights, counts and sources, bit for bit."""
    for r, mine in enumerate(got):
        want = reference.dispatch(x, topk_idx, topk_weights, r, experts)
        if isinstance(want.recv_x, tuple):
            yield _same("received FP8 rows", r, mine.recv_x[0], want.recv_x[0])
            yield _same("received scales", r, mine.recv_x[1], want.recv_x[1])
        else:
            yield _same("received rows", r, mine.recv_x, want.recv_x)
        yield from _routing(mine, want, r)


def _routing(mine: Any, want: reference.Dispatched, r: int) -> Iterable[Check]:
    yield _same("received expert choices", r, mine.recv_topk_idx, want.recv_topk_idx)
    yield _same("received weights", r, mine.recv_topk_weights, want.recv_topk_weights)
    yield _same("tokens per expert", r, mine.num_recv_tokens_per_expert, want.num_recv_tokens_per_expert)
    yield _same("source tokens", r, mine.recv_source, want.handle.src_token)


def check_routing(
    mine: Any, topk_idx: Sequence[Array], topk_weights: Sequence[Array], rank: int, experts: int
) -> Iterable[Check]:
    """One rank's received choices, weights, counts and sources, where payload was not moved."""
    empty = [np.zeros((len(idx), 128), ml_dtypes.bfloat16) for idx in topk_idx]
    yield from _routing(mine, reference.dispatch(empty, topk_idx, topk_weights, rank, experts), rank)


def check_combined(
    got: Sequence[Array],
    y: Sequence[Array],
    topk_idx: Sequence[Array],
    experts: int,
    ranks_per_host: int,
    got_weights: Sequence[Array] | None = None,
    weights: Sequence[Array] | None = None,
) -> Iterable[Check]:
    """Every rank's combined tokens (and weights), bit for bit: the kernels' order of summation is fixed."""
    handles = [reference.make_handle(topk_idx, r, experts) for r in range(len(got))]
    for r, mine in enumerate(got):
        want, want_weights = reference.combine(y, handles, r, len(topk_idx[r]), weights, ranks_per_host)
        yield _same("combined tokens", r, mine, want)
        if got_weights is not None and want_weights is not None:
            yield _same("combined weights", r, got_weights[r], want_weights)


def check_low_latency(
    got: Sequence[Any],
    x: Sequence[Array],
    topk_idx: Sequence[Array],
    experts: int,
    max_tokens: int,
    use_fp8: bool,
) -> Iterable[Check]:
    """Every rank's packed rows, scales, counts, sources and ranges, bit for bit."""
    for r, mine in enumerate(got):
        want = reference.low_latency_dispatch(x, topk_idx, r, experts, max_tokens, use_fp8)
        yield _same("tokens per expert", r, mine.packed_recv_count, want.packed_recv_count)
        yield _same("layout ranges", r, mine.packed_recv_layout_range, want.packed_recv_layout_range)
        yield _same("source tokens", r, mine.packed_recv_src_info, want.packed_recv_src_info)
        for e, n in enumerate(want.packed_recv_count):
            yield _same(f"rows of local expert {e}", r, mine.packed_recv_x[e, :n], want.packed_recv_x[e, :n])
            if want.packed_recv_scales is not None:
                yield _same(
                    f"scales of local expert {e}",
                    r,
                    mine.packed_recv_scales[e, :n],
                    want.packed_recv_scales[e, :n],
                )
