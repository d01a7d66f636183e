"""Buffer over real devices between hosts of two ranks each, every rank a process, as torchrun starts them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
import process_rig as rig  # noqa: E402
from two_by_two import HOSTS, LOCAL, RANKS  # noqa: E402


def test_a_host_of_three_of_four_ranks(ranks, tmp_path):
    for answer in ranks.all(rig.make, tmp_path / "meeting", {"ranks_per_host": 3}):
        assert answer[:2] == ("failed", "BadArgument"), answer
        assert "ranks cannot be split evenly over hosts (value 3" in answer[2]


def test_all_calls(ranks, tmp_path, seed):
    """Normal and low latency, BF16 and FP8, fresh data each time, on one Buffer, which leaves nothing behind."""
    before = ranks.each(rig.left_behind)
    assert ranks.each(rig.make, tmp_path / "meeting", {}) == [HOSTS] * RANKS
    for turn, fp8 in enumerate((False, True)):
        ranks.each(rig.normal, seed + turn, fp8, 2)
        ranks.each(rig.low_latency, seed + turn, fp8, turn == 0)
    for turn, fp8 in enumerate((True, False)):
        ranks.each(rig.low_latency, seed + 10 + turn, fp8, turn == 0)
        ranks.each(rig.normal, seed + 10 + turn, fp8)
    ranks.each(rig.destroy)
    assert ranks.each(rig.left_behind) == before


def test_a_rank_that_dies_is_named_on_its_host(ranks, tmp_path, seed):
    """Its neighbour sees its process end; the other host's ranks learn of it by a queue pair, or when patience ends."""
    ranks.each(rig.environment_says, "RDMAKIT_PATIENCE", "10")
    ranks.each(rig.make, tmp_path / "meeting", {})
    ranks.each(rig.normal, seed, False)
    absent = int(np.random.default_rng(seed).integers(RANKS))
    neighbour, rail = absent ^ 1, (absent + LOCAL) % RANKS
    answers = ranks.all(rig.all_but_one, seed, absent, "dies")
    assert answers[absent] is None and all(answer[0] == "ok" for answer in answers if answer), answers
    waited, kind, missed, text, _ = answers[neighbour][1]
    assert (kind, missed) == ("RankDied", (absent,)) and waited < 10, answers
    assert f"rank {neighbour} misses rank {absent}" in text
    _, kind, missed, text, _ = answers[rail][1]
    assert f"cannot reach rank {absent}" in text if kind == "CompletionError" else missed == (absent,), answers
    _, kind, missed, text, _ = answers[rail ^ 1][1]  # it waits for the dead, or its neighbour says that it has gone
    assert kind == "RankMissing" and (missed == (absent,) or f"cannot reach rank {absent}" in text), answers
