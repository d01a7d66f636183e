"""Notebook 14: a kernel that copies a payload and posts it, by any number of blocks, under many schedules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair
from rdmakit.emu import World, compile_source
from rdmakit.emu.module import Module
from rdmakit.errors import CompileError, HangError, RdmakitError
from rdmakit.explore import Explorer, Failure, Scene
from rdmakit.explore.explorer import Verdict

_SCHEDULES = 500
# Of a file of its own, so that a learner may neither forget nor change it.
_TAKE = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL take(QpHandle qp, const u64* word, const u64* data, u32 words, u64* out) {
    u64 seen = 0;
    if (wait_signal(word, 1, qp.watch, about(qp, "the signal", 1), &seen) != Status::ok) return;
    for (u32 i = 0; i < words; ++i) out[i] = data[i];
}
"""


@dataclass(frozen=True)
class _Shape:
    """A launch: blocks, warps a block, and 8-byte words to put."""

    blocks: int
    warps: int
    words: int

    def __str__(self) -> str:
        return (
            f"{self.blocks} block{'s' * (self.blocks != 1)} of {self.warps} warp{'s' * (self.warps != 1)}, "
            f"{8 * self.words:,} bytes"
        )


# Shares that are equal, that are not, and warps for which nothing is left.
_CALM = (_Shape(1, 1, 64), _Shape(1, 4, 2048), _Shape(8, 4, 4096), _Shape(3, 2, 2050), _Shape(7, 5, 6))
_EXPLORED = (_Shape(1, 2, 8), _Shape(2, 1, 8), _Shape(2, 2, 16), _Shape(3, 1, 12))


def _launch(world: World, code: Module | str, shape: _Shape) -> dict[str, object]:
    near, far = connected_pair(world.open(0), world.open(1), out_of_order=True)
    names = ("payload", "buffer", "target", "out")
    memory = {name: world.array(shape.words, np.uint64, name=name) for name in names}
    memory["payload"][:] = np.random.default_rng(shape.words).integers(1, 1 << 40, shape.words)
    word, done = world.array(1, np.uint64, name="word"), world.array(1, np.uint32, name="done")
    source = near.pd.register(memory["buffer"])
    target, flag = (far.pd.register(part, relaxed_ordering=True) for part in (memory["target"], word))
    here, there = near.device_handle(), far.device_handle(rank=1)
    kernels = world.compile(code, name="exercise.cu") if isinstance(code, str) else code.bind(world)
    mine = kernels.get_function("fused")
    places = [memory["buffer"], memory["payload"], 8 * shape.words]
    mine(shape.blocks, 32 * shape.warps, [here, target.remote(), source, *places, flag.remote(), done], rank=0)
    take = world.compile(_TAKE, name="take.cu").get_function("take")
    take(1, 32, [there, word, memory["target"], shape.words, memory["out"]], rank=1)
    return {**memory, "word": word, "near": near, "handles": (here, there), "keep": (source, target, flag, far)}


def _calm(code: Module, shape: _Shape) -> None:
    """One run with nothing late: what arrived, and what was posted for it."""
    world = World(hosts=2, ports=1, policy="fast")
    this = _launch(world, code, shape)
    try:
        world.run()
    except HangError as error:
        said = str(error).splitlines()[0]
        ended = "your kernel never ends" if "fused" in said else "the receiver waits for a signal that never comes"
        raise Wrong(f"{shape}: {ended}") from None
    wrong = np.flatnonzero(this["out"] != this["payload"])
    if len(wrong):
        raise Wrong(f"{shape}: when the signal came, {len(wrong)} words were not there, the first is word {wrong[0]}")
    if this["word"][0] != 1:  # type: ignore[index]
        raise Wrong(f"{shape}: the signal's word should be 1, but is {this['word'][0]}")  # type: ignore[index]
    posted = this["near"].posted  # type: ignore[attr-defined]
    if posted != 2:
        raise Wrong(f"{shape}: {posted} WQEs were posted; one WRITE and one signal are asked for")


def _scene(scene: Scene) -> None:
    this = _launch(scene.world(hosts=2, ports=1), str(scene.options["code"]), scene.options["shape"])
    scene.watch(*this["handles"])  # type: ignore[misc]
    scene.keep(this["keep"])
    scene.expect(this["out"], this["payload"])  # type: ignore[arg-type]


def _told(failure: Failure) -> str:
    said = failure.what.splitlines()[0] if failure.what else failure.verdict.name.lower()
    return f"somebody waits for ever: {said}" if failure.verdict is Verdict.HUNG else said


@exercise(
    "14.fused",
    hints=(
        "Which block posts, and how does it know that the others have copied their parts?",
        "Blocks cannot wait for each other: some may start when others have ended. But one of them is the last.",
        "Each block counts itself in `done`, behind its part: what makes a part visible to whoever reads the count?",
    ),
    seconds=20.0,
)
def fused(trial: Trial, code: object) -> None:
    """The learner's kernel `fused`: calm runs of several shapes, then 500 schedules of each small one."""
    trial.is_a(code, str, "the kernel")
    assert isinstance(code, str)
    numbered = "\n" + code  # lines count as in the cell, whose first one names the exercise
    try:
        plain = compile_source(numbered, policy="fast", name="exercise.cu")
        for shape in _CALM:
            _calm(plain, shape)
        for shape in _EXPLORED:
            found = Explorer(_scene, code=numbered, shape=shape).run(_SCHEDULES)
            if found.failure is not None:
                where = f"{shape}, schedule {found.schedules} (seed {found.failure.seed})"
                raise Wrong(f"{where}: {_told(found.failure)}")
    except CompileError as error:
        raise Wrong(f"it does not compile: {error.rule or error.what}", "exception") from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
