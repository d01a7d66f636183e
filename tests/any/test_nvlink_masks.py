"""Low-latency calls that go on without a rank, left out by hand or because it is silent: against NumPy, bit for bit."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from moe import make_inputs
from nvlink_checks import check_low_latency, two_roundings
from nvlink_rig import Rig

from rdmakit.ep import reference
from rdmakit.errors import BadArgument, BadState, HangError, RankDied

MOST, HIDDEN = 9, 512
RUNS = [*((policy, 1) for policy in ("fast", "timed", "explore")), ("fast", 32)]


def calls(rig, seed, *, dies=(), **further):
    tokens = [MOST - 2 * r for r in range(rig.ranks)]
    check_low_latency(rig, tokens, MOST, HIDDEN, 2, 3, seed, dies=dies, **further)


@pytest.mark.parametrize(("policy", "lanes"), RUNS)
@pytest.mark.parametrize("halves", [False, True])
def test_who_does_not_answer_is_masked(policy, lanes, halves, seed):
    """As in DeepEP's shrink test: one rank dies before a dispatch, one before a combine, one before it is cleaned."""
    rig = Rig(4, policy=policy, lanes=lanes, seed=seed, ll=(MOST, HIDDEN), shrink=True)
    calls(rig, seed, halves=halves)
    assert rig.masks() == [[]] * 4
    rig.gone = frozenset({1})
    calls(rig, seed + 1, dies=[3], halves=halves, fp8=True)
    masked = rig.masks()
    assert masked == [[1, 3], [], [1, 3], [1]]
    for turn in range(3):  # slots are filled anew: nobody waits for who is gone to be through with them
        calls(rig, seed + 2 + turn, halves=halves)
    rig.gone |= {2}
    rig.engines[0].ll_clean()
    rig.run()
    assert rig.masks()[0] == [1, 2, 3]
    calls(rig, seed + 5, halves=halves)
    assert not any(engine.link.report for engine in rig.engines)


