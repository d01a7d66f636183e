"""The NumPy reference against brute force: plain loops over tokens, slots and ranks, no code in common."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdmakit.ep import reference as ref
from rdmakit.errors import BadArgument

BF16 = ml_dtypes.bfloat16


@dataclasses.dataclass
class Case:
    """Inputs of all ranks; uneven and zero token counts, masked slots and masked tokens included."""

    seed: int
    x: list[Any]
    idx: list[Any]
    weights: list[Any]
    num_experts: int

    @property
    def ranks(self) -> range:
        return range(len(self.idx))


def make_case(seed: int, num_ranks: int, share: int, top_k: int, max_tokens: int, mask: float) -> Case:
    rng = np.random.default_rng(seed)
    num_experts = num_ranks * share
    top_k = min(top_k, num_experts)
    x, idx, weights = [], [], []
    for _ in range(num_ranks):
        tokens = int(rng.integers(0, max_tokens + 1))
        chosen = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
        chosen = np.where(rng.random(chosen.shape) < mask, -1, chosen)
        idx.append(chosen.astype(rng.choice([np.int32, np.int64])))
        x.append(rng.normal(0, 3, (tokens, 128)).astype(BF16))
        weights.append(rng.random((tokens, top_k)).astype(np.float32))
    return Case(seed, x, idx, weights, num_experts)


cases = st.builds(
    make_case, seed=st.integers(0, 2**32), num_ranks=st.sampled_from([1, 2, 3, 4, 8]),
    share=st.integers(1, 4), top_k=st.integers(1, 8), max_tokens=st.integers(0, 9),
    mask=st.sampled_from([0.0, 0.3, 1.0]))


def bits(array: Any) -> Any:
    return array.view(np.uint16 if array.dtype == BF16 else np.uint8)


def experts_of(case: Case, rank: int) -> range:
    share = case.num_experts // len(case.idx)
    return range(rank * share, (rank + 1) * share)


@settings(deadline=None, max_examples=60, print_blob=True)
@given(cases)
def test_dispatch_gives_each_rank_its_tokens_once_in_source_order(case: Case) -> None:
    for rank in case.ranks:
        mine = experts_of(case, rank)
        got = ref.dispatch(case.x, case.idx, case.weights, rank, case.num_experts)
        row = 0
        per_expert = dict.fromkeys(mine, 0)
        for source in case.ranks:
            for token, wanted in enumerate(case.idx[source].tolist()):
                if not any(expert in mine for expert in wanted):
                    continue
                assert (got.handle.src_rank[row], got.handle.src_token[row]) == (source, token)
                assert (bits(got.recv_x[row]) == bits(case.x[source][token])).all()
                for slot, expert in enumerate(wanted):
                    if expert in mine:
                        per_expert[expert] += 1
                        assert got.recv_topk_idx[row, slot] == expert - mine[0]
                        assert got.recv_topk_weights[row, slot] == case.weights[source][token, slot]
                    else:
                        assert (got.recv_topk_idx[row, slot], got.recv_topk_weights[row, slot]) == (-1, 0)
                row += 1
        assert row == len(got.recv_x) == len(got.handle.src_token)
        assert got.num_recv_tokens_per_expert.tolist() == list(per_expert.values())


def expert_rows(case: Case) -> tuple[list[ref.Dispatched], list[Any]]:
    """What every rank received, and what its experts made of it: rows and ranks can be told apart."""
    got = [ref.dispatch(case.x, case.idx, case.weights, rank, case.num_experts) for rank in case.ranks]
    return got, [(d.recv_x.astype(np.float32) * (1 + 0.37 * r) - r).astype(BF16) for r, d in enumerate(got)]


def brute_combine(case: Case, rows: list[Any], got: list[ref.Dispatched], rank: int,
                  ranks_per_host: int) -> Any:
    """Loops over tokens and hosts; each host's partial sum is rounded."""
    result = np.zeros((len(case.idx[rank]), 128), BF16)
    for token, wanted in enumerate(case.idx[rank].tolist()):
        partials = []
        for host in range(0, len(case.idx), ranks_per_host):
            partial = np.zeros(128, np.float32)
            for other in range(host, host + ranks_per_host):
                if any(expert in experts_of(case, other) for expert in wanted):
                    handle = got[other].handle
                    row = np.flatnonzero((handle.src_rank == rank) & (handle.src_token == token))
                    partial = partial + rows[other][int(row[0])].astype(np.float32)
            partials.append(partial.astype(BF16).astype(np.float32))
        total = partials[0]
        for partial in partials[1:]:
            total = total + partial
        result[token] = total.astype(BF16)
    return result


