"""The two ends of a sequence lock: queue pairs, rings, words that are added to, the state that outlives a launch.

Leans on device and signal.abi.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import CQ, LAYOUT_VERSION, PD, QP, REPORT, Report
from rdmakit.layout import Access
from rdmakit.signal.abi import LOCK_STATE
from rdmakit.signal.reference import fingerprint
from rdmakit.signal.strategies import LINE_BYTES, Strategy

__all__ = ["EPOCH_WORDS", "End", "ReceiverEnd", "SenderEnd", "join"]

# A word that is added to carries no fingerprint. An epoch has one of its own, so that what an older connection still
# adds lands where nobody looks.
EPOCH_WORDS = 8
_INVALID_LKEY = 0x100  # ends the scatter list of a receive WQE (rdma-core providers/mlx5/qp.c, mlx5_post_recv)
_WRITES = Access.LOCAL_WRITE | Access.REMOTE_WRITE
_ADDS = _WRITES | Access.REMOTE_ATOMIC


def join(near: QP, far: QP, port: int, peer_port: int, epoch: int) -> None:
    """Connect two queue pairs from whatever state, with packet sequence numbers of this epoch.

    Completions that the connection before has left are discarded: kernels would take them for their own.
    """
    for qp in (near, far):
        qp.modify("RESET")
        for cq in {qp.send_cq, qp.recv_cq}:
            cq.poll()
        qp.psn = fingerprint(qp.qpn, epoch, 0, 0) & 0xFFFFFF
    for qp, peer, here, there in ((near, far, port, peer_port), (far, near, peer_port, port)):
        lag = qp.context.device.lag
        ib_port, peer_ib = (here, there) if lag == "none" else (1, 1)
        qp.connect(peer.endpoint(peer_ib), port=ib_port)
        if lag == "affinity":
            qp.lag_port = here


class End:
    """What both ends have: a PD, a rank, a report, one queue pair (two with "split")."""

    def __init__(
        self,
        pd: PD,
        *,
        rank: int,
        peer: int,
        report: Report | None,
        strategy: Strategy,
        slots: int,
        slot_bytes: int,
        options: dict[str, Any],
    ) -> None:
        self.pd, self.rank, self.peer = pd, rank, peer
        self.strategy, self.slots, self.slot_bytes = strategy, slots, slot_bytes
        self.report = Report(self.memory(REPORT.itemsize, "report")) if report is None else report
        self.receive_cq: CQ | None = None
        blocks = max(64, 2 * slots)
        self.qps: list[QP] = []
        for _ in range(2 if strategy is Strategy.SPLIT else 1):
            send_cq, recv_cq = pd.context.create_cq(blocks), self._receives()
            wqes = self._receive_wqes()
            self.qps.append(pd.create_qp(send_cq, recv_cq, sq_wqebbs=blocks, rq_wqes=wqes, **options))

    def _receives(self) -> CQ | None:
        return None

    def _receive_wqes(self) -> int:
        return 0

    def memory(self, nbytes: int, what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Zeroed bytes that kernels and the device reach."""
        found: np.ndarray[Any, np.dtype[np.uint8]] = self.pd.context._provider.memory(
            nbytes, f"{what} of a sequence lock, rank {self.rank}"
        )
        return found

    def qp_handle(self, which: int, channel: int, timeout_ns: int) -> np.void:
        """The POD that kernels post with."""
        handle = self.qps[which].device_handle(
            peer=self.peer, channel=channel, rank=self.rank, report=self.report, timeout_ns=timeout_ns
        )
        assert handle["layout_version"] == LAYOUT_VERSION
        pod: np.void = handle.array[0]
        return pod


