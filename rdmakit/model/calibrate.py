"""Choosing the free parameters, three of them, each on published points that it moves, and on no other.

Leans on validate. A parameter is found by a search over its bounds in log scale; parameters come one after the other,
so the order below is part of the fit. The result is written into a preset by hand, marked `fitted`, and frozen by a
commit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import Preset
from rdmakit.model.published import POINTS, Point
from rdmakit.model.units import in_base, in_unit
from rdmakit.model.validate import Comparison, compare

__all__ = ["FREE", "Free", "fit"]


@dataclass(frozen=True)
class Free:
    """A free parameter, its bounds in its own unit, and the points that it is chosen on. `offset`: another free
    parameter, a time that every one of these points has once, so that its best value follows from the errors that are
    left.
    """

    parameter: str
    least: float
    most: float
    points: tuple[str, ...]
    offset: str = ""


_LL = ("ll_dispatch_ep8", "ll_combine_ep8", "ll_dispatch_ep64", "ll_combine_ep64")
FREE = (
    Free("gpu_load", 60, 400, _LL, offset="kernel_launch"),
    Free("proxy_post", 100, 300, ("normal_dispatch_ep32_step0", "normal_dispatch_ep32")),
)
_GOLDEN = (math.sqrt(5) - 1) / 2


def _offset(rows: Sequence[Comparison]) -> float:
    """Microseconds that, added to every prediction, leave the least mean square of relative errors."""
    weights = [1 / row.point.value**2 for row in rows]
    missing = [(1 - row.predicted / row.point.value) / row.point.value for row in rows]
    return sum(missing) / sum(weights)


def fit(
    preset: Preset,
    free: Sequence[Free] = FREE,
    *,
    evaluations: int = 6,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """The value of each free parameter, in its own unit: least mean square of relative errors, by golden section."""
    found: dict[str, float] = {}
    by_name: dict[str, Point] = {p.name: p for p in POINTS}
    for each in free:
        points = [by_name[name] for name in each.points]
        seen: dict[float, float] = {}
        late: dict[float, float] = {}

        def cost(
            x: float,
            each: Free = each,
            points: list[Point] = points,
            seen: dict[float, float] = seen,
            late: dict[float, float] = late,
        ) -> float:
            value = float(f"{math.exp(x):.3g}")
            if value not in seen:
                rows = compare(preset.changed(**found, **{each.parameter: value}), points, jobs=jobs)
                late[value] = _offset(rows) if each.offset else 0.0
                errors = [(row.predicted + late[value]) / row.point.value - 1 for row in rows]
                seen[value] = sum(error**2 for error in errors) / len(errors)
                if done is not None:
                    also = f", {each.offset} {late[value]:+.2f} us" if each.offset else ""
                    done(f"{each.parameter} {value:g}{also}: {math.sqrt(seen[value]):.1%}")
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
        best = min(seen, key=lambda value: seen[value])
        found[each.parameter] = best
        if each.offset:
            found[each.offset] = in_unit(
                preset[each.offset] + in_base(late[best], "us"), PARAMETERS[each.offset].unit
            )
    return found
