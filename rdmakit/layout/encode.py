"""Golden encoders: one function an operation, from plain numbers to the bytes of the WQE, in plain Python.

Leans on segments and encode_atomic, on no dtype: tests compare these bytes with the device headers' and with
the dtypes of `wqe`, so the three must not share code. Each function returns whole basic blocks (a multiple of
64 bytes) that only ever hold what a device would execute; to build a faulty WQE, change the bytes afterwards
through `ring_view`. Common arguments:

* `index`: free-running index of the WQE's first basic block; the low 16 bits are kept;
* `qpn`: own QP number, 24 bits;
* `flags`: `CtrlFlag` bits of fm_ce_se; the default asks for a CQE;
* `sges`: one `Sge` or a sequence of them; addresses and lengths in bytes.

Sources: rdma-core `providers/mlx5/qp.c` (_mlx5_post_send) and UCX `src/uct/ib/rc/accel/rc_mlx5.inl`
(atomics).

>>> w = write(index=5, qpn=0x123, raddr=0x1000, rkey=7, sges=Sge(0x2000, 64, 9))
>>> w[:16].hex(" ", 4), len(w)
('00000508 00012303 00000008 00000000', 64)
"""

from __future__ import annotations

from rdmakit.errors import BadArgument
from rdmakit.layout.constants import DS_BYTES, INVALID_LKEY, CtrlFlag, Opcode
from rdmakit.layout.encode_atomic import compare_swap, fetch_add, masked_compare_swap, masked_fetch_add
from rdmakit.layout.segments import Sge, Sges, data_segments, inline_segment, raddr_segment, wqe_bytes

__all__ = [
    "Sge",
    "compare_swap",
    "dump",
    "fetch_add",
    "masked_compare_swap",
    "masked_fetch_add",
    "nop",
    "read",
    "recv",
    "send",
    "send_imm",
    "write",
    "write_imm",
    "write_inline",
]


def nop(*, index: int, qpn: int, flags: int = CtrlFlag.CQ_UPDATE) -> bytes:
    """NOP, ds 1."""
    return wqe_bytes(Opcode.NOP, index, qpn, flags, b"")


def write(
    *, index: int, qpn: int, raddr: int, rkey: int, sges: Sges = (), flags: int = CtrlFlag.CQ_UPDATE
) -> bytes:
    """RDMA WRITE: ctrl, raddr, one data segment a buffer."""
    return wqe_bytes(Opcode.RDMA_WRITE, index, qpn, flags, raddr_segment(raddr, rkey) + data_segments(sges))


def write_inline(
    *,
    index: int,
    qpn: int,
    raddr: int,
    rkey: int,
    data: bytes,
    imm: int | None = None,
    flags: int = CtrlFlag.CQ_UPDATE,
) -> bytes:
    """RDMA WRITE (or WRITE_IMM, when `imm` is given) of bytes that travel in the WQE itself.

    >>> write_inline(index=0, qpn=1, raddr=0, rkey=0, data=bytes(28))[7]
    4
    """
    opcode = Opcode.RDMA_WRITE if imm is None else Opcode.RDMA_WRITE_IMM
    return wqe_bytes(
        opcode, index, qpn, flags, raddr_segment(raddr, rkey) + inline_segment(data), imm=imm or 0
    )


def write_imm(
    *, index: int, qpn: int, raddr: int, rkey: int, imm: int, sges: Sges = (), flags: int = CtrlFlag.CQ_UPDATE
) -> bytes:
    """RDMA WRITE with a 32-bit immediate; without sges ds is 2."""
    return wqe_bytes(
        Opcode.RDMA_WRITE_IMM, index, qpn, flags, raddr_segment(raddr, rkey) + data_segments(sges), imm=imm
    )


def read(
    *, index: int, qpn: int, raddr: int, rkey: int, sges: Sges, flags: int = CtrlFlag.CQ_UPDATE
) -> bytes:
    """RDMA READ into the buffers of `sges`."""
    return wqe_bytes(Opcode.RDMA_READ, index, qpn, flags, raddr_segment(raddr, rkey) + data_segments(sges))


def send(*, index: int, qpn: int, sges: Sges = (), flags: int = CtrlFlag.CQ_UPDATE) -> bytes:
    """SEND on a connected QP: ctrl, one data segment a buffer."""
    return wqe_bytes(Opcode.SEND, index, qpn, flags, data_segments(sges))


def send_imm(*, index: int, qpn: int, imm: int, sges: Sges = (), flags: int = CtrlFlag.CQ_UPDATE) -> bytes:
    """SEND with a 32-bit immediate."""
    return wqe_bytes(Opcode.SEND_IMM, index, qpn, flags, data_segments(sges), imm=imm)


def dump(*, index: int, qpn: int, sge: Sge, flags: int = CtrlFlag.CQ_UPDATE) -> bytes:
    """DUMP: the device reads `sge` and drops it; DOCA uses it to make earlier inbound writes visible."""
    return wqe_bytes(Opcode.DUMP, index, qpn, flags, data_segments(sge))


def recv(sges: Sges, *, stride: int = 64) -> bytes:
    """A receive WQE of `stride` bytes: data segments, ended by {0, INVALID_LKEY, 0} when there is room.

    >>> recv(Sge(0x1000, 4096, 5), stride=32).hex(" ", 4)
    '00001000 00000005 00000000 00001000 00000000 00000100 00000000 00000000'
    """
    body = data_segments(sges)
    if stride % DS_BYTES or len(body) > stride:
        raise BadArgument(
            "receive WQE does not fit", value=stride, rule=f"stride a multiple of 16, ≥ {len(body)} here",
            remedy="leave stride out, or take that of the QP"
        )
    if len(body) < stride:
        body += bytes(4) + INVALID_LKEY.to_bytes(4, "big") + bytes(8)
    return body.ljust(stride, b"\0")
