"""Queues created by command (DevX): rings, completions and records where the caller wants them; collapsed CQs, too.

Leans on provider, devx_commands and devx_memory. PDs and memory regions stay those of verbs; queue pairs, CQs, umems
and the UAR page are libmlx5's devx objects. What the kernel does for a queue pair of verbs is done here: the peer's
Ethernet address, the UDP source port, the port of a bond. Posting, polling and device handles are as everywhere.

Not here: shared receive queues, and what has no field in a queue pair's context (sq_sig_all, which libmlx5 does in
software).
"""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rdmakit.device import AsyncEvent, Refused
from rdmakit.device.provider import CqQueue, QpQueues, QpRequest
from rdmakit.device.qp_attributes import QPState
from rdmakit.errors import BadArgument
from rdmakit.layout import CQE_INITIAL_OP_OWN, DS_BYTES, SEND_WQE_BB
from rdmakit.layout.prm_commands import (
    CREATE_OUT,
    GENERAL_CAPABILITIES,
    QUERY_CAPABILITIES_IN,
    QUERY_CQ_OUT,
    QUERY_IN,
    QUERY_LAG_IN,
    QUERY_LAG_OUT,
    QUERY_QP_OUT,
    CommandOp,
)
from rdmakit.verbs import devx_commands
from rdmakit.verbs._verbs import Context, DevxObject, DirectCq, DirectQp, Uar, devx_command, event_queue_number
from rdmakit.verbs.devx_direct import DirectQueues
from rdmakit.verbs.devx_events import DevxEvents
from rdmakit.verbs.devx_memory import Placed, QueuePlacement
from rdmakit.verbs.mlx5_queues import arm
from rdmakit.verbs.ports import flow_label_sport
from rdmakit.verbs.provider import ETHERNET_HAS_NONE, NO_MIGRATION, VerbsHca
from rdmakit.verbs.refusals import refused

__all__ = ["DevxHca"]

_CURRENT_GENERAL = 1  # op_mod of QUERY_HCA_CAP
_QUEUE_AFFINITY = 0  # lagc.port_select_mode: MLX5_LAG_PORT_SELECT_MODE_QUEUE_AFFINITY
_OK = 0  # cqc.status
_LOOK_S = 0.05  # a command takes microseconds of the firmware's: an empty poll asks for a CQ's state no more often


