"""Single events of a fault plan: which port, NIC, queue pair or rank, and when.

Leans on faulttext and errors. `rows` gives what run/mishaps.hpp takes: kind, subject, number, time in ps, messages.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from rdmakit.emu.faulttext import When, count, when
from rdmakit.errors import BadArgument

__all__ = ["EVENTS", "Mishap", "NicAt", "PortAt", "QpAt", "RankAt", "Slow", "events_of"]

Row = tuple[int, int, int, int | None, int | None]
_PORT_DOWN, _PORT_UP, _QP_ERROR, _RANK_DIES = range(4)  # enum class MishapKind


@dataclass(frozen=True)
class Mishap(ABC):
    """Something that happens once: `where` are its numbers, as in "0.0.1"."""

    name: str
    where: tuple[int, ...]
    when: When

    form: ClassVar[tuple[str, ...]] = ()

    @property
    def subject(self) -> str:
        """As the text names it."""
        return ".".join(map(str, self.where))

    def __str__(self) -> str:
        return f"{self.subject}@{self.when}"

    def _row(self, kind: int, subject: int, number: int) -> Row:
        time = None if self.when.ns is None else round(self.when.ns * 1000)
        return kind, subject, number, time, self.when.messages

    @abstractmethod
    def rows(self, topology: Any) -> list[Row]:
        """For the C++ world. BadArgument for something that the world has not."""


class PortAt(Mishap):
    """A cable that is pulled or plugged: physical port 1 … of a NIC of a host."""

    form = ("host", "nic", "port")

    def rows(self, topology: Any) -> list[Row]:
        host, nic, port = self.where
        if not 1 <= port <= topology.ports:
            raise BadArgument(
                f"{self.name} of no such port", value=self.subject, rule=f"1 … {topology.ports}",
                remedy="name a port that the NIC has, as host.nic.port; ports count from 1",
            )  # fmt: skip
        kind = _PORT_DOWN if self.name == "port_down" else _PORT_UP
        return [self._row(kind, topology.nic_index(host, nic), port)]


class NicAt(Mishap):
    """A NIC that answers nobody any more: all its ports go down."""

    form = ("host", "nic")

    def rows(self, topology: Any) -> list[Row]:
        index = topology.nic_index(*self.where)
        return [self._row(_PORT_DOWN, index, port + 1) for port in range(topology.ports)]


class QpAt(Mishap):
    """A queue pair that fails by itself: the n-th that the NIC made, from 0."""

    form = ("host", "nic", "n")

    def rows(self, topology: Any) -> list[Row]:
        host, nic, ordinal = self.where
        return [self._row(_QP_ERROR, topology.nic_index(host, nic), ordinal)]


class RankAt(Mishap):
    """A rank whose kernels stop. Its NIC still answers; see `nic_dead`."""

    form = ("rank",)

    def rows(self, topology: Any) -> list[Row]:
        ranks = len(topology.ranks)
        if self.where[0] >= ranks:
            remedy = "name a rank of this world, or make the world larger"
            raise BadArgument("no such rank to die", value=self.subject, rule=f"0 … {ranks - 1}", remedy=remedy)
        return [self._row(_RANK_DIES, self.where[0], 0)]


@dataclass(frozen=True)
class Slow:
    """A rank whose primitives take `factor` times as long, or that has a turn so much more rarely."""

    rank: int
    factor: int

    def __str__(self) -> str:
        return f"{self.rank}x{self.factor}"


EVENTS: dict[str, type[Mishap] | type[Slow]] = {
    "port_down": PortAt,
    "port_up": PortAt,
    "nic_dead": NicAt,
    "qp_error": QpAt,
    "dead": RankAt,
    "straggler": Slow,
}


def _event(name: str, text: str) -> Mishap | Slow:
    kind = EVENTS[name]
    if kind is Slow:
        found = re.fullmatch(r"(\d+)\s*[x*]\s*(\d+)", text)
        if found is None:
            raise BadArgument(
                "straggler: who, and how slow?", value=text, rule="rank x factor, as in 2x8",
                remedy="write straggler=2x8 for a rank 2 that takes 8 times as long",
            )  # fmt: skip
        return Slow(count("straggler: rank", found[1], 0, 1 << 31), count("straggler: factor", found[2], 1, 1000))
    assert issubclass(kind, Mishap)
    what, at, moment = text.partition("@")
    numbers = what.strip().split(".")
    if not at or len(numbers) != len(kind.form):
        rule = ".".join(kind.form) + "@when, as in " + ".".join("1" for _ in kind.form) + "@20us"
        remedy = f"give {len(kind.form)} number(s) joined by dots, then @ and a time or a number of messages"
        raise BadArgument(f"{name}: what, and when?", value=text, rule=rule, remedy=remedy)
    where = tuple(count(f"{name}: {part}", n.strip(), 0, 1 << 31) for part, n in zip(kind.form, numbers, strict=True))
    return kind(name, where, when(name, moment))


def events_of(name: str, given: Any) -> tuple[Mishap | Slow, ...]:
    """All events of one kind, from text joined by "+" or from a sequence of texts and events."""
    parts = given.split("+") if isinstance(given, str) else tuple(given)
    found: list[Mishap | Slow] = []
    for part in parts:
        if isinstance(part, str):
            found.append(_event(name, part.strip()))
        elif isinstance(part, EVENTS[name]):
            found.append(part)
        else:
            raise BadArgument(
                f"{name} takes text or its own kind of event", value=part, rule="as in str(faults)",
                remedy=f"pass text, or a {EVENTS[name].__name__}",
            )  # fmt: skip
    return tuple(found)
