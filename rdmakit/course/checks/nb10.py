"""Notebook 10: the plan of a dispatch, compared with `rdmakit.ep.layout.get_dispatch_layout` on random choices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.ep import routing
from rdmakit.ep.layout import get_dispatch_layout

_NAMES = ("tokens_per_rank", "tokens_per_expert", "is_token_in_rank")


@dataclass(frozen=True)
class _Case:
    """One call: sizes that rise from what a page can show, and how many choices are struck out."""

    tokens: int
    experts: int
    ranks: int
    top_k: int
    masked: float


_CASES = (
    _Case(2, 4, 2, 1, 0.0),
    _Case(3, 8, 2, 4, 0.0),
    _Case(5, 8, 4, 3, 0.4),
    _Case(64, 64, 8, 8, 0.0),
    _Case(100, 48, 6, 5, 0.2),
    _Case(33, 16, 16, 8, 0.5),
    _Case(7, 8, 4, 2, 1.0),
    _Case(0, 8, 4, 2, 0.0),
    _Case(300, 256, 8, 8, 0.1),
)


def _call(number: int, case: _Case) -> str:
    masked = f", {case.masked:.0%} of them -1" if case.masked else ""
    return (
        f"call {number + 1}: {case.tokens} tokens, top-{case.top_k} of {case.experts} experts{masked}, "
        f"{case.ranks} ranks"
    )


def _compare(name: str, mine: np.ndarray, right: np.ndarray, where: str) -> None:
    if np.array_equal(mine, right):
        return
    at = tuple(int(i) for i in np.argwhere(mine != right)[0])
    place = f"[{', '.join(map(str, at))}]"
    much = "many" if mine[at] > right[at] else "few"
    seen = f"{mine[at]}" if right.dtype == bool else f"{mine[at]}, too {much}"
    raise Wrong(f"{name}{place} is {seen}, which is not right ({where})")


@exercise(
    "10.plan",
    hints=(
        "From an expert's number you can compute the rank that has it. Leave out the choices that are -1 first.",
        "Make is_token_in_rank first: mark a place as often as you like, it stays one token. Then count columns.",
        "np.nonzero gives the rows and columns of all real choices; np.bincount has a minlength.",
    ),
)
def plan(trial: Trial, function: object) -> None:
    """Counts by rank and by expert, and the table of booleans, for nine routings; inputs must stay as they are."""
    for number, case in enumerate(_CASES):
        where = _call(number, case)
        made = routing.uniform(case.tokens, case.experts, case.top_k, seed=100 + number)
        topk_idx = made.masked(case.masked, seed=number).topk_idx if case.masked else made.topk_idx
        given = topk_idx.copy()
        answer = trial.call(function, given, case.experts, case.ranks)
        trial.is_a(answer, tuple, f"what dispatch_layout returns ({where})")
        trial.has_length(answer, 3, f"what dispatch_layout returns ({where})")
        golden = get_dispatch_layout(topk_idx, case.experts, case.ranks)
        rights = (golden.num_tokens_per_rank, golden.num_tokens_per_expert, golden.is_token_in_rank)
        for name, mine, right in zip(_NAMES, answer, rights, strict=True):
            trial.has_shape(mine, right.shape, what=f"{name} ({where})")
            kind = "booleans" if right.dtype == bool else "integers"
            wanted = "b" if right.dtype == bool else "iu"
            if mine.dtype.kind not in wanted:
                raise Wrong(f"{name} should hold {kind}, but its dtype is {mine.dtype} ({where})", "type")
        for name, mine, right in reversed(list(zip(_NAMES, answer, rights, strict=True))):
            _compare(name, mine, right, where)
        trial.require(np.array_equal(given, topk_idx), f"topk_idx was changed; leave the input alone ({where})")
