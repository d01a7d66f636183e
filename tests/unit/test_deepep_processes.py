"""Buffer among processes of one host, no GPU, no device: DeepEP's calls on CPU tensors, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install torch: Buffer takes and returns its tensors")
import process_rig as rig  # noqa: E402

RANKS = 4


@pytest.fixture(scope="module")
def ranks():
    found = rig.Ranks([{}] * RANKS)
    yield found
    found.end()


@pytest.fixture
def joined(ranks, tmp_path):
    assert ranks.each(rig.make, tmp_path / "meeting", {}) == [1] * RANKS
    yield ranks
    ranks.each(rig.destroy)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_dispatch_and_combine(joined, seed, fp8):
    joined.each(rig.normal, seed, fp8, 3)


@pytest.mark.parametrize("hooks", [False, True], ids=["whole", "hooks"])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_low_latency(joined, seed, fp8, hooks):
    joined.each(rig.low_latency, seed, fp8, hooks)
    joined.each(rig.low_latency, seed + 1, fp8, hooks)


def test_both_kinds_in_turn(joined, seed):
    for turn in range(2):
        joined.each(rig.normal, seed + turn, False)
        joined.each(rig.low_latency, seed + turn, True, False)


def test_nothing_is_left_behind(ranks, tmp_path):
    before = ranks.each(rig.left_behind)
    ranks.each(rig.make, tmp_path / "meeting", {})
    held = ranks.each(rig.left_behind)
    ranks.each(rig.destroy)
    assert ranks.each(rig.left_behind) == before
    for (shared, files), (shared_then, files_then) in zip(held, before, strict=True):
        assert shared == shared_then, "a name in /dev/shm"
        assert len(files) - len(files_then) == RANKS, files  # one for each heap that is mapped


def test_a_rank_that_fails_is_named_with_what_it_said(ranks, tmp_path, seed):
    ranks.each(rig.make, tmp_path / "meeting", {})
    found = ranks.each(rig.all_but_one, seed, 1, "fails")
    kind_there, text_there = found.pop(1)
    for rank, (waited, kind, missed, text, waits) in zip((0, 2, 3), found, strict=True):
        assert (kind, missed) == ("RankMissing", (1,)) and waits > 0 and waited < 30, (kind, text)
        assert f"rank {rank} waits for rank 1, which failed" in text
        assert f"{kind_there}: {text_there.splitlines()[0]}" in text


def test_a_rank_that_leaves_is_named_when_patience_ends(ranks, tmp_path, seed):
    ranks.each(rig.environment_says, "RDMAKIT_PATIENCE", "2")
    ranks.each(rig.make, tmp_path / "meeting", {})
    found = ranks.each(rig.all_but_one, seed, 3, "leaves")
    ranks.each(rig.environment_says, "RDMAKIT_PATIENCE", "60")
    assert found.pop() is None
    for rank, (waited, kind, missed, text, waits) in enumerate(found):
        assert (kind, missed) == ("RankMissing", (3,)) and waits > 0 and waited > 1.5, (kind, text)
        assert f"rank {rank} waits for rank 3, which left" in text


def test_patience_is_a_time(ranks, tmp_path):
    ranks.each(rig.environment_says, "RDMAKIT_PATIENCE", "soon")
    answers = ranks.all(rig.make, tmp_path / "meeting", {})
    ranks.each(rig.environment_says, "RDMAKIT_PATIENCE", "60")
    for answer in answers:
        assert answer[:2] == ("failed", "BadArgument") and "RDMAKIT_PATIENCE is no time (value soon" in answer[2]


def test_a_rank_that_dies_is_named(tmp_path, seed):
    before = rig.names_left()
    ranks = rig.Ranks([{}] * RANKS)
    try:
        ranks.each(rig.make, tmp_path / "meeting", {})
        ranks.each(rig.normal, seed, False)
        absent = int(np.random.default_rng(seed).integers(RANKS))
        answers = ranks.all(rig.all_but_one, seed, absent, "dies")
        for rank, answer in enumerate(answers):
            if rank == absent:
                assert answer is None
                continue
            waited, kind, missed, text, waits = answer[1]
            assert (kind, missed) == ("RankDied", (absent,)), answer
            assert f"rank {rank} misses rank {absent}" in text and waits > 0
            assert str(ranks.processes[absent].pid) in text and f"rank {rank}: nvl_" in text
            assert waited < 30, "it took as long as patience"
    finally:
        ranks.end()
    assert rig.names_left() == before


@pytest.mark.parametrize(("options", "kind", "text"), [
    ({"ranks_per_host": 3}, "BadArgument", "ranks cannot be split evenly over hosts"),
    ({"num_nvl_bytes": 1 << 50}, "BadArgument", "no memory for the heap of rank"),
    ({"num_nvl_bytes": 1 << 70}, "BadArgument", "no memory for the heap of rank"),
    ({"enable_shrink": True}, "NotAvailable", "enable_shrink is not supported where kernels run on the CPU"),
    ({"ranks_per_host": 2, "enable_shrink": True}, "NotAvailable", "enable_shrink is not supported between hosts"),
    ({"allow_nvlink_for_low_latency_mode": False}, "NotAvailable", "among ranks of one host"),
])  # fmt: skip
def test_what_there_is_not(ranks, tmp_path, options, kind, text):
    for answer in ranks.all(rig.make, tmp_path / "meeting", options):
        assert answer[:2] == ("failed", kind) and text in answer[2], answer
    assert ranks.each(rig.make, tmp_path / "another", {}) == [1] * RANKS  # they go on
    ranks.each(rig.destroy)
