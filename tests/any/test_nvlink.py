"""Dispatch and combine over NVLink, on the CPU runner: against NumPy, bit for bit."""

from __future__ import annotations

import pytest
from moe import make_inputs
from nvlink_checks import check_low_latency, check_round_trip
from nvlink_rig import Rig

from rdmakit.errors import LaunchError

RUNS = [
    *((policy, 1, ranks) for policy in ("fast", "timed", "explore") for ranks in (1, 2, 4)),
    ("fast", 32, 2),
]


@pytest.mark.parametrize(("policy", "lanes", "ranks"), RUNS)
@pytest.mark.parametrize("fp8", [False, True])
def test_round_trip(policy, lanes, ranks, fp8, seed):
    """Twice over one engine; tokens differ by rank, one rank may have none."""
    rig = Rig(ranks, policy=policy, lanes=lanes, seed=seed)
    for turn in range(2):
        tokens = [max(37 - 19 * r * (turn + 1), 0) for r in range(ranks)]
        room = 5 + sum(tokens) if turn else 0
        check_round_trip(rig, tokens, 256, 4 * ranks, 3, seed + turn, fp8=fp8, room=room)


@pytest.mark.parametrize("pace", [20.0, 350.0], ids=["paced", "by bulk"])
@pytest.mark.parametrize("policy", ["fast", "timed", "explore"])
def test_a_link_of_known_pace(pace, policy, seed):
    """Rows to others wait for their time; with few SMs for such a link, rows that stay are stored in bulk, too."""
    rig = Rig(2, policy=policy, seed=seed)
    for engine in rig.engines:
        engine.link.pace_gbs = pace
    check_round_trip(rig, [29, 11], 256, 8, 3, seed)
    check_round_trip(rig, [3, 40], 256, 8, 3, seed + 1, fp8=True)


def test_counts_that_are_not_what_goes_are_told(seed):
    """A caller who changes the result of get_dispatch_layout is told, by the rank that has it wrong."""
    rig = Rig(2, seed=seed)
    _, idx, _ = make_inputs([17, 9], 128, 8, 3, seed, 0.1)
    sents = rig.layouts(idx, 8)
    sents[1].tokens_per_rank[0] += 1
    with pytest.raises(LaunchError, match="tokens_per_rank against is_in_rank"):
        rig.notify(sents, 8)


@pytest.mark.parametrize(("policy", "lanes", "ranks"), RUNS)
@pytest.mark.parametrize("halves", [False, True])
def test_low_latency(policy, lanes, ranks, halves, seed):
    """Three times in a row (slots alternate, then are filled anew): BF16, FP8, FP8 with UE8M0 scales."""
    hidden, most = 512, 13
    rig = Rig(ranks, policy=policy, lanes=lanes, seed=seed, ll=(most, hidden))
    for turn, (fp8, ue8m0) in enumerate([(False, False), (True, False), (True, True)]):
        tokens = [max(most - 5 * r * (turn + 1), 0) for r in range(ranks)]
        check_low_latency(rig, tokens, most, hidden, 3, 3, seed + turn, fp8=fp8, ue8m0=ue8m0, halves=halves)


@pytest.mark.parametrize("policy", ["fast", "explore"])
def test_counts_are_found_whatever_was_replayed_before(policy, seed):
    """A CUDA graph launches a captured notify again, with the arguments of its capture, unknown to the host."""
    rig, ranks, experts = Rig(2, policy=policy, seed=seed), 2, 8
    captured, launches = [], [engine.link.launch for engine in rig.engines]
    for engine, launch in zip(rig.engines, launches, strict=True):

        def record(*args, launch=launch, **options):
            captured.append((launch, args, options))
            launch(*args, **options)

        engine.link.launch = record
    for turn in range(3):
        _, idx, _ = make_inputs([21 + turn, 9], 128, experts, 3, seed + turn, 0.1)
        sents = rig.layouts(idx, experts)
        captured.clear()
        rig.notify(sents, experts)
        for r, sent in enumerate(sents):
            goes = [((i // (experts // ranks) == r) & (i >= 0)).any(1).sum() for i in idx]
            assert sent.rows == sum(goes)
            assert sent.experts == [sum(int((i == r * experts // ranks + e).sum()) for i in idx) for e in range(4)]
        for _ in range(2 * turn + 1):
            for launch, args, options in list(captured):
                launch(*args, **options)
            rig.run()
