"""One completion as the host sees it: who, which work request, how it went; and the error that it raises.

Leans on layout. Fields follow `struct ibv_wc`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rdmakit.device.notebook import preformatted, table_html
from rdmakit.errors import CompletionError
from rdmakit.layout import CqeOpcode, Decoded, DecodedCqe, Opcode, Syndrome, WcStatus, decode, wc_status

__all__ = ["Completion", "Completions"]

# What the NIC holds a work request to (InfiniBand spec 1.4, 9.9 and 11.6.2), and what to do about a breach.
_ADVICE = {
    Syndrome.LOCAL_LENGTH_ERR: (
        "a message fits the buffers that it lands in, and 1 GiB",
        "give the receive WQE or the landing buffer as many bytes as the message has",
    ),
    Syndrome.LOCAL_QP_OP_ERR: (
        "a NIC executes well-formed WQEs, and operations that the QP was set up for",
        "the WQE's bytes are illegal: look at .wqe.problems",
    ),
    Syndrome.LOCAL_PROT_ERR: (
        "the lkey must name an open MR of the QP's PD that allows it, in bounds",
        "compare the data segments of .wqe with the MR's lkey, bounds, rights and PD",
    ),
    Syndrome.WR_FLUSH_ERR: (
        "a QP in ERR flushes whatever is posted",
        "look for the first completion in error of this QP: it put the QP into ERR",
    ),
    Syndrome.REMOTE_INVAL_REQ_ERR: (
        "the peer QP must allow the operation; atomics are aligned to their width",
        "connect the peer with that access right, post a receive that is large enough, align the word",
    ),
    Syndrome.REMOTE_ACCESS_ERR: (
        "the rkey must name an open MR of the peer QP's PD that allows it, in bounds",
        "ask the peer for mr.remote() of a region that is open now and grants the right",
    ),
    Syndrome.REMOTE_OP_ERR: (
        "the peer can finish what it was asked for",
        "the peer's receive WQE is bad: its lkey, its length or its QP",
    ),
    Syndrome.TRANSPORT_RETRY_EXC_ERR: (
        "the peer acknowledges each packet before retry_cnt retries are over",
        "is the peer QP in RTR, its address right, both ports up?",
    ),
    Syndrome.RNR_RETRY_EXC_ERR: (
        "a SEND and an immediate use up a receive WQE of the peer",
        "the peer must post receives first, or raise rnr_retry (7: for ever)",
    ),
}

_KINDS = {
    CqeOpcode.RESP_WR_IMM: "RECV_RDMA_WITH_IMM",
    CqeOpcode.RESP_SEND: "RECV",
    CqeOpcode.RESP_SEND_IMM: "RECV_IMM",
    CqeOpcode.RESP_SEND_INV: "RECV_INV",
}


@dataclass(frozen=True)
class Completion:
    """A completion queue entry, decoded.

    `wqe_index` counts send basic blocks (or receive WQEs) since the QP was reset; `byte_len` is 0 where the
    device does not say; `imm` is None without an immediate; `wr_id` is what the poster gave.
    """

    qpn: int
    wqe_index: int
    opcode: str
    byte_len: int = 0
    imm: int | None = None
    is_receive: bool = False
    syndrome: int = 0
    vendor_error: int = 0
    wr_id: Any = None
    qp: Any = field(default=None, repr=False, compare=False)
    raw: bytes = field(default=b"", repr=False, compare=False)
    raw_wqe: bytes = field(default=b"", repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether the work request succeeded."""
        return self.syndrome == 0

    @property
    def status(self) -> WcStatus:
        """What `ibv_poll_cq` would say."""
        return wc_status(self.syndrome) if self.syndrome else WcStatus.SUCCESS

    @property
    def cqe(self) -> DecodedCqe:
        """Every field of the entry."""
        decoded = decode(self.raw, "cqe")
        assert isinstance(decoded, DecodedCqe)
        return decoded

    @property
    def wqe(self) -> Decoded | None:
        """Every field of the work request that completed, as it stood in the ring; None if unknown."""
        if not self.raw_wqe:
            return None
        return decode(self.raw_wqe, "recv" if self.is_receive else "wqe")

    @property
    def inline_data(self) -> bytes:
        """Payload that the device scattered into the entry instead of memory (scatter-to-CQE), or b""."""
        return self.cqe.inline_data

    def raise_for_status(self) -> Completion:
        """Itself when it succeeded. CompletionError, with syndrome, WQE and remedy, when it did not."""
        if self.ok:
            return self
        known = self.syndrome in Syndrome._value2member_map_
        name = Syndrome(self.syndrome).name if known else f"syndrome {self.syndrome:#x}"
        wqe = self.wqe
        what = wqe.title if wqe is not None else f"{self.opcode} at index {self.wqe_index}"
        raise CompletionError(
            f"{what} completed in error: {name}",
            syndrome=self.syndrome,
            wc_status=self.status.name,
            qpn=self.qpn,
            wqe_index=self.wqe_index,
            vendor_error=self.vendor_error,
            rule=self._advice()[0],
            remedy=self._advice()[1],
        )

    def _repr_html_(self) -> str:
        return table_html([self.as_row()], repr(self), title=self._title())

    def _advice(self) -> tuple[str, str] | tuple[None, None]:
        """The rule that was broken and the remedy; None and None where the syndrome is not one of ours."""
        known = self.syndrome in Syndrome._value2member_map_
        return _ADVICE.get(Syndrome(self.syndrome), (None, None)) if known else (None, None)

    def _title(self) -> str:
        _, remedy = self._advice()
        return f"{self.opcode} of QP {self.qpn:#x}: {self.status.name}{f' ({remedy})' if remedy else ''}"

    def as_row(self) -> dict[str, Any]:
        """Plain values for a table."""
        return {
            "QP": f"{self.qpn:#x}",
            "WQE": self.wqe_index,
            "opcode": self.opcode,
            "status": self.status.name,
            "bytes": self.byte_len,
            "imm": "" if self.imm is None else f"{self.imm:#x}",
            "wr_id": "" if self.wr_id is None else self.wr_id,
        }


