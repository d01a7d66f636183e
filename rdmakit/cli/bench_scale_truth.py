"""What dispatch and combine must give, where rows are too many for NumPy: the same few lines on NumPy and on torch.

Leans on ep.reference: places, choices and weights are its own, found with rows of a few channels; here are rows. Tests
hold both against the reference, and `bench scale` does so once more on the GPU that it measures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rdmakit.ep import reference
from rdmakit.ep.numerics import rounding_bound

__all__ = ["NUMPY", "Numbers", "combined", "factors", "ll_combined", "ll_places", "placed", "scaled"]

Array = Any  # a NumPy array or a torch tensor


class Numbers(NamedTuple):
    """How an array of BF16 is widened to float32, and one of float32 rounded to BF16."""

    wide: Callable[[Array], Array]
    narrow: Callable[[Array], Array]


NUMPY = Numbers(lambda a: a.astype(np.float32), lambda a: a.astype(ml_dtypes.bfloat16))


def factors(count: int) -> np.ndarray[Any, Any]:
    """float32 [count] in [1, 2), no two alike: what an expert (or a rank's experts) makes of a row.

    >>> factors(4).tolist()
    [1.0, 1.25, 1.5, 1.75]
    """
    return (1 + np.arange(count) / count).astype(np.float32)


def placed(idx: Sequence[Any], weights: Sequence[Any], rank: int, experts: int) -> reference.Dispatched:
    """Everything of normal dispatch but the rows: the reference's own, for rows of the fewest channels."""
    few = [np.zeros((len(choices), 128), ml_dtypes.bfloat16) for choices in idx]
    return reference.dispatch(few, idx, weights, rank, experts)


def scaled(rows: Array, factor: Any, numbers: Numbers) -> Array:
    """Rows as experts leave them: times `factor` (a number, or one that broadcasts), rounded to BF16."""
    return numbers.narrow(numbers.wide(rows) * factor)


def combined(x: Array, goes: Array, by_rank: Sequence[float], numbers: Numbers) -> Array:
    """Combine of what each rank made of a token, by `scaled`: float32 by ascending rank, rounded once.

    `x`: BF16 [tokens, hidden]; `goes`: float32 [tokens, ranks], 1 where a token went; `by_rank`: factors.
    """
    total = numbers.wide(x) * 0.0 + 0.0  # -0 is no sum of nothing
    for rank, factor in enumerate(by_rank):
        total = total + numbers.wide(scaled(x, factor, numbers)) * goes[:, rank : rank + 1]
    return numbers.narrow(total)


def ll_places(
    idx: Sequence[Any], rank: int, experts: int, tokens: int
) -> tuple[reference.LowLatencyDispatched, tuple[Any, Any, Any, Any]]:
    """Low-latency dispatch but the rows; and of each row that is there: local expert, place, source rank, token."""
    few = [np.zeros((len(choices), 128), ml_dtypes.bfloat16) for choices in idx]
    want = reference.low_latency_dispatch(few, idx, rank, experts, tokens)
    places = [np.zeros((4, 0), np.int64)]
    for local in range(experts // len(idx)):
        for source in range(len(idx)):
            packed = int(want.packed_recv_layout_range[local, source])
            begin, count = packed >> 32, packed & 0xFFFFFFFF
            at = np.arange(begin, begin + count)
            token = want.packed_recv_src_info[local, begin : begin + count]
            places.append(np.stack([np.full(count, local), at, np.full(count, source), token]).astype(np.int64))
    local, at, source, token = np.concatenate(places, 1)
    return want, (local, at, source, token)


def ll_combined(x: Any, idx: Any, weights: Any, by_expert: Any) -> tuple[Any, Any]:
    """Low-latency combine of what each expert made of a token: the sum in float64, and how far off a result may be.

    `x`: BF16 [tokens, hidden]; `idx`, `weights`: [tokens, topk]. The sum of a rank's experts is rounded to BF16 before
    it crosses, hence two stages.
    """
    total, absolute = np.zeros(x.shape), np.zeros(x.shape)
    for slot in range(idx.shape[1]):
        there = idx[:, slot] >= 0
        row = scaled(x[there], by_expert[idx[there, slot]][:, None], NUMPY)
        term = row.astype(np.float64) * weights[there, slot].astype(np.float64)[:, None]
        total[there] += term
        absolute[there] += np.abs(term)
    return total, rounding_bound(total, absolute, max_terms=idx.shape[1] + 1, stages=2)
