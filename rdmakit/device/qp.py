"""Queue pairs: the state machine, connecting, and the handle that kernels post with.

Leans on verbs, atomics, qp_attributes and handle. Source of the names: `man ibv_modify_qp`, `man
mlx5dv_modify_qp_lag_port`, `man mlx5dv_modify_qp_udp_sport`.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device.access import ALL_ACCESS, AccessLike
from rdmakit.device.atomics import Atomics
from rdmakit.device.endpoint import Endpoint
from rdmakit.device.handle import DIALECTS, LAYOUT_VERSION, QP_HANDLE, DeviceHandle, fields_of
from rdmakit.device.lifetime import error_of, typed_refusal
from rdmakit.device.notebook import drawing
from rdmakit.device.provider import QpRequest, Refused
from rdmakit.device.qp_attributes import (
    CONNECT_DEFAULTS,
    ROUTE,
    QPState,
    attribute_mask,
    check_connect,
    plain_attributes,
    state_of,
    transition,
)
from rdmakit.device.queues import ReceiveQueue, SendQueue
from rdmakit.device.report import REPORT, Report
from rdmakit.errors import BadArgument, BadState, ForeignObject
from rdmakit.layout import SEND_WQE_BB, Decoded, decode, ring_view

if TYPE_CHECKING:
    from rdmakit.device.cq import CQ
    from rdmakit.device.pd import PD

__all__ = ["QP"]

Ring = np.ndarray[Any, np.dtype[np.void]]


def _log2(value: int, most: int, what: str) -> int:
    if not isinstance(value, (int, np.integer)) or not 1 <= value <= 1 << most:
        raise BadArgument(f"{what} of impossible size", value=value, rule=f"1 … {1 << most}",
                          remedy="choose as many as may be under way at once")
    return (int(value) - 1).bit_length()


class QP(Atomics):
    """A reliable connected queue pair, made by `PD.create_qp`.

    `connect` brings it to RTS; `post_*` write WQEs and ring; `device_handle` lets kernels do so. `posted` and
    `completed` count basic blocks since the last RESET, whoever posted them. `out_of_order`: as it was created.
    """

    _kind = "QP"

    def __init__(
        self,
        pd: PD,
        send_cq: CQ,
        recv_cq: CQ | None,
        *,
        sq_wqebbs: int,
        rq_wqes: int,
        max_recv_sge: int,
        max_inline: int,
        sq_sig_all: bool,
        scatter_to_cqe: bool,
        doorbell: str | None,
        name: str | None,
        out_of_order: bool = False,
    ) -> None:
        recv_cq = send_cq if recv_cq is None else recv_cq
        for role, cq in (("send_cq", send_cq), ("recv_cq", recv_cq)):
            cq._require_open()
            if cq.context is not pd.context:
                raise ForeignObject(
                    f"{role} is of another context",
                    value=repr(cq),
                    rule=f"a QP, its PD and its CQs are of one opened device, here {pd.context!r}",
                    remedy="open the device once, and make the PD and the CQ from that context",
                )
            if cq._driver is not None:
                raise BadState(
                    f"{cq._name()} belongs to the kernels of another queue pair",
                    rule="kernels take every CQE of a CQ that was handed to them for one of their own",
                    remedy="create a CQ for this queue pair",
                )
        self.pd, self.send_cq, self.recv_cq = pd, send_cq, recv_cq
        self.context = pd.context
        self.max_inline = max_inline
        self.out_of_order = out_of_order
        for what, value in (("max_recv_sge", max_recv_sge), ("max_inline", max_inline)):
            if not isinstance(value, (int, np.integer)) or not 0 <= value < 1 << 16:
                raise BadArgument(f"{what} is no number of them", value=value, rule="0 … 65535, or as the device says",
                                  remedy=f"leave {what} out")  # fmt: skip
        provider = self.context._provider
        request = QpRequest(
            pd=pd.handle,
            send_cqn=send_cq.cqn,
            recv_cqn=recv_cq.cqn,
            log_sq_wqebbs=_log2(sq_wqebbs, 15, "send queue"),
            log_rq_wqes=_log2(rq_wqes, 15, "receive queue") if rq_wqes else 0,
            max_recv_sge=max_recv_sge if rq_wqes else 0,
            max_inline=max_inline,
            sq_sig_all=sq_sig_all,
            scatter_to_cqe=scatter_to_cqe,
            doorbell=doorbell,
            label=name or "",
            out_of_order=out_of_order,
        )
        with typed_refusal("creating a QP", sq_wqebbs=sq_wqebbs, rq_wqes=rq_wqes):
            queues = provider.create_qp(request)
        self.qpn = queues.qpn
        self.name = name or f"QP {self.qpn:#x}"
        self._queues = queues
        self._sends = SendQueue(queues, provider, self._name())
        self._receives = ReceiveQueue(queues, provider, self._name())
        self._state = QPState.RESET
        self._history = [QPState.RESET]
        self._lock = threading.RLock()
        self._batches = 0
        self._told_by = send_cq  # the CQ whose last CQE a report tells
        self._port = 1
        self.psn = 0
        # The device reads the rings until the QP is destroyed: what destroys it keeps the memory.
        super().__init__(lambda: provider.destroy_qp(queues.qpn), pd, send_cq, recv_cq)
        self.context._queue_pairs[self.qpn] = self

    # ---- state
    @property
    def state(self) -> QPState:
        """What the device says now: an error completion puts a QP into ERR by itself."""
        if not self.closed:
            self._note(QPState(self._now()[0]))
        return self._state

    def _now(self) -> tuple[int, int]:
        self._require_open()
        with typed_refusal("querying the QP", qpn=hex(self.qpn)):
            return self.context._provider.qp_now(self.qpn)

    def _note(self, state: QPState) -> None:
        if state is not self._state:
            self._history.append(state)
            self._state = state

    def query(self) -> dict[str, Any]:
        """Everything the device knows of it (ibv_query_qp and the device's own counters), by the names of `modify`.

        Of an alternate path real devices tell (`alt_ah_attr` is a dict); emulated ones take none.
        """
        self._require_open()
        with typed_refusal("querying the QP", qpn=hex(self.qpn)):
            return self.context._provider.query_qp(self.qpn)

    def modify(self, state: str | int, **attributes: Any) -> QP:
        """ibv_modify_qp: go to `state` with these attributes (names of struct ibv_qp_attr); returns itself.

        Address vector: `dgid` (IPv6 notation), `dlid`, `flow_label`, `sgid_index`, `hop_limit` (of RoCE, kernels take
        the route's), `traffic_class` (8 bits: 4 × DSCP), `sl`, `static_rate` (a `StaticRate`, its name or number:
        "100_GBPS"), `src_path_bits`, `is_global` (by default whether there is a `dgid`). Alternate path: `alt_ah_attr`
        (a dict of the same names, with `port_num`), `alt_port_num`, `alt_pkey_index`, `alt_timeout`, all or none;
        `path_mig_state` (a `MigrationState`, its name or number). Access by names, MTU in bytes.
        BadState for a transition that does not exist, BadArgument for missing or wrong attributes, NotAvailable for
        what the device has not (EOPNOTSUPP).
        """
        self._require_open()
        target = state_of(state)
        plain = {**plain_attributes(attributes), "qp_state": int(target)}
        mask = attribute_mask(attributes)
        if target is QPState.RESET:
            for cq in {self.send_cq, self.recv_cq}:
                cq._discard(self.qpn)
        try:
            self.context._provider.modify_qp(self.qpn, plain, mask)
        except Refused as refused:
            before = self.state  # which a refusal leaves
            allowed, possible = transition(before, target)
            kind = error_of(refused.code) if allowed else BadState
            what = "attributes of that transition are wrong" if allowed else "there is no such transition"
            raise kind(
                f"{self._name()} cannot go from {before.name} to {target.name}",
                rule=refused.message or what,
                remedy=(refused.remedy or "see man ibv_modify_qp") if allowed
                else f"from {before.name} it can go to {possible}",
                **{"qpn": hex(self.qpn), **refused.facts},
            ) from None
        self._note(target)
        if "port_num" in attributes:
            self._port = int(attributes["port_num"])
        if target is QPState.RESET:
            self._sends.reset()
            self._receives.reset()
            self._history = [QPState.RESET]
        return self

    def endpoint(self, port: int | None = None) -> Endpoint:
        """What the peer must know to connect to it; `port` defaults to the one it uses (1 before INIT)."""
        self._require_open()
        info = self.context.ib_port(self._port if port is None else port)
        return Endpoint(qpn=self.qpn, gid=info.gid, lid=info.lid, port=info.ib_port, psn=self.psn, mtu=info.mtu)

    def connect(
        self,
        remote: Any,
        *,
        port: int = 1,
        access: AccessLike = ALL_ACCESS,
        mtu: int | None = None,
        **attributes: Any,
    ) -> QP:
        """RESET → INIT → RTR → RTS towards `remote` (an Endpoint, its JSON or dict, or the peer QP); returns
        itself.

        `access`: what the peer may do. `mtu`: bytes, by default the smaller of both ends'. `CONNECT_DEFAULTS` are
        overridden by name (`rnr_retry=3`), and so is the way (`flow_label=…`, `traffic_class=…`, others of the address
        vector). The peer connects to us likewise.
        """
        self._require_open()
        peer, own = Endpoint.of(remote), self.context.ib_port(port)
        check_connect(attributes)  # before anything changes
        if self.state is not QPState.RESET:
            raise BadState(
                f"{self._name()} is in {self.state.name}",
                value=self.state.name,
                rule="connect starts from RESET",
                remedy="qp.modify('RESET') first",
            )
        values = {**CONNECT_DEFAULTS, **attributes}
        address: dict[str, Any] = {"dlid": peer.lid} if own.link_layer == "InfiniBand" else {"dgid": peer.gid}
        address.update({name: values[name] for name in ROUTE if name in values})
        self.modify("INIT", pkey_index=values["pkey_index"], port_num=port, qp_access_flags=access)
        self.modify(
            "RTR",
            path_mtu=mtu or min(own.mtu, peer.mtu),
            dest_qp_num=peer.qpn,
            rq_psn=values.get("rq_psn", peer.psn),
            max_dest_rd_atomic=values["max_dest_rd_atomic"],
            min_rnr_timer=values["min_rnr_timer"],
            **address,
        )
        timers = {name: values[name] for name in ("timeout", "retry_cnt", "rnr_retry", "max_rd_atomic")}
        return self.modify("RTS", sq_psn=values.get("sq_psn", self.psn), **timers)

    # ---- ports
    @property
    def udp_sport(self) -> int:
        """UDP source port of its RoCE packets, at which ECMP and a LAG hash look. Settable in RTS."""
        return int(self.query()["udp_source_port"])

    @udp_sport.setter
    def udp_sport(self, port: int) -> None:
        self._require_open()
        with typed_refusal("setting the UDP source port", remedy="0xC000 … 0xFFFF, in RTS", port=hex(port)):
            self.context._provider.modify_qp_udp_sport(self.qpn, port)

    @property
    def lag_port(self) -> tuple[int, int]:
        """(configured, active) port of a bonded device (mlx5dv_query_qp_lag_port). Set one number."""
        self._require_open()
        with typed_refusal("querying the LAG port", remedy='open the device with lag="affinity"'):
            return self.context._provider.query_qp_lag_port(self.qpn)

    @lag_port.setter
    def lag_port(self, port: int) -> None:
        self._require_open()
        with typed_refusal("setting the LAG port", remedy='open the device with lag="affinity"', port=port):
            self.context._provider.modify_qp_lag_port(self.qpn, port)

    @property
    def physical_port(self) -> int:
        """The port where its packets leave now; 0 when every one is down."""
        return self._now()[1]

    # ---- rings
    @property
    def posted(self) -> int:
        """Index of the next send basic block."""
        return self._sends.posted

    @property
    def completed(self) -> int:
        """Send basic blocks below this index are known to be complete."""
        return self._sends.completed

    @property
    def receives_posted(self) -> int:
        """Receive WQEs posted since the last RESET."""
        return self._receives.posted

    @property
    def receives_completed(self) -> int:
        """Receive WQEs whose completion has been polled."""
        return self._receives.completed

    def sq_view(self) -> Ring:
        """The send ring, not a copy: one `layout.WQEBB` a basic block."""
        return ring_view(self._sends.ring, "sq")

    def rq_view(self) -> Ring:
        """The receive ring, not a copy: one `layout.DATA` each 16 bytes."""
        return ring_view(self._receives.ring, "rq")

    def dbrec_view(self) -> Ring:
        """The doorbell record, not a copy: `rcv` and `snd`."""
        return ring_view(self._queues.dbrec, "qp_dbrec")

    def wqe(self, index: int) -> Decoded:
        """The WQE that starts at basic block `index`, decoded, as it stands in the ring now."""
        return decode(self._sends.wqe_at(index), "wqe")

    def _why_outstanding(self) -> str:
        counters = self.query().get("counters", {})
        if int(self._sends.state["rung"]) != self.posted:
            return ", not all of them rung"
        if counters.get("rnr_naks_received"):
            return "; its peer has no receive posted (RNR)"
        if counters.get("retries"):
            return "; its peer does not answer: not in RTR, or a port is down"
        return ""

    # ---- kernels
    def device_handle(
        self,
        *,
        peer: int = 0,
        channel: int = 0,
        rank: int = 0,
        batch: int = 0,
        dialect: str = "next_index",
        timeout_ns: int = 0,
        report: Report | None = None,
    ) -> DeviceHandle:
        """The handle that kernels of GPU `rank` post with; by value as a kernel argument, or through
        `.array`.

        `peer` and `channel` only name it in reports. `batch`: basic blocks that may wait for a later
        doorbell. `timeout_ns`: bound of every wait, 0 for the default. `report`: share one among the handles
        of a launch, so that all leave when one gives up. BadState when the send CQ serves another queue as
        well: kernels attribute every CQE to this QP; and when it is shorter than the send ring: kernels look at
        it when the ring is full, and by then it may have overflown. Addresses are those of the kernels: a GPU's,
        where `rdmakit.gpu.reach` has been asked for it; NotAvailable then when CUDA maps no doorbell.
        """
        self._require_open()
        if dialect not in DIALECTS:
            raise BadArgument("no such doorbell dialect", value=dialect, rule="one of " + ", ".join(DIALECTS),
                              remedy="leave it out for the device's own")
        others = [user for user in reversed(self.send_cq._users()) if isinstance(user, QP) and user is not self]
        if others or (self._receives.size and self.recv_cq is self.send_cq):
            raise BadState(
                f"{self.send_cq._name()} serves more than the send queue of {self._name()}",
                rule="kernels take every CQE of that CQ for one of this QP's sends",
                remedy="create the QP with a send CQ of its own",
                others=", ".join(qp._name() for qp in others) or "its receive queue",
            )
        if self.send_cq.entries < self._sends.size and not self.send_cq.collapsed:
            raise BadState(
                f"{self.send_cq._name()} is shorter than the send ring of {self._name()}",
                value=self.send_cq.entries,
                rule=f"{self._sends.size} entries, one for each basic block: kernels poll when the ring is full",
                remedy=f"create_cq({self._sends.size}), or a smaller sq_wqebbs",
            )
        provider = self.context._provider
        if report is None:
            report = Report(provider.memory(REPORT.itemsize, f"report of {self._name()}"))
        register = provider.register_for_kernels(self._queues.doorbell)
        if self.send_cq._driver is None:
            self.send_cq._hand_over(self._sends.state)
        sink_address, sink_lkey = self.pd._atomics_sink()
        array = provider.memory(QP_HANDLE.itemsize, f"handle of {self._name()}").view(QP_HANDLE)
        array[0] = fields_of(
            QP_HANDLE,
            layout_version=LAYOUT_VERSION,
            qpn=self.qpn,
            sq=provider.for_kernels(self._sends.ring),
            dbrec=provider.for_kernels(self._queues.dbrec) + 4,  # the send word
            doorbell=register,
            state=provider.for_kernels(self._sends.state_memory),
            sink_address=sink_address,
            sink_lkey=sink_lkey,
            log_sq=self._sends.size.bit_length() - 1,
            dialect=DIALECTS[dialect],
            batch=batch,
            peer=peer,
            channel=channel,
            same_gpu=provider.hca_is_of_the_gpu(),
            cq=self.send_cq._handle_fields(),
            watch=(report.address, timeout_ns, rank),
        )
        report.follow(self)
        return DeviceHandle(self, array, report)

    def _drop(self) -> None:
        if not self._closed and self.send_cq._driver is self._sends.state:
            self.send_cq._hand_over(None)
        super()._drop()

    # ---- shows itself
    def send_ring(self) -> Any:
        """The send ring as it stands now: which slots are free, written, posted (rung for). A `show.Figure`."""
        size, posted, completed = self._sends.size, self.posted, self.completed
        rung = int(self._sends.state["rung"])
        slots: list[Any] = ["free"] * size
        index = completed
        while index < posted:
            wqe = self.wqe(index)
            state = "posted" if index < rung else "written"
            for block in range(index, min(index + max(1, len(wqe.raw) // SEND_WQE_BB), posted)):
                slots[block % size] = (state, getattr(wqe, "opcode_name", "") if block == index else "…")
                index = block + 1
        indices = {"posted": posted, "rung": rung, "completed": completed}
        return import_module("rdmakit.show").queue_ring(slots, indices, name=f"SQ of {self._name()}")

    def _name(self) -> str:
        return f"QP {self.qpn:#x}"

    def __repr__(self) -> str:
        if self.closed:
            return f"<QP {self.qpn:#x} of {self.context.device.name}: closed>"
        rings = f"SQ {self.posted - self.completed} of {self._sends.size} WQEBBs in use"
        if self._receives.size:
            rings += f", RQ {self._receives.posted - self._receives.completed} of {self._receives.size} posted"
        return f"<QP {self.qpn:#x} of {self.context.device.name}: {self.state.name}, {rings}>"

    def _repr_html_(self) -> str:
        if self.closed:
            return drawing(lambda show: None, repr(self))
        current = self.state.name
        path = [state.name for state in self._history]
        title = repr(self)[1:-1]
        machine = drawing(lambda show: show.qp_states(current, history=path, title=title), repr(self))
        return machine + drawing(lambda show: self.send_ring(), "")
