"""Golden encoders of the atomics: 8-byte FETCH_ADD and COMPARE_SWAP, masked ones of 4 and 8 bytes.

Leans on segments. Arguments as in `encode`; the old value lands in `sge`, whose length is the atomic's width.
Source: UCX `src/uct/ib/mlx5/ib_mlx5.h` and `src/uct/ib/rc/accel/rc_mlx5.inl`.
"""

from __future__ import annotations

from rdmakit.errors import BadArgument
from rdmakit.layout.constants import CtrlFlag, Opcode, Opmod
from rdmakit.layout.segments import Sge, be, data_segments, raddr_segment, wqe_bytes

__all__ = ["compare_swap", "fetch_add", "masked_compare_swap", "masked_fetch_add"]


def _landing(sge: Sge, width: int, raddr: int) -> bytes:
    """Data segment for the old value; a responder answers misalignment with REMOTE_INVAL_REQ (0x12)."""
    if sge.length != width:
        raise BadArgument(
            "landing buffer of the wrong size", value=sge.length, rule=f"the atomic is {width} bytes wide",
            remedy="pass an Sge of that length"
        )
    if raddr % width:
        raise BadArgument("misaligned atomic", value=hex(raddr), rule=f"raddr must be a multiple of {width}",
                          remedy="align the word: an array of that dtype is")
    return data_segments(sge)


def fetch_add(
    *, index: int, qpn: int, raddr: int, rkey: int, add: int, sge: Sge, flags: int = CtrlFlag.CQ_UPDATE
) -> bytes:
    """8-byte FETCH_ADD; the old value lands in `sge`."""
    body = raddr_segment(raddr, rkey) + be("add", add, 8) + bytes(8) + _landing(sge, 8, raddr)
    return wqe_bytes(Opcode.ATOMIC_FA, index, qpn, flags, body)


def compare_swap(
    *,
    index: int,
    qpn: int,
    raddr: int,
    rkey: int,
    compare: int,
    swap: int,
    sge: Sge,
    flags: int = CtrlFlag.CQ_UPDATE,
) -> bytes:
    """8-byte COMPARE_SWAP; the old value lands in `sge`."""
    body = (
        raddr_segment(raddr, rkey) + be("swap", swap, 8) + be("compare", compare, 8) + _landing(sge, 8, raddr)
    )
    return wqe_bytes(Opcode.ATOMIC_CS, index, qpn, flags, body)


def _opmod(width: int) -> Opmod:
    if width not in (4, 8):
        raise BadArgument("no such masked atomic", value=width, rule="width is 4 or 8 bytes",
                          remedy="plain fetch_add and cmp_swap need no width")
    return Opmod.EXT_ATOMIC_4B if width == 4 else Opmod.EXT_ATOMIC_8B


def masked_fetch_add(
    *,
    index: int,
    qpn: int,
    raddr: int,
    rkey: int,
    add: int,
    sge: Sge,
    boundary: int = 0,
    width: int = 8,
    flags: int = CtrlFlag.CQ_UPDATE,
) -> bytes:
    """Masked FETCH_ADD of 4 or 8 bytes. A 1 in `boundary` stops the carry above that bit; all ones: XOR."""
    opmod = _opmod(width)
    body = (be("add", add, width) + be("boundary", boundary, width)).ljust(16, b"\0")
    return wqe_bytes(
        Opcode.ATOMIC_MASKED_FA,
        index,
        qpn,
        flags,
        raddr_segment(raddr, rkey) + body + _landing(sge, width, raddr),
        opmod=opmod,
    )


def masked_compare_swap(
    *,
    index: int,
    qpn: int,
    raddr: int,
    rkey: int,
    compare: int,
    swap: int,
    sge: Sge,
    compare_mask: int | None = None,
    swap_mask: int | None = None,
    width: int = 8,
    flags: int = CtrlFlag.CQ_UPDATE,
) -> bytes:
    """Masked COMPARE_SWAP of 4 or 8 bytes: where the masked bits match, the bits of `swap_mask` are replaced.

    Masks default to all ones (a plain compare-and-swap); `compare_mask` 0 makes it unconditional. The 8-byte
    form has ds 5, so it takes two basic blocks.
    """
    opmod = _opmod(width)
    ones = (1 << 8 * width) - 1
    numbers = {
        "swap": swap,
        "compare": compare,
        "swap_mask": ones if swap_mask is None else swap_mask,
        "compare_mask": ones if compare_mask is None else compare_mask,
    }
    body = b"".join(be(name, value, width) for name, value in numbers.items())
    return wqe_bytes(
        Opcode.ATOMIC_MASKED_CS,
        index,
        qpn,
        flags,
        raddr_segment(raddr, rkey) + body + _landing(sge, width, raddr),
        opmod=opmod,
    )