@settings(deadline=None, max_examples=60, print_blob=True)
@given(cases)
def test_combine_adds_the_ranks_that_a_token_went_to(case: Case) -> None:
    got, rows = expert_rows(case)
    handles = [d.handle for d in got]
    for rank in case.ranks:
        tokens = len(case.idx[rank])
        total, weights = ref.combine(rows, handles, rank, tokens, [d.recv_topk_weights for d in got])
        assert total.dtype == BF16
        assert (bits(total) == bits(brute_combine(case, rows, got, rank, len(case.idx)))).all()
        # Each slot lives on one rank, so the summed weights are those that went out, less the masked ones.
        assert weights is not None
        assert (weights == np.where(case.idx[rank] >= 0, case.weights[rank], 0)).all()
        if len(case.idx) % 2 == 0:
            staged, none = ref.combine(rows, handles, rank, tokens, ranks_per_host=2)
            assert none is None
            assert (bits(staged) == bits(brute_combine(case, rows, got, rank, 2))).all()


@settings(deadline=None, max_examples=40, print_blob=True)
@given(cases)
def test_no_order_of_addition_leaves_the_error_bound(case: Case) -> None:
    got, rows = expert_rows(case)
    handles = [d.handle for d in got]
    rng = np.random.default_rng(case.seed)
    for rank in case.ranks:
        tokens = len(case.idx[rank])
        wide = np.zeros((tokens, 128), np.longdouble)
        shuffled = np.zeros((tokens, 128), np.float32)
        for other in rng.permutation(len(handles)):
            place, token = handles[other].rows_from(rank)
            wide[token] += rows[other][place].astype(np.longdouble)
            shuffled[token] += rows[other][place].astype(np.float32)
        bound = ref.combine_error_bound(rows, handles, rank, tokens)
        in_order, _ = ref.combine(rows, handles, rank, tokens)
        for result in (shuffled.astype(BF16), in_order):
            assert (np.abs(result.astype(np.longdouble) - wide) <= bound).all()
        if len(case.idx) % 2 == 0:
            staged, _ = ref.combine(rows, handles, rank, tokens, ranks_per_host=2)
            loose = ref.combine_error_bound(rows, handles, rank, tokens, ranks_per_host=2)
            assert (np.abs(staged.astype(np.longdouble) - wide) <= loose).all()


def test_the_error_bound_is_almost_reached_and_never_less() -> None:
    """Two ranks, all tokens on both: rounding to BF16 comes near the bound (a loose one proves nothing)."""
    rng = np.random.default_rng(8)
    idx = [np.tile([[0, 1]], (500, 1)), np.zeros((0, 2), np.int64)]
    handles = [ref.make_handle(idx, rank, num_experts=2) for rank in (0, 1)]
    y = [rng.uniform(1, 2, (500, 128)).astype(BF16) for _ in handles]
    total, _ = ref.combine(y, handles, 0, 500)
    error = np.abs(total.astype(np.float64) - (y[0].astype(np.float64) + y[1].astype(np.float64)))
    reach = (error / ref.combine_error_bound(y, handles, 0, 500)).max()
    assert 0.9 < reach <= 1


def test_the_error_bound_covers_cancellation() -> None:
    """1024 + 2**-14 - 1024: float32 drops the small term, and the bound must admit that the result is 0."""
    num_ranks = 3
    idx = [np.array([[0, 1, 2]])] + [np.zeros((0, 3), np.int64)] * 2
    handles = [ref.make_handle(idx, rank, num_ranks) for rank in range(num_ranks)]
    y = [np.full((1, 128), value, np.float32).astype(BF16) for value in (1024, 2**-14, -1024)]
    total, _ = ref.combine(y, handles, 0, 1)
    error = np.abs(total.astype(np.float64) - 2.0**-14)
    assert (error == 2.0**-14).all()
    assert (error <= ref.combine_error_bound(y, handles, 0, 1)).all()