@pytest.mark.parametrize("halves", [False, True])
def test_masks_by_hand(halves, seed):
    """A rank that others leave out and that leaves them out misses nothing when it is taken in again."""
    rig = Rig(3, seed=seed, ll=(MOST, HIDDEN), shrink=True)

    def mask(masked):
        for r in range(2):
            rig.engines[r].mask_update(2, masked)
            rig.engines[2].mask_update(r, masked)

    calls(rig, seed, halves=halves)
    mask(True)
    assert rig.masks() == [[2], [2], [0, 1]]
    rng = np.random.default_rng(seed)
    for turn in range(3):
        idx = [rng.integers(0, 6, (4, 3)) for _ in range(3)]
        x = [rng.standard_normal((4, HIDDEN), np.float32).astype("bfloat16") for _ in range(3)]
        weights = [np.ones((4, 3), np.float32)] * 3
        got = rig.ll_dispatch(x, idx, 6, MOST, halves=halves)
        for r, mine in enumerate(got):
            theirs = [2] if r == 2 else [0, 1]
            n = sum(int((idx[s] // 2 == r).sum()) for s in theirs)
            assert mine["count"].sum() == n, turn
            gone = [s for s in range(3) if s not in theirs]
            assert (mine["row_map"][gone] == -1).all() and (mine["ranges"][:, gone] & 0xFFFFFFFF == 0).all()
            local = mine["row_map"][theirs, :4] >= 0
            assert np.array_equal(local, np.stack([idx[s] for s in theirs]) // 2 == r)
        out = rig.ll_combine([mine["x"] for mine in got], got, weights, halves=halves)
        for r in range(3):
            assert not out[r][(~np.isin(idx[r] // 2, [2] if r == 2 else [0, 1])).all(1)].any()
    mask(False)
    assert rig.masks() == [[], [], []]
    for turn in range(3):
        calls(rig, seed + turn, halves=halves)
    rig.engines[0].mask_update(1, True)
    rig.engines[0].mask_clean()
    assert rig.masks() == [[], [], []]


@pytest.mark.parametrize("policy", ["fast", "timed"])
def test_without_shrink_a_wait_that_ends_is_an_error(policy, seed):
    rig = Rig(2, policy=policy, seed=seed, ll=(MOST, HIDDEN))
    rig.gone = frozenset({1})
    with pytest.raises(HangError, match="a rank's choices"):
        calls(rig, seed)
    with pytest.raises(BadState, match="enable_shrink=True"):
        rig.engines[0].mask_clean()


def test_such_a_rank_there_is_not(seed):
    rig = Rig(2, seed=seed, ll=(MOST, HIDDEN), shrink=True)
    with pytest.raises(BadArgument, match="no such rank"):
        rig.engines[0].mask_update(2, True)


@pytest.mark.parametrize("shrink", [False, True])
def test_waits_are_counted(shrink, seed):
    """In virtual time: a rank that comes late is waited for, and only it."""
    rig = Rig(3, policy="timed", seed=seed, ll=(MOST, HIDDEN), shrink=shrink)
    late = rig.world.compile(
        "#include <rdmakit/atom.cuh>\nRDMAKIT_KERNEL late(unsigned ns) { rdmakit::sleep_ns(ns); }", name="late.cu"
    ).get_function("late")
    late(1, 32, (1_000_000,), rank=2)
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((MOST, HIDDEN), np.float32).astype("bfloat16") for _ in range(3)]
    idx, weights = [rng.integers(0, 6, (MOST, 3)) for _ in range(3)], [np.ones((MOST, 3), np.float32)] * 3
    got = rig.ll_dispatch(x, idx, 6, MOST)
    late(1, 32, (1_000_000,), rank=2)
    rig.ll_combine([mine["x"] for mine in got], got, weights)
    for name in ("waits", "combine_waits"):
        waits = np.stack([got[r][name] for r in range(3)]) - 5
        assert (waits >= 0).all(), name
        assert (waits[:2, 2] > 1_500_000).all(), f"{name}: 1 ms is 1.7 million clocks: {waits}"
        assert (waits[:2, :2] < 170_000).all() and (waits[2] < 170_000).all(), f"{name}: {waits}"


class MortalRig(Rig):
    """Goes on when a rank has died."""

    def run(self):
        try:
            super().run()
        except RankDied:
            self.gone |= set(self.world.dead_ranks)


def assert_whole_or_nothing(r, got, home, x, idx, weights, local):
    """Who has come to rank r as a whole, and whose sums; all others have not come at all."""
    ranks, mine = len(idx), got[r]
    silent = [s for s in range(ranks) if not (mine["ranges"][:, s] & 0xFFFFFFFF).any()]
    sent = [np.full_like(chosen, -1) if s in silent else chosen for s, chosen in enumerate(idx)]
    want = [reference.low_latency_dispatch(x, sent, s, local * ranks, MOST) for s in range(ranks)]
    assert np.array_equal(mine["count"], want[r].packed_recv_count)
    assert np.array_equal(mine["ranges"], want[r].packed_recv_layout_range)
    assert (mine["row_map"][silent] == -1).all()
    for e, n in enumerate(want[r].packed_recv_count):
        assert np.array_equal(mine["x"][e, :n].view(np.uint16), want[r].packed_recv_x[e, :n].view(np.uint16))
    y = [truth.packed_recv_x for truth in (reference.low_latency_dispatch(x, idx, s, local * ranks, MOST)
                                           for s in range(ranks))]  # fmt: skip
    want = [reference.low_latency_dispatch(x, idx, s, local * ranks, MOST) for s in range(ranks)]
    others = [s for s in range(ranks) if s != r]
    for gone in chain.from_iterable(combinations(others, n) for n in range(ranks)):
        masked = [np.where(np.isin(chosen // local, gone), -1, chosen) for chosen in idx]
        if np.array_equal(home[r].view(np.uint16),
                          two_roundings(y, want, masked, weights, ranks, r, local).view(np.uint16)):  # fmt: skip
            return tuple(silent), gone
    pytest.fail(f"sums of rank {r}: some rank's is there for one token and not for another")


@pytest.mark.parametrize("halves", [False, True])
def test_a_death_in_the_middle(halves, seed, rng):
    """At any moment of dispatch and combine: survivors have all of what the dead rank was to send, or nothing."""
    ranks, local, topk = 3, 2, 3
    x, idx, weights = make_inputs([MOST] * ranks, HIDDEN, local * ranks, topk, seed)

    def calls(rig):
        got = rig.ll_dispatch(x, idx, local * ranks, MOST, halves=halves)
        return got, rig.ll_combine([mine["x"] for mine in got], got, weights, halves=halves)

    whole = Rig(ranks, policy="timed", seed=seed, ll=(MOST, HIDDEN), shrink=True)
    calls(whole)
    seen = set()
    each = whole.world.now_ns // 24
    for when in np.arange(24) * each + rng.integers(0, each, 24):
        rig = MortalRig(ranks, policy="timed", seed=seed, ll=(MOST, HIDDEN), shrink=True, faults=f"dead=1@{when}ns")
        got, home = calls(rig)
        print(f"dead at {when} of {whole.world.now_ns} ns")
        if not rig.gone:  # it had ended before
            continue
        seen |= {assert_whole_or_nothing(r, got, home, x, idx, weights, local) for r in (0, 2)}
    assert {((1,), (1,)), ((), (1,))} <= seen, f"no death before dispatch has told, or none before combine has: {seen}"
