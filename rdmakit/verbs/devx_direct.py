"""Batches on queues that commands made: rings written and read by the array, as `Qp.direct` does it with libmlx5's.

Leans on _verbs and devx_memory. From then on the public objects of such a queue pair and its CQs neither post nor poll.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from rdmakit.device.provider import CqQueue, QpQueues, QpRequest, Refused
from rdmakit.verbs._verbs import DevxObject, DirectCq, DirectQp, Memory, direct_cq, direct_qp
from rdmakit.verbs.devx_memory import Placed

__all__ = ["DirectQueues"]


@dataclass(frozen=True)
class _Completions:
    queue: CqQueue
    cqe_bytes: int
    collapsed: bool


class DirectQueues:
    """Of one provider: what its queues are, and those that are driven directly, until they are destroyed."""

    def __init__(self) -> None:
        self._completions: dict[int, _Completions] = {}
        self._queue_pairs: dict[int, tuple[QpRequest, QpQueues]] = {}
        self._cqs: dict[int, DirectCq] = {}
        self._qps: dict[int, DirectQp] = {}

    def note_cq(self, queue: CqQueue, cqe_bytes: int, collapsed: bool) -> CqQueue:
        self._completions[queue.cqn] = _Completions(queue, cqe_bytes, collapsed)
        return queue

    def note_qp(self, request: QpRequest, queues: QpQueues) -> QpQueues:
        self._queue_pairs[queues.qpn] = request, queues
        return queues

    def forget_cq(self, cqn: int) -> None:
        self._cqs.pop(cqn, None)
        self._completions.pop(cqn, None)

    def forget_qp(self, qpn: int) -> None:
        self._qps.pop(qpn, None)
        self._queue_pairs.pop(qpn, None)

    def reset_qp(self, qpn: int) -> None:
        """Its indices begin anew: whoever drives it asks again."""
        self._qps.pop(qpn, None)

    def of(self, qpn: int, made: dict[tuple[str, int], tuple[DevxObject, Placed]]) -> tuple[DirectQp, DirectCq]:
        """The queue pair and its send CQ. Refused (EOPNOTSUPP) where the CPU may not reach one, or one is collapsed."""
        request, queues = self._queue_pairs[qpn]
        if qpn not in self._qps:
            pair = made["qp", qpn]
            _reachable(pair[1], f"QP {qpn:#x}")
            self._qps[qpn] = direct_qp(
                pair[0], qpn, queues.sq, queues.rq, queues.rq_stride, queues.dbrec, queues.doorbell,
                self._cq(request.send_cqn, made), self._cq(request.recv_cqn, made), request.max_inline,
            )  # fmt: skip
        return self._qps[qpn], self._cqs[request.send_cqn]

    def _cq(self, cqn: int, made: dict[tuple[str, int], tuple[DevxObject, Placed]]) -> DirectCq:
        if cqn not in self._cqs:
            known, (created, placed) = self._completions[cqn], made["cq", cqn]
            _reachable(placed, f"CQ {cqn:#x}")
            if known.collapsed:
                raise Refused(errno.EOPNOTSUPP, f"CQ {cqn:#x} is collapsed: it shows its last completion alone",
                              "a CQ with an entry for each")  # fmt: skip
            self._cqs[cqn] = direct_cq(created, cqn, known.queue.ring, known.queue.dbrec, known.cqe_bytes)
        return self._cqs[cqn]


def _reachable(placed: Placed, name: str) -> None:
    if not all(isinstance(getattr(region, "memory", None), Memory) for region in placed.regions):
        raise Refused(errno.EOPNOTSUPP, f"{name} lies where the CPU may not reach it: kernels post and poll there",
                      "QueuePlacement() keeps queues in host memory")  # fmt: skip
