"""The numbers of the mlx5 wire formats, under the names that mlx5dv.h gives them (prefixes dropped).

Leans on nothing. Each enum names its C prefix; `tests/unit/test_layout_mlx5dv.py` compares every value with
the installed header. Sources: rdma-core `providers/mlx5/mlx5dv.h`, `libibverbs/verbs.h`, Linux
`include/linux/mlx5/qp.h`; what those lack cites its own source.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

__all__ = [
    "CQE_INITIAL_OP_OWN",
    "DS_BYTES",
    "INLINE_SEG",
    "INVALID_LKEY",
    "MAX_DS",
    "MAX_MESSAGE",
    "SEND_WQE_BB",
    "Access",
    "CompletionMode",
    "CqeFormat",
    "CqeOpcode",
    "CtrlFlag",
    "FenceMode",
    "Opcode",
    "Opmod",
    "Syndrome",
    "WcStatus",
    "wc_status",
]

SEND_WQE_BB = 64  # MLX5_SEND_WQE_BB: bytes of a basic block, the unit of SQ indices
DS_BYTES = 16  # MLX5_SEND_WQE_DS (Linux qp.h): the unit of a WQE's size field
MAX_DS = 63  # ctrl.ds has six bits: MLX5_WQE_CTRL_DS_MASK 0x3f (Linux qp.h)
MAX_MESSAGE = 1 << 30  # qpc.log_msg_max 30, which libmlx5 and NVSHMEM set: bytes that one WQE may move
INLINE_SEG = 0x8000_0000  # MLX5_INLINE_SEG
INVALID_LKEY = 0x100  # MLX5_INVALID_LKEY: ends a receive WQE's scatter list (providers/mlx5/qp.c)

# DOCA GPUNetIO polls the owner bit alone: libmlx5's 0xf0 would read as ready on lap 0. 0xf1 suits both.
CQE_INITIAL_OP_OWN = 0xF1


class Opcode(IntEnum):
    """Send WQE opcode: MLX5_OPCODE_*, ctrl segment byte 3 and the top byte of CQE.sop_drop_qpn."""

    NOP = 0x00
    SEND_INVAL = 0x01
    RDMA_WRITE = 0x08
    RDMA_WRITE_IMM = 0x09
    SEND = 0x0A
    SEND_IMM = 0x0B
    TSO = 0x0E
    WAIT = 0x0F  # CORE-Direct; DPDK drivers/common/mlx5 (MLX5_OPCODE_WAIT)
    RDMA_READ = 0x10
    ATOMIC_CS = 0x11
    ATOMIC_FA = 0x12
    ATOMIC_MASKED_CS = 0x14
    ATOMIC_MASKED_FA = 0x15
    FMR = 0x19
    LOCAL_INVAL = 0x1B
    CONFIG_CMD = 0x1F
    SET_PSV = 0x20
    DUMP = 0x23  # Linux include/linux/mlx5/device.h (MLX5_OPCODE_DUMP)
    UMR = 0x25
    TAG_MATCHING = 0x28
    FLOW_TBL_ACCESS = 0x2C
    MMO = 0x2F


class Opmod(IntEnum):
    """Ctrl segment byte 0 of the masked atomics; UCX UCT_IB_MLX5_OPMOD_EXT_ATOMIC: 8 | (log2(bytes) - 2)."""

    NONE = 0x00
    EXT_ATOMIC_4B = 0x08
    EXT_ATOMIC_8B = 0x09


class CtrlFlag(IntFlag):
    """Ctrl segment byte 11, fm_ce_se: MLX5_WQE_CTRL_*. The fence bits form a number: `FenceMode`."""

    NONE = 0
    SOLICITED = 1 << 1
    CQ_UPDATE = 2 << 2
    INITIATOR_SMALL_FENCE = 1 << 5
    FENCE = 4 << 5


class FenceMode(IntEnum):
    """fm_ce_se bits 7:5: MLX5_FENCE_MODE_* of Linux qp.h, shifted down by 5.

    None of them orders a WRITE after a WRITE on a multi-path QP except STRONG_ORDERING; FENCE and
    SMALL_AND_FENCE (IBV_SEND_FENCE) wait only for earlier READs and atomics.
    """

    NONE = 0
    INITIATOR_SMALL = 1
    FENCE = 2
    STRONG_ORDERING = 3
    SMALL_AND_FENCE = 4


class CompletionMode(IntEnum):
    """fm_ce_se bits 3:2. 2 is MLX5_WQE_CTRL_CQ_UPDATE, 3 MLX5_WQE_CTRL_CQ_UPDATE_AND_EQE (Linux qp.h)."""

    ON_ERROR = 0
    ON_FIRST_ERROR = 1
    ALWAYS = 2
    ALWAYS_AND_EQE = 3


class CqeOpcode(IntEnum):
    """op_own bits 7:4: MLX5_CQE_*."""

    REQ = 0
    RESP_WR_IMM = 1
    RESP_SEND = 2
    RESP_SEND_IMM = 3
    RESP_SEND_INV = 4
    RESIZE_CQ = 5
    NO_PACKET = 6
    SIG_ERR = 12
    REQ_ERR = 13
    RESP_ERR = 14
    INVALID = 15


class CqeFormat(IntEnum):
    """op_own bits 3:2. MLX5_INLINE_SCATTER_32 and _64 are these << 2; 3 is a compressed session."""

    PLAIN = 0
    INLINE_SCATTER_32 = 1
    INLINE_SCATTER_64 = 2
    COMPRESSED = 3


class Syndrome(IntEnum):
    """Error CQE byte 55: MLX5_CQE_SYNDROME_*."""

    LOCAL_LENGTH_ERR = 0x01
    LOCAL_QP_OP_ERR = 0x02
    LOCAL_PROT_ERR = 0x04
    WR_FLUSH_ERR = 0x05
    MW_BIND_ERR = 0x06
    BAD_RESP_ERR = 0x10
    LOCAL_ACCESS_ERR = 0x11
    REMOTE_INVAL_REQ_ERR = 0x12
    REMOTE_ACCESS_ERR = 0x13
    REMOTE_OP_ERR = 0x14
    TRANSPORT_RETRY_EXC_ERR = 0x15
    RNR_RETRY_EXC_ERR = 0x16
    REMOTE_ABORTED_ERR = 0x22


class WcStatus(IntEnum):
    """`enum ibv_wc_status`: IBV_WC_*, the part that mlx5 can report."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13
    REM_ABORT_ERR = 16
    GENERAL_ERR = 21


