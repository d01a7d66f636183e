"""One emulated HCA behind `rdmakit.device`: verbs go to the C++ model, rings are NumPy arrays of ours.

Leans on device (Provider) and on the world that owns the HCA. The model reads the very rings that `sq_view`
shows; it is given our memory, so views stay valid after a queue is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device import AsyncEvent, Device, Refused
from rdmakit.device.provider import Bytes, CqQueue, QpQueues, QpRequest
from rdmakit.emu._world import VerbRefused, rq_stride
from rdmakit.errors import BadArgument
from rdmakit.layout import CQE_INITIAL_OP_OWN, SEND_WQE_BB

if TYPE_CHECKING:
    from rdmakit.device import QP
    from rdmakit.emu.world import World

__all__ = ["DOORBELL_MODES", "EVENT_NAMES", "EmulatedHca"]

_EOPNOTSUPP = 95

DOORBELL_MODES = {"dbrec": 1, "register": 2, "no_dbr": 3}  # enum class DoorbellMode, attributes.hpp
EVENT_NAMES = (  # enum class AsyncEventType, environment.hpp
    "completion",
    "cq_error",
    "qp_fatal",
    "qp_request_error",
    "qp_access_error",
    "sq_drained",
    "port_active",
    "port_error",
    "doorbell_split",
    "communication_established",
)
_ONE_PATH = (
    "leave it out: emulated queue pairs have one path each, as fast as their port (port_gbps=…); a bond (lag=…) has "
    "another port to fail over to"
)
_PAGE = 4096
_DBREC = 8  # bytes of a doorbell record


def require_doorbell_mode(mode: str | None) -> None:
    """BadArgument for a mode that does not exist; None stands for the device's own."""
    if mode is not None and mode not in DOORBELL_MODES:
        raise BadArgument("no such doorbell mode", value=mode, rule=f"one of {', '.join(DOORBELL_MODES)}",
                          remedy="leave it out for the device's own")


