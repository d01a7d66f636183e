"""Predictions beside what was published, and beside what a ruler through the fitted points would have said.

Leans on published, runs and workload. Nothing is fitted here: see calibrate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rdmakit.model.measure import LL_QPS, Measured
from rdmakit.model.preset import Preset, load
from rdmakit.model.published import POINTS, Point
from rdmakit.model.runs import Run, run_all
from rdmakit.model.steps import step_of
from rdmakit.model.workload import sized_for

__all__ = ["PUBLISHED", "Comparison", "compare", "is_published", "predict", "ruler", "run_of"]

PUBLISHED = "h800-cx7-ib"
CHANNELS = 10  # of the normal kernels: 20 SMs, as DeepEP's table


@dataclass(frozen=True)
class Comparison:
    """A prediction beside its published point. Errors are relative; `ruler` is None where no two fitted points make
    one."""

    point: Point
    predicted: float
    ruler: float | None

    @property
    def error(self) -> float:
        return self.predicted / self.point.value - 1

    @property
    def ruler_error(self) -> float | None:
        return None if self.ruler is None else self.ruler / self.point.value - 1


def run_of(
    preset: Preset, kernel: str, op: str, ranks: int, step: int = 5, *, tokens: int | None = None, seed: int = 0
) -> Run:
    """The world that predicts a point: the sizes of the published table."""
    cluster = preset.for_ranks(ranks)
    options = {} if tokens is None else {"tokens": tokens}
    chosen = step_of(step)
    channels = CHANNELS if kernel == "normal" else chosen.qps or min(LL_QPS, max(1, 256 // ranks))
    return Run(cluster, sized_for(cluster, kernel, op, channels=channels, seed=seed, **options), chosen, seed)


def is_published(preset: Preset) -> bool:
    """Is it the cluster that the published points were measured on, as far as they say? What nobody has published of it
    may be anything.
    """
    facts = ("gpus_per_host", "nics_per_gpu", "ports", "lag", "link_layer", "port_rate")
    ours, theirs = ([p.settings[name].value for name in facts] for p in (preset, load(PUBLISHED)))
    return ours == theirs


def predict(measured: Measured, unit: str) -> float:
    """What a run says in the unit of a point."""
    return measured.logical_gbs if unit == "GB/s" else measured.microseconds


def ruler(point: Point, points: Sequence[Point] = POINTS) -> float | None:
    """Log-linear through the fitted points of its series: the value over log2 of the EP size, level where there is
    but one. None where there is none.

    >>> from rdmakit.model.published import point_of
    >>> round(ruler(point_of("ll", "dispatch", 8)), 6)
    77.0
    """
    known = [p for p in points if p.fitted and p.series == point.series and p.step == point.step]
    if not known:
        return None
    first, last = known[0], known[-1]
    if first.ranks == last.ranks:
        return first.value
    x = (math.log2(point.ranks) - math.log2(first.ranks)) / (math.log2(last.ranks) - math.log2(first.ranks))
    return math.exp(math.log(first.value) + x * (math.log(last.value) - math.log(first.value)))


def compare(
    preset: Preset,
    points: Sequence[Point] = POINTS,
    *,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Runs every point. Whatever a run raises."""
    runs = [run_of(preset, p.kernel, p.op, p.ranks, p.step, seed=seed) for p in points]
    results = run_all(runs, jobs=jobs, done=done)
    return [Comparison(p, predict(m, p.unit), ruler(p)) for p, m in zip(points, results, strict=True)]
