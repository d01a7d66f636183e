"""A failing schedule as a file: the scenario with its options, the seed, every decision. JSON, to go with a report.

Leans on explorer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdmakit.errors import BadArgument, CorruptFile
from rdmakit.explore.explorer import Explorer, Failure

__all__ = ["SavedSchedule", "load_schedule", "save_schedule"]

_VERSION = 1


@dataclass(frozen=True)
class SavedSchedule:
    """What a schedule file holds. `options` are those of `Explorer`, faults and reader included."""

    scenario: str
    options: dict[str, Any]
    seed: int
    decisions: tuple[int, ...]
    verdict: str = ""
    what: str = ""

    def explorer(self) -> Explorer:
        """The scenario, set up as it was when the schedule was saved."""
        return Explorer(self.scenario, **self.options)


def save_schedule(path: str | Path, explorer: Explorer, failure: Failure, *, scenario: str = "") -> None:
    """Write a failure of `explorer` to `path`. `scenario`: how to find it again, by default its name."""
    found = {
        "schedule": _VERSION,
        "scenario": scenario or explorer.scenario.name,
        "options": explorer.options,
        "seed": failure.seed,
        "verdict": failure.verdict.name.lower(),
        "what": failure.what,
        "decisions": list(failure.decisions),
    }
    try:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        remedy = "give a file in a directory that you may write to"
        raise BadArgument("cannot write the schedule", value=str(path), rule=error.strerror, remedy=remedy) from None


def load_schedule(path: str | Path) -> SavedSchedule:
    """Read what `save_schedule` wrote. BadArgument when there is no such file, CorruptFile when it is no schedule."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give the file that `rdmakit explore --save` wrote"
        raise BadArgument("cannot read the schedule", value=str(path), rule=str(error), remedy=remedy) from None
    rule = "an object that `rdmakit explore --save` wrote"
    try:
        found = json.loads(text)
        if found["schedule"] != _VERSION:
            raise CorruptFile(
                "a schedule of another version", value=found["schedule"], rule=f"version {_VERSION}",
                remedy="save it anew, or use the rdmakit that wrote it",
            )  # fmt: skip
        decisions = tuple(int(decision) for decision in found["decisions"])
        if not all(0 <= decision < 1 << 32 for decision in decisions):
            raise ValueError("a decision is a small number")
        return SavedSchedule(
            str(found["scenario"]), dict(found["options"]), int(found["seed"]), decisions,
            str(found.get("verdict", "")), str(found.get("what", "")),
        )  # fmt: skip
    except CorruptFile:
        raise
    except (ValueError, KeyError, TypeError) as error:
        seen = repr(error)
        raise CorruptFile("no schedule file", value=str(path), rule=rule, remedy="save it anew", seen=seen) from None
