"""A device whose HCA is made of warps, behind the same objects as every other: verbs here, WQEs in hca_engine.cuh.

Leans on provider and cta_engine. The C++ model keeps what verbs keep (numbers, protection, the state machine) and sees
no doorbell; rings, records, registers and CQs are this module's and the kernels'. There is no network behind it: no
packets, ports, faults or time, and no scatter-to-CQE. Port counters stay 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device import Device, QPState, Refused
from rdmakit.device.provider import CqQueue, QpQueues, QpRequest
from rdmakit.emu._world import rq_stride
from rdmakit.emu.cta_device import CtaDevice
from rdmakit.emu.cta_engine import CtaEngine
from rdmakit.emu.provider import _PAGE, DOORBELL_MODES, EmulatedHca, require_doorbell_mode
from rdmakit.layout import CQE_INITIAL_OP_OWN, SEND_WQE_BB

if TYPE_CHECKING:
    from rdmakit.emu.world import World

__all__ = ["CtaHca"]

_EOPNOTSUPP = 95
_ATTR_STATE = 1  # IBV_QP_STATE


class CtaHca(EmulatedHca):
    """Provider over device `index` of a world with `engine="cta"`."""

    def __init__(self, world: World, index: int, device: Device) -> None:
        super().__init__(world, index, device)
        assert world._cta is not None
        self._engine: CtaEngine = world._cta
        self._cta: CtaDevice = self._engine.devices[index]

    def hca_is_of_the_gpu(self) -> bool:
        """Whether the host's ranks are one GPU: then its warps serve what it posts."""
        return self._engine.on_one_gpu(self.index)

    # ---- MR
    def reg_mr(self, pd: int, address: int, nbytes: int, access: int, label: str) -> tuple[int, int]:
        key, _ = super().reg_mr(pd, address, nbytes, access, label)
        self._cta.set_key(key, address, nbytes, access, pd)
        self._engine.changed = True
        return key, key

    def dereg_mr(self, lkey: int) -> None:
        super().dereg_mr(lkey)
        self._cta.drop_key(lkey)

    # ---- CQ
    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        cqn = int(self._verb(self._core.create_cq, log_entries, cqe_bytes, collapsed, overrun_ignore))
        ring = self.world.allocate(cqe_bytes << log_entries, alignment=_PAGE)
        ring[cqe_bytes - 1 :: cqe_bytes] = CQE_INITIAL_OP_OWN
        dbrec = self.world.allocate(8)
        self._name_queue(label, cqn, {"ring": ring, "doorbell record": dbrec})
        self._cta.add_cq(cqn, ring, dbrec, log_entries, cqe_bytes, (collapsed, overrun_ignore))
        self._engine.changed = True
        return CqQueue(cqn, ring, dbrec)

    def destroy_cq(self, cqn: int) -> None:
        super().destroy_cq(cqn)
        self._cta.cqs.pop(cqn, None)

    def cq_is_dead(self, cqn: int) -> bool:
        return bool(self._cta.cqs[cqn]["dead"][0])

    def arm_cq(self, cqn: int, solicited_only: bool) -> None:
        raise Refused(_EOPNOTSUPP, "an HCA made of warps wakes nobody")

    # ---- QP
    def create_qp(self, request: QpRequest) -> QpQueues:
        require_doorbell_mode(request.doorbell)
        if request.scatter_to_cqe:
            raise Refused(_EOPNOTSUPP, "an HCA made of warps scatters nothing into CQEs")
        names = ("pd", "max_recv_sge", "max_inline", "sq_sig_all", "out_of_order", "log_rq_wqes")
        asked = {name: getattr(request, name) for name in names}
        asked |= {"send_cq": request.send_cqn, "recv_cq": request.recv_cqn, "log_sq_bbs": request.log_sq_wqebbs}
        asked |= {"scatter_to_cqe_requester": False, "scatter_to_cqe_responder": False, "uar": 0}
        asked["doorbell"] = DOORBELL_MODES[request.doorbell] if request.doorbell else 0
        qpn = int(self._verb(self._core.create_qp, asked))
        sq = self.world.allocate(SEND_WQE_BB << request.log_sq_wqebbs, alignment=_PAGE)
        stride = rq_stride(request.max_recv_sge) if request.max_recv_sge else 0
        rq = self.world.allocate(stride << request.log_rq_wqes, alignment=_PAGE) if stride else None
        dbrec = self.world.allocate(8)
        made = self._cta.add_qp(qpn, request.send_cqn, request.recv_cqn, (sq, rq, dbrec))
        pod = self._cta.pod(qpn)
        pod["log_sq"], pod["log_rq"], pod["rq_stride"] = request.log_sq_wqebbs, request.log_rq_wqes, stride
        pod["max_recv_sge"], pod["pd"], pod["sq_sig_all"] = request.max_recv_sge, request.pd, request.sq_sig_all
        pod["doorbell"] = int(self._verb(self._core.query_qp, qpn)["doorbell"])
        pod["in_order"] = self.world.data_in_order
        register = self._cta.registers[made.index :]
        named = {"send ring": sq, "doorbell record": dbrec.view(np.uint32), "doorbell register": register[:1]}
        self._name_queue(request.label or "QP", qpn, named if rq is None else {**named, "receive ring": rq})
        self._engine.changed = True
        return QpQueues(qpn, sq, rq, stride, dbrec, int(register.ctypes.data))

    def _name_queue(self, label: str, number: int, parts: dict[str, Any]) -> None:
        for role, array in parts.items():
            self.world.addresses.add(array, f"{role} of {label} {number:#x}")

    def destroy_qp(self, qpn: int) -> None:
        super().destroy_qp(qpn)
        self._cta.remove_qp(qpn)
        self._engine.changed = True

    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None:
        self._notice_error(qpn)
        super().modify_qp(qpn, attributes, mask)
        queue_pair, pod = self._cta.queue_pairs[qpn], self._cta.pod(qpn)
        target = QPState(attributes["qp_state"])
        if target is QPState.RESET:
            self._cta.reset_qp(qpn)
            queue_pair.attributes, queue_pair.remote = {}, None
        queue_pair.attributes.update(attributes)
        known = queue_pair.attributes
        if "dest_qp_num" in attributes:
            device = self._engine.reached_by(known.get("dgid"), known.get("dlid", 0))
            queue_pair.remote = None if device is None else (device, int(known["dest_qp_num"]))
        pod["state"], pod["access"] = target, known.get("qp_access_flags", 0) & 0xF
        pod["rnr_retry"] = known.get("rnr_retry", 7)
        for name in ("max_rd_atomic", "max_dest_rd_atomic"):
            pod[name] = known.get(name, 16)
        if target is QPState.ERR:
            self._cta.attend[queue_pair.index] = 1
        self._engine.changed = True

    def _notice_error(self, qpn: int) -> None:
        """A queue pair that kernels have taken to ERR is there for the state machine, too."""
        if int(self._cta.pod(qpn)["state"]) != QPState.ERR:
            return
        if self._verb(self._core.query_qp, qpn)["state"] != QPState.ERR:
            self._verb(self._core.modify_qp, qpn, {"qp_state": int(QPState.ERR)}, _ATTR_STATE)

    def qp_now(self, qpn: int) -> tuple[int, int]:
        self._notice_error(qpn)
        return super().qp_now(qpn)

    def query_qp(self, qpn: int) -> dict[str, Any]:
        self._notice_error(qpn)
        found, pod = super().query_qp(qpn), self._cta.pod(qpn)
        sq, rq, dbrec = self._cta.queue_pairs[qpn].memory
        found |= {"sq_buffer": sq.ctypes.data, "rq_buffer": 0 if rq is None else rq.ctypes.data}
        found |= {"dbrec": dbrec.ctypes.data, "rq_consumed": int(pod["rq_consumed"])}
        found["uar_register"] = int(self._cta.registers[self._cta.queue_pairs[qpn].index :].ctypes.data)
        found |= {"sq_producer": int(pod["producer"]), "sq_issued": int(pod["completed"])}
        found["sq_completed"] = int(pod["completed"])
        found["counters"] |= {
            "doorbells": int(pod["doorbells"]),
            "doorbells_ignored": int(pod["ignored"]),
            "send_wqes": int(pod["send_wqes"]),
            "send_bbs": int(pod["send_bbs"]),
            "receive_wqes": int(pod["receive_wqes"]),
            "cqes": int(pod["cqes"]) + int(pod["receive_cqes"]),
            "errors": int(pod["errors"]) + int(pod["receive_errors"]),
            "flushed": int(pod["flushed"]) + int(pod["receive_flushed"]),
            "xmit_payload": int(pod["sent_bytes"]),
            "rcv_payload": int(pod["fetched_bytes"]),
            "rnr_naks_received": self._refusals(self._cta.queue_pairs[qpn].remote),
        }
        return found

    def _refusals(self, remote: tuple[int, int] | None) -> int:
        """How often a peer was not ready."""
        device = None if remote is None else self._engine.devices[remote[0]]
        known = device is not None and remote is not None and remote[1] in device.queue_pairs
        return int(device.pod(remote[1])["not_ready"]) if known and device is not None and remote is not None else 0

    # ---- doorbells
    def ring(self, doorbell: int, value: int) -> None:
        self.world._require_idle()
        self._cta.registers[(doorbell - int(self._cta.registers.ctypes.data)) // 8] = value

    def receive_posted(self, qpn: int) -> None:
        self.world._require_idle()
        if int(self._cta.pod(qpn)["state"]) == QPState.ERR:
            self._cta.attend[self._cta.queue_pairs[qpn].index] = 1

    # ---- what can be looked at
    def counters(self) -> dict[str, int]:
        found, counts = super().counters(), self._cta.counts()
        found |= {"doorbells": counts["doorbells"], "doorbells_no_progress": counts["ignored"]}
        found |= {"wqes": counts["send_wqes"], "atomics": counts["atomics"], "rnr_naks": counts["not_ready"]}
        for name in ("cqes", "errors", "flushed"):
            found[name] = counts[name] + counts[f"receive_{name}"]
        return found