class Completions(list[Completion]):
    """A list of completions that shows itself as a table.

    >>> Completions([Completion(qpn=0x41, wqe_index=0, opcode="RDMA_WRITE")]).all_ok
    True
    """

    @property
    def all_ok(self) -> bool:
        """Whether none is in error."""
        return all(completion.ok for completion in self)

    def raise_for_status(self) -> Completions:
        """Itself when all succeeded. CompletionError of the first that did not."""
        for completion in self:
            completion.raise_for_status()
        return self

    def _repr_html_(self) -> str:
        if not self:
            return preformatted("no completions")
        bad = [i for i, completion in enumerate(self) if not completion.ok]
        title = f"{len(self)} completions, {len(bad)} in error" if bad else f"{len(self)} completions, all good"
        return table_html([completion.as_row() for completion in self], repr(list(self)), title=title, marked=bad)


_OP_OWN, _COUNTER, _SOP, _BYTES, _IMM = 63, 60, 56, 44, 36


def parse_cqe(entry: bytes) -> tuple[int, int, int, int]:
    """(CQE opcode, qpn, 16-bit wqe_counter, syndrome) of 64 bytes: what attribution needs, cheaply."""
    opcode = entry[_OP_OWN] >> 4
    qpn = int.from_bytes(entry[_SOP + 1 : _SOP + 4], "big")
    counter = int.from_bytes(entry[_COUNTER : _COUNTER + 2], "big")
    error = opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR)
    return opcode, qpn, counter, entry[55] if error else 0


def completion_from(
    raw: bytes, *, index: int, is_receive: bool, qp: Any = None, raw_wqe: bytes = b"", wr_id: Any = None
) -> Completion:
    """The completion in `raw`, whose WQE the caller has found."""
    entry = raw[-64:]
    opcode, qpn, _, syndrome = parse_cqe(entry)
    if opcode in _KINDS:
        name = _KINDS[CqeOpcode(opcode)]
    else:
        number = entry[_SOP]
        name = Opcode(number).name if number in Opcode._value2member_map_ else f"{number:#x}"
        name = "RECV" if opcode == CqeOpcode.RESP_ERR else name
    good = syndrome == 0 and opcode not in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR)
    has_imm = good and opcode in (CqeOpcode.RESP_WR_IMM, CqeOpcode.RESP_SEND_IMM)
    return Completion(
        qpn=qpn,
        wqe_index=index,
        opcode=name,
        byte_len=int.from_bytes(entry[_BYTES : _BYTES + 4], "big") if good else 0,
        imm=int.from_bytes(entry[_IMM : _IMM + 4], "big") if has_imm else None,
        is_receive=is_receive,
        syndrome=syndrome if good or syndrome else 0xFF,
        vendor_error=0 if good else entry[54],
        wr_id=wr_id,
        qp=qp,
        raw=raw,
        raw_wqe=raw_wqe,
    )
