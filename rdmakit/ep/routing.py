"""Synthetic routers, and how uneven a routing is.

Each router is a pure function of its seed. `uniform` is the kind case, `zipf` has favourites, `group_limited`
is DeepSeek-V3's gate on random scores; `rdmakit.ep.recording` has the real thing. `skew` puts numbers on any
of them. Leans on NumPy and `rdmakit.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.ep.layout import check_topk_idx, check_topology
from rdmakit.errors import BadArgument

__all__ = ["Routing", "group_limited", "group_limited_gate", "skew", "uniform", "zipf"]


@dataclass(frozen=True)
class Routing:
    """Which experts each token wants: int64 `[num_tokens, top_k]` (-1 masked) and float32 weights, 0 where
    masked.

    `how` says which router made it, with its parameters.

    >>> uniform(4, num_experts=16, top_k=2, seed=1)
    Routing(4 tokens, top-2 of 16, uniform, seed=1)
    """

    topk_idx: NDArray[np.int64]
    topk_weights: NDArray[np.float32]
    num_experts: int
    how: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        tokens, top_k = self.topk_idx.shape
        how = ", ".join(str(v) if k == "router" else f"{k}={v}" for k, v in self.how.items())
        return f"Routing({tokens} tokens, top-{top_k} of {self.num_experts}{', ' if how else ''}{how})"

    def masked(self, fraction: float, *, seed: int) -> Routing:
        """The same routing with about `fraction` of the slots masked with -1 (as dropped or padded tokens
        are).

        >>> (uniform(4, 16, 2, seed=1).masked(1.0, seed=0).topk_idx == -1).all().item()
        True
        """
        gone = np.random.default_rng(seed).random(self.topk_idx.shape) < fraction
        return Routing(np.where(gone, -1, self.topk_idx), np.where(gone, np.float32(0), self.topk_weights),
                       self.num_experts, {**self.how, "masked": fraction})


def uniform(num_tokens: int, num_experts: int, top_k: int, *, seed: int) -> Routing:
    """Every set of `top_k` experts is equally likely; the weights of a token sum to 1.

    >>> uniform(2, num_experts=4, top_k=4, seed=0).topk_idx.sum(1).tolist()
    [6, 6]
    """
    rng = _generator(num_tokens, num_experts, top_k, seed)
    return _draw(rng, np.zeros(num_experts), num_tokens, top_k, {"router": "uniform", "seed": seed})


def zipf(num_tokens: int, num_experts: int, top_k: int, *, alpha: float = 1.0, seed: int,
         order_seed: int | None = 0) -> Routing:
    """The i-th favourite expert is drawn with probability proportional to `1 / i**alpha`, without
    replacement.

    Favourites are the same for all ranks that pass the same `order_seed`; None makes expert 0 the first
    favourite and so rank 0 the busiest, the worst case. `alpha` 0 is uniform; the weights of a token sum to
    1.

    >>> busy = zipf(1000, 64, 8, alpha=1.5, seed=0, order_seed=None)
    >>> bool((busy.topk_idx == 0).mean() > (busy.topk_idx == 63).mean())
    True
    """
    rng = _generator(num_tokens, num_experts, top_k, seed)
    if not (np.isfinite(alpha) and alpha >= 0):
        raise BadArgument("alpha is no exponent of a Zipf law", value=alpha, rule="finite and >= 0",
                          remedy="use 0 for uniform, about 1 for word frequencies")
    log_popularity = -alpha * np.log(np.arange(1, num_experts + 1))
    if order_seed is not None:
        log_popularity = np.random.default_rng(order_seed).permutation(log_popularity)
    how = {"router": "zipf", "alpha": alpha, "seed": seed, "order_seed": order_seed}
    return _draw(rng, log_popularity, num_tokens, top_k, how)


def group_limited_gate(logits: NDArray[np.floating], *, top_k: int = 8, num_groups: int = 8,
                       top_groups: int = 4, scale: float = 2.5, bias: NDArray[np.floating] | None = None,
                       ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """DeepSeek-V3's gate (technical report, arXiv 2412.19437, section 2.1.2): logits to indices and weights.

    `logits` is `[num_tokens, num_experts]`. Sigmoid scores; `bias` `[num_experts]` is added for the choice
    only; a group is worth the sum of its two best; of the `top_groups` best groups, the `top_k` best
    experts are taken, best first (ties: lowest index); weights are the unbiased scores, normalised to sum
    to `scale`.

    >>> idx, weights = group_limited_gate(np.eye(4, 16), top_k=2, num_groups=4, top_groups=1)
    >>> idx[:2].tolist(), weights.sum(1).round(4).tolist()
    ([[0, 1], [1, 0]], [2.5, 2.5, 2.5, 2.5])
    """
    num_tokens, num_experts = logits.shape
    size = num_experts // max(1, num_groups)
    if num_groups < 1 or num_experts % num_groups or size < 2 or not 1 <= top_groups <= num_groups:
        raise BadArgument(f"{num_experts} experts cannot be gated as {top_groups} of {num_groups} groups",
                          value=num_groups, rule="groups of equal size >= 2, 1 <= top_groups <= num_groups",
                          remedy="DeepSeek-V3 has 8 groups of 32 and uses 4")
    if not 1 <= top_k <= top_groups * size:
        raise BadArgument(f"top-{top_k} does not fit {top_groups} groups of {size}", value=top_k,
                          rule=f"1 <= top_k <= {top_groups * size}",
                          remedy="use more groups or a smaller top_k")
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = scores if bias is None else scores + bias
    grouped = wanted.reshape(num_tokens, num_groups, size)
    worth = np.sort(grouped, axis=2)[:, :, -2:].sum(2)
    best = np.argsort(-worth, axis=1, kind="stable")[:, :top_groups]
    is_open = np.zeros((num_tokens, num_groups), bool)
    np.put_along_axis(is_open, best, True, axis=1)
    wanted = np.where(is_open[:, :, None], grouped, -np.inf).reshape(num_tokens, num_experts)
    idx = np.ascontiguousarray(np.argsort(-wanted, axis=1, kind="stable")[:, :top_k])
    chosen = np.take_along_axis(scores, idx, axis=1)
    return idx, (chosen / (chosen.sum(1, keepdims=True) + 1e-20) * scale).astype(np.float32)


def group_limited(num_tokens: int, num_experts: int = 256, top_k: int = 8, *, num_groups: int = 8,
                  top_groups: int = 4, scale: float = 2.5, spread: float = 0.2, seed: int,
                  order_seed: int = 0) -> Routing:
    """`group_limited_gate` on normal logits, with a per-expert popularity of standard deviation `spread`.

    Popularity depends on `order_seed` alone, so that all ranks share their favourites; 0 makes experts alike.

    >>> group_limited(4, seed=3).topk_idx.shape
    (4, 8)
    """
    rng = _generator(num_tokens, num_experts, top_k, seed)
    popularity = np.random.default_rng(order_seed).normal(0, 1, num_experts) * spread
    idx, weights = group_limited_gate(rng.normal(0, 1, (num_tokens, num_experts)) + popularity, top_k=top_k,
                                      num_groups=num_groups, top_groups=top_groups, scale=scale)
    how = {"router": "group_limited", "num_groups": num_groups, "top_groups": top_groups, "spread": spread,
           "seed": seed, "order_seed": order_seed}
    return Routing(idx, weights, num_experts, how)


def skew(topk_idx: NDArray[np.integer], num_experts: int, num_ranks: int) -> dict[str, float]:
    """How uneven a routing is, as flat figures; `topk_idx` is int32 or int64 `[num_tokens, top_k]`, -1
    masked.

    * `expert_max_over_mean`, `rank_max_over_mean`: the busiest against the mean, 1 is even. Experts count
      (token, expert) pairs, ranks count tokens (once a rank: what travels).
    * `expert_entropy`: of the expert loads, in bits, over log2(num_experts): 1 is even, 0 is one expert.
    * `expert_gini`, `rank_gini`: 0 is even, towards 1 is one takes all.
    * `experts_idle`: share of the experts with no token; `ranks_per_token`: mean number of ranks a token
      visits.

    >>> skew(np.array([[0, 1], [0, 1]]), num_experts=4, num_ranks=2)["expert_max_over_mean"]
    2.0
    """
    check_topology(num_experts, num_ranks, num_ranks)
    check_topk_idx(topk_idx, num_experts)
    token, slot = np.nonzero(topk_idx >= 0)
    expert = topk_idx[token, slot]
    visits = np.unique(token * num_ranks + expert // (num_experts // num_ranks))
    experts = np.bincount(expert, minlength=num_experts)
    ranks = np.bincount(visits % num_ranks, minlength=num_ranks)
    share = experts[experts > 0] / max(1, experts.sum())
    entropy = float(-(share * np.log2(share)).sum()) / np.log2(num_experts) if num_experts > 1 else 1.0
    return {
        "expert_max_over_mean": _max_over_mean(experts),
        "rank_max_over_mean": _max_over_mean(ranks),
        "expert_entropy": float(entropy),
        "expert_gini": _gini(experts),
        "rank_gini": _gini(ranks),
        "experts_idle": float((experts == 0).mean()),
        "ranks_per_token": len(visits) / max(1, len(topk_idx)),
    }


def _generator(num_tokens: int, num_experts: int, top_k: int, seed: int) -> np.random.Generator:
    if num_tokens < 0 or not 1 <= top_k <= num_experts:
        raise BadArgument(f"top-{top_k} of {num_experts} experts for {num_tokens} tokens cannot be drawn",
                          value=top_k, rule="num_tokens >= 0 and 1 <= top_k <= num_experts",
                          remedy="correct the three sizes")
    return np.random.default_rng(seed)


def _draw(rng: np.random.Generator, log_popularity: NDArray[np.float64], num_tokens: int, top_k: int,
          how: Mapping[str, Any]) -> Routing:
    # The k largest of Gumbel noise plus log-probability sample without replacement (arXiv 1903.06059).
    noisy = rng.gumbel(size=(num_tokens, len(log_popularity))) + log_popularity
    idx = np.ascontiguousarray(np.argsort(-noisy, axis=1, kind="stable")[:, :top_k])
    weights = rng.random((num_tokens, top_k)) + 0.1  # no weight near zero: a lost row must show in the sum
    weights /= weights.sum(1, keepdims=True)
    return Routing(idx, weights.astype(np.float32), len(log_popularity), how)


def _max_over_mean(loads: NDArray[np.integer]) -> float:
    return float(loads.max() / loads.mean()) if loads.any() else 1.0


def _gini(loads: NDArray[np.integer]) -> float:
    ordered = np.sort(loads).astype(np.float64)
    if not ordered.any():
        return 0.0
    place = np.arange(1, len(ordered) + 1)
    return float((2 * place - len(ordered) - 1) @ ordered / (len(ordered) * ordered.sum()))
