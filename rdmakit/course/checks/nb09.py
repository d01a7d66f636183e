"""Notebook 09: a receiver of a small sequence lock, under 1,000 schedules with relaxed ordering and many paths."""

from __future__ import annotations

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import connected_pair
from rdmakit.errors import CompileError, RdmakitError
from rdmakit.explore import Explorer, Failure, Scene
from rdmakit.explore.explorer import Verdict

_TRANSFERS, _SCHEDULES = 5, 1000
# As the notebook has it; of a file of its own, so that a learner may neither forget nor change it.
_SEND = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL send(QpHandle qp, RemoteMemory slots, RemoteMemory tail, LocalMemory staging, u64* stage,
                    const u64* credit, const u64* source, u32 count) {
    u64 seen = 0;
    for (u64 t = 1; t <= count; ++t) {
        if (t > 2 && wait_signal(credit, t - 2, qp.watch, about(qp, "credit", t - 2), &seen) != Status::ok) return;
        u64* const slot = stage + 4 * (t % 2);
        slot[0] = t;
        for (u32 i = 0; i < 3; ++i) slot[1 + i] = source[3 * (t - 1) + i];
        put_signal(qp, slots + 32 * (t % 2), staging + 32 * (t % 2), 32, tail, 1);
    }
    quiet(qp);
}
"""


def _scene(scene: Scene) -> None:
    words, code = 3 * _TRANSFERS, str(scene.options["code"])
    world = scene.world(hosts=2, ports=1)
    near, far = connected_pair(world.open(host=0), world.open(host=1), out_of_order=True)
    lengths = {"staging": 8, "source": words, "credit": 1, "slots": 8, "tail": 1, "out": words}
    memory = {name: world.array(length, np.uint64, name=name) for name, length in lengths.items()}
    memory["source"][:] = np.random.default_rng(9).integers(1, 1 << 40, words)
    staging, credit = (near.pd.register(memory[name]) for name in ("staging", "credit"))
    slots, tail = (far.pd.register(memory[name], relaxed_ordering=True) for name in ("slots", "tail"))
    here, there = near.device_handle(), far.device_handle(rank=1)
    senders = [memory[name] for name in ("staging", "credit", "source")]
    send = world.compile(_SEND, name="send.cu").get_function("send")
    send(1, 32, [here, slots.remote(), tail.remote(), staging, *senders, _TRANSFERS], rank=0)
    receive = world.compile(code, name="exercise.cu").get_function("receive")
    receive(1, 32, [there, memory["slots"], memory["tail"], credit.remote(), _TRANSFERS, memory["out"]], rank=1)
    scene.watch(here, there)
    scene.keep(slots, tail, staging, credit)
    scene.expect(memory["out"], memory["source"])


def _told(failure: Failure) -> str:
    said = failure.what.splitlines()[0] if failure.what else failure.verdict.name.lower()
    return f"somebody waits for ever: {said}" if failure.verdict is Verdict.HUNG else said


@exercise(
    "09.receiver",
    hints=(
        "Three things must hold: the whole slot is there, you have read what is there, and nobody fills it meanwhile.",
        "The bytes of one WRITE may land in any order, the first word before the others. What is behind them all?",
        "wait_signal waits for a word, with an acquire at system scope. And what does a sender do that has credit?",
    ),
    seconds=20.0,
)
def receiver(trial: Trial, code: object) -> None:
    """The learner's kernel `receive` delivers five transfers in each of 1,000 schedules."""
    trial.is_a(code, str, "the kernel")
    assert isinstance(code, str)
    numbered = "\n" + code  # lines count as in the cell, whose first one names the exercise
    try:
        explorer = Explorer(_scene, code=numbered)
        calm = explorer.one()
        if calm is not None and calm.verdict is not Verdict.RACED:
            raise Wrong(f"even with everything in order: {_told(calm)}")
        found = explorer.run(_SCHEDULES)
    except CompileError as error:
        raise Wrong(f"it does not compile: {error.rule or error.what}", "exception") from None
    except RdmakitError as error:
        raise Wrong(str(error), "exception") from None
    if found.failure is not None:
        raise Wrong(f"schedule {found.schedules} of {_SCHEDULES:,} (seed {found.failure.seed}): {_told(found.failure)}")
