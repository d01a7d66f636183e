"""Is every fence needed? Each place of the device code is made weaker in turn, and exploration has to notice.

Leans on sites and explorer. A mutant that no scenario notices is either deleted from the code as redundant or argued:
a sentence in `ARGUED` says why nothing can come of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import current_process, get_context
from pathlib import Path

import rdmakit
from rdmakit.errors import LaunchError
from rdmakit.explore.arguments import ARGUED
from rdmakit.explore.battery import battery
from rdmakit.explore.explorer import Explorer
from rdmakit.explore.sites import Kind, Mutant, Site, mutants_of, sites

__all__ = ["Killed", "MutantRun", "run_all_mutants", "run_mutants"]


@dataclass(frozen=True)
class Killed:
    """A mutant that was noticed: by which scenario, after how many schedules, how."""

    mutant: Mutant
    scenario: str
    schedules: int
    seed: int
    what: str


@dataclass
class MutantRun:
    """What became of all mutants."""

    killed: list[Killed] = field(default_factory=list)
    argued: list[tuple[Mutant, str]] = field(default_factory=list)
    survived: list[Mutant] = field(default_factory=list)
    never_ran: list[Mutant] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """How many there were."""
        return len(self.killed) + len(self.argued) + len(self.survived) + len(self.never_ran)

    @property
    def ok(self) -> bool:
        """Everything is noticed or argued, and no more than one in twenty is argued."""
        return not self.survived and not self.never_ran and len(self.argued) * 20 <= self.total

    def figures(self) -> dict[str, float]:
        """The figures of `rdmakit explore --mutants --json`."""
        return {
            "mutants": self.total,
            "killed": len(self.killed),
            "argued": len(self.argued),
            "survived": len(self.survived) + len(self.never_ran),
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        lines = [
            f"{len(self.killed)} of {self.total} mutants killed, {len(self.argued)} argued, "
            f"{len(self.survived)} survived, {len(self.never_ran)} in code that no scenario runs ({self.seconds:.0f} s)"
        ]
        lines += [f"  survived   {mutant}" for mutant in self.survived]
        lines += [f"  never ran  {mutant}" for mutant in self.never_ran]
        lines += [f"  argued     {mutant}: {why}" for mutant, why in self.argued]
        return "\n".join(lines)


def _place(mutant: Mutant) -> tuple[str, int, int]:
    return mutant.site.file, mutant.site.line, int(mutant.site.kind)


def _short(file: str) -> str:
    """The path of a device file as `sites` names it, from whatever the compiler was given."""
    return "/".join(file.rsplit("/", 2)[-2:])


def _runs_where(explorers: Sequence[Explorer], schedules: int) -> list[set[tuple[str, int, int]]]:
    found = []
    for explorer in explorers:
        explorer.core.watch_sites(True)
        explorer.run(schedules)
        explorer.core.watch_sites(False)
        found.append({(_short(file), line, kind) for file, line, kind in explorer.core.sites()})
    return found


class _Bench:
    """Scenes that were set up, where each of them comes by, and the mutants that are to be tried there."""

    def __init__(self, explorers: Sequence[Explorer] | None, only: Callable[[Mutant], bool] | None) -> None:
        self.explorers = battery() if explorers is None else explorers
        self.ran = _runs_where(self.explorers, 300)
        known = sites()
        places = {(site.file, site.line, int(site.kind)) for site in known}
        # A wait is known by the line that waits, not by the one that loops: those show when they run.
        waits = {place for there in self.ran for place in there if place[2] == Kind.CONDITION and place not in places}
        known += [Site(_short(file), line, Kind.CONDITION, "wait", 2) for file, line, _ in sorted(waits)]
        self.mutants = [mutant for site in known for mutant in mutants_of(site) if only is None or only(mutant)]

    def judge(self, number: int, budget: int) -> Killed | bool:
        """Who notices mutant `number`; or else whether any scenario comes by its place."""
        mutant = self.mutants[number]
        there = [e for e, places in zip(self.explorers, self.ran, strict=True) if _place(mutant) in places]
        return _kill(mutant, there, budget) or bool(there)


_bench: _Bench | None = None  # of this process, where it is one of many


def _set_up() -> None:
    global _bench
    _bench = _Bench(None, None)


def _judge(what: tuple[int, int]) -> Killed | bool:
    assert _bench is not None
    return _bench.judge(*what)


def _all_of_them() -> list[Mutant]:
    assert _bench is not None
    return _bench.mutants


def run_mutants(
    explorers: Sequence[Explorer] | None = None,
    *,
    budget: int = 4000,
    progress: Callable[[int, int], None] | None = None,
    only: Callable[[Mutant], bool] | None = None,
) -> MutantRun:
    """Make every place weaker in every way; `budget` schedules of each scenario that comes by there.

    `explorers`: scenes that were set up, by default those of `battery`. `only` chooses among the mutants.
    """
    began = time.perf_counter()
    bench = _Bench(explorers, only)
    answers = (bench.judge(number, budget) for number in range(len(bench.mutants)))
    return _sorted(bench.mutants, answers, began, progress)


def run_all_mutants(
    *, budget: int = 4000, jobs: int | None = None, progress: Callable[[int, int], None] | None = None
) -> MutantRun:
    """`run_mutants` over the whole battery, by `jobs` processes: one a core that this process may use.

    They import the script that has started this process: call it under `if __name__ == "__main__":`. LaunchError when
    one of them ends before its work is done.
    """
    if getattr(current_process(), "_inheriting", False):
        raise SystemExit(1)  # one of them, importing a script that calls this again: its parent says what is wrong
    began = time.perf_counter()
    jobs = jobs or len(os.sched_getaffinity(0))
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_set_up) as pool:
            mutants = pool.submit(_all_of_them).result()
            answers = pool.map(_judge, ((number, budget) for number in range(len(mutants))))
            return _sorted(mutants, answers, began, progress)
    except BrokenProcessPool:
        raise LaunchError(
            "a process of run_all_mutants has ended", value=f"one of {jobs}",
            rule="each of them imports the script that called it, which must not call it again",
            remedy='call it under `if __name__ == "__main__":`; if it is, look at what the process printed',
        ) from None  # fmt: skip


def _sorted(
    mutants: list[Mutant],
    answers: Iterable[Killed | bool],
    began: float,
    progress: Callable[[int, int], None] | None,
) -> MutantRun:
    run = MutantRun()
    for number, (mutant, answer) in enumerate(zip(mutants, answers, strict=True), 1):
        reason = ARGUED.get((mutant.site.file, mutant.site.name, mutant.what, _line_text(mutant)))
        if isinstance(answer, Killed):
            run.killed.append(answer)
        elif reason is not None:
            run.argued.append((mutant, reason))
        else:
            (run.survived if answer else run.never_ran).append(mutant)
        if progress is not None:
            progress(number, len(mutants))
    run.seconds = time.perf_counter() - began
    return run


def _kill(mutant: Mutant, explorers: Sequence[Explorer], budget: int) -> Killed | None:
    site = mutant.site
    # A few schedules of each first: most die at once, and the expensive scenarios need not run.
    for some in (200, budget):
        for explorer in explorers:
            explorer.core.mutate(site.file, site.line, int(site.kind), **dict(mutant.change))
            try:
                found = explorer.run(some)
            finally:
                explorer.core.mutate()
            if found.failure is not None:
                failure = found.failure
                return Killed(mutant, explorer.scenario.name, found.schedules, failure.seed, failure.what)
    return None


def _line_text(mutant: Mutant) -> str:
    path = Path(rdmakit.get_include(), mutant.site.file)
    if not path.exists():  # a wait in a kernel string
        return ""
    text = path.read_text(encoding="utf-8").splitlines()[mutant.site.line - 1]
    return " ".join(text.partition("//")[0].split())
