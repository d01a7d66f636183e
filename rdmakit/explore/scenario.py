"""What is explored: a function that sets a scene (a world, its queues, launches, what memory must hold at the end).

Leans on emu and errors. A scenario is found by name, or as `file.py:function`, or is the function itself.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rdmakit.device import Report
from rdmakit.emu._world import Explorer as Core
from rdmakit.emu.faults import NO_FAULTS, Faults
from rdmakit.emu.world import World
from rdmakit.errors import BadArgument, BadState

__all__ = ["Scenario", "Scene", "find_scenario", "scenario", "scenarios"]


@dataclass(frozen=True)
class Scenario:
    """A scene-setting function with its name. `faults`: those that it is explored under unless told otherwise."""

    name: str
    build: Callable[[Scene], None]
    title: str = ""
    faults: str = ""
    holds: bool = True  # False: it is wrong on purpose, and exploration has to say so
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


_known: dict[str, Scenario] = {}


def scenario(
    name: str, title: str = "", *, faults: str = "", holds: bool = True, tags: tuple[str, ...] = ()
) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    """Register a function of one `Scene` as the scenario `name`.

    >>> @scenario("nothing-happens", "a world in which nobody does anything")
    ... def nothing(scene):
    ...     scene.world()
    >>> find_scenario("nothing-happens").title
    'a world in which nobody does anything'
    """

    def register(build: Callable[[Scene], None]) -> Callable[[Scene], None]:
        said = title or (build.__doc__ or "").partition("\n")[0]
        _known[name] = Scenario(name, build, said, faults, holds, tags)
        return build

    return register


def scenarios(tag: str = "") -> list[Scenario]:
    """The project's own scenarios (and those that were registered), by name; `tag`: those that have it."""
    package = import_module("rdmakit.explore.scenarios")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return sorted((s for s in _known.values() if not tag or tag in s.tags), key=lambda s: s.name)


def find_scenario(what: str | Scenario | Callable[[Scene], None]) -> Scenario:
    """A scenario by name, `file.py:function`, `file.cu` (see kernel_file), or the function itself.

    BadArgument when there is none.
    """
    if isinstance(what, Scenario):
        return what
    if callable(what):
        name = getattr(what, "__name__", "scenario")
        return Scenario(name, what, (what.__doc__ or "").partition("\n")[0])
    if what not in _known:
        scenarios()
    if what in _known:
        return _known[what]
    if what.endswith(".cu"):
        from rdmakit.explore.kernel_file import kernel_file  # leans on this module

        return kernel_file(Path(what))
    file, _, function = what.partition(":")
    if file.endswith(".py") and function:
        return _from_file(Path(file), function)
    raise BadArgument(
        "no such scenario",
        value=what,
        rule=f"one of {', '.join(sorted(_known))}; or file.py:function, file.cu",
        remedy="rdmakit explore --list shows what each is about",
    )


def _from_file(path: Path, function: str) -> Scenario:
    if not path.exists():
        raise BadArgument("no such file", value=str(path), rule="file.py:function", remedy="check the path")
    before = set(_known)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    for name in set(_known) - before:
        if function in (name, _known[name].build.__name__):
            return _known[name]
    found = getattr(module, function, None)
    if not callable(found):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise BadArgument(
            f"{path} has no such function",
            value=function,
            rule=f"it has {', '.join(names) or 'none'}",
            remedy="name a function that takes a Scene",
        )
    return find_scenario(found)


