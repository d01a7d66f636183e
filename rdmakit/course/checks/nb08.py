"""Notebook 08: a wiring under which a flag behind its data fails, and an atomic does not."""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial, Wrong
from rdmakit.device import MR, QP
from rdmakit.errors import RdmakitError
from rdmakit.explore import Explorer, Scene
from rdmakit.explore.explorer import Verdict
from rdmakit.layout import Access

_WORDS, _SEEDS, _HELD = 4, 100, 500
_KERNELS = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL naive(QpHandle qp, RemoteMemory data, LocalMemory from, u32 words, RemoteMemory flag) {
    const u64 base = reserve(qp, 2);
    const u32 one[3] = {1, 0, 0};
    fill_put(qp, base, data, from, 8 * words, Signalled::no);
    write_inline(qp, base + 1, flag.address, flag.key, one, 8, kCqUpdate);
    publish(qp, base, 2);
}
RDMAKIT_KERNEL atomic(QpHandle qp, RemoteMemory data, LocalMemory from, u32 words, RemoteMemory flag) {
    put_signal(qp, data, from, 8 * words, flag, 1);
}
RDMAKIT_KERNEL receive(const u64* data, u32 words, const u64* flag, u64* copy) {
    u64 seen = 0;
    wait_until<Scope::sys>(flag, [](u64 v) { return v != 0; }, Watch{}, Subject{"the flag", 1}, &seen);
    for (u32 i = 0; i < words; ++i) copy[i] = data[i];
}
"""


class _Wiring:
    """A learner's `wire`, tried in one scene after another; `parts` are those of the last."""

    def __init__(self, trial: Trial, wire: object, sender: str) -> None:
        self.trial, self.wire, self.sender = trial, wire, sender
        self.parts: tuple[Any, ...] = ()

    def __call__(self, scene: Scene) -> None:
        world = scene.world(hosts=2, ports=1)
        self.parts = self._wired(world)
        near, far, data, flag = self.parts
        source, copy = (world.array(_WORDS, np.uint64, name=name) for name in ("source", "copy"))
        source[:] = 1 + np.arange(_WORDS)
        here = near.pd.register(source)
        kernels = world.compile(_KERNELS, name="naive.cu")
        kernels.get_function("receive")(1, 32, [data.address, _WORDS, flag.address, copy], rank=1)
        handle = near.device_handle()
        kernels.get_function(self.sender)(1, 32, [handle, data.remote(), here, _WORDS, flag.remote()])
        scene.watch(handle)
        scene.keep(far, data, flag, here)
        scene.expect(copy, source)
        scene.allow_latent_races()

    def _wired(self, world: Any) -> tuple[Any, ...]:
        parts: tuple[Any, ...] = self.trial.call(self.wire, world)
        self.trial.is_a(parts, tuple, "what wire returns")
        self.trial.has_length(parts, 4, "what wire returns")
        for name, part, kind in zip(("near", "far", "data", "flag"), parts, (QP, QP, MR, MR), strict=True):
            self.trial.is_a(part, kind, name)
        near, far, data, flag = parts
        for name, qp, host in (("near", near, 0), ("far", far, 1)):
            self.trial.require(qp.context.device.name == world.open(host).device.name, f"{name} belongs to host {host}")
            self.trial.require(qp.state.name == "RTS", f"{name} is not connected: it is in {qp.state.name}")
            self.trial.require(not qp.out_of_order, f"{name} may deliver out of order; leave the QPs as they are")
        for name, mr, words in (("data", data, _WORDS), ("flag", flag, 1)):
            self.trial.require(mr.nbytes >= 8 * words, f"{name} has {mr.nbytes} bytes; {8 * words} are needed")
            self.trial.require(mr.pd is far.pd, f"{name} is not registered with far's PD")
        apart = data.address + data.nbytes <= flag.address or flag.address + flag.nbytes <= data.address
        self.trial.require(apart, "data and flag lie upon each other; give each its own memory")
        return parts

    def explorer(self) -> Explorer:
        """The scene, set up. `Wrong` for whatever the learner's wiring makes impossible."""
        try:
            return Explorer(self)
        except RdmakitError as error:
            raise Wrong(f"over your wiring nothing can be sent: {error}", "exception") from None


@exercise(
    "08.naive_flag",
    hints=(
        "The QP executes data and flag in order. What lies between the NIC at the far end and the memory there?",
        "Help for PD.register: one of its options lets the WRITEs of a region pass others on the way into memory.",
        "Two regions, and two WRITEs on one road. Who must be allowed to pass: the one in front, or the one behind it?",
    ),
    seconds=15.0,
)
def naive_flag(trial: Trial, wire: object) -> None:
    """Within 100 seeds the reader's copy is wrong; an atomic over the same wiring holds in 500 schedules."""
    trial.require(callable(wire), "pass the function `wire` itself")
    naive = _Wiring(trial, wire, "naive")
    failure = naive.explorer().run(_SEEDS).failure
    if failure is None:
        _, _, data, _ = naive.parts
        late = bool(data.access & Access.RELAXED_ORDERING)
        more = "; what was relaxed here lets nothing pass it" if late else ""
        raise Wrong(f"{_SEEDS} seeds, and the naive flag held{more}")
    if failure.verdict is not Verdict.WRONG:
        raise Wrong(f"it fails, but not since the flag came too early: {failure.what}")
    atomic = _Wiring(trial, wire, "atomic").explorer().run(_HELD)
    trial.require(atomic.ok, f"the flag fails, and so does an atomic: {atomic.failure and atomic.failure.what}")
