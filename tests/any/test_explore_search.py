"""Searching: a seed makes one schedule, decisions replay it, failures become small, files and the command line keep
them.

The bounds of an exhaustive search are sound: more of them is more schedules, and none is left out by pruning.
"""

from __future__ import annotations

import json

import pytest

from rdmakit.cli import main
from rdmakit.device.qp_attributes import CONNECT_DEFAULTS
from rdmakit.explore import Explorer, Search, explore, load_schedule, replay, save_schedule
from rdmakit.explore.explorer import Verdict

WRONG = ("lock", {"strategy": "write", "ordering": "relaxed", "races": False})


@pytest.fixture(scope="module")
def wrong():
    name, options = WRONG
    return Explorer(name, **options)


def schedule(explorer, seed, search=Search.MIXED):
    judged = explorer.core.run(int(search), seed, 3, explorer._steps, [], True, False)
    return judged["verdict"], judged["hash"], judged["trail"]


@pytest.mark.parametrize("search", [Search.RANDOM, Search.PCT, Search.MIXED])
@pytest.mark.parametrize("name", ["put-signal", "lock-faults", "ep-low-latency-failover"])
def test_a_seed_is_a_schedule(name, search, seed):
    """The same after any other schedule, and in another explorer, where it differs in addresses; neighbours are
    others."""
    one, other = Explorer(name), Explorer(name)
    first = [schedule(one, seed + i, search) for i in range(8)]
    assert [schedule(one, seed + i, search) for i in reversed(range(8))] == first[::-1]
    there = [schedule(other, seed + i, search) for i in range(8)]
    assert [(verdict, trail) for verdict, _, trail in there] == [(verdict, trail) for verdict, _, trail in first]
    assert len({tuple(trail) for _, _, trail in first}) > 1


@pytest.mark.parametrize("search", [Search.RANDOM, Search.PCT])
def test_decisions_replay(wrong, search, seed):
    """What was decided under a seed, given as a list, makes the same schedule: the same hash and the same verdict."""
    verdicts = set()
    for number in range(seed, seed + 40):
        verdict, hash_, trail = schedule(wrong, number, search)
        judged = wrong.core.run(int(Search.LIST), 0, 3, 0, trail, True, False)
        assert (judged["verdict"], judged["hash"], judged["trail"]) == (verdict, hash_, trail)
        verdicts.add(verdict)
    assert len(verdicts) > 1, "both schedules that fail and schedules that hold were replayed"


@pytest.mark.parametrize("search", [Search.RANDOM, Search.PCT, Search.MIXED])
def test_each_search_finds_it(wrong, search, seed):
    found = wrong.run(1000, seed=seed, search=search)
    assert not found.ok and found.failure.seed == seed + found.schedules - 1
    assert f"(seed {found.failure.seed})" in str(found)


def test_a_failure_becomes_smaller_and_fails_alike(wrong, seed):
    sizes = []
    for start in range(seed, seed + 5):
        failure = wrong.run(1000, seed=start).failure
        small = wrong.shrink(failure)
        assert small.verdict == failure.verdict and small.size <= failure.size
        assert len(small.decisions) <= len(failure.decisions)
        again = wrong.one(decisions=small.decisions)
        assert (again.verdict, again.what) == (small.verdict, small.what)
        for at in (i for i, decision in enumerate(small.decisions) if decision):  # none of it can be left out
            calmer = (*small.decisions[:at], 0, *small.decisions[at + 1 :])
            other = wrong.one(decisions=calmer)
            assert other is None or other.verdict != small.verdict or other.size >= small.size
        sizes.append((failure.size, small.size))
    print("decisions that are not calm, before and after:", sizes)
    assert sum(after for _, after in sizes) < sum(before for before, _ in sizes)


def test_faults_are_decisions_too(seed):
    """A plan with more losses than the NIC's retries survive: the smallest schedule still loses a packet that often."""
    explorer = Explorer("put-signal", faults="loss=0.5")
    failure = explorer.run(20_000, seed=seed).failure  # six of a thousand fail
    small = explorer.shrink(failure)
    assert small.verdict == failure.verdict and small.size <= failure.size
    losses = explorer.scene._world.fault_counts["loss"]
    assert "RETRY_EXC_ERR" in explorer.one(decisions=small.decisions).what
    assert explorer.scene._world.fault_counts["loss"] - losses >= 1 + CONNECT_DEFAULTS["retry_cnt"]
    assert Explorer("put-signal", faults="").one(seed=failure.seed) is None, "without the plan it holds"


def test_replay_by_seed_tells_the_small_schedule(seed):
    name, options = WRONG
    failure = Explorer(name, **options).run(1000, seed=seed).failure
    story = replay(name, failure.seed, **options)
    assert story.failed and f"seed {failure.seed}, made small" in str(story)
    held = explore("put-signal", schedules=5, seed=seed)
    assert held.ok and not replay("put-signal", seed).failed


