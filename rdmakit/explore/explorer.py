"""Running schedules, many or all of them, and making a failing one small.

Leans on scenario, story and the C++ explorer. A schedule is a list of decisions; a seed makes one.
"""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from rdmakit.emu.hang import device_fault, hang_error
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scenario, Scene, find_scenario
from rdmakit.explore.story import PRE, Story, tell

__all__ = ["Explored", "Explorer", "Failure", "Search", "Verdict", "explore", "replay"]


class Search(IntEnum):
    """How schedules are chosen. MIXED: five in eight at random, three by priorities (PCT), as the seed says."""

    RANDOM = 0
    PCT = 1
    LIST = 2
    EXHAUSTIVE = 3
    MIXED = 4


class Verdict(IntEnum):
    """What became of a schedule."""

    HELD = 0
    PRUNED = 1
    HUNG = 2
    FAULTED = 3
    REPORTED = 4
    WRONG = 5
    RACED = 6
    REFUSED = 7


@dataclass(frozen=True)
class Failure:
    """A schedule that failed: the seed that makes it, its decisions, what was wrong."""

    verdict: Verdict
    what: str
    seed: int
    decisions: tuple[int, ...]

    @property
    def size(self) -> int:
        """Decisions that are not the calm one."""
        return sum(1 for decision in self.decisions if decision)


