"""The receiving end of a sequence lock, driven by the host: it judges as lock_wait.cuh and lock_receive.cuh do.

Leans on host_end.
"""

from __future__ import annotations

from typing import Any

from rdmakit.device import PD, RemoteMemory
from rdmakit.errors import BadState, CompletionError, SequenceError
from rdmakit.signal import reference
from rdmakit.signal.abi import LOCK_HEADER
from rdmakit.signal.ends import ReceiverEnd
from rdmakit.signal.host_end import HostEnd, end_options
from rdmakit.signal.strategies import HEADER_BYTES, Strategy

__all__ = ["HostReceiver"]

_EPOCHS_TOLD = 16  # kEpochsTold


class HostReceiver(HostEnd):
    """The receiving end, on a protection domain of this process; takes transfers strictly in the order of tickets."""

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
        credit_every: int | None = None,
        rank: int = 1,
        peer_rank: int = 0,
        **qp_options: Any,
    ) -> None:
        common = end_options(strategy, slots, max_payload, qp_options)
        end = ReceiverEnd(pd, relaxed=False, rank=rank, peer=peer_rank, **common)
        end.state["signed_off"] = first_ticket
        end.never_used(first_ticket)
        end.start(epoch)
        super().__init__(end, epoch, crc)
        if end.receive_cq is not None:  # posted and polled by the host, as other receives are
            end.receive_cq._hand_over(None)
            end.qps[0].dbrec_view()["rcv"] = 0
        self.receiver, self.max_payload = end, max_payload
        self.credit_every = max(1, slots // 2) if credit_every is None else credit_every
        self._credit: RemoteMemory | None = None
        self._peer_qpn = 0
        self._immediates: list[int] = []

    @property
    def signed_off(self) -> int:
        """Every ticket below has been delivered, once, in order."""
        return int(self.receiver.state["signed_off"])

    def offer(self) -> dict[str, Any]:
        """What the sender must know: plain values, of which JSON can be made."""
        end = self.receiver
        offset = end.signal_address(self.epoch) - end.signal.address
        return self._offer(self.signed_off, ring=end.ring.remote(), signal=end.signal.slice(offset).remote())

    def connect(self, theirs: dict[str, Any], *, port: int = 1, **attributes: Any) -> None:
        """Connect to the sender that made this offer, with a receive posted for each slot where immediates come."""
        self._agree(theirs, self.signed_off)
        self._credit = RemoteMemory.from_json(theirs["credit"])
        self._connect(theirs, port, attributes)
        self._peer_qpn = self.qp.query()["dest_qp_num"]
        if self.receiver.receive_cq is not None:
            for _ in range(self.receiver.slots):
                self.qp.post_recv([])

    def receive(self, *, timeout: float = 10.0) -> bytes:
        """The payload of the next ticket, which is signed off.

        SequenceError when what came is not that ticket, HangError when nothing comes, CompletionError when the queue
        pair has failed.
        """
        if self._credit is None:
            raise BadState(
                "the receiver is not connected", value=f"QP {self.qp.qpn:#x}", rule="connect comes first",
                remedy="receiver.connect(sender.offer())",
            )  # fmt: skip
        ticket = self.signed_off
        if self.receiver.strategy is Strategy.AMO:
            tail = self.receiver.tail(self.epoch)
            self._wait(lambda: 0 < (int(tail[0]) - ticket) % (1 << 64) < 1 << 63, timeout, "the tail", ticket)
        elif self.receiver.strategy is Strategy.IMM:
            self._wait_immediate(ticket, timeout)
        else:
            self._wait(lambda: self._flag_is_there(ticket), timeout, "the flag", ticket)
        payload = self._judged(ticket)
        self.receiver.state["signed_off"] = ticket + 1
        if ticket + 1 - int(self.receiver.state["credited"]) >= self.credit_every:
            self.give_back(timeout=timeout)
        return payload

    def give_back(self, *, timeout: float = 10.0) -> None:
        """Give back all slots that have been signed off: one message of credit."""
        state, end = self.receiver.state, self.signed_off
        returned = end - int(state["credited"])
        if returned and self._credit is not None:
            self._room(1, timeout, end)
            self.qp.post_fetch_add(self._sink(), (self._credit.address, self._credit.rkey), returned)
            state["credited"] = end

    def finish(self, *, timeout: float = 10.0) -> None:
        """Give back what is left, and wait until it is complete. Close the queue pair when the sender has finished,
        too: where the network lost an acknowledgement, this end is asked for it again.
        """
        self.give_back(timeout=timeout)
        self._wait(lambda: self.qp.completed == self.qp.posted, timeout, "a completion", self.signed_off)

    # ---- what has come
    def _refuse(self, what: str, reason: str, ticket: int, expected: Any, seen: Any) -> SequenceError:
        rule, remedy = "tickets are signed off once, in order", "connect anew under a later epoch"
        return SequenceError(
            what, value=seen, reason=reason, ticket=ticket, expected=expected, rule=rule, remedy=remedy
        )

    def _print(self, ticket: int, epoch: int | None = None) -> int:
        return reference.signal_fingerprint(self._peer_qpn, self.epoch if epoch is None else epoch, ticket)

    def _flag_is_there(self, ticket: int) -> bool:
        word = int(self.receiver.flags[ticket % self.receiver.slots])
        seen, mark = reference.widen(word & 0xFFFFFFFF, 32, ticket), word >> 32
        if seen > ticket:
            raise self._refuse("a flag of a later ticket", "GAP", ticket, ticket, seen)
        if seen < ticket:
            return False
        if mark == self._print(ticket):
            return True
        earlier = range(max(1, self.epoch - _EPOCHS_TOLD), self.epoch)
        if any(mark == self._print(ticket, epoch) for epoch in earlier):
            return False
        raise self._refuse("a flag that its fingerprint does not fit", "WRONG_FINGERPRINT", ticket,
                           hex(self._print(ticket)), hex(mark))  # fmt: skip

    def _wait_immediate(self, ticket: int, timeout: float) -> None:
        cq = self.receiver.receive_cq
        assert cq is not None

        def there() -> bool:
            for completion in cq.poll():
                if not completion.ok:
                    completion.raise_for_status()
                if completion.imm is None:
                    raise CompletionError(
                        "a receive without an immediate", value=completion.opcode, rule="a lock's sender posts no SEND",
                        remedy="let nothing else post on its queue pair", qpn=self.qp.qpn,
                    )  # fmt: skip
                self._immediates.append(completion.imm)
            return bool(self._immediates)

        self._wait(there, timeout, "the immediate", ticket)
        imm = self._immediates.pop(0)
        self.qp.post_recv([])  # before the slot's credit goes back: no message meets an empty queue
        seen = reference.widen(imm & 0xFFFF, 16, ticket)
        if seen != ticket:
            reason = "GAP" if seen > ticket else "REPEATED"
            raise self._refuse("an immediate of another ticket", reason, ticket, ticket, seen)
        if imm >> 16 != self._print(ticket) >> 16:
            raise self._refuse("an immediate that its fingerprint does not fit", "WRONG_FINGERPRINT", ticket,
                               hex(self._print(ticket) >> 16), hex(imm >> 16))  # fmt: skip

    def _judged(self, ticket: int) -> bytes:
        """What lies in the slot, if it is that transfer."""
        end = self.receiver
        at = ticket % end.slots * end.slot_bytes
        slot = end.ring.bytes[at : at + end.slot_bytes]
        header = slot[:HEADER_BYTES].view(LOCK_HEADER)[0]
        seen, length, crc = (int(header[name]) for name in ("ticket", "length", "crc"))
        if seen != ticket:
            reason = "GAP" if seen > ticket else "REPEATED"
            raise self._refuse("another ticket in its slot", reason, ticket, ticket, seen)
        if header["epoch"] != self.epoch:
            raise self._refuse("a transfer of another epoch", "STALE_EPOCH", ticket, self.epoch, header["epoch"])
        print_ = reference.fingerprint(self._peer_qpn, self.epoch, ticket, length, crc)
        if header["fingerprint"] != print_ or length > end.slot_bytes - HEADER_BYTES:
            raise self._refuse("a header that its fingerprint does not fit", "WRONG_FINGERPRINT", ticket,
                               hex(print_), hex(header["fingerprint"]))  # fmt: skip
        payload = slot[HEADER_BYTES : HEADER_BYTES + length].tobytes()
        if self.crc and reference.payload_crc(payload) != crc:
            what = "a payload that its checksum does not fit"
            raise self._refuse(what, "CORRUPT_PAYLOAD", ticket, hex(crc), hex(reference.payload_crc(payload)))
        return payload