@dataclass
class Scene:
    """What a scenario's function sets up: one `world`, launches in it, and what has to be true afterwards.

    `reader`: "gpu" promises a reader nothing of the order in which the bytes of one WRITE become visible,
    "host" does (`ibv_query_qp_data_in_order`). `faults`: given to the world.
    """

    seed: int = 1
    faults: str = ""
    reader: str = "gpu"
    options: dict[str, Any] = field(default_factory=dict)

    _world: World | None = field(default=None, repr=False)
    _core: Core | None = field(default=None, repr=False)
    _expected: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]] = field(default_factory=list, repr=False)
    _reports: list[Report] = field(default_factory=list, repr=False)
    _checks: list[Callable[[], Any]] = field(default_factory=list, repr=False)
    _keep: list[Any] = field(default_factory=list, repr=False)
    latent_races: bool = True
    said: str = ""
    tally: Counter[str] = field(default_factory=Counter)  # what a scenario's check has seen happen, by name

    def world(self, hosts: int = 1, **options: Any) -> World:
        """The world of this scene: `World(hosts, policy="explore", …)`. Launches are kept, and run in each schedule.

        `engine`: by default the scene's option of that name, or the HCA model.
        """
        if self._world is not None:
            raise BadState(
                "this scene has its world", rule="one world a scene", remedy="use the one you have", world=self._world
            )
        faults = Faults.parse(self.faults) if self.faults else None
        in_order = self.reader == "host"
        options.setdefault("engine", self.options.get("engine", "host"))
        self._world = World(
            hosts, policy="explore", seed=self.seed, faults=faults, data_in_order=in_order, **options
        )
        self._core = Core(self._world._core)
        return self._world

    def expect(self, array: np.ndarray[Any, Any], values: Any, name: str = "") -> None:
        """After each schedule `array` (C-contiguous, read by address) must equal `values`."""
        wanted = np.empty_like(array)
        wanted[...] = values
        if not array.flags.c_contiguous:
            strides = array.strides
            raise BadArgument("an expected array", value=strides, rule="C-contiguous", remedy="expect a copy's base")
        self._expected.append((array, wanted, name))
        self.core.expect(array.ctypes.data, wanted.tobytes())

    def watch(self, *things: Any) -> None:
        """Device code that reports through these handles or reports has failed."""
        for thing in things:
            report = thing if isinstance(thing, Report) else thing.report
            self._reports.append(report)
            self._keep.append(thing)
            self.core.watch_report(report.address)

    def check(self, holds: Callable[[], Any]) -> None:
        """`holds()` is called after each schedule that is well so far; false, or a text that says why, refuses it. Of
        several checks all have to hold.
        """
        self._checks.append(holds)

    def _judge(self) -> bool:
        for holds in self._checks:
            answer = holds()
            self.said = answer if isinstance(answer, str) else ""
            if self.said or answer is False:
                return False
        return True

    def act(self, action: Callable[[], None], *, within: int = 1) -> None:
        """`action()`, of the host's, happens once a schedule, at any moment of it, from the n-th message on, n <
        `within`.

        Who may act at once acts early, as chance has it; `within` spreads the moments over a schedule that long.
        """
        self.core.add_action(action, within)

    def may_end_early(self) -> None:
        """Launches that wait for ever are no failure: then `check` alone says whether memory holds what it should."""
        self.core.may_end_early(True)

    @contextmanager
    def rehearsal(self) -> Iterator[World]:
        """What is launched meanwhile runs in `World.run`, once, before all schedules: it is what they find.

        Faults of the scene's plan do not strike; set `world.faults` for others.
        """
        core, world = self.core, self._world
        assert world is not None
        plan, world.faults = world.faults, NO_FAULTS
        core.keep_launches(False)
        try:
            yield world
        finally:
            core.keep_launches(True)
            world.faults = plan

    def serve(self) -> None:
        """Launches what answers doorbells, where warps do: behind all other launches."""
        if self._world is not None:
            self._world.serve()

    def keep(self, *things: Any) -> None:
        """Objects that the launches need alive."""
        self._keep += things

    def allow_latent_races(self) -> None:
        """Accesses that nothing orders do not make a schedule fail by themselves."""
        self.latent_races = False

    @property
    def core(self) -> Core:
        """The C++ explorer of the scene's world. BadState before `world()`."""
        if self._core is None:
            remedy = "world = scene.world(hosts=2)"
            raise BadState("this scene has no world yet", rule="world() comes first", remedy=remedy, seed=self.seed)
        return self._core
