"""What is to go wrong in an emulated world: chances, delays, and single events at a time or after so many messages.

Leans on faulttext (the grammar of one value), fault_events and errors. The kinds are those of
rdmakit/emu/hca/faults.hpp; what each does is told there and in docs/architecture.md.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rdmakit.emu.fault_events import EVENTS, Mishap, events_of
from rdmakit.emu.faulttext import chance, count, duration, flag, show_duration
from rdmakit.errors import BadArgument

__all__ = ["FAULT_NAMES", "NO_FAULTS", "Faults", "faults_of"]

_KINDS = (  # enum class FaultKind, hca/faults.hpp
    "loss",
    "corrupt",
    "duplicate",
    "ack_lost",
    "delay",
    "path",
    "relaxed",
    "rnr",
    "doorbell_lost",
    "doorbell_late",
    "cqe_late",
)
FAULT_NAMES = (*_KINDS, "port_down", "port_up", "qp_error", "dead")  # and enum class MishapKind, run/mishaps.hpp
_CHANCES = ("loss", "corrupt", "duplicate", "ack_lost", "rnr", "doorbell_lost", "doorbell_late", "cqe_late")
_PER_BILLION = 1_000_000_000
_MOST_NS = 1e9
_VARIABLE = "RDMAKIT_FAULTS"

Events = Any  # text or a sequence of events; a tuple of them once the plan is made


@dataclass(frozen=True, repr=False)
class Faults:
    """A fault plan: give it to `World(faults=…)`, `rdmakit demo --faults` or, as text, the variable RDMAKIT_FAULTS.

    Chances, 0 … 1: `loss` and `corrupt` (ICRC) of a packet; `duplicate` of a request, `ack_lost` of a response,
    `rnr` of a message that needs a receive WQE, `doorbell_lost` and `doorbell_late` of a register write,
    `cqe_late` of a completion. Times in ns: each message takes up to `delay_ns` longer, and `port_skew_ns` on
    port 2; `duplicate_ns`, `doorbell_late_ns`, `cqe_late_ns` say how late those come at most.
    `adaptive_routing`: messages of out-of-order QPs take paths that differ by up to `path_ns`.
    `relaxed_ordering`: writes to MRs that allow it become visible up to `relaxed_ns` later. `budget`: at most
    so many faults (delays do not count). Times and orders need policy "timed".

    Events, each "what@when" with when = "20us" (of virtual time) or "500msg" (messages sent by all NICs):
    `port_down` and `port_up` "host.nic.port", `nic_dead` "host.nic", `qp_error` "host.nic.n" (the NIC's n-th
    QP, from 0), `dead` a rank, whose kernels stop; `straggler` "rank x factor" has no when. Several are a
    tuple, or joined by "+".
    BadArgument for what cannot be.

    >>> Faults(loss=0.001, delay_ns=5_000, dead="3@50us")
    Faults(loss=0.001,delay=5us,dead=3@50us)
    >>> Faults.parse("straggler=2x8,port_down=0.0.1@500msg").port_down[0].when
    When(ns=None, messages=500)
    """

    loss: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    ack_lost: float = 0.0
    rnr: float = 0.0
    doorbell_lost: float = 0.0
    doorbell_late: float = 0.0
    cqe_late: float = 0.0
    delay_ns: float = 0.0
    port_skew_ns: float = 0.0
    duplicate_ns: float = 2_000.0
    doorbell_late_ns: float = 20_000.0
    cqe_late_ns: float = 20_000.0
    adaptive_routing: bool = False
    path_ns: float = 2_000.0
    relaxed_ordering: bool = False
    relaxed_ns: float = 2_000.0
    budget: int | None = None
    port_down: Events = ()
    port_up: Events = ()
    nic_dead: Events = ()
    qp_error: Events = ()
    dead: Events = ()
    straggler: Events = ()

    def __post_init__(self) -> None:
        for name in _CHANCES:
            object.__setattr__(self, name, chance(name, getattr(self, name)))
        for field in fields(self):
            if field.name.endswith("_ns"):
                object.__setattr__(self, field.name, duration(field.name, getattr(self, field.name), _MOST_NS))
        for name in EVENTS:
            object.__setattr__(self, name, events_of(name, getattr(self, name)))
        for name in ("adaptive_routing", "relaxed_ordering"):
            object.__setattr__(self, name, flag(name, getattr(self, name)))
        if self.budget is not None:
            object.__setattr__(self, "budget", count("budget", self.budget))

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From "key=value,…": chances, times with a unit ("5us"), flags by name alone, events; "" is no fault at all.

        A key is a field's name, without its "_ns" where that is no other field. Events may be named again for more.
        """
        given: dict[str, Any] = {}
        names = [field.name for field in fields(cls)]
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            name = key if key in names else f"{key}_ns"
            if name not in names:
                shown = ", ".join(_short(n) for n in names)
                raise BadArgument("no such fault", value=part, rule=f"one of {shown}", remedy="correct the key")
            if not equals and name not in ("adaptive_routing", "relaxed_ordering"):
                remedy = "write = and a value behind the key; only flags go without"
                raise BadArgument(f"{key} has no value", value=part, rule=f"{key}=…", remedy=remedy)
            if name in EVENTS and name in given:
                value = f"{given[name]}+{value}"
            elif name in given:
                remedy = "keep one of the two"
                raise BadArgument("fault given twice", value=key, rule="each key once, but for events", remedy=remedy)
            given[name] = value if equals else True
        return cls(**given)

    def __str__(self) -> str:
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default or (field.name in EVENTS and not value):
                continue
            if value is True:
                shown.append(field.name)
            elif field.name in EVENTS:
                shown.append(f"{field.name}=" + "+".join(map(str, value)))
            else:
                shown.append(f"{_short(field.name)}={show_duration(value) if field.name.endswith('_ns') else value}")
        return ",".join(shown)

    def __repr__(self) -> str:
        return f"Faults({self})"

    def __bool__(self) -> bool:
        return str(self) != ""

    # ---- what the C++ world takes
    def _chances(self) -> list[int]:
        certain = {"delay": self.delay_ns > 0, "path": self.adaptive_routing, "relaxed": self.relaxed_ordering}
        return [round(float(certain.get(k, getattr(self, k, 0.0))) * _PER_BILLION) for k in _KINDS]

    def _delays(self) -> list[int]:
        return [round(getattr(self, f"{kind}_ns", 0.0) * 1000) for kind in _KINDS]

    def _mishaps(self) -> list[Mishap]:
        return [event for name in EVENTS if name != "straggler" for event in getattr(self, name)]

    def apply(self, core: Any, topology: Any, policy: str) -> None:
        """Hands the plan to a world's C++ side. BadArgument for a rank, port or clock that the world has not."""
        rows = []
        for event in self._mishaps():
            if event.when.ns is not None and policy != "timed":
                raise BadArgument(
                    f"{event} needs a clock",
                    value=policy,
                    rule='times are of the policy "timed"',
                    remedy=f'World(policy="timed"), or a number of messages: "{event.subject}@500msg"',
                )
            rows += event.rows(topology)
        ranks = len(topology.ranks)
        slow: Any = self.straggler
        for one in slow:
            if one.rank >= ranks:
                remedy = "name a rank of this world, or make the world larger"
                raise BadArgument("no such rank to be slow", value=one.rank, rule=f"0 … {ranks - 1}", remedy=remedy)
        stragglers = [(one.rank, one.factor) for one in slow]
        core.set_faults(
            self._chances(), self._delays(), round(self.port_skew_ns * 1000), self.budget, rows, stragglers
        )


def _short(name: str) -> str:
    cut = name.removesuffix("_ns")
    return name if cut in Faults.__dataclass_fields__ else cut


def faults_of(given: Faults | str | None, environment: Mapping[str, str] = os.environ) -> Faults:
    """What a world was given: a plan, its text, or None for what RDMAKIT_FAULTS says."""
    if given is None:
        given = environment.get(_VARIABLE, "")
    if isinstance(given, Faults):
        return given
    return Faults.parse(given) if given else NO_FAULTS


NO_FAULTS = Faults()
