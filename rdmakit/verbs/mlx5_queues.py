"""Queues of an mlx5 device: the rings that it reads itself, got at through mlx5dv_init_obj.

Leans on provider and layout. Posting is writing WQEs and ringing the register, as on an emulated device: what libmlx5
would do is not called. Ring memory comes from our own allocators, so views of it stay valid after a queue is closed.
Source: rdma-core providers/mlx5/cq.c mlx5_arm_cq, qp.c.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import Refused
from rdmakit.device.provider import Bytes, CqQueue, QpQueues, QpRequest
from rdmakit.errors import BadArgument
from rdmakit.layout import SEND_WQE_BB, SET_CI
from rdmakit.verbs._verbs import Context, Qp
from rdmakit.verbs.provider import VerbsHca

__all__ = ["Mlx5Hca", "arm"]

_EOPNOTSUPP = 95
_ARM = 1  # word of a CQ's doorbell record
_SOLICITED_ONLY = 1 << 24  # MLX5_CQ_DB_REQ_NOT_SOL
_CQ_DOORBELL = 0x20  # MLX5_CQ_DOORBELL, in the UAR page


def _bytes(memory: Any) -> Bytes:
    return np.frombuffer(memory, np.uint8)


def arm(context: Context, dbrec: Bytes, uar: int, cqn: int, events: int, solicited_only: bool) -> None:
    """Record, then the register in the UAR page at `uar`; `events`: how many completion events this CQ has had."""
    record = dbrec.view(">u4")
    command = (events & 3) << 28 | (_SOLICITED_ONLY if solicited_only else 0) | int(record[SET_CI]) & 0xFFFFFF
    record[_ARM] = command
    value = command.to_bytes(4, "big") + cqn.to_bytes(4, "big")
    context.ring(uar + _CQ_DOORBELL, int.from_bytes(value, "little"))


class Mlx5Hca(VerbsHca):
    """Provider over a ConnectX, or over what libmlx5 takes for one."""

    queues = "mlx5"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cq_views: dict[int, dict[str, Any]] = {}
        self._blocks_each: dict[tuple[int, bool, bool], int] = {}  # basic blocks that libmlx5 counts for a work request
        self._armed: dict[int, int] = {}  # completion events that a CQ has had: the sequence number of its next arm

    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        if collapsed:
            raise Refused(
                _EOPNOTSUPP,
                "a collapsed CQ (cqc.cc) is made by DevX, not by ibv_create_cq",
                "open the device with queues=devx; or leave collapsed out: kernels poll an ordinary CQ as well",
            )
        # libmlx5 makes room for one entry more than asked (cq.c, mlx5_create_cq: the next power of two above).
        cq = self._context.create_cq(
            (1 << log_entries) - 1 if log_entries else 1,
            self._channel_of_events(),
            cqe_bytes=cqe_bytes,
            ignore_overrun=overrun_ignore,
        )
        view = cq.mlx5()
        cqn, ring = int(view["cqn"]), _bytes(view["ring"])
        self._cqs[cqn], self._cq_views[cqn] = cq, view
        self._armed[cqn] = 0
        return CqQueue(cqn, ring, _bytes(view["dbrec"]))

    def destroy_cq(self, cqn: int) -> None:
        super().destroy_cq(cqn)
        del self._cq_views[cqn], self._armed[cqn]

    def cq_is_dead(self, cqn: int) -> bool:
        return False  # an overrun CQ says so by the event "cq_error"

    def arm_cq(self, cqn: int, solicited_only: bool) -> None:
        view = self._cq_views[cqn]
        arm(self._context, _bytes(view["dbrec"]), view["uar"], cqn, self._armed[cqn], solicited_only)

    def _completed(self, handle: int) -> int:
        cqn = self._cqn_of(handle)
        if cqn in self._armed:
            self._armed[cqn] += 1
        return cqn

    def create_qp(self, request: QpRequest) -> QpQueues:
        if request.doorbell not in (None, "register", "dbrec"):
            raise BadArgument(
                "no such doorbell mode of this device",
                value=request.doorbell,
                rule="register",
                remedy="leave it out: who has the last word is the hardware's affair",
            )
        qp, view = self._made_to_measure(request)
        sq, rq = _bytes(view["sq"]), _bytes(view["rq"]) if view["rq"] is not None else None
        self._qps[qp.qpn] = qp
        return QpQueues(
            qp.qpn,
            sq,
            rq,
            int(view["rq_stride"]) if rq is not None else 0,
            _bytes(view["dbrec"]),
            int(view["doorbell"]),
        )

    def _made_to_measure(self, request: QpRequest) -> tuple[Qp, dict[str, Any]]:
        """A QP whose send ring is as long as asked for: a CQ of as many entries must not overrun.

        libmlx5 has the longest WQE in mind for each work request, four basic blocks or more (qp.c, mlx5_calc_sq_size).
        """
        blocks = 1 << request.log_sq_wqebbs
        options = request.max_inline, request.scatter_to_cqe, request.out_of_order
        while True:
            each = min(self._blocks_each.get(options, 1), blocks)
            qp = self._pds[request.pd].create_qp(
                self._cqs[request.send_cqn],
                self._cqs[request.recv_cqn],
                max_send_wr=blocks // each,
                max_recv_wr=1 << request.log_rq_wqes if request.max_recv_sge else 0,
                max_recv_sge=request.max_recv_sge,
                max_inline=request.max_inline,
                sq_sig_all=request.sq_sig_all,
                scatter_to_cqe=request.scatter_to_cqe,
                out_of_order=request.out_of_order,
            )
            view = qp.mlx5()
            times = view["sq"].nbytes // (blocks * SEND_WQE_BB)
            assert times >= 1, "libmlx5 rounds up"
            if times == 1 or each == blocks:
                return qp, view
            self._blocks_each[options] = each * times
            qp.close()

    def receive_posted(self, qpn: int) -> None:
        """Hardware looks at the record by itself."""

    def ring(self, doorbell: int, value: int) -> None:
        self._context.ring(doorbell, value)
