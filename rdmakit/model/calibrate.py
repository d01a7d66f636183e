"""Choosing the free parameters, two of them, each on published points that it moves, and on no other.

Leans on validate. A time that an operation has once follows from the errors that one run leaves; any other parameter is
found by a search over its bounds in log scale. Parameters come one after the other, so the order below is part of the
fit. The result is written into a preset by hand, marked `fitted`, and frozen by a commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rdmakit.errors import BadState
from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import Preset
from rdmakit.model.published import POINTS, Point
from rdmakit.model.units import in_base, in_unit
from rdmakit.model.validate import Comparison, compare

__all__ = ["FREE", "Free", "fit"]


@dataclass(frozen=True)
class Free:
    """A free parameter, its bounds in its own unit, and the points that it is chosen on. `once`: a time that every one
    of these points, which are in microseconds, has once. `gain`: only how the points differ counts, not a factor that
    all have in common.
    """

    parameter: str
    least: float
    most: float
    points: tuple[str, ...]
    once: bool = False
    gain: bool = False


_LL = ("ll_dispatch_ep8", "ll_combine_ep8", "ll_dispatch_ep64", "ll_combine_ep64")
FREE = (
    Free("kernel_launch", 0, 100_000, _LL, once=True),
    Free("proxy_post", 100, 1000, ("normal_dispatch_ep32_step0", "normal_dispatch_ep32"), gain=True),
)
_GOLDEN = (math.sqrt(5) - 1) / 2


def _offset(rows: Sequence[Comparison]) -> float:
    """Microseconds that, added to every prediction, leave the least mean square of relative errors."""
    weights = [1 / row.point.value**2 for row in rows]
    missing = [(1 - row.predicted / row.point.value) / row.point.value for row in rows]
    return sum(missing) / sum(weights)


def _spread(rows: Sequence[Comparison], late: float = 0.0) -> float:
    """Root mean square of relative errors, every prediction `late` microseconds later."""
    return math.sqrt(sum(((row.predicted + late) / row.point.value - 1) ** 2 for row in rows) / len(rows))


def _apart(rows: Sequence[Comparison]) -> float:
    """Root mean square of what their errors, in log scale, differ from their mean by."""
    logs = [math.log(row.predicted / row.point.value) for row in rows]
    mean = sum(logs) / len(logs)
    return math.sqrt(sum((each - mean) ** 2 for each in logs) / len(logs))


def fit(
    preset: Preset,
    free: Sequence[Free] = FREE,
    *,
    evaluations: int = 6,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The value of each free parameter, in its own unit: least mean square of relative errors. BadState where a time
    leaves its bounds; `evaluations` of a search, by golden section. `done` is told of each.
    """
    found: dict[str, float] = {}
    by_name: dict[str, Point] = {p.name: p for p in POINTS}
    for each in free:
        points = [by_name[name] for name in each.points]
        now = preset.changed(**found)
        found[each.parameter] = (
            _once(now, each, points, jobs, done) if each.once else _search(now, each, points, evaluations, jobs, done)
        )
    return found


def _once(
    preset: Preset, each: Free, points: list[Point], jobs: int | None, done: Callable[[str], None] | None
) -> float:
    rows = compare(preset, points, jobs=jobs)
    late = _offset(rows)
    unit = PARAMETERS[each.parameter].unit
    value = in_unit(preset[each.parameter] + in_base(late, "us"), unit)
    if done is not None:
        done(f"{each.parameter} {value:.4g} {unit}: {_spread(rows, late):.1%}")
    if not each.least <= value <= each.most:
        raise BadState(
            f"the points want a {each.parameter} out of its bounds",
            value=f"{value:g} {unit}",
            rule=f"{each.least:g} to {each.most:g} {unit}",
            remedy="another parameter is wrong: see which points have the largest error",
        )
    return value


def _search(
    preset: Preset,
    each: Free,
    points: list[Point],
    evaluations: int,
    jobs: int | None,
    done: Callable[[str], None] | None,
) -> float:
    seen: dict[float, float] = {}

    def cost(x: float) -> float:
        value = float(f"{math.exp(x):.3g}")
        if value not in seen:
            rows = compare(preset.changed(**{each.parameter: value}), points, jobs=jobs)
            seen[value] = _apart(rows) if each.gain else _spread(rows)
            if done is not None:
                done(f"{each.parameter} {value:g}: {seen[value]:.1%}")
        return seen[value]

    low, high = math.log(each.least), math.log(each.most)
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    for _ in range(max(1, evaluations - 2)):
        if cost(a) <= cost(b):
            high, b = b, a
            a = high - _GOLDEN * (high - low)
        else:
            low, a = a, b
            b = low + _GOLDEN * (high - low)
    return min(seen, key=lambda value: seen[value])
