"""Faults as flags of any scenario, in every schedule that chance makes: what leaves a path is survived, every byte
once and in order; what does not ends early and is never wrong. Faults are decisions of a schedule like all others.
"""

from __future__ import annotations

import pytest

from rdmakit.explore import Explorer

# Each fault by itself, and whether it can be counted as a decision (orders are in every schedule anyway: a doorbell, a
# request, a completion come as late as the schedule likes).
FLAGS = {
    "loss=0.2,budget=6": "loss",
    "corrupt=0.2,budget=6": "corrupt",
    "duplicate=0.4": "duplicate",
    "ack_lost=0.2,budget=6": "ack_lost",
    "rnr=0.2,budget=6": None,  # only where receive WQEs are: imm
    "delay=5us": None,
    "doorbell_late=0.5": None,
    "cqe_late=0.5": None,
    "port_skew=5us": None,
    "adaptive_routing": None,
    "relaxed_ordering": None,
    "straggler=0x8": None,
    "straggler=1x8": None,
    "loss=0.1,corrupt=0.1,duplicate=0.2,ack_lost=0.1,rnr=0.1,adaptive_routing,relaxed_ordering,budget=6": "loss",
}
SCENARIOS = {
    "put-signal": 300, "queue-producers": 200, "ring": 150, "lock": 300, "lock-imm": 300, "lock-cqe": 200,
    "lock-eager": 200, "lock-reconnects": 200, "lock-failover": 200, "ep-normal": 25, "ep-low-latency": 50,
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_fault_is_survived(name, seed):
    """Nothing is lost, doubled, out of order or spoilt; and the faults did happen."""
    for flag, counted in FLAGS.items():
        explorer = Explorer(name, faults=flag)
        found = explorer.run(SCENARIOS[name], seed=seed)
        assert found.ok, f"under {flag}: {found}"
        counts = explorer.scene._world.fault_counts
        if counted is not None:
            assert counts.get(counted, 0) > 0, f"{flag} never struck: {counts}"


def test_counters_that_start_again_under_all_faults(seed):
    """Indices of WQEs, PSNs that are sent again, and receive queues, all across where their bits end."""
    for name in ("queue-wraps", "ring-wraps"):
        found = Explorer(name, faults=list(FLAGS)[-1]).run(300, seed=seed)
        assert found.ok, found


def test_a_receiver_that_is_not_ready_is_asked_again(seed):
    explorer = Explorer("lock-imm-faults", faults="rnr=0.3,budget=6")
    assert explorer.run(500, seed=seed).ok
    assert explorer.scene._world.fault_counts["rnr"] > 100


@pytest.mark.parametrize("what", ["retry", "icrc"])
def test_more_losses_than_retries_are_reported(what, seed):
    """The scenarios can fail: past `retry_cnt` attempts the queue pair gives up, and the kernel says why."""
    found = Explorer("put-signal", faults="loss=0.9" if what == "retry" else "corrupt=0.9").run(300, seed=seed)
    assert not found.ok
    assert found.failure.verdict.name in ("REPORTED", "HUNG")


# ---- ports
FAILOVER = [("lock-failover", 400, {}), ("lock-failover", 400, {"strategy": "imm"}),
            ("lock-failover", 400, {"faults": "loss=0.1,ack_lost=0.1,duplicate=0.2,budget=5"}),
            ("ep-normal-failover", 60, {}), ("ep-low-latency-failover", 120, {}),
            ("ep-low-latency-failover", 60, {"faults": "loss=0.1,ack_lost=0.1,duplicate=0.2,budget=5"})]  # fmt: skip


@pytest.mark.parametrize(("name", "schedules", "options"), FAILOVER)
def test_the_other_port_takes_over_in_mid_dispatch(name, schedules, options, seed):
    """Port counters: traffic had left by port 1, then leaves by port 2, never by a port that is down, and comes back.
    """
    explorer = Explorer(name, **options)
    assert explorer.run(schedules, seed=seed).ok
    tally = explorer.scene.tally
    print(name, dict(tally))
    assert tally["moved over"] > schedules / 10 and tally["came back"] > schedules / 50, tally


def messages_of(name, **options):
    explorer = Explorer(name, **options)
    explorer.one(decisions=())
    world = explorer.scene._world
    return world._core.messages()


@pytest.mark.parametrize("name", ["ep-normal-failover", "ep-low-latency-failover"])
def test_ports_fail_within_the_dispatch(name):
    """The messages within which a port goes down are those of the dispatch, not of the combine behind it."""
    whole, dispatch = messages_of(name), messages_of(name, combines=0)
    assert dispatch == {"ep-normal-failover": 20, "ep-low-latency-failover": 6}[name] < whole


def test_a_fail_over_that_does_not_happen_is_noticed(seed):
    """Without a bond there is no other port: the scene that holds with one fails."""
    for name in ("lock-failover", "ep-normal-failover", "ep-low-latency-failover"):
        found = Explorer(name, lag="none").run(200, seed=seed)
        assert not found.ok and found.failure.verdict.name in ("REPORTED", "HUNG"), (name, found)


# ---- what cannot be survived
@pytest.mark.parametrize("strategy", ["amo", "imm", "eager", "write", "cqe"])
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("lock-sender-dies", "dead=0@{}msg"),
        ("lock-receiver-dies", "dead=1@{}msg"),
        ("lock-queue-pair-fails", "qp_error=0.0.0@{}msg"),
        ("lock-queue-pair-fails", "qp_error=1.0.0@{}msg"),
    ],
)
def test_what_was_signed_off_is_right_however_it_ends(name, plan, strategy, seed):
    reader = "host" if strategy == "eager" else "gpu"
    for messages in (1, 2, 3, 5):
        explorer = Explorer(name, strategy=strategy, reader=reader, faults=plan.format(messages))
        found = explorer.run(60, seed=seed)
        assert found.ok, f"after {messages} messages: {found}"
        assert messages == 5 or explorer.scene.tally["ended early"] > 0


