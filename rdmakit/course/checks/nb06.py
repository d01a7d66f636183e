"""Notebook 06: queue pairs of a bonded NIC, steered by the learner; judged by what the ports have counted."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from rdmakit.course.exercise import exercise
from rdmakit.course.trial import Trial
from rdmakit.device import QP, connected_pair
from rdmakit.emu import World

_MOST = 1.05  # busiest over idlest port
_LARGEST = 200_000
_QUEUES = (16, 12, 25, 40)


class _Bond:
    """Two bonded NICs, queue pairs between them, and sizes of what each will send. No clock: bytes are counted."""

    def __init__(self, lag: str, queues: int, seed: int) -> None:
        dice = random.Random(seed)
        self.world = World(hosts=2, lag=lag, seed=seed)
        self.nic, there = self.world.open(0), self.world.open(1)
        for _ in range(dice.randrange(8)):  # QP numbers, hence default ports, begin anywhere
            self.nic.alloc_pd().create_qp(self.nic.create_cq(16))
        self.pairs = [connected_pair(self.nic, there)]
        self.pairs += [connected_pair(self.nic, there, beside=self.pairs[0]) for _ in range(queues - 1)]
        self.qps = [near for near, _ in self.pairs]
        # A few large, many small; and every other one small, so that turns are the worst plan.
        self.sizes = [
            round(_LARGEST * dice.uniform(0.02, 0.15) if i % 2 else _LARGEST * dice.uniform(0.3, 1.0))
            for i in range(queues)
        ]
        near, far = self.pairs[0]
        self.source, self.target = (end.pd.register(self.world.array(_LARGEST)) for end in (near, far))

    def carried(self) -> list[int]:
        return [self.nic.port(port).counters["xmit_payload"] for port in (1, 2)]

    def send(self, qp: QP, size: int) -> list[int]:
        """Bytes by port."""
        before = self.carried()
        qp.post_write(self.source[:size], self.target[:size])
        qp.send_cq.wait()
        return [now - then for now, then in zip(self.carried(), before, strict=True)]

    def port_of(self, qp: QP) -> int:
        loads = self.send(qp, 64)
        return 1 + loads.index(max(loads))

    def loads(self) -> list[int]:
        """What each port carries once all have sent."""
        sums = [self.send(qp, size) for qp, size in zip(self.qps, self.sizes, strict=True)]
        return [sum(column) for column in zip(*sums, strict=True)]


def _judge(trial: Trial, bond: _Bond, what: str) -> None:
    first, second = bond.loads()
    idle = 1 if first < second else 2
    trial.require(min(first, second) > 0, f"{what}: nothing at all leaves by port {idle}")
    ratio = max(first, second) / min(first, second)
    trial.require(
        ratio <= _MOST, f"{what}: port 1 carries {first:,} B, port 2 {second:,} B; busiest / idlest is {ratio:.3f}"
    )


@exercise(
    "06.steer",
    hints=(
        "First decide on a port for each size, as if you could choose. Ports want equal bytes, not equal numbers.",
        "A large one that comes last tips the balance. In which order would you hand them out, and to which port each?",
        "In the bond that hashes, you know which port you want: try source ports until port_of says it.",
    ),
    seconds=10.0,
)
def steer(trial: Trial, by_affinity: Any, by_source_port: Any) -> None:
    """Both bonds, four sets of queue pairs each."""
    for number, queues in enumerate(_QUEUES):
        kinds: tuple[tuple[str, str, Callable[..., Any], bool], ...] = (
            ("affinity", "by_affinity", by_affinity, False),
            ("hash", "by_source_port", by_source_port, True),
        )
        for lag, name, function, probes in kinds:
            bond = _Bond(lag, queues, seed=60 + number)
            given = [bond.port_of] if probes else []
            trial.call(function, list(bond.qps), list(bond.sizes), *given)
            trial.require(all(qp.state.name == "RTS" for qp in bond.qps), f"{name}: a queue pair was closed or broken")
            _judge(trial, bond, f"{name}, {queues} queue pairs")
