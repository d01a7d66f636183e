"""Doorbell records in memory and the 8-byte doorbell register, in both dialects.

Leans on wire and errors. A *record* is two be32 words that software keeps in memory; the *register*
is a write of 8 bytes to the UAR. Sources: `mlx5dv.h` (MLX5_RCV_DBR, MLX5_SND_DBR), `providers/mlx5/qp.c`
(post_send_db), `providers/mlx5/cq.c` (update_cons_index, mlx5_arm_cq), DOCA GPUNetIO `dev_verbs_qp.cuh`
(prepare_db).
"""

from __future__ import annotations

from rdmakit.errors import BadArgument
from rdmakit.layout.wire import unsigned, wire_dtype

__all__ = [
    "ARM",
    "CQ_DBREC",
    "CQ_DB_REQ_NOT",
    "CQ_DB_REQ_NOT_SOL",
    "DOORBELL",
    "QP_DBREC",
    "RCV_DBR",
    "SET_CI",
    "SND_DBR",
    "cq_dbrec",
    "doorbell_last",
    "doorbell_next",
    "qp_dbrec",
]

# Word indices. mlx5dv_qp.dbrec points at word 0, so an IBGDA sender uses dbrec + 4 bytes.
RCV_DBR = 0  # MLX5_RCV_DBR
SND_DBR = 1  # MLX5_SND_DBR
SET_CI = 0  # MLX5_CQ_SET_CI
ARM = 1  # MLX5_CQ_ARM_DB
CQ_DB_REQ_NOT = 0 << 24  # MLX5_CQ_DB_REQ_NOT
CQ_DB_REQ_NOT_SOL = 1 << 24  # MLX5_CQ_DB_REQ_NOT_SOL

# rcv counts receive WQEs; snd is the index of the *next* send basic block. 16 bits each.
QP_DBREC = wire_dtype(8, rcv=(0, ">u4"), snd=(4, ">u4"))
# set_ci is the consumer index, 24 bits; arm is sequence[29:28] | command[24] | consumer index[23:0].
CQ_DBREC = wire_dtype(8, set_ci=(0, ">u4"), arm=(4, ">u4"))
# The first 8 bytes of a ctrl segment
DOORBELL = wire_dtype(
    8,
    opmod_idx_opcode=(0, ">u4"),
    qpn_ds=(4, ">u4"),
    opmod=(0, "u1"),
    wqe_index=(1, ">u2"),
    opcode=(3, "u1"),
    ds=(7, "u1"),
)


def _words(first: int, second: int) -> bytes:
    return first.to_bytes(4, "big") + second.to_bytes(4, "big")


def _not_negative(name: str, value: int) -> int:
    if value < 0:
        raise BadArgument(f"{name} is negative", value=value, rule="a free-running index counts up from 0",
                          remedy="count on; the cut to its width happens here")
    return value


def qp_dbrec(*, rcv: int = 0, snd: int = 0) -> bytes:
    """The 8 bytes of a QP's doorbell record from free-running indices, of which it keeps the low 16 bits.

    >>> qp_dbrec(snd=0x1_0005).hex(" ", 4)
    '00000000 00000005'
    """
    return _words(_not_negative("rcv", rcv) & 0xFFFF, _not_negative("snd", snd) & 0xFFFF)


def cq_dbrec(
    *, ci: int = 0, arm_sn: int = 0, solicited_only: bool = False, arm_ci: int | None = None
) -> bytes:
    """The 8 bytes of a CQ's doorbell record. `arm_ci` defaults to `ci`; both keep their low 24 bits.

    >>> cq_dbrec(ci=0x2a, arm_sn=1, solicited_only=True).hex(" ", 4)
    '0000002a 1100002a'
    """
    command = CQ_DB_REQ_NOT_SOL if solicited_only else CQ_DB_REQ_NOT
    index = _not_negative("ci", ci) & 0xFFFFFF
    armed = index if arm_ci is None else _not_negative("arm_ci", arm_ci) & 0xFFFFFF
    return _words(index, (_not_negative("arm_sn", arm_sn) & 3) << 28 | command | armed)


def doorbell_next(qpn: int, next_index: int) -> bytes:
    """Register value of NVSHMEM, DeepEP and DOCA: index of the *next* basic block, opcode and ds 0.

    >>> doorbell_next(0x123, 8).hex(" ", 4)
    '00000800 00012300'
    """
    return _words((_not_negative("next_index", next_index) & 0xFFFF) << 8, unsigned("qpn", qpn, 24) << 8)


def doorbell_last(wqe: bytes) -> bytes:
    """Register value of libmlx5, mori and rocSHMEM: the first 8 bytes of the *last* posted WQE.

    >>> doorbell_last(bytes.fromhex("00000508 00012303 00000008 00000000")).hex(" ", 4)
    '00000508 00012303'
    """
    if len(wqe) < 16:
        raise BadArgument("no whole ctrl segment", value=len(wqe), rule="a WQE starts with 16 bytes of ctrl",
                          remedy="pass the last WQE whole")
    return bytes(wqe[:8])