def test_a_lost_doorbell_is_late_or_never_and_nothing_wrong(seed):
    explorer = Explorer("lock-doorbell-lost")
    assert explorer.run(500, seed=seed).ok
    assert min(explorer.scene.tally["ended early"], explorer.scene.tally["all arrived"]) > 20, explorer.scene.tally
    assert not Explorer("lock", faults="doorbell_lost=0.5").run(200, seed=seed).ok, "a scene that must go on to its end"


ENDING_EARLY = ["lock-sender-dies", "lock-receiver-dies", "lock-queue-pair-fails", "lock-doorbell-lost"]


@pytest.mark.parametrize("name", ENDING_EARLY)
@pytest.mark.parametrize("wrong", [{"strategy": "split"}, {"strategy": "write", "ordering": "relaxed"}])
def test_ending_early_excuses_no_damage(name, wrong, seed):
    """The scenes that may end early still catch protocols that are wrong."""
    found = Explorer(name, races=False, **wrong).run(1000, seed=seed)
    assert not found.ok and found.failure.verdict.name == "REFUSED", found


# ---- connected anew
@pytest.mark.parametrize("strategy", ["amo", "imm", "eager", "write", "cqe"])
@pytest.mark.parametrize("taken", [0, 1])
def test_a_later_epoch_takes_nothing_of_an_older_one(strategy, taken, seed):
    reader = "host" if strategy == "eager" else "gpu"
    for breaks in (1, 2, 3, 4):
        options = {"strategy": strategy, "reader": reader, "breaks": breaks, "taken": taken}
        found = Explorer("lock-reconnects", **options).run(100, seed=seed)
        assert found.ok, f"broken after {breaks} messages: {found}"


@pytest.mark.parametrize(("name", "options"), [
    ("ep-normal-again", {}), ("ep-low-latency-again", {}), ("ep-low-latency-again", {"before": 3}),
])  # fmt: skip
def test_slots_of_earlier_rounds_do_not_pass_for_new(name, options, seed):
    assert Explorer(name, **options).run(100, seed=seed).ok
    forgetful = Explorer(name, forget=2, **options).run(300, seed=seed)
    assert not forgetful.ok, "an epoch that is used again is noticed"
