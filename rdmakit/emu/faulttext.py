"""The values of a fault plan, from text or numbers: chances, durations, counts, flags, and when something happens.

Leans on errors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from rdmakit.errors import BadArgument

__all__ = ["When", "chance", "count", "duration", "flag", "show_duration", "when"]

_UNITS = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_DURATION = re.compile(r"([0-9.eE+-]+?)\s*(ns|us|µs|ms|s)\Z")
_FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_LATEST_NS = 1e15  # eleven days of virtual time: its picoseconds fit 64 bits


def _number(name: str, value: Any, rule: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise BadArgument(f"{name} is no number", value=value, rule=rule, remedy="write it as the rule says") from None
    if not math.isfinite(found):
        raise BadArgument(f"{name} is no finite number", value=value, rule=rule, remedy="give a finite number")
    return found


def chance(name: str, value: Any) -> float:
    """A probability."""
    found = _number(name, value, "a probability, 0 … 1")
    if not 0 <= found <= 1:
        remedy = "give a share, not a percentage: 0.01 is one in a hundred"
        raise BadArgument(f"{name} is no probability", value=value, rule="0 … 1", remedy=remedy)
    return found


def duration(name: str, value: Any, most: float) -> float:
    """Nanoseconds: a number of them, or text with a unit.

    >>> duration("delay", "5us", 1e9), duration("delay", 250, 1e9), show_duration(5000.0)
    (5000.0, 250.0, '5us')
    """
    rule = "a number of nanoseconds, or 5us, 3ms, 1s"
    scale = 1.0
    if isinstance(value, str):
        found = _DURATION.match(value.strip())
        if found is not None:
            value, scale = found[1], _UNITS[found[2]]
    ns = _number(name, value, rule) * scale
    if not 0 <= ns <= most:
        remedy = "give a time in this range; without a unit it is nanoseconds"
        raise BadArgument(f"{name} is out of range", value=value, rule=f"0 … {most:g} ns", remedy=remedy)
    return ns


def show_duration(ns: float) -> str:
    """With the largest unit that leaves a short number; `duration` reads it back."""
    for unit in ("s", "ms", "us"):
        scaled = ns / _UNITS[unit]
        if scaled >= 1 and scaled * _UNITS[unit] == ns and len(repr(scaled)) <= 8:
            return repr(scaled).removesuffix(".0") + unit
    return repr(float(ns)).removesuffix(".0") + "ns"  # never with an "e+": a plus joins events


def count(name: str, value: Any, least: int = 0, most: int = (1 << 63) - 1) -> int:
    """A whole number."""
    try:
        found = int(value, 10) if isinstance(value, str) else int(value)
        exact = isinstance(value, str) or found == value
    except (TypeError, ValueError, OverflowError):
        found, exact = 0, False
    if not exact or not least <= found <= most:
        rule = f"a whole number, {least} … {most}"
        raise BadArgument(f"{name} is out of range", value=value, rule=rule, remedy="give a number in this range")
    return found


def flag(name: str, value: Any) -> bool:
    """True, False, or a word for it."""
    found = _FLAGS.get(str(value).lower())
    if found is None:
        raise BadArgument(f"{name} is a flag", value=value, rule="yes or no", remedy=f"{name}=yes or {name}=no")
    return found


@dataclass(frozen=True)
class When:
    """At a virtual time (`ns`) or after so many messages; the other is None."""

    ns: float | None = None
    messages: int | None = None

    def __str__(self) -> str:
        return f"{self.messages}msg" if self.ns is None else show_duration(self.ns)


def when(name: str, text: str) -> When:
    """From "20us" or "500msg"."""
    if text.strip().endswith("msg"):
        return When(messages=count(f"{name}: number of messages", text.strip()[:-3].strip(), 1))
    if _DURATION.match(text.strip()) is None:
        rule = 'a time with its unit ("20us"), or messages ("500msg")'
        raise BadArgument(f"{name}: when?", value=text, rule=rule, remedy="add the unit: ns, us, ms, s or msg")
    return When(ns=duration(f"{name}: time", text, _LATEST_NS))
