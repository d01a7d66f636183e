"""Queues of any other device: mlx5 rings in our own memory, from which a proxy posts through libibverbs.

Leans on provider and _verbs (Proxy). So soft-RoCE serves the very queue pairs that a ConnectX does, device handles for
kernels among them: whoever waits for a completion lets the proxy work.
"""

from __future__ import annotations

import time
from typing import Any

from rdmakit.device import Refused
from rdmakit.device.provider import Bytes, CqQueue, QpQueues, QpRequest
from rdmakit.errors import BadArgument
from rdmakit.layout import CQE_INITIAL_OP_OWN, DS_BYTES, SEND_WQE_BB
from rdmakit.verbs._verbs import Proxy
from rdmakit.verbs.provider import Reach, VerbsHca, aligned

__all__ = ["ProxiedHca"]

_PAGE = 4096
_RESET = 0
_EOPNOTSUPP = 95
_GATHER = 4  # local segments of one WQE; more fail in the device as a bad WQE would


class ProxiedHca(VerbsHca):
    """Provider over a device without queues that we can reach."""

    queues = "proxied"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._proxy = Proxy()
        self._most_segments = int(self._context.query_device()["max_sge"])
        self._rings: dict[tuple[str, int], tuple[Bytes | None, ...]] = {}
        self._registers: dict[int, Bytes] = {}

    def close(self) -> None:
        self._proxy.stop()
        super().close()

    def reach_by(self, reach: Reach) -> None:
        """Nobody of this process may be waiting when a kernel rings: a thread posts from now on."""
        super().reach_by(reach)
        self._proxy.start()

    def register_for_kernels(self, doorbell: int) -> int:
        """A word of memory that nobody reads: the proxy looks at doorbell records."""
        return self.for_kernels(self._registers[doorbell])

    def _queue_memory(self, nbytes: int) -> Bytes:
        return aligned(nbytes, _PAGE) if self._reach is None else self.memory(nbytes, "ring")

    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        cq = self._context.create_cq(1 << log_entries, self._channel_of_events())
        cqn = int(cq.handle)
        ring, dbrec = self._queue_memory(cqe_bytes << log_entries), self.memory(8, "record of a CQ")
        ring[cqe_bytes - 1 :: cqe_bytes] = CQE_INITIAL_OP_OWN
        self._proxy.add_cq(
            cq, cqn, ring.ctypes.data, dbrec.ctypes.data, log_entries, cqe_bytes, collapsed, overrun_ignore
        )
        self._cqs[cqn], self._rings["cq", cqn] = cq, (ring, dbrec)
        return CqQueue(cqn, ring, dbrec)

    def destroy_cq(self, cqn: int) -> None:
        self._proxy.remove_cq(cqn)
        super().destroy_cq(cqn)
        del self._rings["cq", cqn]

    def cq_is_dead(self, cqn: int) -> bool:
        return self._proxy.cq_is_dead(cqn)

    def create_qp(self, request: QpRequest) -> QpQueues:
        if request.doorbell not in (None, "dbrec"):
            raise BadArgument(
                "no such doorbell mode of this device",
                value=request.doorbell,
                rule="dbrec",
                remedy="leave it out: the proxy reads the doorbell record",
            )
        if request.scatter_to_cqe or request.out_of_order:
            raise Refused(_EOPNOTSUPP, "scatter_to_cqe and out_of_order are options of mlx5 devices", "leave them out")
        blocks = 1 << request.log_sq_wqebbs
        stride = max(DS_BYTES, 1 << (request.max_recv_sge * DS_BYTES - 1).bit_length()) if request.max_recv_sge else 0
        qp = self._pds[request.pd].create_qp(
            self._cqs[request.send_cqn],
            self._cqs[request.recv_cqn],
            max_send_wr=blocks,
            max_recv_wr=1 << request.log_rq_wqes if stride else 1,
            max_send_sge=min(_GATHER, self._most_segments),
            max_recv_sge=max(1, request.max_recv_sge),
            max_inline=request.max_inline,
            sq_sig_all=request.sq_sig_all,
        )
        sq, dbrec = self._queue_memory(blocks * SEND_WQE_BB), self.memory(8, "record of a QP")
        register = self.memory(8, "register of a QP")
        rq = self._queue_memory(stride << request.log_rq_wqes) if stride else None
        self._proxy.add_qp(
            qp, request.send_cqn, request.recv_cqn, sq.ctypes.data, request.log_sq_wqebbs,
            rq.ctypes.data if rq is not None else 0, stride, request.log_rq_wqes, dbrec.ctypes.data, request.sq_sig_all,
        )  # fmt: skip
        self._qps[qp.qpn], self._rings["qp", qp.qpn] = qp, (sq, rq, dbrec, register)
        doorbell = int(register.ctypes.data)
        self._registers[doorbell] = register
        return QpQueues(qp.qpn, sq, rq, stride, dbrec, doorbell)

    def destroy_qp(self, qpn: int) -> None:
        self._proxy.remove_qp(qpn)
        super().destroy_qp(qpn)
        register = self._rings.pop(("qp", qpn))[3]
        assert register is not None
        del self._registers[int(register.ctypes.data)]

    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None:
        super().modify_qp(qpn, attributes, mask)
        if attributes.get("qp_state") == _RESET:
            dbrec = self._rings["qp", qpn][2]
            assert dbrec is not None
            dbrec[:] = 0  # else what it said before would be posted again
            self._proxy.reset_qp(qpn)
            return
        self._proxy.progress()  # receives that were posted before a state that takes them

    def ring(self, doorbell: int, value: int) -> None:
        self._context.require()
        self._registers[doorbell].view("<u8")[0] = value
        self._proxy.progress()

    def receive_posted(self, qpn: int) -> None:
        self._proxy.progress()

    def progress(self) -> bool:
        self._context.require()
        if not self._proxy.progress():
            time.sleep(0)
        return True