def test_a_saved_schedule_replays_in_another_explorer(wrong, tmp_path, seed):
    small = wrong.shrink(wrong.run(1000, seed=seed).failure)
    save_schedule(tmp_path / "s.json", wrong, small)
    saved = load_schedule(tmp_path / "s.json")
    again = saved.explorer().one(decisions=saved.decisions)
    assert (again.verdict.name.lower(), again.what) == (saved.verdict, saved.what)


def test_a_saved_schedule_is_told_as_it_was_saved(wrong, tmp_path, seed, capsys):
    """Small or not: a smaller one may fail in another way than the file says."""
    path = str(tmp_path / "failing.json")
    for start in range(seed, seed + 5):
        failure = wrong.run(1000, seed=start).failure
        save_schedule(path, wrong, failure)
        assert main(["replay", "--schedule", path, "--json"]) == 1
        told = json.loads(capsys.readouterr().out)
        assert told["figures"]["decisions_not_calm"] == failure.size
        assert told["story"]["verdict"] == f"{failure.verdict.name.lower()}: {failure.what}"


def test_the_command_line_saves_and_replays(tmp_path, capsys, seed):
    name, options = WRONG
    settings = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    path = str(tmp_path / "failing.json")
    assert main(["explore", name, *settings, "--seed", str(seed), "--schedules", "1000", "--save", path]) == 1
    said = capsys.readouterr().out
    assert "failed in schedule" in said and f"rdmakit replay --schedule {path}" in said
    assert main(["replay", "--schedule", path, "--json"]) == 1
    story = json.loads(capsys.readouterr().out)["story"]
    saved = load_schedule(path)
    assert saved.what in story["verdict"] and any(line["bad"] for line in story["lines"])
    assert main(["replay", name, *settings, "--seed", str(saved.seed)]) == 1
    assert saved.verdict in capsys.readouterr().out


# ---- all schedules
def all_hashes(explorer, stale=0, switches=0):
    """The distinct schedules of an exhaustive search."""
    explorer.core.start_over()
    explorer.core.bounds(stale, switches, 0)
    found = set()
    while not (judged := explorer.core.explore(int(Search.EXHAUSTIVE), 0, 1, 3, 0, True))["done"]:
        if judged["verdict"] != Verdict.PRUNED:
            found.add(judged["hash"])
    explorer.core.bounds(0, 0, 0)
    return found


@pytest.mark.parametrize("strategy", ["write", "amo"])
def test_what_a_bound_reaches_a_larger_one_reaches(strategy):
    """Pruning must not take a state with nothing left of its bounds for the same state with something left."""
    explorer = Explorer("lock", strategy=strategy, transfers=1)
    before = set()
    for stale, switches in ((1, 1), (1, 2), (2, 2), (2, 3)):
        reached = all_hashes(explorer, stale, switches)
        assert reached >= before and len(reached) > 2, (stale, switches)
        before = reached


@pytest.mark.parametrize("name", ["put-signal", "put-signal-faults"])
def test_pruning_leaves_out_no_schedule_that_chance_finds(name, seed):
    """The exhaustive search without bounds knows every schedule that 20,000 random ones make."""
    explorer = Explorer(name, faults="loss=0.2,budget=1" if "faults" in name else "")
    known = all_hashes(explorer)
    assert explorer.exhaust().complete and explorer.exhaust().distinct == len(known)
    for number in range(seed, seed + 20_000):
        made = schedule(explorer, number, Search.MIXED)[1]
        assert made in known, f"seed {number} makes a schedule that is not among the {len(known)}"


def test_bounds_are_printed_and_incomplete_is_said():
    found = Explorer("lock").exhaust(stale=2, switches=3, faults=1, limit=200)
    assert not found.complete and "not all there are" in str(found)
    assert "at most 2 stale loads, at most 3 switches, at most 1 faults" in str(found)
    assert found.figures()["complete"] == 0


def test_an_exhaustive_search_tries_each_fault():
    """One loss or one duplicate anywhere; all of it held."""
    explorer = Explorer("put-signal", faults="loss=0.1,ack_lost=0.1,duplicate=0.1")
    found = explorer.exhaust(stale=1, switches=1, faults=1)
    assert found.ok and found.complete
    assert found.distinct > Explorer("put-signal").exhaust(stale=1, switches=1).distinct


def test_an_exhaustive_search_finds_what_a_bound_allows():
    found = Explorer("lock", strategy="split", transfers=1, races=False).exhaust(stale=1, switches=2)
    assert not found.ok and found.failure.seed == -1 and found.failure.verdict in (Verdict.WRONG, Verdict.REPORTED)
