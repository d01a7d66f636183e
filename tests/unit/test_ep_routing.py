"""The synthetic routers keep their promises, and skew agrees with counts by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdmakit.ep import routing
from rdmakit.ep.layout import check_topk_idx, check_topk_weights
from rdmakit.errors import BadArgument


def all_routers(num_tokens: int, seed: int) -> list[routing.Routing]:
    return [routing.uniform(num_tokens, 64, 8, seed=seed),
            routing.zipf(num_tokens, 64, 8, alpha=1.2, seed=seed),
            routing.group_limited(num_tokens, 64, 8, seed=seed)]


@settings(deadline=None, max_examples=25, print_blob=True)
@given(st.integers(0, 2**32), st.integers(0, 50))
def test_routers_are_valid_and_seeded(seed: int, num_tokens: int) -> None:
    again, other = all_routers(num_tokens, seed), all_routers(num_tokens, seed + 1)
    for made, same, different in zip(all_routers(num_tokens, seed), again, other, strict=True):
        check_topk_idx(made.topk_idx, made.num_experts, num_tokens)
        check_topk_weights(made.topk_weights, made.topk_idx)
        assert (made.topk_idx >= 0).all()
        assert (made.topk_idx == same.topk_idx).all()
        assert (made.topk_weights == same.topk_weights).all()
        if num_tokens > 3:
            assert (made.topk_idx != different.topk_idx).any()
        assert (made.topk_weights > 0).all()


def test_weights_sum_to_what_the_router_says() -> None:
    uniform, zipf, grouped = all_routers(300, seed=1)
    assert uniform.topk_weights.sum(1) == pytest.approx(1, abs=1e-6)
    assert zipf.topk_weights.sum(1) == pytest.approx(1, abs=1e-6)
    assert grouped.topk_weights.sum(1) == pytest.approx(2.5, abs=1e-5)


def loads(made: routing.Routing) -> Any:
    return np.bincount(made.topk_idx.ravel(), minlength=made.num_experts)


def test_uniform_is_even() -> None:
    counts = loads(routing.uniform(20_000, 32, 4, seed=3))  # 2500 expected, standard deviation 47
    assert np.abs(counts - 2500).max() < 5 * 47


def test_zipf_follows_its_law() -> None:
    made = routing.zipf(50_000, 64, 1, alpha=1.0, seed=5, order_seed=None)
    law = 1 / np.arange(1, 65)
    want = 50_000 * law / law.sum()
    assert (np.abs(loads(made) - want) < 5 * np.sqrt(want)).all()


def test_zipf_favourites_depend_on_the_order_seed_alone() -> None:
    first, second = (loads(routing.zipf(5000, 64, 4, alpha=1.5, seed=s)) for s in (1, 2))
    assert first.argmax() == second.argmax()
    moved = loads(routing.zipf(5000, 64, 4, alpha=1.5, seed=1, order_seed=9))
    assert moved.argmax() != first.argmax()
    ordered = loads(routing.zipf(5000, 64, 4, alpha=1.5, seed=1, order_seed=None))
    assert ordered.argmax() == 0


def test_zipf_of_zero_is_uniform_and_more_alpha_is_more_skew() -> None:
    gini = [routing.skew(routing.zipf(4000, 64, 8, alpha=a, seed=1).topk_idx, 64, 8)["expert_gini"]
            for a in (0.0, 0.5, 1.0, 2.0)]
    assert gini[0] < 0.05
    assert gini == sorted(gini)


def brute_gate(logits: Any, bias: Any, top_k: int, groups: int,
               top_groups: int) -> tuple[list[int], list[float]]:
    scores = [1 / (1 + math.exp(-v)) for v in logits.tolist()]
    wanted = [s + b for s, b in zip(scores, bias.tolist(), strict=True)]
    size = len(scores) // groups
    worth = [sum(sorted(wanted[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    best = sorted(range(groups), key=lambda g: (-worth[g], g))[:top_groups]
    served = [expert for group in best for expert in range(group * size, (group + 1) * size)]
    experts = sorted(served, key=lambda expert: (-wanted[expert], expert))
    chosen = experts[:top_k]
    total = sum(scores[e] for e in chosen)
    return chosen, [2.5 * scores[e] / total for e in chosen]


@settings(deadline=None, max_examples=40, print_blob=True)
@given(st.integers(0, 2**32), st.booleans(),
       st.sampled_from([(16, 4, 2, 3), (64, 8, 4, 8), (256, 8, 4, 8), (32, 1, 1, 8)]))
def test_gate_is_deepseek_v3s(seed: int, biased: bool, shape: tuple[int, int, int, int]) -> None:
    experts, groups, top_groups, top_k = shape
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (12, experts))
    bias = rng.normal(0, 0.2, experts) if biased else np.zeros(experts)
    idx, weights = routing.group_limited_gate(
        logits, top_k=top_k, num_groups=groups, top_groups=top_groups, bias=bias if biased else None)
    for token in range(12):
        want_idx, want_weights = brute_gate(logits[token], bias, top_k, groups, top_groups)
        assert idx[token].tolist() == want_idx
        assert weights[token] == pytest.approx(want_weights, rel=1e-6)
    assert all(len(set((row // (experts // groups)).tolist())) <= top_groups for row in idx)


def test_negative_bias_never_opens_a_closed_group() -> None:
    """Closed groups are -inf, not 0: with a bias that makes open scores negative, 0 would win."""
    logits = np.random.default_rng(0).normal(0, 1, (50, 16))
    bias = np.full(16, -5.0)
    idx, _ = routing.group_limited_gate(logits, top_k=3, num_groups=4, top_groups=1, bias=bias)
    assert idx.tolist() == [brute_gate(row, bias, 3, 4, 1)[0] for row in logits]


def test_skew_by_hand() -> None:
    idx = np.array([[0, 1], [0, 3], [0, -1], [-1, -1]])
    figures = routing.skew(idx, num_experts=4, num_ranks=2)
    # experts 3, 1, 0, 1; ranks: tokens {0,1,2} and {1}
    assert figures["expert_max_over_mean"] == pytest.approx(3 / 1.25)
    assert figures["rank_max_over_mean"] == pytest.approx(3 / 2)
    assert figures["expert_entropy"] == pytest.approx(-(0.6 * math.log2(0.6) + 0.4 * math.log2(0.2)) / 2)
    apart = sum(abs(a - b) for a in (3, 1, 0, 1) for b in (3, 1, 0, 1))
    assert figures["expert_gini"] == pytest.approx(apart / (2 * 4 * 5))
    assert figures["rank_gini"] == pytest.approx(0.25)
    assert figures["experts_idle"] == 0.25
    assert figures["ranks_per_token"] == 1.0
    assert all(type(value) is float for value in figures.values())


@pytest.mark.parametrize("idx", [np.zeros((0, 4), np.int64), np.full((3, 2), -1)])
def test_skew_of_nothing_is_even(idx: Any) -> None:
    figures = routing.skew(idx, num_experts=8, num_ranks=4)
    assert figures["expert_max_over_mean"] == figures["rank_max_over_mean"] == 1
    assert figures["expert_gini"] == figures["ranks_per_token"] == 0


def test_skew_extremes() -> None:
    even = np.arange(64).reshape(8, 8)
    assert routing.skew(even, 64, 8)["expert_entropy"] == pytest.approx(1)
    assert routing.skew(even, 64, 8)["expert_gini"] == pytest.approx(0)
    one = routing.skew(np.zeros((9, 1), np.int64), 64, 8)
    assert one["expert_entropy"] == 0
    assert one["expert_max_over_mean"] == 64
    assert one["expert_gini"] == pytest.approx(63 / 64)
    assert routing.skew(np.zeros((9, 1), np.int64), 1, 1)["expert_entropy"] == 1


def test_masking() -> None:
    made = routing.uniform(2000, 16, 4, seed=1)
    masked = made.masked(0.25, seed=2)
    gone = masked.topk_idx == -1
    assert 0.2 < gone.mean() < 0.3
    assert (masked.topk_weights[gone] == 0).all()
    assert (masked.topk_idx[~gone] == made.topk_idx[~gone]).all()
    assert "masked=0.25" in repr(masked)


@pytest.mark.parametrize("call", [
    lambda: routing.uniform(4, 8, 9, seed=0),
    lambda: routing.uniform(-1, 8, 2, seed=0),
    lambda: routing.uniform(4, 8, 0, seed=0),
    lambda: routing.zipf(4, 8, 2, alpha=-1, seed=0),
    lambda: routing.zipf(4, 8, 2, alpha=math.nan, seed=0),
    lambda: routing.group_limited(4, 60, 8, seed=0),
    lambda: routing.group_limited(4, 8, 8, seed=0),
    lambda: routing.group_limited(4, 64, 8, num_groups=0, seed=0),
    lambda: routing.group_limited(4, 64, 8, top_groups=9, seed=0),
    lambda: routing.group_limited(4, 64, 33, seed=0),
    lambda: routing.skew(np.array([[9]]), 8, 2),
    lambda: routing.skew(np.array([[1]]), 9, 2),
])
def test_bad_arguments(call: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        call()
    assert caught.value.remedy
