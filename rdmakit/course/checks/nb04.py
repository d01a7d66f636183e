"""Notebook 04: a kernel that posts and rings, under many seeds of late stores and on two kinds of NIC."""

from __future__ import annotations

import re

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair
from rdmakit.emu import World, compile_source
from rdmakit.emu.module import Module
from rdmakit.errors import CompileError, HangError, RdmakitError

_MESSAGES, _BELLS, _SEEDS = 8, 16, 250
# Of a file of its own, so that a learner may neither forget nor change it.
_NEIGHBOUR = r"""
#include <rdmakit/signal.cuh>
RDMAKIT_KERNEL neighbour(const rdmakit::QpHandle* handle, rdmakit::u32 times) {
    for (rdmakit::u32 i = 0; i < times; ++i) {
        rdmakit::mmio_store(handle->doorbell, rdmakit::doorbell_next(handle->qpn, 0));
    }
}
"""
_OTHER = (_NEIGHBOUR, "neighbour.cu")


def _attempt(code: Module, neighbour: Module, seed: int, doorbell: str, policy: str = "explore") -> str:
    """What became of eight WRITEs, "" if all arrived."""
    world = World(hosts=2, policy=policy, seed=seed, doorbell=doorbell)
    near, far = connected_pair(world.open(0), world.open(1))
    source = near.pd.register(world.array(64 * _MESSAGES, fill=7))
    target = far.pd.register(world.array(64 * _MESSAGES))
    handle = near.device_handle()
    post = code.bind(world).get_function("post")
    post(1, 32, [handle, target.remote(), source, _MESSAGES, world.array(16, np.uint64)])
    neighbour.bind(world).get_function("neighbour")(1, 32, [handle, _BELLS], stream=1)
    try:
        world.run()
    except HangError as error:
        where = error.report.groups[0][0].place if error.report and error.report.waits else "a wait"
        return f"the NIC has not done all that was posted, and {where} waits for ever"
    for done in near.send_cq.poll():
        if not done.ok:
            return f"the NIC read a WQE that was not all there: {done.status.name} of WQE {done.wqe_index}"
    arrived = int((target.bytes.reshape(_MESSAGES, 64) == 7).all(1).sum())
    if arrived < _MESSAGES:
        return f"the kernel ended, and {arrived} of {_MESSAGES} messages arrived"
    return ""


@exercise(
    "04.fences",
    hints=(
        "Three things are written. Who reads each of them, and what must that reader find then?",
        "The NIC may look at the record whenever anybody rings. What does the record promise then?",
        "Between any two of the three the order matters, and a relaxed store gives no order by itself.",
    ),
    seconds=15.0,
)
def fences(trial: Trial, code: object) -> None:
    """The learner's kernel `post` delivers under every seed, on both kinds of NIC, in two fences."""
    trial.is_a(code, str, "the kernel")
    assert isinstance(code, str)
    numbered = "\n" + code  # lines count as in the cell, whose first one names the exercise
    try:
        # Without late stores first: a fault and an endless loop are told best where nothing else is going on.
        plain = compile_source(numbered, policy="fast", name="exercise.cu")
        other = compile_source(_OTHER[0], policy="fast", name=_OTHER[1])
        bad = _attempt(plain, other, seed=0, doorbell="dbrec", policy="fast")
        trial.require(not bad, f"even with every store visible at once: {bad}")
        mine = compile_source(numbered, policy="explore", name="exercise.cu")
        neighbour = compile_source(_NEIGHBOUR, policy="explore", name=_OTHER[1])
        for seed in range(_SEEDS):
            for doorbell in ("dbrec", "register"):
                bad = _attempt(mine, neighbour, seed, doorbell)
                trial.require(not bad, f"seed {seed}, a NIC that believes the {doorbell}: {bad}")
    except CompileError as error:
        raise Wrong(f"it does not compile: {error.rule or error.what}", "exception") from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
    loop = re.search(r"\bfor\b.*?\n    \}", code, re.DOTALL)
    count = len(re.findall(r"^[^/\n]*\bfence<", loop.group() if loop else "", re.MULTILINE))
    trial.require(count < 3, f"no seed fails, but {count} fences stand in the loop: one orders nothing new")
