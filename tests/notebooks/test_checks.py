"""Every check of the course survives nonsense: it says no, for a reason that it chose, and it comes back."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

from rdmakit import course
from rdmakit.course import checks
from rdmakit.course.exercise import _EXERCISES

for _module in pkgutil.iter_modules(checks.__path__):
    importlib.import_module(f"{checks.__name__}.{_module.name}")
NAMES = sorted(
    name for name, spec in _EXERCISES.items() if spec.check.__module__.startswith(f"{checks.__name__}.")
)


def _raises(*args, **kwargs):
    raise KeyError("no such key")


def _endless(*args, **kwargs):
    while True:
        pass


NONSENSE = [
    None,
    0,
    -1,
    float("nan"),
    "",
    "text",
    b"",
    b"\xff" * 64,
    [],
    [None],
    {},
    (),
    np.zeros(3),
    np.zeros((0, 2)),
    object(),
    type,
    lambda *args, **kwargs: None,
    lambda *args, **kwargs: "text",
    lambda *args, **kwargs: [],
    lambda *args, **kwargs: np.zeros(3),
    lambda *args, **kwargs: args,
    _raises,
    _endless,
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(len(NONSENSE)))
def test_nonsense_is_refused_with_a_message(name: str, index: int):
    answers = len(inspect.signature(_EXERCISES[name].check).parameters) - 1  # all but the trial
    result = course.check(name, *[NONSENSE[index]] * answers, seconds=0.5)
    assert not result.passed, f"{NONSENSE[index]!r} passes"
    assert result.kind != "check", (
        f"the check broke: {result.message} (ask with trial.is_a, has_length, has_shape first)"
    )
    assert result.message and result.hint
