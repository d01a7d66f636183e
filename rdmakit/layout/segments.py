"""The pieces that the golden encoders join: ctrl, remote address, scatter list and inline bytes.

Leans on constants and wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rdmakit.errors import BadArgument
from rdmakit.layout.constants import DS_BYTES, INLINE_SEG, MAX_DS, MAX_MESSAGE, SEND_WQE_BB, Opcode, Opmod
from rdmakit.layout.wire import unsigned

__all__ = ["Sge", "Sges", "be", "data_segments", "inline_segment", "raddr_segment", "wqe_bytes"]


class Sge(NamedTuple):
    """A local buffer: address, length in bytes, lkey."""

    addr: int
    length: int
    lkey: int


Sges = Sge | Sequence[Sge]


def be(name: str, value: int, size: int) -> bytes:
    """`value` in `size` bytes, big endian; BadArgument names it when it does not fit."""
    return unsigned(name, value, 8 * size).to_bytes(size, "big")


def wqe_bytes(
    opcode: Opcode, index: int, qpn: int, flags: int, body: bytes, *, imm: int = 0, opmod: Opmod = Opmod.NONE
) -> bytes:
    """Whole basic blocks: a ctrl segment for `body`, then `body`, then zeros."""
    if index < 0:
        raise BadArgument("index is negative", value=index, rule="a free-running index counts up from 0",
                          remedy="count on; the cut to 16 bits happens here")
    ds = 1 + -(-len(body) // DS_BYTES)
    if ds > MAX_DS:
        raise BadArgument(
            "WQE too long",
            value=DS_BYTES * ds,
            rule=f"at most {MAX_DS} DS = {DS_BYTES * MAX_DS} bytes",
            remedy="use fewer segments or less inline data",
        )
    ctrl = (
        bytes([opmod])
        + (index & 0xFFFF).to_bytes(2, "big")
        + bytes([opcode])
        + be("qpn", qpn, 3)
        + bytes([ds])
        + bytes(3)
        + be("flags", int(flags), 1)
        + be("imm", imm, 4)
    )
    return (ctrl + body).ljust(-(-ds // (SEND_WQE_BB // DS_BYTES)) * SEND_WQE_BB, b"\0")


def raddr_segment(raddr: int, rkey: int) -> bytes:
    """Remote address, rkey, reserved: 16 bytes."""
    return be("raddr", raddr, 8) + be("rkey", rkey, 4) + bytes(4)


def data_segments(sges: Sges) -> bytes:
    """One data segment of 16 bytes a buffer: length, lkey, address."""
    body = b""
    total = 0
    for addr, length, lkey in [sges] if isinstance(sges, Sge) else sges:
        if not 0 < length <= MAX_MESSAGE:
            # The device reads byte_count 0 as 2 GiB; libmlx5 leaves such segments out (providers/mlx5/qp.c).
            raise BadArgument(
                "bad segment length",
                value=length,
                rule=f"1 … {MAX_MESSAGE} bytes",
                remedy="for a zero-length message pass no sges",
            )
        total += length
        body += be("length", length, 4) + be("lkey", lkey, 4) + be("addr", addr, 8)
    if total > MAX_MESSAGE:
        raise BadArgument(
            "message too long",
            value=total,
            rule=f"log_msg_max 30: at most {MAX_MESSAGE} bytes a WQE",
            remedy="split it into several WQEs",
        )
    return body


def inline_segment(data: bytes) -> bytes:
    """Length word with the inline bit, then the bytes, not padded; nothing at all for no bytes."""
    # Bytes follow the length word at once: 28 of them fill what is left of a WRITE's first basic block.
    return be("length", INLINE_SEG | len(data), 4) + data if data else b""
