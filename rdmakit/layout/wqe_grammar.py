"""Which segments follow the ctrl segment, by opcode, and everything that can be illegal about them.

Leans on constants, wqe and fields. Source of the grammar: rdma-core `providers/mlx5/qp.c` (_mlx5_post_send).
"""

from __future__ import annotations

import numpy as np

from rdmakit.layout import wqe
from rdmakit.layout.constants import DS_BYTES, INLINE_SEG, MAX_MESSAGE, FenceMode, Opcode, Opmod
from rdmakit.layout.fields import Segment, enum_name, segment_at, spec_of

__all__ = ["Walker", "check_ctrl", "walk"]

_SENDS = {Opcode.SEND, Opcode.SEND_IMM, Opcode.SEND_INVAL}
_WRITES = {Opcode.RDMA_WRITE, Opcode.RDMA_WRITE_IMM}
_ATOMICS = {Opcode.ATOMIC_CS, Opcode.ATOMIC_FA, Opcode.ATOMIC_MASKED_CS, Opcode.ATOMIC_MASKED_FA}
_MASKED = {
    (Opcode.ATOMIC_MASKED_FA, Opmod.EXT_ATOMIC_4B): ("masked_fa4", wqe.MASKED_FA4),
    (Opcode.ATOMIC_MASKED_FA, Opmod.EXT_ATOMIC_8B): ("masked_fa8", wqe.MASKED_FA8),
    (Opcode.ATOMIC_MASKED_CS, Opmod.EXT_ATOMIC_4B): ("masked_cs4", wqe.MASKED_CS4),
    (Opcode.ATOMIC_MASKED_CS, Opmod.EXT_ATOMIC_8B): ("masked_cs8", wqe.MASKED_CS8),
}


