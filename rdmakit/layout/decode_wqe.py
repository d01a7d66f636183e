"""Send and receive WQEs from bytes.

Leans on constants, fields and wqe_grammar, which knows what may follow the ctrl segment.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.layout.constants import (
    DS_BYTES,
    INLINE_SEG,
    INVALID_LKEY,
    SEND_WQE_BB,
    CompletionMode,
    Opcode,
)
from rdmakit.layout.fields import Decoded, Segment, enum_name, segment_at, spec_of
from rdmakit.layout.wqe import DATA
from rdmakit.layout.wqe_grammar import Walker, check_ctrl, walk

__all__ = ["DecodedRecv", "DecodedWqe", "decode_recv", "decode_wqe"]

_CTRL_SPEC = [
    ("opmod", 0, 1),
    ("wqe_index", 1, 2),
    ("opcode", 3, 1),
    ("qpn", 4, 3),
    ("ds", 7, 1),
    ("signature", 8, 1),
    ("dci_stream_channel_id", 9, 2),
    ("fm_ce_se", 11, 1),
    ("imm", 12, 4),
]


@dataclass(frozen=True)
class DecodedWqe(Decoded):
    """A send WQE. `opcode` stays a number when it names nothing; `ds` is the size in units of 16 bytes."""

    kind = "wqe"
    facts = (
        "opcode_name",
        "opcode",
        "opmod",
        "index",
        "qpn",
        "ds",
        "wqebbs",
        "fm_ce_se",
        "signalled",
        "solicited",
        "fence",
        "imm",
        "byte_len",
    )

    opcode: int
    opmod: int
    index: int
    qpn: int
    ds: int
    fm_ce_se: int
    imm: int

    @property
    def opcode_name(self) -> str:
        """Name of the opcode, or its number in hex."""
        return enum_name(Opcode, self.opcode)

    @property
    def wqebbs(self) -> int:
        """Basic blocks that the WQE takes, at least 1."""
        return max(1, -(-self.ds * DS_BYTES // SEND_WQE_BB))

    @property
    def size(self) -> int:
        """Bytes in whole basic blocks."""
        return self.wqebbs * SEND_WQE_BB

    @property
    def signalled(self) -> bool:
        """Whether success, too, writes a CQE."""
        return self.fm_ce_se >> 2 & 3 >= CompletionMode.ALWAYS

    @property
    def solicited(self) -> bool:
        """The solicited event bit."""
        return bool(self.fm_ce_se & 2)

    @property
    def fence(self) -> int:
        """Fence mode, 0 … 7; see `FenceMode`."""
        return self.fm_ce_se >> 5

    @property
    def data(self) -> list[Segment]:
        """The data segments, in order."""
        return [segment for segment in self.segments if segment.name == "data"]

    @property
    def inline_data(self) -> bytes:
        """Bytes that travel in the WQE itself."""
        return b"".join(bytes(s["data"]) for s in self.segments if s.name == "inline")

    @property
    def byte_len(self) -> int:
        """Bytes of the message: inline ones and those that the data segments point at."""
        return len(self.inline_data) + sum(segment.number("byte_count") for segment in self.data)

    @property
    def title(self) -> str:
        """One line: what this is."""
        return (
            f"WQE {self.opcode_name} index {self.index} qpn {self.qpn:#x} ds {self.ds} "
            f"({self.wqebbs} WQEBB, {self.byte_len} B)"
        )


@dataclass(frozen=True)
class DecodedRecv(Decoded):
    """A receive WQE: its scatter list."""

    kind = "recv"
    facts = ("byte_len",)

    @property
    def byte_len(self) -> int:
        """Bytes that a message may have."""
        return sum(segment.number("byte_count") for segment in self.segments if segment.name == "data")

    @property
    def title(self) -> str:
        """One line: what this is."""
        return f"receive WQE for {self.byte_len} B"


def decode_wqe(raw: bytes, qp_type: str = "rc") -> DecodedWqe:
    """The send WQE at the start of `raw` (at least 16 bytes); `qp_type` is "rc", "ud" or "raw" (Ethernet)."""
    ctrl = segment_at("ctrl", raw, 0, DS_BYTES, _CTRL_SPEC)
    opcode, ds = ctrl.number("opcode"), ctrl.number("ds") & 0x3F
    walker = Walker(raw, max(DS_BYTES, min(ds * DS_BYTES, len(raw) // DS_BYTES * DS_BYTES)))
    check_ctrl(ctrl, len(raw), walker.problems)
    walker.add(ctrl)
    walk(walker, opcode, ctrl.number("opmod"), qp_type)
    return DecodedWqe(
        raw,
        tuple(walker.segments),
        walker.problems,
        opcode,
        ctrl.number("opmod"),
        ctrl.number("wqe_index"),
        ctrl.number("qpn"),
        ds,
        ctrl.number("fm_ce_se"),
        ctrl.number("imm"),
    )


def decode_recv(raw: bytes) -> DecodedRecv:
    """A receive WQE of `raw`'s size: data segments up to the end or to {0, INVALID_LKEY}."""
    walker = Walker(raw, len(raw))
    while walker.at < walker.limit:
        segment = segment_at("data", raw, walker.at, DS_BYTES, spec_of(DATA))
        count = segment.number("byte_count")
        if count == 0 and segment.number("lkey") == INVALID_LKEY:
            walker.add(Segment("end", segment.offset, segment.size, segment.fields))
            break
        walker.add(segment)
        if count & INLINE_SEG:
            walker.problems.append(
                f"inline bit set in the data segment at {segment.offset:#x} of a receive WQE"
            )
        elif count == 0:
            walker.problems.append(
                f"byte_count 0 at {segment.offset:#x} without lkey {INVALID_LKEY:#x}: 2 GiB"
            )
    return DecodedRecv(raw, tuple(walker.segments), walker.problems)
