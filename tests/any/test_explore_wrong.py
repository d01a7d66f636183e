"""Protocols that are known to be wrong are caught within 1,000 schedules, made small, and told so that one sees why.

Each story is that of the smallest schedule that fails alike; it has to tell the facts by which one finds the mistake.
"""

from __future__ import annotations

import pytest

from rdmakit.explore import Explorer, known_scenarios
from rdmakit.explore.story import NOTHING_STALE

BUDGET = 1000
# Scenario, options; the reader that is deceived; what the verdict may say; what the story has to tell, and its reason.
CAUGHT = {
    "split": (
        "lock-split", {}, "rank 1 lock_receive",
        ["a receiver refused"],
        ["sends WQE 0: ATOMIC_FA", "executes WQE 0: RDMA_WRITE", "reads slots of a sequence lock"],
        "slots of a sequence lock, rank 1",
    ),
    "write-relaxed": (
        "lock-write-relaxed", {}, "rank 1 lock_receive",
        ["a receiver refused", "copies["],
        ["places payload in slots", "places payload in flags and tails", "reads flags and tails"],
        "slots of a sequence lock, rank 1",
    ),
    "write-out-of-order": (
        "lock", {"strategy": "write", "ordering": "out_of_order", "races": False}, "rank 1 lock_receive",
        ["a receiver refused", "copies["],
        ["executes WQE 1: RDMA_WRITE", "places payload in flags and tails", "reads flags and tails"],
        "slots of a sequence lock, rank 1",
    ),
    "eager-torn": (
        "lock-eager-torn", {}, "rank 1 lock_receive",
        ["copies["],
        ["places payload in slots", "reads slots of a sequence lock", "old"],
        "saw what was there before step",
    ),
    "no-epoch": (
        "lock-forgets-epoch", {}, "rank 1 lock_receive",
        ["copies["],  # what the epoch before has left in a slot
        ["reads flags and tails", "reads slots of a sequence lock", "writes copies"],
        "slots of a sequence lock, rank 1",
    ),
    "no-epoch-after-a-break": (
        "lock-reconnects", {"strategy": "write", "forget": True, "races": False}, "rank 1 lock_receive",
        ["copies["],
        ["reads flags and tails", "writes copies"],
        "slots of a sequence lock, rank 1",
    ),
    "no-epoch-eager": (
        "lock-reconnects", {"strategy": "eager", "forget": True, "races": False, "reader": "host"},
        "rank 1 lock_receive",
        ["copies["],
        ["reads slots of a sequence lock", "writes copies"],
        NOTHING_STALE,  # nothing races: it came too early
    ),
    "no-epoch-low-latency": (
        "ep-low-latency-forgets-epoch", {}, "ll_dispatch_receive",
        ["rows of rank", "sums 0 of rank", "counts of rank", "sources of rank"],
        ["reads heap of rank"],
        "heap of rank",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CAUGHT)
def test_caught_made_small_and_told(case, seed):
    name, options, deceived, verdicts, facts, reason = CAUGHT[case]
    explorer = Explorer(name, **options)
    found = explorer.run(BUDGET, seed=seed)
    assert not found.ok, f"{name} was not caught in {BUDGET} schedules"
    # Damage may also end in a hang, or at an address that is wrong: the story is that of the first one seen as damage.
    while not any(verdict in found.failure.what for verdict in verdicts):
        seed += found.schedules
        found = explorer.run(BUDGET, seed=seed)
        assert not found.ok, f"{name}: no damage of the kind that is to be told in {BUDGET} schedules"
    small = explorer.shrink(found.failure)
    assert small.size <= found.failure.size and explorer.one(decisions=small.decisions).what == small.what
    story = explorer.story(decisions=small.decisions, title=name)
    text = str(story)
    sizes = f"{found.failure.size} decisions, made small {small.size}"
    print(f"{case}: caught in schedule {found.schedules}; {sizes}\n{text}")
    assert story.failed and any(verdict in story.verdict for verdict in verdicts), story.verdict
    for fact in (deceived, *facts):
        assert fact in text, f"the story does not say {fact!r}"
    # In the smallest schedule it is an old value that was read, or a new one that came too late. A deception by what an
    # earlier epoch left may need neither, where chance finds that failure first: then the story says so.
    told = any(reason in why for why in story.why) or any(line.bad for line in story.lines)
    assert told or ("epoch" in case and story.why == [NOTHING_STALE]), story.why


def test_every_scenario_that_is_wrong_on_purpose_is_here_or_fails_alike(seed):
    for scenario in known_scenarios("wrong"):
        assert not scenario.holds
        found = Explorer(scenario).run(BUDGET, seed=seed)
        assert not found.ok, f"{scenario.name} was not caught in {BUDGET} schedules"