def test_the_error_bound_notices_a_lost_rank() -> None:
    case = make_case(seed=5, num_ranks=4, share=4, top_k=8, max_tokens=200, mask=0.0)
    got, rows = expert_rows(case)
    handles = [d.handle for d in got]
    tokens = len(case.idx[0])
    right, _ = ref.combine(rows, handles, 0, tokens)
    rows[2][handles[2].rows_from(0)[0]] = 0
    wrong, _ = ref.combine(rows, handles, 0, tokens)
    assert tokens > 0
    assert (np.abs(wrong.astype(np.float32) - right.astype(np.float32)).max(1)
            > 2 * ref.combine_error_bound(rows, handles, 0, tokens).max(1)).mean() > 0.9


@settings(deadline=None, max_examples=30, print_blob=True)
@given(cases)
def test_backward_reuses_the_handle_and_is_the_transpose(case: Case) -> None:
    """<dispatch(x), y> == <x, combine(y)>: each is the transpose of the other, here in exact numbers."""
    rng = np.random.default_rng(case.seed)
    x = [rng.integers(-3, 4, (len(i), 128)).astype(BF16) for i in case.idx]
    handles = [ref.make_handle(case.idx, rank, case.num_experts) for rank in case.ranks]
    y = [rng.integers(-3, 4, (len(h.src_token), 128)).astype(BF16) for h in handles]
    forward = sum(float((ref.dispatch_rows(x, h).astype(np.float64) * y[h.rank].astype(np.float64)).sum())
                  for h in handles)
    backward = sum(float((x[rank].astype(np.float64) * ref.combine(y, handles, rank, len(x[rank]))[0]
                          .astype(np.float64)).sum()) for rank in case.ranks)
    assert forward == backward


def test_items_of_a_lazy_sequence_are_asked_for_once() -> None:
    case = make_case(seed=9, num_ranks=4, share=2, top_k=3, max_tokens=6, mask=0.2)
    got, rows = expert_rows(case)
    asked = []

    class Lazy:
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, rank: int) -> Any:
            if rank >= len(rows):
                raise IndexError(rank)
            asked.append(rank)
            return rows[rank]

    lazy, _ = ref.combine(Lazy(), [d.handle for d in got], 1, len(case.idx[1]))
    eager, _ = ref.combine(rows, [d.handle for d in got], 1, len(case.idx[1]))
    assert asked == [0, 1, 2, 3]
    assert (bits(lazy) == bits(eager)).all()


@settings(deadline=None, max_examples=40, print_blob=True)
@given(cases, st.booleans())
def test_low_latency_packs_by_expert_then_source_then_token(case: Case, use_fp8: bool) -> None:
    room = 9
    for rank in case.ranks:
        got = ref.low_latency_dispatch(case.x, case.idx, rank, case.num_experts, room, use_fp8)
        for local, expert in enumerate(experts_of(case, rank)):
            row = 0
            for source in case.ranks:
                begin = row
                for token, wanted in enumerate(case.idx[source].tolist()):
                    if expert in wanted:
                        assert got.packed_recv_src_info[local, row] == token
                        want = case.x[source][token]
                        if use_fp8:
                            want, scales = ref.quantize_fp8(want)
                            assert got.packed_recv_scales is not None
                            assert (got.packed_recv_scales[local, row] == scales).all()
                        assert (bits(got.packed_recv_x[local, row]) == bits(want)).all()
                        row += 1
                assert divmod(int(got.packed_recv_layout_range[local, source]), 2**32) == (begin, row - begin)
            assert got.packed_recv_count[local] == row
            assert (got.packed_recv_src_info[local, row:] == -1).all()
            assert not got.packed_recv_x[local, row:].astype(np.float32).any()


def low_latency_case(case: Case) -> tuple[list[ref.LowLatencyDispatched], list[Any]]:
    got = [ref.low_latency_dispatch(case.x, case.idx, rank, case.num_experts, 9) for rank in case.ranks]
    rows = [(d.packed_recv_x.astype(np.float32) * (1.1 + np.arange(d.packed_recv_x.shape[0])[:, None, None])
             + rank).astype(BF16) for rank, d in enumerate(got)]
    return got, rows


