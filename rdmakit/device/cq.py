"""Completion queues: polling the ring that the device writes, and waiting until it has written enough.

Leans on lifetime, completion and layout. Source of the rules: rdma-core `providers/mlx5/cq.c`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device.completion import Completion, Completions, completion_from, parse_cqe
from rdmakit.device.handle import CQ_HANDLE, LAYOUT_VERSION, fields_of
from rdmakit.device.lifetime import Resource, typed_refusal
from rdmakit.device.notebook import drawing
from rdmakit.errors import BadArgument, DeviceFault, HangError
from rdmakit.layout import CQE_INITIAL_OP_OWN, SET_CI, CqeOpcode, ring_view

if TYPE_CHECKING:
    from rdmakit.device.context import Context

__all__ = ["CQ"]

_MAX_LOG = 22


class CQ(Resource):
    """A completion queue, made by `Context.create_cq`.

    `poll()` takes what is there, `wait(n)` lets the device work until `n` completions have come, `view()`
    shows the ring itself. A collapsed CQ has one live entry, which every completion overwrites.
    """

    _kind = "CQ"

    def __init__(
        self, context: Context, entries: int, *, collapsed: bool, cqe_bytes: int, overrun_ignore: bool
    ) -> None:
        if not isinstance(entries, (int, np.integer)) or not 1 <= entries <= 1 << _MAX_LOG:
            raise BadArgument("CQ of impossible size", value=entries, rule=f"1 … {1 << _MAX_LOG} entries",
                              remedy="as many entries as completions may wait to be polled")
        if cqe_bytes not in (64, 128):
            raise BadArgument("CQE of impossible size", value=cqe_bytes, rule="64 or 128 bytes",
                              remedy="leave cqe_bytes out for 64")
        self.context = context
        self.log_entries = (int(entries) - 1).bit_length()
        self.entries = 1 << self.log_entries
        self.cqe_bytes = cqe_bytes
        self.collapsed = collapsed
        self.overrun_ignore = overrun_ignore
        provider = context._provider
        with typed_refusal("creating a CQ", entries=self.entries):
            queue = provider.create_cq(self.log_entries, cqe_bytes, collapsed, overrun_ignore, "CQ")
        self.cqn, self._ring, self._dbrec = queue
        self._dbrec_words = self._dbrec.view(">u4")
        self._consumer = 0
        self._discarded: set[int] = set()  # entries of queue pairs that have been reset since
        self._last_collapsed = b""
        # The SqState of the QP whose kernels consume this CQ: it has the consumer index then
        # (`QP.device_handle`).
        self._driver: np.void | None = None
        # The device writes into the ring until the CQ is destroyed: what destroys it keeps the memory.
        super().__init__(lambda: provider.destroy_cq(queue.cqn), context)

    # ---- indices
    @property
    def consumer(self) -> int:
        """Completions taken since creation, by the host or by the kernels of the QP that drives this CQ."""
        return self._consumer if self._driver is None else int(self._driver["consumer"])

    def _advance(self, consumer: int) -> None:
        if self._driver is None:
            self._consumer = consumer
        else:
            self._driver["consumer"] = consumer
        self._dbrec_words[SET_CI] = consumer & 0xFFFFFF

    def _hand_over(self, state: np.void | None) -> None:
        """Let kernels that post with `state` consume this CQ from here on; None: the host again."""
        consumer = self.consumer
        self._driver = state
        if state is None:
            self._consumer = consumer
        else:
            state["consumer"] = consumer

    def _entry(self, consumer: int) -> bytes | None:
        """The bytes at a consumer index if the device has written them (owner bit, cq.c get_sw_cqe)."""
        begin = (consumer & (self.entries - 1)) * self.cqe_bytes
        end = begin + self.cqe_bytes
        op_own = int(self._ring[end - 1])
        if op_own >> 4 == CqeOpcode.INVALID or op_own & 1 != consumer >> self.log_entries & 1:
            return None
        self.context._provider.order()
        return self._ring[begin:end].tobytes()

    # ---- polling
    def poll(self, most: int | None = None) -> Completions:
        """Up to `most` completions (all that are there by default), oldest first; never waits.

        On an emulated device the world first runs until nothing moves. DeviceFault when the CQ has overrun
        and died; errors of work requests do not raise here, see `Completion.raise_for_status`.
        """
        self._require_open()
        self.context._provider.progress()
        found = self._take(most)
        if not found and self.context._provider.cq_is_dead(self.cqn):
            raise DeviceFault(
                f"{self._name()} has overrun and is dead",
                rule="a CQE came while all entries waited to be polled (IBV_EVENT_CQ_ERR)",
                remedy="give it an entry for each work request outstanding, or poll more often",
                entries=self.entries,
            )
        return found

    def _take(self, most: int | None) -> Completions:
        if self.collapsed:
            return self._take_collapsed()
        found = Completions()
        consumer = self.consumer
        while most is None or len(found) < most:
            raw = self._entry(consumer)
            if raw is None:
                break
            if consumer in self._discarded:
                self._discarded.discard(consumer)
            else:
                found.append(self._attribute(raw))
            consumer += 1
        if consumer != self.consumer:
            self._advance(consumer)
        return found

    def _take_collapsed(self) -> Completions:
        raw = self._ring[: self.cqe_bytes].tobytes()
        if raw[-1] >> 4 == CqeOpcode.INVALID or raw == self._last_collapsed:
            return Completions()
        self._last_collapsed = raw
        return Completions([self._attribute(raw)])

    def _attribute(self, raw: bytes) -> Completion:
        """Whose it is, which WQE; tells that queue that its slots are free."""
        opcode, qpn, counter, _ = parse_cqe(raw[-64:])
        qp = self.context._find_qp(qpn)
        if qp is None:
            return completion_from(raw, index=counter, is_receive=False)
        is_receive = opcode not in (CqeOpcode.REQ, CqeOpcode.REQ_ERR)
        queue = qp._receives if is_receive else qp._sends
        index, raw_wqe, wr_id = queue.done(counter)
        return completion_from(raw, index=index, is_receive=is_receive, qp=qp, raw_wqe=raw_wqe, wr_id=wr_id)

    def wait(self, count: int = 1, *, timeout: float = 10.0, check: bool = True) -> Completions:
        """Let the device work until `count` completions have come; returns them, at least `count`.

        `check` raises CompletionError of the first in error. HangError when fewer can ever come: at once
        where the backend knows that nothing moves any more, else after `timeout` seconds.
        """
        self._require_open()
        if self.collapsed and count > 1:
            raise BadArgument(
                "completions of a collapsed CQ cannot be counted",
                value=count,
                rule="every CQE overwrites entry 0",
                remedy="wait(1), or look at the wqe_index of what poll() returns",
            )
        found = Completions()
        deadline = time.monotonic() + timeout
        while True:
            moved = self.context._provider.progress()
            found += self._take(None)
            if check:
                found.raise_for_status()
            if len(found) >= count:
                return found
            if not moved or time.monotonic() > deadline:
                reasons = [*self.context._provider.outcome(), *self._outstanding()]
                raise HangError(
                    f"{self._name()} has {len(found)} of {count} completions, and no more will come",
                    rule="; ".join(reasons) or "nothing is posted that would complete here",
                    remedy="signal the WQE, ring the doorbell, post the receive, connect both sides",
                )

    def _outstanding(self) -> list[str]:
        said = []
        for qp in self.context._qps():
            pending = qp.posted - qp.completed
            if qp.send_cq is self and pending:
                why = qp._why_outstanding()
                said.append(f"{qp._name()} in {qp.state.name} has {pending} basic blocks outstanding{why}")
            if qp.recv_cq is self and qp.receives_posted > qp.receives_completed:
                waiting = qp.receives_posted - qp.receives_completed
                said.append(f"{qp._name()} in {qp.state.name} has {waiting} receives posted")
        return said

    def _discard(self, qpn: int) -> None:
        """Forget what a queue pair that is being reset still has here (cq.c, mlx5_cq_clean)."""
        consumer = self.consumer
        while not self.collapsed:
            raw = self._entry(consumer)
            if raw is None or consumer >= self.consumer + self.entries:
                return
            if parse_cqe(raw[-64:])[1] == qpn:
                self._discarded.add(consumer)
            consumer += 1

    # ---- events, memory, kernels
    def arm(self, *, solicited_only: bool = False) -> None:
        """Ask for one "completion" event (`Context.events`) at the next completion."""
        self._require_open()
        with typed_refusal("arming the CQ", cqn=self.cqn):
            self.context._provider.arm_cq(self.cqn, solicited_only)

    def view(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """The ring as the device writes it, not a copy: `layout.CQE64` (or `CQE128`) entries."""
        return ring_view(self._ring, "cq" if self.cqe_bytes == 64 else "cq128")

    def dbrec_view(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """The doorbell record, not a copy: `set_ci` and `arm`."""
        return ring_view(self._dbrec, "cq_dbrec")

    def device_handle(self) -> np.ndarray[Any, np.dtype[np.void]]:
        """A `CqHandle` for kernels, shape (), dtype `CQ_HANDLE`; it points at this CQ's memory."""
        self._require_open()
        return np.array(self._handle_fields(), CQ_HANDLE)

    def _handle_fields(self) -> tuple[Any, ...]:
        return fields_of(
            CQ_HANDLE,
            layout_version=LAYOUT_VERSION,
            cqn=self.cqn,
            entries=self.context._provider.for_kernels(self._ring),
            dbrec=self.context._provider.for_kernels(self._dbrec),
            log_entries=self.log_entries,
            log_stride=self.cqe_bytes.bit_length() - 1,
            collapsed=self.collapsed,
        )

    # ---- shows itself
    def _name(self) -> str:
        return f"CQ {self.cqn:#x}"

    def __repr__(self) -> str:
        form = "collapsed" if self.collapsed else f"{self.entries} entries of {self.cqe_bytes} B"
        state = ", closed" if self.closed else f", {self.consumer} taken"
        return f"<CQ {self.cqn:#x} of {self.context.device.name}: {form}{state}>"

    def _repr_html_(self) -> str:
        fresh = ring_view(self._ring, "cq" if self.cqe_bytes == 64 else "cq128")
        op_own = fresh["op_own"] if self.cqe_bytes == 64 else fresh["cqe"]["op_own"]
        consumer = self.consumer
        slots = []
        for slot, value in enumerate(op_own[:4096].tolist()):
            lap = (consumer + ((slot - consumer) & (self.entries - 1))) >> self.log_entries & 1
            ready = value >> 4 != CqeOpcode.INVALID and value & 1 == lap
            slots.append("ready" if ready else "free" if value == CQE_INITIAL_OP_OWN else "consumed")
        return drawing(
            lambda show: show.queue_ring(slots, {"consumer": consumer}, name=f"CQ {self.cqn:#x}"), repr(self)
        )