class Access(IntFlag):
    """`enum ibv_access_flags`: IBV_ACCESS_*."""

    NONE = 0
    LOCAL_WRITE = 1 << 0
    REMOTE_WRITE = 1 << 1
    REMOTE_READ = 1 << 2
    REMOTE_ATOMIC = 1 << 3
    MW_BIND = 1 << 4
    ZERO_BASED = 1 << 5
    ON_DEMAND = 1 << 6
    HUGETLB = 1 << 7
    RELAXED_ORDERING = 1 << 20


_WC_STATUS = {
    Syndrome.LOCAL_LENGTH_ERR: WcStatus.LOC_LEN_ERR,
    Syndrome.LOCAL_QP_OP_ERR: WcStatus.LOC_QP_OP_ERR,
    Syndrome.LOCAL_PROT_ERR: WcStatus.LOC_PROT_ERR,
    Syndrome.WR_FLUSH_ERR: WcStatus.WR_FLUSH_ERR,
    Syndrome.MW_BIND_ERR: WcStatus.MW_BIND_ERR,
    Syndrome.BAD_RESP_ERR: WcStatus.BAD_RESP_ERR,
    Syndrome.LOCAL_ACCESS_ERR: WcStatus.LOC_ACCESS_ERR,
    Syndrome.REMOTE_INVAL_REQ_ERR: WcStatus.REM_INV_REQ_ERR,
    Syndrome.REMOTE_ACCESS_ERR: WcStatus.REM_ACCESS_ERR,
    Syndrome.REMOTE_OP_ERR: WcStatus.REM_OP_ERR,
    Syndrome.TRANSPORT_RETRY_EXC_ERR: WcStatus.RETRY_EXC_ERR,
    Syndrome.RNR_RETRY_EXC_ERR: WcStatus.RNR_RETRY_EXC_ERR,
    Syndrome.REMOTE_ABORTED_ERR: WcStatus.REM_ABORT_ERR,
}


def wc_status(syndrome: int) -> WcStatus:
    """The `ibv_wc_status` that libmlx5 reports for an error CQE's syndrome.

    Any unlisted syndrome, 0 included, is GENERAL_ERR (providers/mlx5/cq.c, mlx5_handle_error_cqe).

    >>> wc_status(0x13).name, wc_status(0x77).name
    ('REM_ACCESS_ERR', 'GENERAL_ERR')
    """
    return _WC_STATUS.get(syndrome, WcStatus.GENERAL_ERR)  # type: ignore[call-overload,no-any-return]