class DevxHca(VerbsHca):
    """Provider over an mlx5 device that takes commands: `context` was opened with `devx`.

    `uar` is the page of its doorbells, `placement` where its queues lie, `capabilities` what the device says of itself.
    """

    queues = "devx"

    def __init__(
        self, context: Context, spec: str, gid_index: int | None = None, root: Path | None = None, *,
        placement: QueuePlacement | None = None,
    ) -> None:  # fmt: skip
        self.placement = placement or QueuePlacement()
        super().__init__(context, spec, gid_index, root)
        self.device = replace(self.device, where=f"devx queues in {self.placement}")
        self.uar = _doorbell_page(context)
        self._eqn = int(event_queue_number(context))
        self._events = DevxEvents(context)
        asked = QUERY_CAPABILITIES_IN.pack({"opcode": CommandOp.QUERY_HCA_CAP, "op_mod": _CURRENT_GENERAL})
        answer = devx_command(context, asked, GENERAL_CAPABILITIES.nbytes)
        self.capabilities = GENERAL_CAPABILITIES.unpack(answer)
        self._pd_numbers: dict[int, int] = {}
        self._made: dict[tuple[str, int], tuple[DevxObject, Placed]] = {}
        self._pd_of: dict[int, int] = {}
        self._direct = DirectQueues()
        self._looked: dict[int, tuple[float, bool]] = {}
        self._next_lag_port = 1

    def close(self) -> None:
        if self._reach is not None:
            self._reach.close()  # before its page goes
        self._events.close()
        self.uar.close()
        super().close()

    def _number_of(self, pd: int) -> int:
        if pd not in self._pd_numbers:
            self._pd_numbers[pd] = int(self._pds[pd].number)
        return self._pd_numbers[pd]

    def dealloc_pd(self, pd: int) -> None:
        super().dealloc_pd(pd)
        self._pd_numbers.pop(pd, None)

    # ---- queues
    def _create(self, kind: str, command: bytes, placed: Placed, holds: tuple[Any, ...]) -> int:
        try:
            made = DevxObject(self._context, command, CREATE_OUT.nbytes, (*placed.umems, self.uar, *holds))
        except Exception:
            placed.close()
            raise
        number = CREATE_OUT.get(made.answer, "number")
        self._made[kind, number] = made, placed
        self._events.watch(made, number, kind == "cq")
        return number

    def _within(self, capability: str, asked: int, what: str) -> None:
        most = self.capabilities[capability]
        if asked > most:
            said = f"{1 << asked} {what}: the device has {1 << most} at most ({capability} {most})"
            raise Refused(errno.EINVAL, said, "ask for fewer")

    def _destroy(self, kind: str, number: int) -> None:
        made, placed = self._made[kind, number]
        made.close()
        placed.close()
        del self._made[kind, number]

    def create_cq(self, log_entries: int, cqe_bytes: int, collapsed: bool, overrun_ignore: bool, label: str) -> CqQueue:
        self._within("log_max_cq_sz", log_entries, "entries")
        where = self.placement
        ring = np.zeros(cqe_bytes << log_entries, np.uint8)
        ring[cqe_bytes - 1 :: cqe_bytes] = CQE_INITIAL_OP_OWN
        placed = Placed(
            self._context, where.completions or where.rings, where.records, ring.nbytes, f"completions of {label}", ring
        )
        command = devx_commands.create_cq(
            log_entries, cqe_bytes, collapsed, overrun_ignore, ring=placed.ring_umem, record=placed.record_umem,
            record_offset=placed.record_offset, uar=int(self.uar.page_id), eqn=self._eqn,
        )  # fmt: skip
        queue = CqQueue(self._create("cq", command, placed, ()), placed.ring, placed.dbrec)
        return self._direct.note_cq(queue, cqe_bytes, collapsed)

    def destroy_cq(self, cqn: int) -> None:
        self._destroy("cq", cqn)
        self._direct.forget_cq(cqn)
        self._looked.pop(cqn, None)
        self._events.forget(cqn)

    def cq_is_dead(self, cqn: int) -> bool:
        """QUERY_CQ: cqc.status says whether it has overrun."""
        at, dead = self._looked.get(cqn, (0.0, False))
        now = time.monotonic()
        if not dead and now - at > _LOOK_S:
            asked = QUERY_IN.pack({"opcode": CommandOp.QUERY_CQ, "number": cqn})
            answer = self._made["cq", cqn][0].query(asked, QUERY_CQ_OUT.nbytes)
            dead = QUERY_CQ_OUT.get(answer, "cqc.status") != _OK
            self._looked[cqn] = now, dead
        return dead

    def arm_cq(self, cqn: int, solicited_only: bool) -> None:
        made, placed = self._made["cq", cqn]
        arm(self._context, placed.dbrec, int(self.uar.base), cqn, self._events.armed(made, cqn), solicited_only)

    def take_events(self) -> list[AsyncEvent]:
        return super().take_events() + self._events.take()

    def create_qp(self, request: QpRequest) -> QpQueues:
        if request.doorbell not in (None, "register", "dbrec"):
            raise BadArgument("no such doorbell mode of this device", value=request.doorbell, rule="register",
                              remedy="leave it out: who has the last word is the hardware's affair")  # fmt: skip
        for asked, name in ((request.sq_sig_all, "sq_sig_all"), (request.out_of_order, "out_of_order")):
            if asked:
                why = f"{name} has no field in the context of a queue pair that a command makes"
                raise Refused(errno.EOPNOTSUPP, why, "leave it out, or open the device with queues=mlx5")
        self._within("log_max_qp_sz", request.log_sq_wqebbs, "basic blocks")
        stride = max(DS_BYTES, 1 << (request.max_recv_sge * DS_BYTES - 1).bit_length()) if request.max_recv_sge else 0
        # A receive ring is as long as a basic block at least: the send ring begins behind it (providers/mlx5/verbs.c).
        log_rq = max(request.log_rq_wqes, (SEND_WQE_BB // stride - 1).bit_length()) if stride else 0
        rq_bytes = stride << log_rq
        nbytes = rq_bytes + (SEND_WQE_BB << request.log_sq_wqebbs)
        where = self.placement
        placed = Placed(self._context, where.rings, where.records, nbytes, f"rings of {request.label or 'a QP'}")
        command = devx_commands.create_qp(
            request, log_rq, stride, pd=self._number_of(request.pd), rings=placed.ring_umem, record=placed.record_umem,
            record_offset=placed.record_offset, uar=int(self.uar.page_id),
        )  # fmt: skip
        cqs = tuple(self._made["cq", cqn][0] for cqn in {request.send_cqn, request.recv_cqn})
        qpn = self._create("qp", command, placed, (self._pds[request.pd], *cqs))
        self._pd_of[qpn] = request.pd
        rq = placed.ring[:rq_bytes] if stride else None
        queues = QpQueues(qpn, placed.ring[rq_bytes:], rq, stride, placed.dbrec, int(self.uar.doorbell))
        return self._direct.note_qp(request, queues)

    def batches(self, qpn: int, cqn: int) -> tuple[DirectQp, DirectCq]:
        del cqn  # that of its sends
        return self._direct.of(qpn, self._made)

    def destroy_qp(self, qpn: int) -> None:
        self._destroy("qp", qpn)
        self._direct.forget_qp(qpn)
        for known in (self._pd_of, self._qp_ports):
            known.pop(qpn, None)

    def receive_posted(self, qpn: int) -> None:
        """Hardware looks at the record by itself."""

    def ring(self, doorbell: int, value: int) -> None:
        self._context.ring(doorbell, value)

    # ---- QP attributes
    def _query(self, qpn: int) -> bytes:
        asked = QUERY_IN.pack({"opcode": CommandOp.QUERY_QP, "number": qpn})
        return bytes(self._made["qp", qpn][0].query(asked, QUERY_QP_OUT.nbytes))

    def modify_qp(self, qpn: int, attributes: dict[str, Any], mask: int) -> None:
        before, values = devx_commands.device_state(self._query(qpn)), dict(attributes)
        port = int(values.get("port_num", self._qp_ports.get(qpn, 1)))
        if not 1 <= port <= len(self.device.ports):
            raise Refused(errno.EINVAL, f"no port {port}: {self.device.name} has {len(self.device.ports)}")
        options: dict[str, Any] = {"rates": self.capabilities["stat_rate_support"]}
        self._check_migration(values)
        if before is QPState.INIT and values.get("qp_state") == QPState.RTR:
            values.setdefault("ah_port_num", port)
            values.setdefault("sgid_index", self._gid_index.get(port, 0))
            values.setdefault("traffic_class", self.traffic_class)
            self._check_path_bits(port, values)
            if "dgid" in values and self._is_ethernet(port):
                pd = self._pds[self._pd_of[qpn]]
                options["mac"] = pd.resolve(bytes(values["dgid"]), port, int(values["sgid_index"]))
                label = int(values.get("flow_label", 0))
                options["sport"] = flow_label_sport(label, qpn, int(values.get("dest_qp_num", 0)))
        elif before is QPState.RESET and values.get("qp_state") == QPState.INIT:
            options["lag_port"] = self._assign_lag_port()
        command = devx_commands.change_state(qpn, before, values, **options)
        self._made["qp", qpn][0].modify(command)
        if values.get("qp_state") == QPState.RESET:
            self._direct.reset_qp(qpn)
        if "port_num" in values:
            self._qp_ports[qpn] = port

    def _check_migration(self, values: dict[str, Any]) -> None:
        """An alternate path's GID index unless named; Refused where kernels refuse it, or firmware has no APM."""
        if "alt_ah_attr" in values:
            port = int(values["alt_port_num"])
            if not 1 <= port <= len(self.device.ports):
                raise Refused(errno.EINVAL, f"no port {port}: {self.device.name} has {len(self.device.ports)}")
            if self._is_ethernet(port):
                raise Refused(errno.EINVAL, f"alt_port_num {port}: {ETHERNET_HAS_NONE}", NO_MIGRATION)
            values["alt_ah_attr"] = {"sgid_index": self._gid_index.get(port, 0), **values["alt_ah_attr"]}
        if ("alt_ah_attr" in values or values.get("path_mig_state")) and not self.capabilities["apm"]:
            raise Refused(errno.EOPNOTSUPP, f"{self.device.name} migrates no paths (apm 0)", NO_MIGRATION)

    def query_qp(self, qpn: int) -> dict[str, Any]:
        """QUERY_QP by the names of ibv_query_qp, and `state`, `udp_source_port`, `physical_port` (0: down)."""
        found = devx_commands.attributes_of(self._query(qpn))
        port = int(found["port_num"]) or 1
        found.update(state=found["qp_state"], physical_port=port if self.port_up(port) else 0)
        return found

    def modify_qp_udp_sport(self, qpn: int, port: int) -> None:
        if not 0 <= port <= 0xFFFF:
            raise BadArgument("no UDP port", value=port, rule="0xC000 … 0xFFFF", remedy="16 bits, of the dynamic range")
        if not self.capabilities["rts2rts_udp_sport"]:
            raise refused("mlx5dv_modify_qp_udp_sport", errno.EOPNOTSUPP, qpn=hex(qpn), port=hex(port))
        self._made["qp", qpn][0].modify(devx_commands.steer(qpn, sport=port))

    # ---- bonds
    def _lag(self) -> dict[str, int]:
        answer = devx_command(
            self._context, QUERY_LAG_IN.pack({"opcode": CommandOp.QUERY_LAG}), QUERY_LAG_OUT.nbytes
        )
        return {name.partition(".")[2]: value for name, value in QUERY_LAG_OUT.unpack(answer).items()}

    def _assign_lag_port(self) -> int:
        """Ports of a bond in turn, as the kernel gives them to queue pairs of verbs (get_tx_affinity); 0: the hash."""
        ports = self.capabilities["num_lag_ports"]
        if not self.capabilities["lag_tx_port_affinity"] or ports < 2:
            return 0
        lag = self._lag()
        if not lag["lag_state"] or lag["port_select_mode"] != _QUEUE_AFFINITY:
            return 0
        port, self._next_lag_port = self._next_lag_port, self._next_lag_port % ports + 1
        return port

    def query_qp_lag_port(self, qpn: int) -> tuple[int, int]:
        """As mlx5dv_query_qp_lag_port: (configured, active); EOPNOTSUPP for a queue pair that the hash distributes."""
        configured = int(devx_commands.attributes_of(self._query(qpn))["lag_port"])
        if configured not in (1, 2):
            raise refused("mlx5dv_query_qp_lag_port", errno.EOPNOTSUPP, qpn=hex(qpn))
        return configured, self._lag()[f"tx_remap_affinity_{configured}"]

    def modify_qp_lag_port(self, qpn: int, port: int) -> None:
        if not 1 <= port <= 0xFF:
            raise BadArgument("no port", value=port, rule="ports count from 1", remedy="1 or 2")
        self.query_qp_lag_port(qpn)  # refuses where libmlx5 does
        if port > self.capabilities["num_lag_ports"]:
            raise Refused(errno.EINVAL, f"no port {port}: the bond has {self.capabilities['num_lag_ports']}", "1 or 2")
        self._made["qp", qpn][0].modify(devx_commands.steer(qpn, lag_port=port))


def _doorbell_page(context: Context) -> Uar:
    """Not cached where the kernel gives one: 8-byte stores are all that kernels ring with. Else one with BlueFlame."""
    try:
        return Uar(context)
    except Refused:
        return Uar(context, blue_flame=True)