class EmulatedHca:
    """Provider over HCA number `index` of a world; every open context has its own."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        self.world = world
        self.index = index
        self.device = device
        self._core = world._core

    def _verb(self, method: Callable[..., Any], *arguments: Any) -> Any:
        self.world._require_idle()
        try:
            return method(self.index, *arguments)
        except VerbRefused as refused:
            raise Refused(refused.code, refused.message) from None

    def hca_is_of_the_gpu(self) -> bool:
        """No: the HCA model stands for a NIC, which only system scope reaches."""
        return False

    def for_kernels(self, memory: np.ndarray[Any, Any]) -> int:
        """At its address: kernels of this world run where the world's memory is."""
        return int(memory.ctypes.data)

    def register_for_kernels(self, doorbell: int) -> int:
        """Likewise."""
        return doorbell

    def close(self) -> None:
        """Nothing to give back: the HCA belongs to the world."""

    def memory(self, nbytes: int, label: str) -> Bytes:
        """Zeroed, aligned, and known to reports as `label`."""
        found = self.world.allocate(nbytes)
        self.world.addresses.add(found, label)
        return found

    # ---- PD, MR
    def alloc_pd(self) -> int:
        return int(self._verb(self._core.alloc_pd))

    def dealloc_pd(self, pd: int) -> None:
        self._verb(self._core.dealloc_pd, pd)

    def reg_mr(self, pd: int, address: int, nbytes: int, access: int, label: str) -> tuple[int, int]:
        key = int(self._verb(self._core.reg_mr, pd, address, nbytes, access))
        return key, key  # lkey and rkey are one number on mlx5

    def reg_dmabuf_mr(self, pd: int, address: int, nbytes: int, fd: int, access: int, label: str) -> tuple[int, int]:
        raise Refused(_EOPNOTSUPP, "emulated HCAs reach memory of this process", "register host memory")

    def dereg_mr(self, lkey: int) -> None:
        self._verb(self._core.dereg_mr, lkey)

    # ---- CQ
    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        ring_bytes = cqe_bytes << log_entries
        memory = self.world.allocate(ring_bytes + _DBREC, alignment=_PAGE)
        ring, dbrec = memory[:ring_bytes], memory[ring_bytes:]
        ring[cqe_bytes - 1 :: cqe_bytes] = CQE_INITIAL_OP_OWN
        at = int(memory.ctypes.data)
        cqn = self._verb(
            self._core.create_cq, log_entries, cqe_bytes, collapsed, overrun_ignore, at, at + ring_bytes
        )
        self.world.addresses.add_parts(
            memory,
            [
                (0, ring_bytes, 1, f"ring of {label} {cqn:#x}"),
                (ring_bytes, _DBREC, 1, f"doorbell record of {label} {cqn:#x}"),
            ],
        )
        return CqQueue(int(cqn), ring, dbrec)

    def destroy_cq(self, cqn: int) -> None:
        self._verb(self._core.destroy_cq, cqn)

    def cq_is_dead(self, cqn: int) -> bool:
        return bool(self._verb(self._core.query_cq, cqn)["dead"])

    def arm_cq(self, cqn: int, solicited_only: bool) -> None:
        self._verb(self._core.arm_cq, cqn, solicited_only)

    # ---- QP
    def create_qp(self, request: QpRequest) -> QpQueues:
        require_doorbell_mode(request.doorbell)
        # The receive ring, the send ring behind it, as libmlx5 has them; then the record.
        stride = rq_stride(request.max_recv_sge) if request.max_recv_sge else 0
        rq_bytes, sq_bytes = stride << request.log_rq_wqes, SEND_WQE_BB << request.log_sq_wqebbs
        sq_at = -(-rq_bytes // SEND_WQE_BB) * SEND_WQE_BB
        dbrec_at = sq_at + sq_bytes
        memory = self.world.allocate(dbrec_at + _DBREC, alignment=_PAGE)
        at = int(memory.ctypes.data)
        qpn = self._verb(
            self._core.create_qp,
            {
                "pd": request.pd,
                "send_cq": request.send_cqn,
                "recv_cq": request.recv_cqn,
                "log_sq_bbs": request.log_sq_wqebbs,
                "log_rq_wqes": request.log_rq_wqes,
                "max_recv_sge": request.max_recv_sge,
                "max_inline": request.max_inline,
                "sq_sig_all": request.sq_sig_all,
                "scatter_to_cqe_requester": request.scatter_to_cqe,
                "scatter_to_cqe_responder": request.scatter_to_cqe,
                "out_of_order": request.out_of_order,
                "doorbell": DOORBELL_MODES[request.doorbell] if request.doorbell else 0,
                "uar": 0,
                "sq_buffer": at + sq_at,
                "rq_buffer": at if rq_bytes else 0,
                "dbrec": at + dbrec_at,
            },
        )
        name = request.label or f"QP {qpn:#x}"
        parts = [(sq_at, sq_bytes, 1, f"send ring of {name}"), (dbrec_at, _DBREC, 4, f"doorbell record of {name}")]
        if rq_bytes:
            parts.append((0, rq_bytes, 1, f"receive ring of {name}"))
        self.world.addresses.add_parts(memory, parts)
        doorbell = int(self._verb(self._core.qp_now, qpn)[2])
        sq, rq = memory[sq_at:dbrec_at], memory[:rq_bytes] if rq_bytes else None
        return QpQueues(int(qpn), sq, rq, stride, memory[dbrec_at:], doorbell)

    def destroy_qp(self, qpn: int) -> None:
        self._verb(self._core.destroy_qp, qpn)

    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None:
        try:
            self._verb(self._core.modify_qp, qpn, attributes, mask)
        except Refused as refused:
            if refused.code == _EOPNOTSUPP:
                raise Refused(refused.code, refused.message, _ONE_PATH) from None
            raise

    def query_qp(self, qpn: int) -> dict[str, Any]:
        found: dict[str, Any] = self._verb(self._core.query_qp, qpn)
        return found

    def qp_now(self, qpn: int) -> tuple[int, int]:
        state, port, _ = self._verb(self._core.qp_now, qpn)
        return state, port

    def modify_qp_udp_sport(self, qpn: int, port: int) -> None:
        self._verb(self._core.modify_qp_udp_sport, qpn, port)

    def query_qp_lag_port(self, qpn: int) -> tuple[int, int]:
        configured, active = self._verb(self._core.query_qp_lag_port, qpn)
        return int(configured), int(active)

    def modify_qp_lag_port(self, qpn: int, port: int) -> None:
        self._verb(self._core.modify_qp_lag_port, qpn, port)

    def peer_of(self, qp: QP) -> QP | None:
        """The queue pair of this process that one is connected to, if it is connected back."""
        return self.world._peer_of(qp)

    # ---- doorbells, progress
    def ring(self, doorbell: int, value: int) -> None:
        self._verb(self._core.mmio_write64, doorbell, value)

    def order(self) -> None:
        """The device runs in this thread, or is asked by it."""

    def receive_posted(self, qpn: int) -> None:
        self._verb(self._core.receive_posted, qpn)

    def progress(self) -> bool:
        """The world runs until nothing can go on, so afterwards nothing moves any more."""
        self.world.run()
        return False

    def outcome(self) -> list[str]:
        counters = self.counters()
        said = []
        unheard = counters["doorbells_wrong_state"] + counters["doorbells_no_progress"]
        if unheard:
            said.append(f"{unheard} doorbells had no effect (wrong state, or the record said nothing new)")
        return said

    # ---- what can be looked at
    def port_up(self, port: int) -> bool:
        return bool(self._verb(self._core.port_up, port))

    def port_counters(self, port: int) -> dict[str, int]:
        found: dict[str, int] = self._verb(self._core.port_counters, port)
        return found

    def counters(self) -> dict[str, int]:
        found: dict[str, int] = self._verb(self._core.hca_counters)
        return found

    def take_events(self) -> list[AsyncEvent]:
        return self.world._take_events(self.index)
