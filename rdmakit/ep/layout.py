"""Who gets how many tokens: the plan that dispatch needs before it moves a byte, and the checks on its input.

`get_dispatch_layout` answers, from top-k indices alone, what DeepEP's call of the same name answers: tokens
per rank, per host and per expert, and which token goes to which rank. The `check_*` functions are the only
gate for user input to dispatch and combine; each error names the token, the value, the rule and the remedy.
Leans on NumPy and `rdmakit.errors`. (Not to be confused with `rdmakit.layout`, the mlx5 byte layouts.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument

__all__ = [
    "FP8_BLOCK",
    "DispatchLayout",
    "check_capacity",
    "check_fp8",
    "check_hidden",
    "check_sizes",
    "check_topk_idx",
    "check_topk_weights",
    "check_topology",
    "get_dispatch_layout",
]

FP8_BLOCK = 128
"""Channels that share one FP8 scale (DeepSeek-V3 technical report, section 3.3.2: 1 x 128 tiles)."""


@dataclass(frozen=True)
class DispatchLayout:
    """One rank's plan. A token counts once per rank and once per host, however many experts it wants there.

    * `num_tokens_per_rank`: int32 `[num_ranks]`
    * `num_tokens_per_host`: int32 `[num_hosts]` (DeepEP calls it `num_tokens_per_rdma_rank`)
    * `num_tokens_per_expert`: int32 `[num_experts]`
    * `is_token_in_rank`: bool `[num_tokens, num_ranks]`
    """

    num_tokens_per_rank: NDArray[np.int32]
    num_tokens_per_host: NDArray[np.int32]
    num_tokens_per_expert: NDArray[np.int32]
    is_token_in_rank: NDArray[np.bool_]


def get_dispatch_layout(topk_idx: NDArray[np.integer], num_experts: int, num_ranks: int,
                        ranks_per_host: int | None = None) -> DispatchLayout:
    """Count where one rank's tokens go.

    `topk_idx` is int32 or int64 `[num_tokens, top_k]`, -1 for a masked slot; rank r hosts the experts
    `[r*E/R, (r+1)*E/R)`, host h the ranks `[h*ranks_per_host, (h+1)*ranks_per_host)` (default: one host).
    Raises `BadArgument` for a topology that does not divide and for any bad index. Cost: linear in tokens.

    >>> plan = get_dispatch_layout(np.array([[0, 1], [3, -1]]), num_experts=4, num_ranks=2)
    >>> plan.num_tokens_per_rank.tolist(), plan.num_tokens_per_expert.tolist()
    ([1, 1], [1, 1, 0, 1])
    """
    ranks_per_host = num_ranks if ranks_per_host is None else ranks_per_host
    check_topology(num_experts, num_ranks, ranks_per_host)
    check_topk_idx(topk_idx, num_experts)
    token, slot = np.nonzero(topk_idx >= 0)
    expert = topk_idx[token, slot]
    is_token_in_rank = np.zeros((len(topk_idx), num_ranks), bool)
    is_token_in_rank[token, expert // (num_experts // num_ranks)] = True
    in_host = is_token_in_rank.reshape(len(topk_idx), num_ranks // ranks_per_host, ranks_per_host).any(2)
    return DispatchLayout(
        num_tokens_per_rank=is_token_in_rank.sum(0, dtype=np.int32),
        num_tokens_per_host=in_host.sum(0, dtype=np.int32),
        num_tokens_per_expert=np.bincount(expert, minlength=num_experts).astype(np.int32),
        is_token_in_rank=is_token_in_rank,
    )


def check_topology(num_experts: int, num_ranks: int, ranks_per_host: int) -> None:
    """Raise `BadArgument` unless ranks divide into hosts and experts into ranks.

    >>> check_topology(num_experts=256, num_ranks=8, ranks_per_host=2)
    """
    counts = {"num_experts": num_experts, "num_ranks": num_ranks, "ranks_per_host": ranks_per_host}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise BadArgument(f"{name} is no integer", value=repr(value), rule="a count is an int",
                              remedy=f"pass an int as {name}")
        if value < 1:
            raise BadArgument(f"{name} is not positive", value=value, rule=f"{name} >= 1",
                              remedy=f"raise {name}")
    if num_experts % num_ranks:
        raise BadArgument(f"{num_experts} experts cannot be split evenly over {num_ranks} ranks",
                          value=num_experts, rule="num_experts % num_ranks == 0, each rank hosts E/R",
                          remedy="pad the experts or change the number of ranks", num_ranks=num_ranks)
    if num_ranks % ranks_per_host:
        raise BadArgument(f"{num_ranks} ranks cannot be split evenly over hosts of {ranks_per_host}",
                          value=num_ranks, rule="num_ranks % ranks_per_host == 0",
                          remedy="use as many ranks on every host", ranks_per_host=ranks_per_host)


def check_topk_idx(topk_idx: NDArray[np.integer], num_experts: int, num_tokens: int | None = None) -> None:
    """Raise `BadArgument` unless `topk_idx` `[num_tokens, top_k]` holds valid experts.

    It is C-contiguous int32 or int64, every entry lies in [-1, num_experts) and no token names an expert
    twice (-1 may repeat).

    >>> check_topk_idx(np.array([[5, 5]]), num_experts=8)
    Traceback (most recent call last):
    ...
    rdmakit.errors.BadArgument: token 0 names expert 5 twice (value 5, token 0, slots (0, 1))
    rule: the experts of one token are distinct; remedy: mask repeats with -1
    """
    _check_array("topk_idx", topk_idx, (np.int32, np.int64), 2)
    _check_length("topk_idx", topk_idx, num_tokens)
    if topk_idx.shape[1] < 1:
        raise BadArgument("topk_idx has no columns", value=topk_idx.shape, rule="top_k >= 1",
                          remedy="pass at least one slot a token; mask unused slots with -1")
    bad = (topk_idx < -1) | (topk_idx >= num_experts)
    if bad.any():
        token, slot = np.argwhere(bad)[0].tolist()
        expert = int(topk_idx[token, slot])
        raise BadArgument(f"token {token}, slot {slot} names expert {expert}, which does not exist",
                          value=expert, rule=f"-1 <= index < num_experts = {num_experts}",
                          remedy="pass global expert indices and mask unused slots with -1",
                          token=token, slot=slot)
    ordered = np.sort(topk_idx, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        token, place = np.argwhere(twice)[0].tolist()
        expert = int(ordered[token, place])
        slots = tuple(np.flatnonzero(topk_idx[token] == expert)[:2].tolist())
        raise BadArgument(f"token {token} names expert {expert} twice", value=expert,
                          rule="the experts of one token are distinct",
                          remedy="mask repeats with -1", token=token, slots=slots)


def check_topk_weights(topk_weights: NDArray[np.float32], topk_idx: NDArray[np.integer]) -> None:
    """Raise `BadArgument` unless `topk_weights` is C-contiguous float32 of the shape of `topk_idx`.

    >>> check_topk_weights(np.ones((4, 2), np.float32), np.zeros((4, 2), np.int64))
    """
    _check_array("topk_weights", topk_weights, (np.float32,), 2)
    if topk_weights.shape != topk_idx.shape:
        raise BadArgument("topk_weights and topk_idx differ in shape", value=topk_weights.shape,
                          rule=f"one weight an index: {topk_idx.shape}",
                          remedy="pass both from the same router call")


def check_hidden(x: NDArray[Any], num_tokens: int | None = None) -> None:
    """Raise `BadArgument` unless `x` is C-contiguous BF16 `[num_tokens, hidden]`, hidden a multiple of 128.

    >>> check_hidden(np.zeros((4, 256), ml_dtypes.bfloat16), num_tokens=4)
    """
    _check_array("x", x, (ml_dtypes.bfloat16,), 2)
    _check_length("x", x, num_tokens)
    _check_width("x", x)


def check_fp8(q: NDArray[Any], scales: NDArray[np.float32], num_tokens: int | None = None) -> None:
    """Raise `BadArgument` unless `q` is float8_e4m3fn `[n, hidden]` with float32 scales `[n, hidden/128]`.

    >>> check_fp8(np.zeros((4, 256), ml_dtypes.float8_e4m3fn), np.ones((4, 2), np.float32))
    """
    _check_array("x", q, (ml_dtypes.float8_e4m3fn,), 2)
    _check_length("x", q, num_tokens)
    _check_width("x", q)
    _check_array("scales", scales, (np.float32,), 2)
    want = (len(q), q.shape[1] // FP8_BLOCK)
    if scales.shape != want:
        raise BadArgument("scales do not fit x", value=scales.shape,
                          rule=f"one a token and {FP8_BLOCK} channels: {want}",
                          remedy="use quantize_fp8, which returns both")


def check_sizes(hidden: int, **positive: int) -> None:
    """Refuse sizes that make no buffer: `hidden` must be a positive multiple of 128, the others at least 1.

    >>> check_sizes(256, topk=0)
    Traceback (most recent call last):
    rdmakit.errors.BadArgument: topk is not positive (value 0)
    rule: topk >= 1; remedy: a buffer for nothing is still made for one; calls may carry zero tokens
    """
    if hidden % FP8_BLOCK or hidden <= 0:
        raise BadArgument("hidden is no multiple of 128", value=hidden, rule=f"hidden % {FP8_BLOCK} == 0",
                          remedy="pad the hidden dimension")
    for name, value in positive.items():
        if value < 1:
            raise BadArgument(f"{name} is not positive", value=value, rule=f"{name} >= 1",
                              remedy="a buffer for nothing is still made for one; calls may carry zero tokens")


def check_capacity(num_tokens_per_source: NDArray[np.integer], capacity: int, *, rank: int,
                   buffer: str) -> None:
    """Raise `BadArgument` when the tokens of all sources together exceed the `capacity` of `rank`'s `buffer`.

    `num_tokens_per_source` is `[num_ranks]`; `capacity` is in tokens; `buffer` is the name for the message.

    >>> check_capacity(np.array([3, 4]), 8, rank=0, buffer="receive buffer")
    """
    counts = np.asarray(num_tokens_per_source, np.int64)
    total = int(counts.sum())
    if total > capacity:
        worst = int(counts.argmax())
        raise BadArgument(f"{total} tokens do not fit rank {rank}'s {buffer}", value=total,
                          rule=f"at most {capacity} tokens", rank=rank,
                          most_from=f"rank {worst} ({counts[worst]})",
                          remedy=f"allocate the {buffer} for at least {total} tokens, or send fewer a call")


def _check_array(name: str, array: object, dtypes: tuple[type, ...], ndim: int) -> None:
    names = " or ".join(np.dtype(d).name for d in dtypes)
    if not isinstance(array, np.ndarray):
        raise BadArgument(f"{name} is no NumPy array", value=type(array).__name__, rule=f"ndarray of {names}",
                          remedy=f"pass np.asarray({name})")
    if array.dtype not in [np.dtype(d) for d in dtypes]:
        raise BadArgument(f"{name} has the wrong dtype", value=array.dtype, rule=f"{name} is {names}",
                          remedy=f"convert it: {name}.astype({names.split(' or ')[-1]})")
    if array.ndim != ndim:
        raise BadArgument(f"{name} has {array.ndim} dimensions", value=array.shape, rule=f"{name} has {ndim}",
                          remedy="reshape it to one row a token")
    if not array.flags.c_contiguous:
        raise BadArgument(f"{name} is not contiguous", value=f"strides {array.strides}",
                          rule=f"{name} is C-contiguous: rows are sent as they lie in memory",
                          remedy=f"pass np.ascontiguousarray({name})")


def _check_length(name: str, array: NDArray[Any], num_tokens: int | None) -> None:
    if num_tokens is not None and len(array) != num_tokens:
        raise BadArgument(f"{name} has {len(array)} rows", value=len(array),
                          rule=f"one row for each of {num_tokens} tokens",
                          remedy="slice the arguments of one call alike")


def _check_width(name: str, array: NDArray[Any]) -> None:
    hidden = array.shape[1]
    if hidden == 0 or hidden % FP8_BLOCK:
        raise BadArgument(f"hidden {hidden} is not a positive multiple of {FP8_BLOCK}", value=hidden,
                          rule=f"one FP8 scale covers {FP8_BLOCK} channels",
                          remedy=f"pad {name} to {max(1, -(-hidden // FP8_BLOCK)) * FP8_BLOCK} channels")
