"""The size of a put that suits a run best, found by trying all: what `puts.BEST` was found by, for any cluster.

Leans on runs and puts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rdmakit.model.measure import Measured
from rdmakit.model.puts import SIZES
from rdmakit.model.runs import Run, run_all

__all__ = ["Tried", "by_size", "tuned"]

Tried = dict[int, Measured]  # by rows of a put


def _sizes(run: Run) -> tuple[int, ...]:
    """Those that are to be tried: none where a size was chosen, or where each row is a put of its own."""
    if run.work.kernel != "normal" or run.work.chunk is not None:
        return ()
    return tuple(size for size in SIZES if 2 * size <= run.work.slots)


def by_size(
    runs: Sequence[Run], *, jobs: int | None = None, done: Callable[[str], None] | None = None
) -> list[Tried]:
    """Each run with puts of every size in puts.SIZES of which its ring holds two. Whatever a run raises."""
    each = [(i, size) for i, run in enumerate(runs) for size in _sizes(run)]
    sized = [replace(runs[i], work=replace(runs[i].work, chunk=size)) for i, size in each]
    found: list[Tried] = [{} for _ in runs]
    for (i, size), got in zip(each, run_all(sized, jobs=jobs, done=done) if sized else (), strict=True):
        found[i][size] = got
    return found


def tuned(runs: Sequence[Run], *, jobs: int | None = None, done: Callable[[str], None] | None = None) -> list[Run]:
    """The runs with the size of a put that gives each the most GB/s."""
    tried = by_size(runs, jobs=jobs, done=done)
    return [
        run if not found else replace(run, work=replace(run.work, chunk=max(found, key=lambda n: found[n].logical_gbs)))
        for run, found in zip(runs, tried, strict=True)
    ]