class Walker:
    """Takes segment after segment off a WQE whose size field ends at `limit`."""

    def __init__(self, raw: bytes, limit: int) -> None:
        self.raw = raw
        self.limit = limit
        self.at = 0
        self.segments: list[Segment] = []
        self.problems: list[str] = []

    def take(self, name: str, dtype: np.dtype[np.void]) -> Segment | None:
        """The next segment, of this dtype; None and a problem when ds leaves no room for it."""
        if self.at + dtype.itemsize > self.limit:
            self.problems.append(
                f"{name} segment missing: {self.limit - self.at} of its {dtype.itemsize} bytes left"
            )
            self.at = self.limit
            return None
        return self.add(segment_at(name, self.raw, self.at, dtype.itemsize, spec_of(dtype)))

    def add(self, segment: Segment) -> Segment:
        """Append a segment and step over it."""
        self.segments.append(segment)
        self.at = min(self.limit, segment.offset + segment.size)
        return segment

    def inline(self) -> None:
        """The inline segment here, clipped to what ds leaves."""
        length = int.from_bytes(self.raw[self.at : self.at + 4], "big") & ~INLINE_SEG
        room = self.limit - self.at - 4
        if length > room:
            self.problems.append(f"inline segment of {length} bytes, but ds leaves room for {room}")
            length = room
        size = -(-(4 + length) // DS_BYTES) * DS_BYTES
        self.add(segment_at("inline", self.raw, self.at, size, [("byte_count", 0, 4), ("data", 4, length)]))

    def data(self, what: str, *, inline_allowed: bool) -> None:
        """All data and inline segments up to the limit; `what` names the operation in problems."""
        total = 0
        while self.at < self.limit:
            if self.raw[self.at] & 0x80:
                if not inline_allowed:
                    self.problems.append(f"{what} cannot carry an inline segment")
                self.inline()
                continue
            segment = self.take("data", wqe.DATA)
            if segment is None:
                return
            count = segment.number("byte_count")
            total += count
            if count == 0:
                self.problems.append(
                    "data segment with byte_count 0: the device takes it for 2 GiB, leave it out"
                )
        if total > MAX_MESSAGE:
            self.problems.append(f"message of {total} bytes, a WQE may move {MAX_MESSAGE} (log_msg_max 30)")

    def opaque(self) -> None:
        """The rest, 16 bytes a segment, uninterpreted."""
        while self.at < self.limit:
            self.add(segment_at("opaque", self.raw, self.at, DS_BYTES, [("data", 0, DS_BYTES)]))


def check_ctrl(ctrl: Segment, available: int, problems: list[str]) -> None:
    """List what is illegal in the ctrl segment alone, of a WQE with `available` bytes."""
    opcode, ds, flags = ctrl.number("opcode"), ctrl.number("ds"), ctrl.number("fm_ce_se")
    if opcode not in Opcode._value2member_map_:
        problems.append(f"opcode {opcode:#x} is none that mlx5 defines")
    if ds & 0xC0:
        problems.append(f"reserved bits {ds & 0xC0:#x} set above ds, which has six")
    if ds & 0x3F == 0:
        problems.append("ds is 0, but the ctrl segment alone makes it 1")
    elif (ds & 0x3F) * DS_BYTES > available:
        problems.append(f"ds {ds & 0x3F} needs {(ds & 0x3F) * DS_BYTES} bytes, only {available} given")
    if flags & 0x11:
        problems.append(f"reserved bits {flags & 0x11:#x} set in fm_ce_se")
    if flags >> 5 not in FenceMode._value2member_map_:
        problems.append(f"fence mode {flags >> 5} is none that mlx5 defines")
    if ctrl.number("opmod") and opcode in (
        *_SENDS,
        *_WRITES,
        Opcode.RDMA_READ,
        Opcode.ATOMIC_CS,
        Opcode.ATOMIC_FA,
    ):
        problems.append(f"opmod {ctrl.number('opmod'):#x} on {enum_name(Opcode, opcode)}, which has none")


def _atomic(walker: Walker, opcode: int, opmod: int) -> None:
    raddr = walker.take("raddr", wqe.RADDR)
    if opcode in (Opcode.ATOMIC_CS, Opcode.ATOMIC_FA):
        width, name, dtype = 8, "atomic", wqe.ATOMIC
    elif (opcode, opmod) in _MASKED:
        width = 4 if opmod == Opmod.EXT_ATOMIC_4B else 8
        name, dtype = _MASKED[opcode, opmod]  # type: ignore[index]
    else:
        walker.problems.append(f"opmod {opmod:#x} on a masked atomic: 0x8 means 4 bytes, 0x9 means 8")
        walker.opaque()
        return
    if raddr is not None and raddr.number("raddr") % width:
        walker.problems.append(
            f"raddr {raddr.number('raddr'):#x} is no multiple of the atomic's {width} bytes"
        )
    walker.take(name, dtype)
    walker.data("an atomic", inline_allowed=False)
    landing = [segment for segment in walker.segments if segment.name == "data"]
    if len(landing) != 1:
        walker.problems.append(f"{len(landing)} data segments, an atomic lands its old value in exactly 1")
    elif landing[0].number("byte_count") != width:
        length = landing[0].number("byte_count")
        walker.problems.append(f"landing buffer of {length} bytes, the atomic has {width}")


def _eth(walker: Walker) -> None:
    eth = walker.take("eth", wqe.ETH)
    if eth is not None and eth.number("inline_hdr_sz") > 2:
        # Two bytes of the inlined headers lie in the segment itself; the rest follows, padded to the next DS.
        rest = min(eth.number("inline_hdr_sz") - 2, walker.limit - walker.at)
        size = -(-rest // DS_BYTES) * DS_BYTES
        walker.add(segment_at("eth_header", walker.raw, walker.at, size, [("data", 0, rest)]))


def walk(walker: Walker, opcode: int, opmod: int, qp_type: str) -> None:
    """Take all segments after ctrl off `walker`; opcodes that are not described here give opaque ones."""
    if opcode in _SENDS:
        if qp_type == "ud":
            walker.take("av", wqe.AV)
        elif qp_type == "raw":
            _eth(walker)
        walker.data("a SEND", inline_allowed=True)
    elif opcode in _WRITES or opcode == Opcode.RDMA_READ:
        walker.take("raddr", wqe.RADDR)
        walker.data("a READ", inline_allowed=opcode in _WRITES)
    elif opcode in _ATOMICS:
        _atomic(walker, opcode, opmod)
    elif opcode == Opcode.DUMP:
        walker.data("a DUMP", inline_allowed=False)
    else:
        walker.opaque()
