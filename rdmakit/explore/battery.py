"""The scenes that mutants meet: every protocol in the modes that ask most of it, and every refusal.

Leans on explorer and scenarios. The order is that of cost: most mutants die in the first ones.
"""

from __future__ import annotations

from typing import Any

from rdmakit.explore.explorer import Explorer
from rdmakit.explore.scenario import scenarios

__all__ = ["BATTERY", "battery"]

_TWO_BLOCKS: dict[str, Any] = {"blocks": 2}
BATTERY: list[tuple[str, dict[str, Any]]] = [
    ("put-signal", {}),
    ("queue", {}),
    ("queue-producers", {}),
    ("queue-producers", {"warps": 2, "blocks": 1}),
    ("queue-producers", {"collapsed": True}),
    ("queue-producers", {"dialect": "last_wqe"}),
    ("queue-producers", {"take": 2, "batch": 4, "words": 8}),
    ("queue-wraps", {}),
    ("queue-every-wqe", {}),
    *(("lock", {"strategy": s, "ordering": "relaxed"}) for s in ("amo", "imm")),
    *(("lock", {"strategy": s, "ordering": "out_of_order"}) for s in ("amo", "imm", "cqe")),
    ("lock", {"strategy": "amo", "narrow_tail": True, "crc": True}),
    ("lock", {"strategy": "eager", "crc": True, "length": 200, "ordering": "relaxed"}),
    ("lock", {"strategy": "write", "slots": 1}),
    ("lock", {"strategy": "cqe", "slots": 1}),
    *(("lock-refuses", {"strategy": "amo", "crc": True, "lie": lie})
      for lie in ("gap", "repeat", "stale_epoch", "fingerprint", "length", "crc")),
    *(("lock-refuses", {"strategy": "write", "lie": lie}) for lie in ("gap", "fingerprint", "stale_epoch")),
    *(("lock-refuses", {"strategy": "imm", "lie": lie}) for lie in ("gap", "repeat", "fingerprint", "signal")),
    ("lock-refuses", {"strategy": "eager", "crc": True, "lie": "gap"}),
    ("lock", {"strategy": "eager", "reader": "host"}),
    ("lock-sender-fails", {"fault": "key"}),
    ("lock-sender-fails", {"fault": "length"}),
    ("lock-receiver-fails", {}),
    ("handle-refused", {}),
    ("report-once", {}),
    ("report-stops-all", {}),
    ("reservation-too-large", {}),
    ("queue-error", {}),
    ("queue-error", {"blocks": 2}),
    ("queue-error", {"collapsed": True, "blocks": 2}),
    ("queue-quiet", {}),
    ("hca-puts", {"place": "one"}),
    ("hca-puts", {"place": "two"}),
    ("hca-puts", {"place": "apart"}),
    ("hca-puts", {"place": "apart", "entries": 4, "parts": 6}),
    ("hca-nobody-waits", {"place": "two"}),
    ("hca-peer-fails", {"place": "one"}),
    ("hca-peer-fails", {"place": "apart"}),
    ("hca-peer-fails", {"place": "apart", "collapsed": True}),
    ("hca-peer-fails", {"place": "apart", "refused": 1}),
    ("hca-peer-fails", {"place": "two", "waits": 0}),
    ("hca-receives", {}),
    ("lock", {"strategy": "amo", "narrow_tail": True, "engine": "cta"}),
    ("lock", {"strategy": "write", "slots": 1, "engine": "cta"}),
    ("ring", {}),
    ("ep-low-latency", {}),
    ("ep-normal", {}),
    ("ep-normal", {"gpus": 2, "tokens": 1, "combines": 2}),
    ("ep-normal", {"gpus": 2, "tokens": 1, "cached": True}),
    ("ep-low-latency", {"gpus": 2, "tokens": 1}),
    ("ep-low-latency", {"blocks": 2, "warps": 1}),
    ("ep-low-latency", {"one_way": True, "combines": 3, "tokens": 1}),
    ("internode", {"host": True}),
    ("internode", {"again": True}),
    ("nvl-layout", {"turns": 2}),
    ("nvl-normal", {"host": True}),
    ("nvl-normal", {"changed": True}),
    ("nvl-normal", {"changed": True, "blocks": 2, "turns": 2}),
    ("nvl-normal", {"tokens": 9, "changed": True}),
    ("nvl-normal", {"changed": True, "pace": 350, "turns": 2}),
    ("nvl-low-latency", {}),
    ("nvl-low-latency", {"blocks": 2}),
    ("nvl-low-latency", {"turns": 3, "tokens": 1}),
    ("nvl-low-latency", {"ahead": True}),
    ("nvl-barrier", {}),
    ("nvl-barrier", {"shrink": True, "dies": True}),
    ("nvl-shrink", {}),
    ("nvl-shrink", {"blocks": 2}),
    ("nvl-shrink", {"dies": "dispatch", "ranks": 3, "blocks": 2, "waits": True}),
    ("nvl-shrink", {"dies": "masked", "turns": 2, "tokens": 1, "meet": True}),
    ("nvl-shrink", {"dies": "combining", "ranks": 3, "blocks": 2}),
    ("nvl-shrink", {"dies": "ahead", "blocks": 2}),
    ("nvl-shrink", {"dies": "suspected", "blocks": 2}),
]


def battery() -> list[Explorer]:
    """All of them set up, and whatever scenario is tagged "mutants" besides."""
    named = {name for name, _ in BATTERY}
    more = [(s.name, dict[str, Any]()) for s in scenarios("mutants") if s.name not in named]
    return [Explorer(name, **options) for name, options in [*BATTERY, *more]]
