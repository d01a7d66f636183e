"""The dispatch plan against plain loops, and every input that the plan's checks must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdmakit.ep import layout
from rdmakit.errors import BadArgument

BF16 = ml_dtypes.bfloat16
E4M3 = ml_dtypes.float8_e4m3fn


@settings(deadline=None, max_examples=80, print_blob=True)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.integers(1, 4),
       st.sampled_from([np.int32, np.int64]))
def test_plan_counts_what_loops_count(seed: int, hosts: int, per_host: int, share: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    num_ranks = hosts * per_host
    num_experts = num_ranks * share
    tokens, top_k = int(rng.integers(0, 20)), int(rng.integers(1, num_experts + 1))
    idx = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
    idx = np.ascontiguousarray(np.where(rng.random(idx.shape) < 0.3, -1, idx).astype(dtype))
    plan = layout.get_dispatch_layout(idx, num_experts, num_ranks, per_host)

    per_rank, per_host_count, per_expert = [0] * num_ranks, [0] * hosts, [0] * num_experts
    for token, wanted in enumerate(idx.tolist()):
        ranks = {expert // share for expert in wanted if expert >= 0}
        for expert in wanted:
            if expert >= 0:
                per_expert[expert] += 1
        for rank in ranks:
            per_rank[rank] += 1
        for host in {rank // per_host for rank in ranks}:
            per_host_count[host] += 1
        assert {int(r) for r in np.flatnonzero(plan.is_token_in_rank[token])} == ranks
    assert plan.num_tokens_per_rank.tolist() == per_rank
    assert plan.num_tokens_per_host.tolist() == per_host_count
    assert plan.num_tokens_per_expert.tolist() == per_expert
    assert plan.is_token_in_rank.shape == (tokens, num_ranks)
    counts = (plan.num_tokens_per_rank, plan.num_tokens_per_host, plan.num_tokens_per_expert)
    assert {c.dtype for c in counts} == {np.dtype(np.int32)}


def test_one_host_is_the_default() -> None:
    plan = layout.get_dispatch_layout(np.array([[0, 3], [-1, -1]]), num_experts=4, num_ranks=4)
    assert plan.num_tokens_per_host.tolist() == [1]


def plan_of(idx: Any, experts: int = 8, ranks: int = 2, per_host: int | None = None) -> Callable[[], Any]:
    return lambda: layout.get_dispatch_layout(idx, experts, ranks, per_host)


GOOD = np.array([[0, 1], [2, -1]])
BAD_PLANS = {
    "a list": (plan_of([[0, 1]]), "no NumPy array", "list"),
    "float indices": (plan_of(GOOD.astype(np.float64)), "wrong dtype", "float64"),
    "int16 indices": (plan_of(GOOD.astype(np.int16)), "wrong dtype", "int16"),
    "big-endian indices": (plan_of(GOOD.astype(">i8")), "wrong dtype", ">i8"),
    "one dimension": (plan_of(GOOD[0]), "1 dimensions", "(2,)"),
    "no slots": (plan_of(GOOD[:, :0].copy()), "no columns", "(2, 0)"),
    "not contiguous": (plan_of(np.zeros((4, 6), np.int64)[:, ::2]), "not contiguous", "strides"),
    "index too large": (plan_of(np.array([[0, 1], [2, 8]])),
                        "token 1, slot 1 names expert 8", "num_experts = 8"),
    "index below -1": (plan_of(np.array([[0, 1], [-2, 3]])),
                       "token 1, slot 0 names expert -2", "-1 <= index"),
    "index overflows": (plan_of(np.array([[2**40, 1]])), f"expert {2**40}", "value 1099511627776"),
    "expert 0 twice": (plan_of(np.array([[0, 1, 0]])), "token 0 names expert 0 twice", "slots (0, 2)"),
    "an expert twice": (plan_of(np.array([[0, 1, 2], [5, 3, 5]])),
                        "token 1 names expert 5 twice", "slots (0, 2)"),
    "experts do not divide": (plan_of(GOOD, 9), "9 experts cannot be split", "pad the experts"),
    "ranks do not divide": (plan_of(GOOD, 8, 2, 4), "2 ranks cannot be split", "as many ranks on every host"),
    "no ranks": (plan_of(GOOD, 8, 0), "num_ranks is not positive", "value 0"),
    "no experts": (plan_of(GOOD, 0, 1), "num_experts is not positive", "value 0"),
    "half a rank": (lambda: layout.check_topology(8, 0.5, 1),  # type: ignore[arg-type]
                    "num_ranks is no integer", "0.5"),
    "a bool": (lambda: layout.check_topology(True, 1, 1), "num_experts is no integer", "True"),
}


def rows(tokens: int, hidden: int, dtype: Any = BF16) -> Any:
    return np.zeros((tokens, hidden), dtype)


BAD_ROWS = {
    "float32 rows": (lambda: layout.check_hidden(rows(4, 128, np.float32)),
                     "x has the wrong dtype", "bfloat16"),
    "hidden 100": (lambda: layout.check_hidden(rows(4, 100)), "hidden 100", "pad x to 128"),
    "hidden 192": (lambda: layout.check_hidden(rows(4, 192)), "hidden 192", "pad x to 256"),
    "hidden 0": (lambda: layout.check_hidden(rows(4, 0)), "hidden 0", "pad x to 128"),
    "too few rows": (lambda: layout.check_hidden(rows(4, 128), 5), "x has 4 rows", "each of 5 tokens"),
    "three dimensions": (lambda: layout.check_hidden(rows(4, 128)[None]), "3 dimensions", "(1, 4, 128)"),
    "every other row": (lambda: layout.check_hidden(rows(8, 128)[::2]),
                        "not contiguous", "ascontiguousarray"),
    "transposed": (lambda: layout.check_hidden(rows(128, 128).T), "not contiguous", "strides (2, 256)"),
    "bf16 as fp8": (lambda: layout.check_fp8(rows(4, 128), rows(4, 1, np.float32)),
                    "wrong dtype", "float8_e4m3fn"),
    "fp8 hidden": (lambda: layout.check_fp8(rows(4, 64, E4M3), rows(4, 1, np.float32)), "hidden 64", "128"),
    "scale shape": (lambda: layout.check_fp8(rows(4, 256, E4M3), rows(4, 1, np.float32)),
                    "do not fit", "(4, 2)"),
    "scale dtype": (lambda: layout.check_fp8(rows(4, 128, E4M3), rows(4, 1)),
                    "scales has the wrong", "float32"),
    "weight dtype": (lambda: layout.check_topk_weights(np.ones((2, 2)), GOOD), "topk_weights has", "float64"),
    "weight shape": (lambda: layout.check_topk_weights(np.ones((2, 1), np.float32), GOOD),
                     "differ", "(2, 2)"),
    "idx rows": (lambda: layout.check_topk_idx(GOOD, 8, num_tokens=3), "topk_idx has 2 rows", "each of 3"),
}


@pytest.mark.parametrize("name", [*BAD_PLANS, *BAD_ROWS])
def test_bad_input_is_refused_with_value_rule_and_remedy(name: str) -> None:
    call, what, detail = {**BAD_PLANS, **BAD_ROWS}[name]
    with pytest.raises(BadArgument) as caught:
        call()
    assert what in caught.value.what
    assert detail in str(caught.value)
    assert caught.value.value is not None
    assert caught.value.rule
    assert caught.value.remedy


def test_good_input_passes() -> None:
    layout.check_topk_idx(np.array([[-1, -1], [7, 0]], np.int32), 8, num_tokens=2)
    layout.check_topk_idx(np.zeros((0, 8), np.int64), 8)
    layout.check_topk_weights(np.ones((2, 2), np.float32), GOOD)
    layout.check_hidden(rows(0, 7168), 0)
    layout.check_fp8(rows(3, 256, E4M3), rows(3, 2, np.float32), 3)


def test_capacity_names_the_buffer_the_count_and_the_worst_source() -> None:
    layout.check_capacity(np.array([3, 5]), 8, rank=1, buffer="receive buffer")
    with pytest.raises(BadArgument) as caught:
        layout.check_capacity(np.array([3, 6]), 8, rank=1, buffer="receive buffer")
    assert caught.value.value == 9
    assert caught.value.facts == {"rank": 1, "most_from": "rank 1 (6)"}
    assert "9 tokens do not fit rank 1's receive buffer" in str(caught.value)
    with pytest.raises(BadArgument, match="4294967294 tokens"):  # the sum must not wrap in int32
        layout.check_capacity(np.array([2**31 - 1, 2**31 - 1], np.int32), 8, rank=0, buffer="ring")
