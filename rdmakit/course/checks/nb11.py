"""Notebook 11: a combine kernel that keeps to the bound of one rounding, with the same bits under every seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair
from rdmakit.emu import World, compile_source
from rdmakit.emu.module import Module
from rdmakit.ep.numerics import rounding_bound
from rdmakit.errors import CompileError, HangError, RdmakitError

Array = NDArray[Any]
BF16 = ml_dtypes.bfloat16


@dataclass(frozen=True)
class _Case:
    """Rows to combine: so many ranks and channels; `loud` is how far some ranks that cancel are above the others."""

    ranks: int
    hidden: int
    loud: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.ranks} rank{'s' * (self.ranks != 1)}, {'nasty' if self.loud != 1 else 'calm'} rows"

    def rows(self) -> Array:
        rows = np.random.default_rng([11, self.ranks]).standard_normal((self.ranks, self.hidden))
        for one in range(self.ranks // 4):
            rows[one] *= self.loud
            rows[self.ranks - 1 - one] = -rows[one]
        return rows.astype(BF16)


_CASES = (_Case(1, 96, 1, 2), _Case(3, 256, 1, 4), _Case(8, 512, 1, 8), _Case(5, 256, 1e3, 8), _Case(8, 512, 3e4, 16))


def _combined(code: Module, rows: Array, seed: int, policy: str) -> Array:
    """What the learner's kernel makes of rows that as many ranks put, each from a host of its own."""
    ranks, hidden = rows.shape
    world = World(hosts=ranks + 1, ports=1, policy=policy, seed=seed)
    inbox, out = world.array((ranks, hidden), BF16), world.array(hidden, BF16, np.nan)
    arrived, sums = world.array(ranks, np.uint64), world.array(hidden, np.float32)
    kept = []
    for rank, row in enumerate(rows):
        near, far = connected_pair(world.open(rank + 1), world.open(0))
        mine = world.array(hidden, BF16, row)
        source, place = near.pd.register(mine), far.pd.register(inbox[rank])
        word, pod = far.pd.register(arrived[rank : rank + 1]), near.device_handle(rank=rank + 1)
        arguments = [pod.array, place.remote(), source, mine.nbytes, word.remote()]
        world.stock_kernel("put_and_signal")(1, 32, arguments, rank=rank + 1)
        kept.append((near, far, source, place, word))
    handle = kept[0][1].device_handle()
    code.bind(world).get_function("combine")(1, 32, [handle, arrived, inbox, ranks, hidden, sums, out], rank=0)
    world.run()
    handle.report.raise_for_status()
    result: Array = out.copy()
    return result


def _within(out: Array, rows: Array, where: str) -> None:
    exact = rows.sum(axis=0, dtype=np.float64)
    bound = rounding_bound(exact, np.abs(rows).sum(axis=0, dtype=np.float64), len(rows))
    unwritten = np.flatnonzero(np.isnan(out))
    if len(unwritten):
        raise Wrong(f"{where}: out[{unwritten[0]}] is NaN: never written, or the sum of something else than the rows")
    ratio = np.abs(out - exact) / bound
    worst = int(np.argmax(ratio))
    if ratio[worst] > 1:
        raise Wrong(
            f"{where}: {np.sum(ratio > 1)} of {len(out)} results are beyond the bound; out[{worst}] errs by "
            f"{abs(out[worst] - exact[worst]):.3g}, where {bound[worst]:.3g} is allowed"
        )


@exercise(
    "11.combine",
    hints=(
        "Two things are asked for: a small error, and the same bits each time. Which of them does the message miss?",
        "The bound has room for one rounding of each result to BF16. How often do you round? Who decides the order?",
        "Waiting and adding are two things: rows may arrive in any order and still be added in one that you choose.",
    ),
    seconds=20.0,
)
def combine(trial: Trial, code: object) -> None:
    """The learner's kernel `combine`, on calm and nasty rows, under many seeds: within the bound, then always alike."""
    trial.is_a(code, str, "the kernel")
    assert isinstance(code, str)
    numbered = "\n" + code  # lines count as in the cell, whose first one names the exercise
    where = "with everything in order"
    try:
        # Without late stores first: a fault and an endless loop are told best where nothing else is going on.
        calm = _CASES[1].rows()
        _within(_combined(compile_source(numbered, policy="fast", name="exercise.cu"), calm, 0, "fast"), calm, where)
        mine = compile_source(numbered, policy="explore", name="exercise.cu")
        for case in _CASES:
            rows, first = case.rows(), None
            for seed in range(case.seeds):
                where = f"{case}, seed {seed}"
                out = _combined(mine, rows, seed, "explore")
                _within(out, rows, where)
                first = out if first is None else first
                moved = int(np.sum(out.view(np.uint16) != first.view(np.uint16)))
                if moved:
                    raise Wrong(
                        f"{where}: within the bound, but {moved} of {len(out)} results have other bits than with seed 0"
                    )
    except CompileError as error:
        raise Wrong(f"it does not compile: {error.rule or error.what}", "exception") from None
    except HangError as error:
        raise Wrong(f"{where}: {str(error).splitlines()[0]}", "exception") from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
