"""A schedule told: who did what to which word, what was read although something newer was there, who is late.

Leans on emu (names of memory, source lines) and draws itself with show when that is there.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdmakit.emu.symbols import source_line
from rdmakit.layout.constants import Opcode

if TYPE_CHECKING:
    from rdmakit.explore.explorer import Explorer

__all__ = ["Names", "Story", "Told", "tell"]

_LOAD, _STORE, _UPDATE, _FENCE, _BARRIER, _DOORBELL, _NOTE, _WAIT = range(8)
_ORDERS = ("", "relaxed", "acquire", "release", "acq_rel")
_SCOPES = ("cta", "gpu", "sys")
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ \d+\s+(\S.*)$")


class Names:
    """What agents, addresses and places in code are called in one scene."""

    def __init__(self, explorer: Explorer) -> None:
        world = explorer.scene._world
        assert world is not None
        self._book = world.addresses
        self._agents = explorer.core.agents()
        self._hosts = [device.name for device in world._devices]
        self._world = world
        self._lines: dict[int, str] = {}

    def agent(self, number: int) -> str:
        """ "rank 1 receive", "NIC of host 0, QP 0x41, sending"."""
        known = self._agents.get(number)
        if known is None:
            return "the host"
        if "kernel" in known:
            many = sum(1 for a in self._agents.values() if a.get("rank") == known["rank"] and a.get("kernel") == known["kernel"])
            where = f" {known['block'][0]}.{known['thread'] // 32}" if many > 1 else ""
            return f"rank {known['rank']} {known['kernel']}{where}"
        return f"NIC {known['hca']} QP {known['qpn']:#x} {'requester' if known['requester'] else 'responder'}"

    def address(self, address: int) -> str:
        """The name of a word, or its address."""
        return self._book.name_of(address) or f"{address:#x}"

    def known(self, address: int) -> bool:
        """Whether anybody has named it."""
        return bool(self._book.name_of(address))

    def place(self, step: dict[str, Any]) -> str:
        """ " [queue.cuh:90]", or nothing."""
        if step["file"]:
            return f" [{Path(step['file']).name}:{step['line']}]"
        if not step["line"]:
            return ""
        line = self._lines.get(step["line"])
        if line is None:
            line = self._lines[step["line"]] = _line_of(step["line"])
        return f" [{line}]" if line else ""

    def strength(self, access: dict[str, Any]) -> str:
        """ " (plain)" or " (gpu scope)" of one side of a race."""
        return f" ({_SCOPES[min(access['scope'], 2)]} scope)" if access["strong"] else " (plain)"


def _line_of(pc: int) -> str:
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return ""
    for text in maps.splitlines():
        found = _MAPPING.match(text)
        if found and int(found[1], 16) <= pc < int(found[2], 16):
            base = next(int(m[1], 16) for m in map(_MAPPING.match, maps.splitlines()) if m and m[4] == found[4])
            return Path(source_line(found[4], [pc - 1 - base])).name
    return ""


@dataclass(frozen=True)
class Told:
    """One line of a story. `stale`: a newer value was there than the one that was read."""

    number: int
    who: str
    what: str
    stale: bool = False


@dataclass
class Story:
    """A schedule, step by step. `print` it, or let a notebook draw it as a message-sequence chart."""

    title: str
    verdict: str
    failed: bool
    lines: list[Told] = field(default_factory=list)
    race: str = ""

    @property
    def stale(self) -> list[Told]:
        """Reads of a value that was no longer the newest."""
        return [line for line in self.lines if line.stale]

    def __str__(self) -> str:
        width = max((len(line.who) for line in self.lines), default=0)
        rows = [f"{line.number:>5}  {line.who:<{width}}  {'! ' if line.stale else '  '}{line.what}" for line in self.lines]
        head = [self.title, f"{'FAILED' if self.failed else 'held'}: {self.verdict}" if self.failed else "held"]
        return "\n".join([*head, *rows, *([self.race] if self.race else [])])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        try:
            show = import_module("rdmakit.show")
        except ImportError:
            return f"<pre>{html.escape(str(self))}</pre>"
        lanes = list(dict.fromkeys(line.who for line in self.lines))
        notes = [(line.who, n, line.what, "bad" if line.stale else "") for n, line in enumerate(self.lines)]
        if self.failed and lanes:
            notes.append((self.lines[-1].who, len(self.lines), self.verdict.splitlines()[0][:120], "bad"))
        figure = show.message_chart(lanes, [], notes, title=f"{self.title}: {'failed' if self.failed else 'held'}", unit="step")
        return str(figure._repr_html_())


def tell(explorer: Explorer, title: str, verdict: str, *, failed: bool) -> Story:
    """The story of the schedule that was recorded last."""
    names = Names(explorer)
    story = Story(title, verdict, failed)
    for step in explorer.core.steps():
        text = _sentence(step, names)
        if text:
            stale = step["kind"] == _LOAD and step["newer"] > 0 and bool(names.known(step["address"]) or step["note"])
            story.lines.append(Told(step["number"], names.agent(step["agent"]), text, stale))
    if explorer.core.race() is not None:
        story.race = explorer.race()
    return story


def _sentence(step: dict[str, Any], names: Names) -> str:
    kind, at = step["kind"], names.place(step)
    if kind == _NOTE:
        qpn, index, opcode = step["detail"]
        if step["note"] == "takes the doorbell":
            return f"{step['note']}"
        named = f" {Opcode(opcode).name} at index {index}" if opcode in Opcode._value2member_map_ and qpn else ""
        return f"{step['note']}{named}"
    if kind == _FENCE:
        return f"fence.{_SCOPES[step['scope']]}{at}"
    if not names.known(step["address"]):
        return ""
    where = names.address(step["address"])
    how = f" ({_ORDERS[step['order']]}.{_SCOPES[step['scope']]})" if step["order"] and not step["note"] else ""
    value = f"{step['value']:#x}" if step["value"] > 9 else str(step["value"])
    if kind == _LOAD:
        old = f", {step['newer']} newer" if step["newer"] else ""
        verb = step["note"] or "reads"
        return f"{verb} {where} = {value}{old}{how}{at}"
    if kind == _UPDATE:
        return f"{step['note'] or 'updates'} {where} → {value}{how}{at}"
    return f"{step['note'] or 'writes'} {where} = {value}{how}{at}"