@dataclass
class Explored:
    """What so many schedules have shown."""

    scenario: str
    schedules: int = 0
    distinct: int = 0
    pruned: int = 0
    seconds: float = 0.0
    complete: bool = False  # exhaustive, and nothing is left
    bounds: str = ""
    states: int = -1  # exhaustive: states of happens-before that were reached
    failure: Failure | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No schedule failed."""
        return self.failure is None

    def figures(self) -> dict[str, float]:
        """The figures of `rdmakit explore --json`."""
        found = {
            "schedules": self.schedules,
            "schedules_per_s": round(self.schedules / self.seconds, 1) if self.seconds else 0.0,
            "distinct": self.distinct,
            "failures": 0 if self.failure is None else 1,
            "first_failing_seed": -1 if self.failure is None else self.failure.seed,
        }
        return found if self.states < 0 else {**found, "states": self.states, "complete": int(self.complete)}

    def __str__(self) -> str:
        if self.failure is not None:
            seed = f" (seed {self.failure.seed})" if self.failure.seed >= 0 else ""
            return (
                f"{self.scenario} failed in schedule {self.schedules}{seed}: "
                f"{self.failure.verdict.name.lower()}: {self.failure.what}"
            )
        run = f"{self.schedules} run in {self.seconds:.1f} s"
        if self.states < 0:
            return f"{self.scenario} held over {self.distinct} distinct schedules; {run}"
        every = "all there are" if self.complete else "not all there are"
        some = f"{self.distinct} distinct schedules, {every} within the bound ({self.bounds})"
        return f"{self.scenario} held over {some}; {run}"

    def __repr__(self) -> str:
        return f"<Explored: {self}>"

    def _repr_html_(self) -> str:
        return f'<pre style="{PRE}">{html.escape(str(self))}</pre>'


class Explorer:
    """One scenario, set up once; schedules of it.

    >>> explorer = Explorer("put-signal")
    >>> explorer.run(200).ok
    True
    """

    def __init__(
        self,
        what: str | Scenario | Callable[[Scene], None],
        *,
        faults: str | None = None,
        reader: str = "gpu",
        **options: Any,
    ) -> None:
        self.scenario = find_scenario(what)
        if reader not in ("gpu", "host"):
            raise BadArgument("no such reader", value=reader, rule="gpu or host", remedy='reader="gpu"')
        self.options = {"faults": self.scenario.faults if faults is None else faults, "reader": reader, **options}
        self.scene = Scene(faults=self.options["faults"], reader=reader, options=options)
        self.scenario.build(self.scene)
        self.scene.serve()
        self.core = self.scene.core
        self.core.latent_races_fail(self.scene.latent_races)
        self.core.ready(self.scene._judge if self.scene._checks else None)
        self._steps = 1.3 * self.core.run(int(Search.LIST))["decisions"] + 10  # what PCT spreads its points over

    # ---- many schedules
    def run(
        self,
        schedules: int,
        *,
        seed: int = 1,
        search: Search = Search.MIXED,
        seconds: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Explored:
        """Up to `schedules` of them, those of `seed`, seed + 1, …; ends at the first that fails, or after `seconds`."""
        found = Explored(self.scenario.name, options=self.options)
        began = time.perf_counter()
        while found.schedules < schedules and found.failure is None and not found.complete:
            some = min(2000, schedules - found.schedules)
            totals = self.core.explore(int(search), seed + found.schedules, some, 3, self._steps, True)
            found.schedules += totals["schedules"]
            found.distinct += totals["distinct"]
            found.pruned += totals["pruned"]
            found.complete = totals["done"]
            if totals["failures"]:
                found.failure = self._failure(totals, totals["first_failing_seed"])
            if progress is not None:
                progress(found.schedules)
            if seconds is not None and time.perf_counter() - began > seconds:
                break
        found.seconds = time.perf_counter() - began
        return found

    def exhaust(
        self,
        *,
        stale: int = 0,
        switches: int = 0,
        faults: int = 0,
        limit: int = 10_000_000,
        seconds: float | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Explored:
        """All schedules, by depth, each state of happens-before once; `complete` says whether nothing was left.

        Bounds, 0 for none: `stale` loads, `switches` of agents while one could go on, `faults` a schedule.
        """
        self.core.start_over()
        self.core.bounds(stale, switches, faults)
        found = self.run(limit, search=Search.EXHAUSTIVE, seconds=seconds, progress=progress)
        named = [f"{n} {what}" for n, what in ((stale, "stale loads"), (switches, "switches"), (faults, "faults")) if n]
        found.bounds = ", ".join(f"at most {text}" for text in named) or "none: all schedules"
        found.states = self.core.states()
        if found.failure is not None:  # no seed makes a schedule of this search
            found.failure = replace(found.failure, seed=-1)
        self.core.bounds(0, 0, 0)
        return found

    # ---- one schedule
    def one(self, *, seed: int | None = None, decisions: tuple[int, ...] = (), record: bool = False) -> Failure | None:
        """The schedule of a seed, or that of given decisions; None if it held."""
        search = Search.LIST if seed is None else Search.MIXED
        judged = self.core.run(int(search), seed or 0, 3, self._steps, list(decisions), True, record)
        if judged["verdict"] == Verdict.HELD:
            return None
        return self._failure(judged, -1 if seed is None else seed)

    def shrink(self, failure: Failure, *, tries: int = 4000) -> Failure:
        """A schedule that fails in the same way with as few decisions other than the calm one as can be found."""
        best, budget = failure, tries
        chunk = max(1, len(best.decisions) // 2)
        while chunk >= 1:
            at, changed = 0, False
            while at < len(best.decisions) and budget > 0:
                piece = best.decisions[at : at + chunk]
                if any(piece):
                    budget -= 1
                    calmer = best.decisions[:at] + (0,) * len(piece) + best.decisions[at + chunk :]
                    again = self.one(decisions=calmer)
                    if again is not None and again.verdict == best.verdict and again.size < best.size:
                        best, changed = Failure(again.verdict, again.what, best.seed, again.decisions), True
                        continue
                at += chunk
            if chunk == 1 and not changed:
                break
            chunk = max(1, chunk // 2) if not (chunk == 1 and changed) else 1
            if budget <= 0:
                break
        end = max((i for i, decision in enumerate(best.decisions) if decision), default=-1)
        return Failure(best.verdict, best.what, failure.seed, best.decisions[: end + 1])

    def story(self, *, seed: int | None = None, decisions: tuple[int, ...] = (), title: str = "") -> Story:
        """One schedule again, told step by step."""
        failure = self.one(seed=seed, decisions=decisions, record=True)
        verdict = "held" if failure is None else f"{failure.verdict.name.lower()}: {failure.what}"
        return tell(self, title or self.scenario.title, verdict, failed=failure is not None)

    # ---- what went wrong
    def _failure(self, judged: dict[str, Any], seed: int) -> Failure:
        verdict = Verdict(judged["verdict"])
        return Failure(verdict, self._what(verdict, judged["detail"]), seed, tuple(judged["trail"]))

    def _what(self, verdict: Verdict, detail: int) -> str:
        world = self.scene._world
        assert world is not None
        if verdict is Verdict.HUNG:
            return str(hang_error(world._core.waiting(), world.addresses, world).report).strip()
        if verdict is Verdict.FAULTED:
            errors = world._core.take_errors()
            return str(device_fault(errors)) if errors else "device code faulted"
        if verdict is Verdict.REPORTED:
            return next((str(report.error()) for report in self.scene._reports if report), "device code gave up")
        if verdict is Verdict.WRONG:
            array, wanted, name = self.scene._expected[detail]
            at = int((array.ravel() != wanted.ravel()).argmax())
            named = name or world.addresses.name_of(array.ctypes.data).partition("[")[0] or "memory"
            return f"{named}[{at}] is {array.ravel()[at]}, and should be {wanted.ravel()[at]}"
        if verdict is Verdict.RACED:
            return self.race()
        return self.scene.said or "the scenario's own check says no"

    def race(self) -> str:
        """The first two accesses of the last schedule that nothing orders, in words."""
        from rdmakit.explore.names import Names

        race = self.core.race()
        if race is None:
            return "no race"
        names = Names(self)
        names.active = {race[side]["agent"] for side in ("first", "second")}
        said = []
        for side in (race["first"], race["second"]):
            verb, place = "writes" if side["write"] else "reads", names.place(side)
            where = f" [{place}]" if place else ""  # a NIC is in no source file
            said.append(f"{names.agent(side['agent'])} {verb} it{names.strength(side)}{where}")
        return f"nothing orders two accesses to {names.address(race['address'])}: {said[0]}; {said[1]}"


def explore(
    what: str | Scenario | Callable[[Scene], None], schedules: int = 2000, *, seed: int = 1, **options: Any
) -> Explored:
    """Explore a scenario; see `Explorer` for the options.

    >>> explore("put-signal", schedules=100).ok
    True
    """
    return Explorer(what, **options).run(schedules, seed=seed)


def replay(what: str | Scenario | Callable[[Scene], None], seed: int, *, shrink: bool = True, **options: Any) -> Story:
    """The story of one seed's schedule; of a failing one, the smallest that fails alike, if `shrink`."""
    explorer = Explorer(what, **options)
    failure = explorer.one(seed=seed)
    if failure is None or not shrink:
        return explorer.story(seed=seed)
    small = explorer.shrink(failure)
    return explorer.story(decisions=small.decisions, title=f"{explorer.scenario.name}, seed {seed}, made small")
