"""Notebook 12: the ladder's optimisations as knobs that are turned one by one, and two of them that do most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong, short
from rdmakit.model import Preset, load
from rdmakit.model.measure import Measured
from rdmakit.model.runs import Run
from rdmakit.model.steps import STEPS, Step
from rdmakit.model.tune import by_size
from rdmakit.model.workload import Workload, sized_for

TOKENS = 128  # of a rank
SEEDS = (0, 1)
ENOUGH = 0.9  # of the last step's GB/s

# What each changes about step 0; all of them make the last step.
KNOBS: Mapping[str, Mapping[str, Any]] = {
    "GPU rings": {"proxy": False},
    "a QP for each channel": {"qps": None},
    "planned ports": {"policy": "planned"},
    "credits on their own QPs": {"credit_qps": True},
    "signal in the data's QP": {"fenced": False},
}


def cluster(name: str) -> tuple[Preset, Workload]:
    """A preset cut down to four hosts of two GPUs, and a dispatch on it that takes less than a second to run.

    >>> str(cluster("ib")[0]).split(",")[0]
    'h800-cx7-ib: 4 hosts of 2 GPUs'
    """
    preset = load(name).changed(hosts=4, gpus_per_host=2)
    return preset, sized_for(preset, "normal", "dispatch", tokens=TOKENS)


def turn(*knobs: str) -> Step:
    """Step 0 of the ladder with some of KNOBS turned. KeyError for a name that is none.

    >>> turn(*KNOBS) == replace(STEPS[-1], number=0, title="all 5 knobs")
    True
    """
    changes: dict[str, Any] = {}
    for knob in knobs:
        changes |= KNOBS[knob]
    title = f"all {len(KNOBS)} knobs" if len(knobs) == len(KNOBS) else " + ".join(knobs) or "no knob"
    return replace(STEPS[0], title=title, **changes)


def turned(name: str, *knobs: str, seed: int = 0) -> Measured:
    """A dispatch on `cluster(name)` with these knobs turned, and puts of the size that suits it best: all are tried."""
    return _turned(name, frozenset(knobs), seed)


@cache
def _turned(name: str, knobs: frozenset[str], seed: int) -> Measured:
    preset, work = cluster(name)
    step = turn(*(knob for knob in KNOBS if knob in knobs))
    tried = by_size([Run(preset, replace(work, seed=work.seed + seed), step, seed)], jobs=1)[0]
    return max(tried.values(), key=lambda got: got.logical_gbs)


@exercise(
    "12.knobs",
    hints=(
        "Look at the table of what is busy: what does step 0 wait for on InfiniBand, where ports are no matter?",
        "To wait for each chunk's completion is a round trip. What makes it shorter, and what makes it needless?",
        'Turn two yourself: turned("ib", one, other).logical_gbs. There are ten pairs.',
    ),
    seconds=5.0,
)
def knobs(trial: Trial, answer: object) -> None:
    """Two of KNOBS that reach ENOUGH of the last step on InfiniBand, under each seed."""
    trial.is_a(answer, (tuple, list), "the knobs")
    assert isinstance(answer, (tuple, list))
    trial.has_length(answer, 2, "the knobs")
    for knob in answer:
        if not isinstance(knob, str) or knob not in KNOBS:
            raise Wrong(f"there is no knob {short(knob)}; there are {', '.join(map(repr, KNOBS))}", "type")
    trial.require(answer[0] != answer[1], "these are one knob, named twice")
    for seed in SEEDS:
        share = turned("ib", *answer, seed=seed).logical_gbs / turned("ib", *KNOBS, seed=seed).logical_gbs
        trial.require(
            share >= ENOUGH, f"with these two a dispatch has {share:.0%} of what all five reach (modelled, seed {seed})"
        )
