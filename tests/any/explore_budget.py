"""What a deep exploration goes through: every scenario that has to hold, in all its modes, with and without faults.

Each gets as long as the others, so that quick ones have most schedules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rdmakit.explore import Explorer, known_scenarios
from rdmakit.explore.scenarios.faults import FAULTS
from rdmakit.explore.scenarios.lock_refusals import LIES
from rdmakit.signal import Ordering, Reader, Strategy, right_modes

BREAKS = ("lock-failover", "lock-reconnects", "lock-sender-dies", "lock-receiver-dies", "lock-queue-pair-fails")
BREAKS = ("lock-failover", "lock-reconnects", "lock-sender-dies", "lock-receiver-dies", "lock-queue-pair-fails")
LIED_TO = {
    "amo": tuple(lie for lie in LIES if lie != "signal"),
    "write": ("gap", "fingerprint", "stale_epoch"),
    "imm": ("gap", "repeat", "fingerprint", "signal"),
}
WRAPS = {"first_ticket": (1 << 32) - 1, "index": (1 << 16) - 1}
ALL_FAULTS = FAULTS + ",adaptive_routing,relaxed_ordering"

PRODUCERS: list[dict[str, Any]] = [
    {"warps": 2, "blocks": 1},
    {"collapsed": True},
    {"dialect": "last_wqe"},
    {"take": 2, "batch": 4, "words": 8},
    {"doorbell": "register"},
    {"faults": ALL_FAULTS},
]


@dataclass(frozen=True)
class Task:
    """A scenario with its options."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def explorer(self) -> Explorer:
        return Explorer(self.name, **self.options)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


def tasks() -> list[Task]:
    """All of them; none may fail."""
    found = [Task(s.name) for s in known_scenarios() if s.holds]
    for strategy in Strategy:
        for crc in (False, True) if strategy is Strategy.EAGER else (False,):
            for ordering, reader in sorted(right_modes(strategy, crc)):
                mode = {"strategy": strategy.name.lower(), "ordering": Ordering(ordering).name.lower(), "crc": crc,
                        "reader": Reader(reader).name.lower()}  # fmt: skip
                found += [Task("lock", mode), Task("lock", {**mode, "faults": FAULTS, **WRAPS})]
    for strategy in ("amo", "imm", "write", "cqe"):
        found += [Task(name, {"strategy": strategy}) for name in BREAKS]
    for rank in (0, 1):
        found += [Task("lock-sender-dies", {"faults": f"dead={rank}@{n}msg"}) for n in (1, 2, 4, 5)]
    found += [Task("lock-failover", {"faults": FAULTS}), Task("lock-failover", {"transfers": 6, "slots": 4})]
    for strategy, lies in LIED_TO.items():
        found += [Task("lock-refuses", {"strategy": strategy, "crc": True, "lie": lie}) for lie in lies]
    found += [Task("queue-producers", options) for options in PRODUCERS]
    found.append(Task("queue-wraps", {"take": 1}))
    for name in ("put-signal", "ring", "ring-wraps", "queue-wraps"):
        found.append(Task(name, {"faults": ALL_FAULTS}))
    failovers = ("ep-normal-failover", "ep-low-latency-failover")
    for name in ("ep-normal", "ep-low-latency", "ep-low-latency-again", *failovers):
        found += [Task(name, {"faults": ALL_FAULTS}), Task(name, {"gpus": 2, "tokens": 1})]
    return found
