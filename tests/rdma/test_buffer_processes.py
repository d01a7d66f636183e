"""Buffer over real devices between hosts of two ranks each, every rank a process, as torchrun starts them."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
import process_rig as rig  # noqa: E402
from hosts_rig import shared_out  # noqa: E402

HOSTS, LOCAL = 2, 2
RANKS = HOSTS * LOCAL


def start(names, **environment):
    devices = shared_out(names, HOSTS)
    of_all = {"RDMAKIT_RANKS_PER_HOST": str(LOCAL), **environment}
    return rig.Ranks([{"RDMAKIT_DEVICES": ",".join(devices[rank // LOCAL]), **of_all} for rank in range(RANKS)])


@pytest.fixture
def joined(names, tmp_path):
    """Four ranks, each with a Buffer; processes of their own for each test, since devices live as long."""
    ranks = start(names)
    assert ranks.each(rig.make, tmp_path / "meeting", {}) == [HOSTS] * RANKS
    yield ranks
    ranks.end()


def test_all_calls(joined, seed):
    """Normal and low latency, BF16 and FP8, fresh data each time, one after the other on one Buffer."""
    for turn, fp8 in enumerate((False, True)):
        joined.each(rig.normal, seed + turn, fp8, 2)
        joined.each(rig.low_latency, seed + turn, fp8, turn == 0)
    for turn, fp8 in enumerate((True, False)):
        joined.each(rig.low_latency, seed + 10 + turn, fp8, turn == 0)
        joined.each(rig.normal, seed + 10 + turn, fp8)
    joined.each(rig.destroy)


def test_a_rank_that_dies_is_named_on_its_host(names, tmp_path, seed):
    """Its neighbour sees its process end; its rail peer learns of it by a queue pair, or when patience ends."""
    ranks = start(names, RDMAKIT_PATIENCE="10")
    try:
        ranks.each(rig.make, tmp_path / "meeting", {})
        ranks.each(rig.normal, seed, False)
        absent = int(np.random.default_rng(seed).integers(RANKS))
        neighbour, rail = absent ^ 1, (absent + LOCAL) % RANKS
        answers = ranks.all(rig.all_but_one, seed, absent, "dies")
        assert answers[absent] is None and all(answer[0] == "ok" for answer in answers if answer), answers
        waited, kind, missed, text, _ = answers[neighbour][1]
        assert (kind, missed) == ("RankDied", (absent,)) and waited < 10, answers
        assert f"rank {neighbour} misses rank {absent}" in text
        waited, kind, _, text, _ = answers[rail][1]
        named = f"cannot reach rank {absent}" if kind == "CompletionError" else f"late rank {absent}"
        assert named in text
    finally:
        ranks.end()


def test_a_host_of_three_of_four_ranks(names, tmp_path):
    ranks = start(names, RDMAKIT_RANKS_PER_HOST="3")
    try:
        for answer in ranks.all(rig.make, tmp_path / "meeting", {}):
            assert answer[:2] == ("failed", "BadArgument"), answer
            assert "ranks cannot be split evenly over hosts (value 3" in answer[2]
    finally:
        ranks.end()
