"""Notebook 05: the message size from which a CPU proxy fills the port, against runs on clusters drawn by chance."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial
from rdmakit.device import connected_pair, handle_array
from rdmakit.model import load
from rdmakit.model.cluster import world_of

_WARPS, _MESSAGES = 32, 16
_ENOUGH = 0.98  # of the GPU's own throughput
_STEPS = 7  # of the bisection: 64 B to 64 KiB in halves of an exponent, to within 6 %
_STREAM = r"""
#include <rdmakit/signal.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL stream(const QpHandle* qps, RemoteMemory to, LocalMemory from, u64 bytes, u32 messages, u32 each) {
    const QpHandle& qp = qps[block_id()];
    for (u32 done = 0; done < messages; done += each) {
        const u64 base = reserve(qp, each);
        for (u32 i = 0; i < each; ++i) {
            fill_put(qp, base + i, to, from, bytes, i + 1 == each ? Signalled::yes : Signalled::no);
        }
        publish(qp, base, each);
    }
    quiet(qp);
}
"""


@dataclass(frozen=True)
class _Case:
    """What the learner's function is given: a proxy, a way to ring, a port."""

    post_ns: int
    doorbell_ns: int
    each: int
    port_gbps: int

    def _time(self, proxy: bool, size: int, messages: int) -> float:
        preset = load("ib").changed(
            hosts=2,
            gpus_per_host=1,
            proxy_post=self.post_ns,
            proxy_doorbell=self.doorbell_ns,
            port_rate=self.port_gbps,
        )
        world = world_of(preset, proxy=proxy)
        here, there = world.open(0), world.open(1)
        pairs = [connected_pair(here, there)]
        pairs += [connected_pair(here, there, beside=pairs[0]) for _ in range(_WARPS - 1)]
        near, far = pairs[0]
        source, target = near.pd.register(world.array(size)), far.pd.register(world.array(size))
        handles = handle_array([near.device_handle() for near, _ in pairs])
        kernel = world.compile(_STREAM, name="stream.cu").get_function("stream")
        kernel(_WARPS, 32, [handles, target.remote(), source, size, messages, self.each])
        world.run()
        return float(world.launches[-1].end_ns)

    def _fills(self, size: int) -> bool:
        ours, theirs = (
            self._time(proxy, size, 2 * _MESSAGES) - self._time(proxy, size, _MESSAGES) for proxy in (True, False)
        )
        return theirs >= _ENOUGH * ours

    @cache  # noqa: B019  the cases of a check are few, and a learner asks again and again
    def measured(self) -> float:
        """The crossover in bytes, from runs."""
        low, high = 6.0, 16.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._fills(round(2**middle)) else (middle, high)
        return float(2 ** ((low + high) / 2))


def _cases(seed: int = 5) -> list[_Case]:
    dice = random.Random(seed)
    return [
        _Case(383, 150, 1, 400),
        *(
            _Case(dice.randrange(100, 500), dice.randrange(100, 600), each, port)
            for each, port in ((1, 200), (4, 400), (8, 100), (2, 200))
        ),
    ]


@exercise(
    "05.crossover",
    hints=(
        "At the crossover two stations are equally slow. Which two, and how long does each take for one message?",
        "How long is the thread busy with one message if several share a doorbell?",
        "Mind the units: eight bits are a byte, and a gigabit a second is a bit a nanosecond.",
    ),
    seconds=5.0,
)
def crossover(trial: Trial, function: object) -> None:
    """Within 20 % of what runs find, on five clusters."""
    for case in _cases():
        answer = trial.call(function, case.post_ns, case.doorbell_ns, case.each, case.port_gbps)
        where = (
            f"crossover(post_ns={case.post_ns}, doorbell_ns={case.doorbell_ns}, each={case.each}, "
            f"port_gbps={case.port_gbps})"
        )
        trial.near(answer, case.measured(), 0.2, where)