class SenderEnd(End):
    """Staging slots, words of credit, the next ticket."""

    def __init__(self, pd: PD, **common: Any) -> None:
        super().__init__(pd, **common)
        nbytes = self.slots * self.slot_bytes
        self.staging = pd.register(self.memory(nbytes, "staging"), "local_write", name="staging of a sequence lock")
        words = self.memory(EPOCH_WORDS * LINE_BYTES, "credit")
        self.credit = pd.register(words, _ADDS, name="credit of a sequence lock")
        self.next = self.memory(LINE_BYTES, "next ticket").view(np.uint64)

    def credit_word(self, epoch: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The word that credits of an epoch are added to."""
        return word_of(self.credit.bytes, epoch)

    def start(self, ticket: int, epoch: int) -> None:
        """Ready to send `ticket`, with credit for a whole window."""
        self.report.clear()
        self.next[0] = ticket
        self.credit_word(epoch)[0] = ticket


class ReceiverEnd(End):
    """Slots, flags and tails that the sender writes, and what has been signed off."""

    def __init__(self, pd: PD, *, relaxed: bool, **common: Any) -> None:
        super().__init__(pd, **common)
        order = Access.RELAXED_ORDERING if relaxed else Access.NONE
        nbytes = self.slots * self.slot_bytes
        self.ring = pd.register(self.memory(nbytes, "slots"), _WRITES | order, name="slots of a sequence lock")
        flags = -(-8 * self.slots // LINE_BYTES) * LINE_BYTES
        words = self.memory(flags + EPOCH_WORDS * LINE_BYTES, "flags and tails")
        self.signal = pd.register(words, _ADDS | order, name="flags and tails of a sequence lock")
        self._tails = flags
        self._state_memory = self.memory(LINE_BYTES, "state")[: LOCK_STATE.itemsize].view(LOCK_STATE)
        self.state: np.void = self._state_memory[0]
        if self.receive_cq is not None:
            self.receive_cq._hand_over(self.state)
            self.qps[0].rq_view()["lkey"] = _INVALID_LKEY

    def qp_handle(self, which: int, channel: int, timeout_ns: int) -> np.void:
        """The POD that credits are posted with; what a report tells of it is the CQ that transfers come by."""
        pod = super().qp_handle(which, channel, timeout_ns)
        if self.receive_cq is not None:
            fields: Any = LOCK_STATE.fields
            self.report.follow(self.qps[0], self.receive_cq, self.state_address + fields["consumer"][1])
        return pod

    def _receives(self) -> CQ | None:
        if self.strategy is Strategy.IMM:
            self.receive_cq = self.pd.context.create_cq(2 * self.slots)
        return self.receive_cq

    def _receive_wqes(self) -> int:
        return self.slots if self.strategy is Strategy.IMM else 0

    @property
    def state_address(self) -> int:
        """Of the `LockState`."""
        return int(self._state_memory.ctypes.data)

    @property
    def flags(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """A flag a slot."""
        found: np.ndarray[Any, np.dtype[np.uint64]] = self.signal.bytes[: 8 * self.slots].view(np.uint64)
        return found

    def tail(self, epoch: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The word that an epoch's signals are added to."""
        return word_of(self.signal.bytes[self._tails :], epoch)

    def signal_address(self, epoch: int) -> int:
        """Where a sender's signals go: its epoch's tail, or the flags."""
        if self.strategy in (Strategy.WRITE, Strategy.CQE):
            return self.signal.address
        return self.signal.address + self._tails + LINE_BYTES * (epoch % EPOCH_WORDS)

    def never_used(self, ticket: int) -> None:
        """Flags and first stamps as the window before `ticket` would have left them: older, whatever `ticket` is."""
        older = np.arange(ticket - self.slots, ticket, dtype=np.int64)
        marks = older.astype(np.uint64) & np.uint64(0xFFFFFFFF)
        self.flags[older % self.slots] = marks
        lines = self.ring.bytes.view(np.uint64).reshape(self.slots, -1, LINE_BYTES // 8)
        lines[older % self.slots, :, -1] = marks[:, None]

    def start(self, epoch: int) -> None:
        """Ready for the first ticket that has not been signed off."""
        self.report.clear()
        ticket = int(self.state["signed_off"])
        self.state["credited"] = ticket
        self.tail(epoch)[0] = ticket & 0xFFFFFFFFFFFFFFFF
        if self.receive_cq is not None:
            self.state["receives"] = self.slots
            self.qps[0].dbrec_view()["rcv"] = self.slots & 0xFFFF


def word_of(words: np.ndarray[Any, np.dtype[np.uint8]], epoch: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The word of an epoch, uint64 of shape (1,), not a copy."""
    at = LINE_BYTES * (epoch % EPOCH_WORDS)
    found: np.ndarray[Any, np.dtype[np.uint64]] = words[at : at + 8].view(np.uint64)
    return found
