"""The sending end of a sequence lock, driven by the host.

Leans on host_end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device import PD, RemoteMemory
from rdmakit.errors import BadArgument, BadState
from rdmakit.signal import reference
from rdmakit.signal.ends import SenderEnd
from rdmakit.signal.host_end import HostEnd, end_options
from rdmakit.signal.strategies import Strategy

__all__ = ["HostSender"]


class HostSender(HostEnd):
    """The sending end, on a protection domain of this process. Arguments as of `SequenceLock`.

    `connect` it with the receiver's offer, then `send`. After a queue pair has failed, make a new pair of ends, on this
    port or another, whose `first_ticket` is what the receiver has signed off, and send on from there.

    >>> import rdmakit
    >>> from rdmakit.signal import HostReceiver
    >>> world = rdmakit.World(hosts=2)
    >>> sender, receiver = HostSender(world.open(0).alloc_pd()), HostReceiver(world.open(1).alloc_pd())
    >>> offer = sender.offer()
    >>> sender.connect(receiver.offer())
    >>> receiver.connect(offer)
    >>> sender.send(b"eight bytes and more"), receiver.receive()
    (0, b'eight bytes and more')
    """

    def __init__(
        self,
        pd: PD,
        *,
        strategy: str | int = "amo",
        slots: int = 64,
        max_payload: int = 4096,
        crc: bool = False,
        first_ticket: int = 0,
        epoch: int = 1,
        rank: int = 0,
        peer_rank: int = 1,
        **qp_options: Any,
    ) -> None:
        common = end_options(strategy, slots, max_payload, qp_options)
        end = SenderEnd(pd, rank=rank, peer=peer_rank, **common)
        end.start(first_ticket, epoch)
        super().__init__(end, epoch, crc)
        self.sender, self.max_payload = end, max_payload
        self._ring: RemoteMemory | None = None
        self._signal: RemoteMemory | None = None

    @property
    def next_ticket(self) -> int:
        """Of the next transfer."""
        return int(self.sender.next[0])

    @property
    def credit(self) -> int:
        """Tickets that have been given back, as a ticket: those below `credit + slots` may be sent."""
        return int(self.sender.credit_word(self.epoch)[0])

    def offer(self) -> dict[str, Any]:
        """What the receiver must know: plain values, of which JSON can be made."""
        credit = self.sender.credit
        offset = self.sender.credit_word(self.epoch).ctypes.data - credit.address
        return self._offer(self.next_ticket, credit=credit.slice(offset, 8).remote())

    def connect(self, theirs: dict[str, Any], *, port: int = 1, **attributes: Any) -> None:
        """Connect to the receiver that made this offer; `attributes` as of `QP.connect`. BadArgument when the ends
        were made with different arguments."""
        self._agree(theirs, self.next_ticket)
        self._ring, self._signal = (RemoteMemory.from_json(theirs[name]) for name in ("ring", "signal"))
        self._connect(theirs, port, attributes)

    def send(self, payload: bytes, *, timeout: float = 10.0) -> int:
        """Send it as the next ticket, which is returned; waits for credit, not for its arrival.

        BadArgument for more than `max_payload` bytes, HangError when no credit comes, CompletionError when the
        queue pair has failed.
        """
        if self._ring is None or self._signal is None:
            raise BadState(
                "the sender is not connected", value=f"QP {self.qp.qpn:#x}", rule="connect comes first",
                remedy="sender.connect(receiver.offer())",
            )  # fmt: skip
        if len(payload) > self.max_payload:
            raise BadArgument("a payload longer than a slot", value=len(payload), rule=f"at most {self.max_payload} B",
                              remedy="send it by several transfers")  # fmt: skip
        end, qp, ticket = self.sender, self.qp, self.next_ticket
        self._wait(lambda: ticket - self.credit < end.slots, timeout, "credit", ticket)
        self._room(2, timeout, ticket)
        raw = reference.slot(end.strategy, payload, qp.qpn, self.epoch, ticket, self.crc)
        at = ticket % end.slots * end.slot_bytes
        end.staging.bytes[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
        source, target = end.staging.slice(at, len(raw)), (self._ring.address + at, self._ring.rkey)
        print_ = reference.signal_fingerprint(qp.qpn, self.epoch, ticket)
        flag = (self._signal.address + 8 * (ticket % end.slots), self._signal.rkey)
        word = reference.stamp(ticket, print_).to_bytes(8, "little")
        if end.strategy is Strategy.IMM:
            qp.post_write_imm(source, target, reference.immediate(qp.qpn, self.epoch, ticket))
        elif end.strategy is Strategy.CQE:
            qp.post_write(source, target)
            self.finish(timeout=timeout)
            qp.post_write(word, flag)
        else:
            with qp.batch():
                qp.post_write(source, target, signalled=False)
                if end.strategy is Strategy.AMO:
                    qp.post_fetch_add(self._sink(), (self._signal.address, self._signal.rkey), 1)
                else:
                    qp.post_write(word, flag)
        end.next[0] = ticket + 1
        return ticket

    def finish(self, *, timeout: float = 10.0) -> None:
        """Wait until all that was sent is complete at this end."""
        self._wait(lambda: self.qp.completed == self.qp.posted, timeout, "a completion", self.next_ticket)
