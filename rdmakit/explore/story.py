"""A schedule told: who did what to which word, what was read although something newer was there, who is late.

Leans on trace and sentences; chart draws it. Steps that nobody else can notice are left out, runs of words are one
line.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rdmakit.explore.names import Names
from rdmakit.explore.sentences import INTERNAL, number, old_news, sentence
from rdmakit.explore.trace import BARRIER, FENCE, LOAD, NOTE, STORE, Step, Trace

if TYPE_CHECKING:
    from rdmakit.explore.explorer import Explorer

__all__ = ["NOTHING_STALE", "PRE", "Story", "Told", "tell"]

PRE = "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere"  # JupyterLab would break words anywhere

_ELEMENT = re.compile(r"^(.*)\[(\d+)\]$")
_PLACE = re.compile(r" \[[^\]]*:\d+\]")


@dataclass(frozen=True)
class Told:
    """One line of a story. `stale`: a newer value was there than the one that was read.

    `steps` are the numbers of the steps that it tells, `sees` those of others whose effect it sees, `should_see`
    those that it should have seen.
    """

    number: int
    who: str
    what: str
    stale: bool = False
    lane: str = ""
    steps: tuple[int, ...] = ()
    sees: tuple[int, ...] = ()
    should_see: tuple[int, ...] = ()
    bad: bool = False

    def __str__(self) -> str:
        return f"{self.who} {self.what}"


@dataclass
class Story:
    """A schedule, step by step. `print` it, or let a notebook draw it as a message-sequence chart.

    `why` says what the schedule shows: reads that came too early, accesses that nothing orders. `hidden` counts the
    steps that are left out since nobody else can notice them.
    """

    title: str
    verdict: str
    failed: bool
    lines: list[Told] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    lanes: list[str] = field(default_factory=list)
    hidden: int = 0

    @property
    def stale(self) -> list[Told]:
        """Reads of a value that was no longer the newest."""
        return [line for line in self.lines if line.stale]

    def messages(self) -> list[tuple[str, int, str, int, str]]:
        """What one column did that another saw first: (from, step, to, step, what was done), for `show.message_chart`.

        Of what is seen again and again only the first sight counts.

        >>> from rdmakit.explore import Explorer
        >>> story = Explorer("put-signal").story()
        >>> next((a, b) for a, _, b, _, what in story.messages() if what == "rings the doorbell")
        ('rank 0 put_and_signal', 'NIC 0')
        """
        done = {step: line for line in self.lines for step in line.steps}
        found: dict[tuple[int, str], tuple[str, int, str, int, str]] = {}
        for line in self.lines:
            for step in line.sees:
                cause = done.get(step)
                if cause is not None and cause.lane != line.lane:
                    what = _PLACE.sub("", cause.what)
                    found.setdefault((step, line.lane), (cause.lane, step, line.lane, line.number, what))
        return sorted(found.values(), key=lambda message: message[1])

    def __str__(self) -> str:
        width = max((len(line.who) for line in self.lines), default=0)
        rows = [f"{told.number:>5}  {told.who:<{width}}  {' !'[told.bad]} {told.what}" for told in self.lines]
        left_out = [f"       ({self.hidden} steps that nobody else can notice are left out)"] if self.hidden else []
        end = [f"FAILED: {self.verdict}" if self.failed else "held"]
        return "\n".join([self.title, *rows, *left_out, *end, *(f"  {text}" for text in self.why)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from rdmakit.explore.chart import draw

        figure = draw(self)
        return f'<pre style="{PRE}">{html.escape(str(self))}</pre>' if figure is None else figure._repr_html_()


def tell(explorer: Explorer, title: str, verdict: str, *, failed: bool) -> Story:
    """The story of the schedule that was recorded last."""
    trace = Trace(explorer.core.steps(), Names(explorer))
    race = explorer.core.race()
    racing = [trace.access(race[side], race["address"]) for side in ("first", "second")] if race else []
    story = Story(title, verdict, failed, lanes=trace.names.lanes())
    lines = [_line(step, trace, any(step is r for r in racing)) for step in trace.steps if _matters(step, trace)]
    told = [line for line in lines if line is not None]
    story.lines = _without_repeats(_runs(told, trace))
    story.hidden = len(trace.steps) - sum(len(line.steps) for line in story.lines)
    story.why = _reasons(explorer, trace, racing) if failed or race else []
    if failed and race and verdict.startswith("raced"):
        story.verdict = "raced: two accesses that nothing orders"  # which two, `why` says
    return story


# ---- which steps are told ------------------------------------------------------------------------------------------
def _matters(step: Step, trace: Trace) -> bool:
    """Whether a step has to do with anybody but the one who does it."""
    if step["number"] in trace.rings:
        return True
    name = trace.names.raw(step["address"])
    if step["kind"] in (NOTE, FENCE):
        return True
    if step["kind"] == BARRIER or not name:
        return False
    if step["note"] == "fetches a WQE":  # "sends" says it again, unless it read what was no longer so
        return bool(step["newer"])
    if step["note"] == "lands an answer":
        return not name.startswith("sink of atomics")
    if trace.names.is_nic(step["agent"]) or trace.names.is_copy(step["agent"]):
        return True
    if step["kind"] == LOAD:
        return bool(step["newer"]) or trace.written_by_others(step)
    return trace.shared(step) if name.startswith(INTERNAL) else True


def _line(step: Step, trace: Trace, racing: bool) -> Told | None:
    names = trace.names
    who, lane = names.agent(step["agent"]), names.lane(step["agent"])
    common: dict[str, Any] = {"who": who, "lane": lane, "steps": (step["number"],)}
    ring = trace.rings.get(step["number"])
    if ring is not None and step is ring[0]:
        at = names.place(step)
        return Told(step["number"], what="rings the doorbell" + (f" [{at}]" if at else ""), **common)
    what = sentence(step, trace)
    if not what:
        return None
    stale = step["kind"] == LOAD and step["newer"] > 0
    if not stale:
        return Told(step["number"], what=what, sees=_sees(step, trace), bad=racing, **common)
    newest = trace.newest_before(step)
    missed = () if newest is None else (newest["number"],)
    what += f"; {old_news(trace, step)}"
    return Told(step["number"], what=what, stale=True, bad=True, sees=_sees(step, trace), should_see=missed, **common)


def _sees(step: Step, trace: Trace) -> tuple[int, ...]:
    """Numbers of the steps of others that this one is an answer to."""
    ring = trace.rings.get(step["number"])
    if ring is not None:
        return () if ring[0] is None else (ring[0]["number"],)
    if step["kind"] == NOTE and step["note"] in ("executes", "is acknowledged"):
        before = "sends" if step["note"] == "executes" else "executes"
        for other in reversed(trace.steps[: trace.steps.index(step)]):
            if other["note"] == before and other["detail"][:2] == step["detail"][:2]:
                return (other["number"],)
    came = trace.by_number.get(step["come_from"]) if step["come_from"] else None
    if came is not None and came["agent"] != step["agent"]:
        return (came["number"],)
    return ()


# ---- many steps in one line ----------------------------------------------------------------------------------------
def _runs(lines: list[Told], trace: Trace) -> list[Told]:
    """Neighbouring words read or written one after the other by the same agent, as one line; a copy makes two.

    Only what nobody comes between is put together.
    """
    found: list[list[tuple[Told, Step]]] = []
    open_runs: list[list[tuple[Told, Step]]] = []
    for line in lines:
        step = trace.by_number[line.number]
        if open_runs and open_runs[0][0][0].who != line.who:
            open_runs = []
        run = next((run for run in open_runs if _goes_on(run[-1], (line, step), trace)), None)
        if run is not None:
            run.append((line, step))
            continue
        found.append([(line, step)])
        open_runs = [*open_runs[-1:], found[-1]]
    return [_as_one(run, trace) if len(run) > 1 else run[0][0] for run in found]


def _goes_on(last: tuple[Told, Step], this: tuple[Told, Step], trace: Trace) -> bool:
    (before, a), (line, b) = last, this
    if before.who != line.who or a["kind"] != b["kind"] or a["kind"] not in (LOAD, STORE) or before.bad != line.bad:
        return False
    if a["address"] in trace.names.mbarriers:  # each says something of its own
        return False
    if b["number"] in trace.rings or a["number"] in trace.rings or a["note"] != b["note"] or a["order"] != b["order"]:
        return False
    first, second = trace.names.raw(a["address"]), trace.names.raw(b["address"])
    if first.startswith("send ring") and a["kind"] == STORE:
        same_block = a["address"] // 64 == b["address"] // 64
        return same_block and second.startswith("send ring") and b["address"] > a["address"]
    if a["address"] + a["bytes"] != b["address"]:
        return False
    one, other = _ELEMENT.match(first), _ELEMENT.match(second)
    return bool(one and other and one[1] == other[1] and not first.startswith(("doorbell", "ring of")))


def _as_one(run: list[tuple[Told, Step]], trace: Trace) -> Told:
    line, step = run[0]
    steps = tuple(one["number"] for _, one in run)
    sees = tuple(dict.fromkeys(number for told, _ in run for number in told.sees))
    whole = replace(line, steps=steps, sees=sees)
    raw = trace.names.raw(step["address"])
    if raw.startswith("send ring"):
        return whole
    name = _ELEMENT.match(trace.names.address(step["address"]))
    at = _ELEMENT.match(trace.names.raw(run[-1][1]["address"]))
    assert name is not None and at is not None
    values = [one["value"] for _, one in run]
    said = f"each {number(values[0])}" if len(set(values)) == 1 else f"{number(values[0])} … {number(values[-1])}"
    verb = step["note"] or ("reads" if step["kind"] == LOAD else "writes")
    place = trace.names.place(step)
    old = f"; {old_news(trace, step)}" if line.stale else ""
    what = f"{verb} {name[1]}[{name[2]}…{at[2]}]: {said}" + (f" [{place}]" if place else "") + old
    return replace(whole, what=what)


def _without_repeats(lines: list[Told]) -> list[Told]:
    """Reads that find again what they have found already, nothing having happened to the reader in between, as one."""
    found: list[Told] = []
    latest: dict[str, tuple[int, str, int]] = {}
    for line in lines:
        place, what, times = latest.get(line.who, (-1, "", 0))
        if what == line.what and place >= 0:
            again = found[place]
            found[place] = replace(again, what=f"{what} ({times + 1} times)", steps=again.steps + line.steps)
            latest[line.who] = (place, what, times + 1)
            continue
        latest[line.who] = (len(found), line.what, 1)
        found.append(line)
    return found


NOTHING_STALE = (
    "nobody saw an old value and nothing raced: it is not about visibility, but about what was concluded from the "
    "newest values there were"
)


# ---- what it comes to ----------------------------------------------------------------------------------------------
def _reasons(explorer: Explorer, trace: Trace, racing: list[Step | None]) -> list[str]:
    """Who saw an old value though a newer one was there; which accesses nothing orders."""
    found = []
    stale = [s for s in trace.steps if s["kind"] == LOAD and s["newer"] and trace.names.raw(s["address"])]
    for step in stale[-2:]:
        newest = trace.newest_before(step)
        if newest is None:
            continue
        reader, writer = trace.names.agent(step["agent"]), trace.names.agent(newest["agent"])
        found.append(
            f"{reader} looked at {trace.names.address(step['address'])} in step {step['number']} and saw what was "
            f"there before step {newest['number']} of {writer}: nothing made that write visible to it in time"
        )
    if racing:
        between = ""
        if all(racing):
            first, second = sorted(step["number"] for step in racing if step is not None)
            between = f"; here step {first} came before step {second} by luck"
        found.append(f"{explorer.race()}{between}")
    return found or [NOTHING_STALE]
