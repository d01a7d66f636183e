"""`SequenceLock`: both ends of an in-QP sequence lock over two protection domains, and the handles that kernels take.

Leans on device, signal.abi, signal.ends and signal.story. The protocol is `cuda/rdmakit/lock.cuh`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import LAYOUT_VERSION, PD, DeviceStatus, Report
from rdmakit.errors import BadArgument
from rdmakit.signal.abi import FLAG_CRC, FLAG_NARROW_TAIL, LOCK_RECEIVER, LOCK_SENDER
from rdmakit.signal.ends import EPOCH_WORDS, ReceiverEnd, SenderEnd, join
from rdmakit.signal.story import Story
from rdmakit.signal.strategies import LINE_BYTES, Strategy, slot_message

__all__ = ["SequenceLock", "handles"]

Handle = np.ndarray[Any, np.dtype[np.void]]

_MAX_SLOTS = 1 << 14  # a window is far smaller than half of what 16 bits count
_MAX_PAYLOAD = 1 << 26


class SequenceLock:
    """A one-way channel of `slots` slots from `sender` to `receiver`, two PDs of connected devices.

    `strategy`: how the receiver learns that a transfer is there, "amo", "imm", "eager", "write", "cqe" or "split"
    (`signal.strategies` says in which modes each is right). `max_payload` in bytes. `crc`: fingerprints cover a
    checksum of the payload; with "eager" each line's, so that a torn line is told and waited for. `narrow_tail`:
    with "amo" a masked fetch-add of 4 bytes. `port`, `peer_port`: where the queue pairs leave. `first_ticket`:
    number of the first transfer. `credit_every`: transfers signed off for one message of credit, by default half
    of the slots. `relaxed_ordering`: register the receiver's slots and signals with IBV_ACCESS_RELAXED_ORDERING.
    `rank`, `peer_rank` and `channel` name the lock in reports; `sender_report` and `receiver_report` may be shared
    among the locks of a launch. `timeout_ns` bounds every wait, 0 for the default. Further `qp_options` go to
    `PD.create_qp`. BadArgument for values that make no lock.

    >>> import rdmakit
    >>> world = rdmakit.World(hosts=2)
    >>> lock = SequenceLock(world.open(0).alloc_pd(), world.open(1).alloc_pd(), strategy="imm", slots=8)
    >>> lock.in_flight, lock.signed_off, lock.receiver_handle()["slots"].item()
    (0, 0, 8)
    """

    def __init__(
        self,
        sender: PD,
        receiver: PD,
        *,
        strategy: str | int = "amo",
        slots: int = 64,
        max_payload: int = 4096,
        crc: bool = False,
        narrow_tail: bool = False,
        port: int = 1,
        peer_port: int | None = None,
        first_ticket: int = 0,
        credit_every: int | None = None,
        relaxed_ordering: bool = False,
        rank: int = 0,
        peer_rank: int = 1,
        channel: int = 0,
        sender_report: Report | None = None,
        receiver_report: Report | None = None,
        timeout_ns: int = 0,
        **qp_options: Any,
    ) -> None:
        self.strategy = Strategy.of(strategy)
        if not 1 <= slots <= _MAX_SLOTS or slots & (slots - 1):
            raise BadArgument(
                "window of impossible size", value=slots, rule=f"a power of two, 1 … {_MAX_SLOTS} slots",
                remedy="take the nearest power of two in this range",
            )  # fmt: skip
        if not 0 <= max_payload <= _MAX_PAYLOAD:
            raise BadArgument(
                "payload of impossible size", value=max_payload, rule=f"0 … {_MAX_PAYLOAD} bytes",
                remedy="send more by several transfers",
            )  # fmt: skip
        if narrow_tail and self.strategy is not Strategy.AMO:
            remedy = 'pass strategy="amo", or leave narrow_tail out'
            raise BadArgument(
                "only a tail can be narrow", value=self.strategy.name, rule='strategy="amo"', remedy=remedy
            )
        if not slots <= first_ticket + slots < 1 << 63:
            raise BadArgument(
                "first ticket does not fit", value=first_ticket, rule="0 … 2**63 − 1 − slots",
                remedy="leave it out to begin with ticket 0",
            )  # fmt: skip
        every = max(1, slots // 2) if credit_every is None else credit_every
        if not 1 <= every <= max(1, slots // 2):
            raise BadArgument(
                "credit comes too late", value=every, rule=f"credit_every is 1 … slots / 2 = {max(1, slots // 2)}",
                remedy="leave it out for half of the slots, or use more slots",
            )  # fmt: skip
        self.slots, self.max_payload, self.crc, self.narrow_tail = slots, max_payload, crc, narrow_tail
        self.slot_bytes = -(-slot_message(self.strategy, max_payload) // LINE_BYTES) * LINE_BYTES
        self.credit_every = every
        self.channel = channel
        self.epoch = 0
        self._port, self._peer_port = port, port if peer_port is None else peer_port
        common = {"strategy": self.strategy, "slots": slots, "slot_bytes": self.slot_bytes, "options": qp_options}
        self._sender = SenderEnd(sender, rank=rank, peer=peer_rank, report=sender_report, **common)
        self._receiver = ReceiverEnd(
            receiver, rank=peer_rank, peer=rank, report=receiver_report, relaxed=relaxed_ordering, **common
        )
        self._timeout_ns = timeout_ns
        self._receiver.state["signed_off"] = first_ticket
        self._receiver.never_used(first_ticket)
        self._connect(1)

    # ---- connecting
    def _connect(self, epoch: int) -> None:
        for near, far in zip(self._sender.qps, self._receiver.qps, strict=True):
            join(near, far, self._port, self._peer_port, epoch)
        self.epoch = epoch
        self._sender.start(self.signed_off, epoch)
        self._receiver.start(epoch)

    def reconnect(self, epoch: int | None = None, *, forget_epoch: bool = False) -> SequenceLock:
        """Connect the queue pairs anew under a later epoch (the next one), whatever state they are in; returns itself.

        The sender goes on with the first ticket that the receiver has not signed off: send its transfers again. Slots
        keep what they hold; what an older epoch left there is told by its fingerprint. Reports are cleared. Take new
        handles: old ones belong to the old epoch. BadArgument for an epoch that is not later.

        `forget_epoch`: keep the epoch that there is. Wrong on purpose, for teaching: what an older connection left in
        flags and stamps then passes for new.
        """
        if forget_epoch:
            self._connect(self.epoch)
            return self
        following = self.epoch + 1 if epoch is None else epoch
        if not self.epoch < following < 1 << 32:
            raise BadArgument(
                "not a later epoch", value=following, rule=f"after {self.epoch}, below 2**32", remedy="leave it out"
            )
        self._connect(following)
        return self

    # ---- handles
    def _common(self, kind: Any) -> Handle:
        handle = np.zeros((), kind)
        flags = FLAG_CRC * self.crc | FLAG_NARROW_TAIL * self.narrow_tail
        values = {"layout_version": LAYOUT_VERSION, "strategy": self.strategy, "epoch": self.epoch, "flags": flags}
        values |= {"slots": self.slots, "slot_bytes": self.slot_bytes, "max_payload": self.max_payload}
        for name, value in values.items():
            handle[name] = value
        return handle

    def sender_handle(self) -> Handle:
        """A `LockSender` for kernels, shape (), dtype `LOCK_SENDER`; it points at this lock's memory."""
        handle, end = self._common(LOCK_SENDER), self._sender
        handle["staging"], handle["staging_lkey"] = end.staging.address, end.staging.lkey
        handle["credit"] = end.credit.address + LINE_BYTES * (self.epoch % EPOCH_WORDS)
        handle["next"] = end.next.ctypes.data
        handle["ring"] = (self._receiver.ring.address, self._receiver.ring.rkey)
        handle["signal"] = (self._receiver.signal_address(self.epoch), self._receiver.signal.rkey)
        handle["qp"] = end.qp_handle(0, self.channel, self._timeout_ns)
        if self.strategy is Strategy.SPLIT:
            handle["signal_qp"] = end.qp_handle(1, self.channel, self._timeout_ns)
        return handle

    def receiver_handle(self) -> Handle:
        """A `LockReceiver` for kernels, shape (), dtype `LOCK_RECEIVER`; it points at this lock's memory."""
        handle, end = self._common(LOCK_RECEIVER), self._receiver
        handle["sender_qpn"] = self._sender.qps[0].qpn
        handle["ring"], handle["signal"] = end.ring.address, end.signal_address(self.epoch)
        handle["state"] = end.state_address
        credit = self._sender.credit
        handle["credit"] = (credit.address + LINE_BYTES * (self.epoch % EPOCH_WORDS), credit.rkey)
        handle["credit_every"] = self.credit_every
        handle["qp"] = end.qp_handle(0, self.channel, self._timeout_ns)
        if end.receive_cq is not None:
            handle["receive_dbrec"] = end.pd.context._provider.for_kernels(end.qps[0]._queues.dbrec)
            handle["receive_cq"] = end.receive_cq.device_handle()
        return handle

    # ---- where it stands
    @property
    def sender_qp(self) -> Any:
        """The queue pair that data leaves on."""
        return self._sender.qps[0]

    @property
    def receiver_qp(self) -> Any:
        """The queue pair that credits leave on."""
        return self._receiver.qps[0]

    @property
    def signal_qp(self) -> Any:
        """With "split", the other queue pair of the sender; else the data's own."""
        return self._sender.qps[-1]

    @property
    def ring(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The receiver's slots, uint8 of shape (slots, slot_bytes), not a copy."""
        return self._receiver.ring.bytes.reshape(self.slots, self.slot_bytes)

    @property
    def flags(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The receiver's flag words, uint64 of shape (slots,), not a copy; "write" and "cqe" use them."""
        return self._receiver.flags

    @property
    def tail(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """The word that this epoch's signals are added to, uint64 of shape (1,), not a copy."""
        return self._receiver.tail(self.epoch)

    @property
    def next_ticket(self) -> int:
        """Of the next transfer."""
        return int(self._sender.next[0])

    @property
    def signed_off(self) -> int:
        """Every ticket below has been delivered, once, in order."""
        return int(self._receiver.state["signed_off"])

    @property
    def in_flight(self) -> int:
        """Transfers that were sent and not signed off."""
        return self.next_ticket - self.signed_off

    @property
    def reports(self) -> tuple[Report, Report]:
        """The sender's and the receiver's."""
        return self._sender.report, self._receiver.report

    def story(self) -> Story:
        """Who is late, what each end saw last: tickets, credits, last WQE and CQE, reports."""
        return Story.of(self)

    def raise_for_status(self) -> SequenceLock:
        """Itself when neither end has reported, else the error of the end that has a reason of its own.

        A receiver's refusal makes its sender wait in vain: the refusal is raised, not the time-out.
        """
        reports = sorted(self.reports, key=lambda report: report.status is DeviceStatus.TIMEOUT)
        for report in reports:
            report.raise_for_status()
        return self

    # ---- shows itself
    def __repr__(self) -> str:
        options = ", crc" * self.crc + ", 32-bit tail" * self.narrow_tail
        return (
            f"<SequenceLock {self.strategy.name.lower()}{options}: "
            f"QP {self.sender_qp.qpn:#x} → {self.receiver_qp.qpn:#x}, channel {self.channel}, "
            f"epoch {self.epoch}, {self.slots} slots of {self.max_payload} B, "
            f"{self.in_flight} in flight, {self.signed_off} signed off>"
        )

    def _repr_html_(self) -> str:
        return self.story()._repr_html_()


def handles(locks: list[SequenceLock], memory: Any = None) -> tuple[Handle, Handle]:
    """(senders, receivers): arrays of all the locks' handles, shape (len(locks),), for kernels that serve many.

    `memory(shape, dtype)` makes the arrays, NumPy by default. BadArgument for an empty list.
    """
    if not locks:
        raise BadArgument("no locks", value=locks, rule="at least one", remedy="pass the locks that a kernel serves")
    make = np.zeros if memory is None else memory
    senders, receivers = make((len(locks),), LOCK_SENDER), make((len(locks),), LOCK_RECEIVER)
    for slot, lock in enumerate(locks):
        senders[slot], receivers[slot] = lock.sender_handle(), lock.receiver_handle()
    return senders, receivers
