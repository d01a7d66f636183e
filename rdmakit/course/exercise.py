"""Exercises and their checks: registered by small modules, run by ``check()`` in a notebook, with graded
hints.

Leans on `trial` and `card`. An exercise is named ``"03.golden_bytes"``: the part before the dot is the
notebook's number, and the check lives in ``rdmakit/course/checks/nb03.py``, which is imported when it is
first asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rdmakit.course.card import card
from rdmakit.course.deadline import OutOfTime, bounded
from rdmakit.course.trial import Trial, Wrong, blame, short

Check = Callable[..., None]
_NAME = re.compile(r"[0-9]{2}\.[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Exercise:
    """One exercise: its check, three hints from vague to specific, and the time that each call may take."""

    name: str
    check: Check
    hints: tuple[str, str, str]
    seconds: float = 5.0


@dataclass(slots=True)
class Result:
    """What `check` returns; true where the answer passed.

    ``kind`` is ``passed``, ``wrong``, ``type``, ``exception``, ``timeout`` or ``check`` (the check itself
    broke).

    >>> bool(Result("00.x", "wrong", "no", "look again", 1))
    False
    """

    name: str
    kind: str
    message: str
    hint: str = ""
    attempts: int = 0

    @property
    def passed(self) -> bool:
        return self.kind == "passed"

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        mark = "✓ passed" if self.passed else "✗ not yet"
        hint = f"\nhint {min(self.attempts, 3)} of 3: {self.hint}" if self.hint else ""
        return f"{mark}: {self.name}\n{self.message}{hint}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heading = f"{'✓ passed' if self.passed else '✗ not yet'}: {self.name}"
        hint = [("hint", f"Hint {min(self.attempts, 3)} of 3: {self.hint}")] if self.hint else []
        return card(heading, [("", self.message), *hint], good=self.passed)


@dataclass(slots=True)
class _Record:
    """How an exercise has gone in this session."""

    failures: int = 0
    attempts: int = 0
    passed: bool = False
    kinds: list[str] = field(default_factory=list)


_EXERCISES: dict[str, Exercise] = {}
_RECORDS: dict[str, _Record] = {}


def exercise(name: str, *, hints: tuple[str, str, str], seconds: float = 5.0) -> Callable[[Check], Check]:
    """Register the decorated function as the check of exercise ``name``; it gets a `Trial`, then the answers.

    ``name`` is the notebook's two digits, a dot and a word; there are three hints, none of which is the
    answer; a call of the learner's code may take ``seconds`` (the whole check four times that). `ValueError`
    otherwise.

    >>> @exercise("99.half", hints=("What is half?", "Divide.", "Divide by the number of halves in a whole."))
    ... def half(trial, answer):
    ...     trial.equal(trial.call(answer, 8), 4, "half of 8")
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"exercise name {name!r}: write the notebook's two digits, a dot and a word, as '03.golden_bytes'"
        )
    if len(hints) != 3 or not all(isinstance(hint, str) and hint.strip() for hint in hints):
        raise ValueError(
            f"exercise {name!r} needs three hints, each more specific than the last; got {len(hints)}"
        )

    def register(function: Check) -> Check:
        known = _EXERCISES.get(name)
        # Reloading a check module in a live session replaces its exercises; another module may not take the
        # name.
        if known and known.check.__module__ != function.__module__:
            raise ValueError(
                f"exercise {name!r} is registered twice: "
                f"by {known.check.__module__} and {function.__module__}"
            )
        _EXERCISES[name] = Exercise(name, function, tuple(hints), seconds)  # type: ignore[arg-type]
        return function

    return register


def find(name: str) -> Exercise:
    """The exercise called ``name``, importing its notebook's checks first; `KeyError` lists what there is."""
    if name not in _EXERCISES and _NAME.fullmatch(str(name)):
        module = f"rdmakit.course.checks.nb{name[:2]}"
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    if name not in _EXERCISES:
        near = difflib.get_close_matches(str(name), _EXERCISES, 1)
        raise KeyError(
            f"no exercise {name!r}"
            + (f": did you mean {near[0]!r}?" if near else f"; there are {sorted(_EXERCISES)}")
        )
    return _EXERCISES[name]


def _attempt(spec: Exercise, answers: tuple, named: dict[str, Any], seconds: float) -> Result:
    trial = Trial(seconds)
    try:
        # The outer bound is for answers that misbehave when they are looked at (an ``__eq__`` that never
        # ends).
        bounded(seconds * 4 + 1, spec.check, trial, *answers, **named)
    except Wrong as wrong:
        return Result(spec.name, wrong.kind, str(wrong))
    except OutOfTime as error:
        return Result(
            spec.name, "timeout", f"the check was still running after {seconds * 4 + 1:g} s{blame(error)}"
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        given = ", ".join(f"{short(a, 40)} ({type(a).__name__})" for a in answers) or "no answer"
        message = f"the check could not make sense of {given}: {type(error).__name__}: {error}. "
        message += "Is it the kind of value asked for?"
        return Result(spec.name, "check", message)
    return Result(spec.name, "passed", "That is right.")


def check(name: str, *answers: Any, seconds: float | None = None, **named: Any) -> Result:
    """Check the answers to exercise ``name``: never raises for a wrong one, and hints more with each failure.

    >>> @exercise("99.two", hints=("Count.", "Count your hands.", "It is the only even prime."))
    ... def two(trial, answer):
    ...     trial.equal(answer, 2)
    >>> print(check("99.two", 3))
    ✗ not yet: 99.two
    the answer is 3, which is not right
    hint 1 of 3: Count.
    """
    spec = find(name)
    record = _RECORDS.setdefault(name, _Record())
    result = _attempt(spec, answers, named, spec.seconds if seconds is None else seconds)
    record.attempts += 1
    record.kinds.append(result.kind)
    record.passed = result.passed
    if not result.passed:
        record.failures += 1
        result.hint = spec.hints[min(record.failures, 3) - 1]
    result.attempts = record.failures if not result.passed else record.attempts
    return result


def passed(name: str) -> bool:
    """Whether the latest answer to exercise ``name`` in this session was right.

    >>> passed("99.never_tried")
    False
    """
    return name in _RECORDS and _RECORDS[name].passed


def results() -> dict[str, dict[str, Any]]:
    """Every exercise tried in this session: ``{name: {"passed", "attempts", "kind"}}``, ``kind`` of the
    latest attempt."""
    return {
        name: {"passed": r.passed, "attempts": r.attempts, "kind": r.kinds[-1]}
        for name, r in sorted(_RECORDS.items())
    }


def forget() -> None:
    """Start over: no attempts, no hints given yet. The exercises stay registered.

    >>> forget(); results()
    {}
    """
    _RECORDS.clear()