@settings(deadline=None, max_examples=40, print_blob=True)
@given(cases)
def test_low_latency_combine_is_the_weighted_sum(case: Case) -> None:
    got, rows = low_latency_case(case)
    share = case.num_experts // len(case.idx)
    for rank in case.ranks:
        args = (rows, got, case.idx[rank], case.weights[rank], rank, case.num_experts)
        result, bound = ref.low_latency_combine(*args), ref.low_latency_error_bound(*args)
        for token, wanted in enumerate(case.idx[rank].tolist()):
            total, exact = np.zeros(128, np.float32), np.zeros(128, np.longdouble)
            for slot, expert in enumerate(wanted):
                if expert >= 0:
                    owner, local = divmod(expert, share)
                    begin, count = divmod(int(got[owner].packed_recv_layout_range[local, rank]), 2**32)
                    tokens = got[owner].packed_recv_src_info[local, begin : begin + count].tolist()
                    row = rows[owner][local, begin + tokens.index(token)]
                    total = total + row.astype(np.float32) * case.weights[rank][token, slot]
                    exact += row.astype(np.longdouble) * np.longdouble(case.weights[rank][token, slot])
            assert (result[token].astype(np.float32) == total.astype(BF16).astype(np.float32)).all()
            assert (np.abs(result[token].astype(np.longdouble) - exact) <= bound[token]).all()


@settings(deadline=None, max_examples=30, print_blob=True)
@given(cases)
def test_sorting_undoes_any_slot_order_that_atomics_may_choose(case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    for rank in case.ranks:
        want = ref.low_latency_dispatch(case.x, case.idx, rank, case.num_experts, 9, use_fp8=True)
        x, info, ranges = (a.copy() for a in (want.packed_recv_x, want.packed_recv_src_info,
                                              want.packed_recv_layout_range))
        assert want.packed_recv_scales is not None
        scales = want.packed_recv_scales.copy()
        for local in range(len(want.packed_recv_count)):
            place = 0
            for source in rng.permutation(len(case.idx)):
                begin, count = divmod(int(want.packed_recv_layout_range[local, source]), 2**32)
                rows = begin + rng.permutation(count)
                x[local, place : place + count] = want.packed_recv_x[local, rows]
                scales[local, place : place + count] = want.packed_recv_scales[local, rows]
                info[local, place : place + count] = want.packed_recv_src_info[local, rows]
                ranges[local, source] = place << 32 | count
                place += count
        got = ref.sort_low_latency(ref.LowLatencyDispatched(x, scales, want.packed_recv_count, info, ranges))
        for field in dataclasses.fields(want):
            assert getattr(got, field.name).tobytes() == getattr(want, field.name).tobytes(), field.name


def test_sorting_refuses_ranges_that_overlap() -> None:
    case = make_case(seed=2, num_ranks=2, share=1, top_k=2, max_tokens=9, mask=0.0)
    got = ref.low_latency_dispatch(case.x, case.idx, 0, case.num_experts, 9)
    got.packed_recv_layout_range[0, 1] = got.packed_recv_layout_range[0, 0]
    with pytest.raises(BadArgument, match="do not cover its rows"):
        ref.sort_low_latency(got)


def test_dispatch_moves_fp8_rows_with_their_scales() -> None:
    case = make_case(seed=11, num_ranks=3, share=2, top_k=2, max_tokens=9, mask=0.1)
    pairs = [ref.quantize_fp8(x) for x in case.x]
    got = ref.dispatch(pairs, case.idx, case.weights, 1, case.num_experts)
    q, scales = got.recv_x
    plain = ref.dispatch(case.x, case.idx, case.weights, 1, case.num_experts)
    want_q, want_scales = ref.quantize_fp8(plain.recv_x)
    assert len(q) > 0
    assert (bits(q) == bits(want_q)).all()
    assert (scales == want_scales).all()


def test_a_rank_that_returns_too_few_rows_is_named() -> None:
    case = make_case(seed=4, num_ranks=2, share=2, top_k=4, max_tokens=9, mask=0.0)
    got, rows = expert_rows(case)
    rows[1] = rows[1][:-1]
    with pytest.raises(BadArgument, match="rank 1 combines"):
        ref.combine(rows, [d.handle for d in got], 0, len(case.idx[0]))


@pytest.mark.parametrize("change", ["idx_range", "weights_shape", "x_dtype", "rank"])
def test_bad_input_reaches_the_checks(change: str) -> None:
    case = make_case(seed=7, num_ranks=2, share=2, top_k=2, max_tokens=9, mask=0.0)
    rank = 0
    if change == "idx_range":
        case.idx[1][0, 0] = case.num_experts
    elif change == "weights_shape":
        case.weights[1] = case.weights[1][:, :1].copy()
    elif change == "x_dtype":
        case.x[1] = case.x[1].astype(np.float32)
    else:
        rank = 2
    with pytest.raises(BadArgument):
        ref.dispatch(case.x, case.idx, case.weights, rank, case.num_experts)
