"""Completion queue entries as NumPy dtypes, the bits of op_own, and builders of CQEs.

Leans on constants and wire. Sources: rdma-core `providers/mlx5/mlx5dv.h` (`struct mlx5_cqe64`, `struct
mlx5_err_cqe`) and `providers/mlx5/cq.c`; the two hardware syndrome bytes of an error CQE are DOCA GPUNetIO's
extended view.
"""

from __future__ import annotations

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.layout.constants import CqeFormat, CqeOpcode, Opcode, Syndrome
from rdmakit.layout.wire import unsigned, wire_dtype

__all__ = ["CQE64", "CQE128", "ERR_CQE", "cqe", "cqe_is_software_owned", "error_cqe"]

# struct mlx5_cqe64, 64 B. With CqeFormat.INLINE_SCATTER_32 bytes 0..31 are payload: `inline_data`.
CQE64 = wire_dtype(
    64,
    wqe_id=(2, ">u2"),
    ml_path=(17, "u1"),
    slid=(22, ">u2"),
    flags_rqpn=(24, ">u4"),
    hds_ip_ext=(28, "u1"),
    l4_hdr_type_etc=(29, "u1"),
    vlan_info=(30, ">u2"),
    srqn_uidx=(32, ">u4"),
    imm_inval_pkey=(36, ">u4"),
    app=(40, "u1"),
    app_op=(41, "u1"),
    app_info=(42, ">u2"),
    byte_cnt=(44, ">u4"),
    timestamp=(48, ">u8"),
    sop_drop_qpn=(56, ">u4"),
    wqe_counter=(60, ">u2"),
    signature=(62, "u1"),
    op_own=(63, "u1"),
    inline_data=(0, ("u1", (32,))),
)

# struct mlx5_err_cqe, 64 B
ERR_CQE = wire_dtype(
    64,
    srqn=(32, ">u4"),
    hw_err_synd=(52, "u1"),
    hw_synd_type=(53, "u1"),
    vendor_err_synd=(54, "u1"),
    syndrome=(55, "u1"),
    s_wqe_opcode_qpn=(56, ">u4"),
    wqe_counter=(60, ">u2"),
    signature=(62, "u1"),
    op_own=(63, "u1"),
)

# A 128-byte entry: payload of up to 64 bytes, then the CQE64 (providers/mlx5/cq.c: cqe64 = cqe + 64)
CQE128 = wire_dtype(128, inline_data=(0, ("u1", (64,))), cqe=(64, CQE64))


def cqe_is_software_owned(op_own: np.ndarray | int, ci: np.ndarray | int, log_size: int) -> np.ndarray | bool:
    """Whether the CQE at consumer index `ci` of a CQ with 2**log_size entries has been written by the device.

    True when its opcode is not INVALID and its owner bit equals the parity of the lap, bit `log_size` of `ci`
    (providers/mlx5/cq.c, get_sw_cqe). Scalars give a bool, arrays (u1, any integer; broadcast) a bool array.

    >>> [cqe_is_software_owned(op_own, ci, 4) for op_own, ci in ((0x00, 5), (0x00, 16 + 5), (0xF1, 0))]
    [True, False, False]
    """
    op = np.asarray(op_own)
    lap = (np.asarray(ci) >> log_size) & 1
    owned = ((op >> 4) != CqeOpcode.INVALID) & ((op & 1) == lap)
    return bool(owned) if owned.ndim == 0 else owned


def _op_own(opcode: CqeOpcode, form: CqeFormat, solicited: bool, owner: int) -> int:
    return opcode << 4 | form << 2 | solicited << 1 | unsigned("owner", owner, 1)


def cqe(
    opcode: CqeOpcode = CqeOpcode.REQ,
    *,
    qpn: int,
    wqe_counter: int,
    send_opcode: Opcode = Opcode.NOP,
    byte_cnt: int = 0,
    imm: int = 0,
    src_qp: int = 0,
    srqn: int = 0,
    timestamp: int = 0,
    owner: int = 0,
    solicited: bool = False,
    inline_data: bytes = b"",
) -> bytes:
    """A good completion: 64 bytes, or 128 when `inline_data` is longer than 32 bytes.

    `inline_data` (up to 64 bytes) is scattered into the entry the way the device does with scatter-to-CQE on.
    `wqe_counter` is the index of the WQE's first basic block (requester) or of the receive WQE (responder).

    >>> entry = cqe(qpn=0x1dbb, wqe_counter=15, send_opcode=Opcode.RDMA_WRITE, owner=1)
    >>> entry[56:].hex(" ")
    '08 00 1d bb 00 0f 00 01'
    """
    if opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR):
        raise BadArgument("not a good completion", value=opcode, rule="an error CQE has a layout of its own",
                          remedy="use error_cqe")
    if len(inline_data) > 64:
        raise BadArgument("inline data too long", value=len(inline_data), rule="64 bytes in a 128-byte CQE",
                          remedy="scatter longer data to memory")
    form = (
        CqeFormat.PLAIN
        if not inline_data
        else CqeFormat.INLINE_SCATTER_32
        if len(inline_data) <= 32
        else CqeFormat.INLINE_SCATTER_64
    )
    entry = np.zeros((), CQE64)
    entry["flags_rqpn"] = unsigned("src_qp", src_qp, 24)
    entry["srqn_uidx"] = unsigned("srqn", srqn, 24)
    entry["imm_inval_pkey"] = unsigned("imm", imm, 32)
    entry["byte_cnt"] = unsigned("byte_cnt", byte_cnt or len(inline_data), 32)
    entry["timestamp"] = unsigned("timestamp", timestamp, 64)
    entry["sop_drop_qpn"] = send_opcode << 24 | unsigned("qpn", qpn, 24)
    entry["wqe_counter"] = unsigned("wqe_counter", wqe_counter, 16)
    entry["op_own"] = _op_own(opcode, form, solicited, owner)
    if form is CqeFormat.INLINE_SCATTER_64:
        return inline_data.ljust(64, b"\0") + entry.tobytes()
    return inline_data + entry.tobytes()[len(inline_data) :]


def error_cqe(
    syndrome: Syndrome,
    *,
    qpn: int,
    wqe_counter: int,
    send_opcode: Opcode = Opcode.NOP,
    vendor_err: int = 0,
    opcode: CqeOpcode = CqeOpcode.REQ_ERR,
    srqn: int = 0,
    owner: int = 0,
) -> bytes:
    """A completion in error, 64 bytes. `opcode` is REQ_ERR (send side) or RESP_ERR (receive side).

    >>> error_cqe(Syndrome.REMOTE_ACCESS_ERR, qpn=0xb3a, wqe_counter=7, vendor_err=0x88)[52:].hex(" ")
    '00 00 88 13 00 00 0b 3a 00 07 00 d0'
    """
    if opcode not in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR):
        raise BadArgument(
            "not an error completion", value=opcode, rule="REQ_ERR or RESP_ERR", remedy="use cqe"
        )
    entry = np.zeros((), ERR_CQE)
    entry["srqn"] = unsigned("srqn", srqn, 24)
    entry["vendor_err_synd"] = unsigned("vendor_err", vendor_err, 8)
    entry["syndrome"] = syndrome
    entry["s_wqe_opcode_qpn"] = send_opcode << 24 | unsigned("qpn", qpn, 24)
    entry["wqe_counter"] = unsigned("wqe_counter", wqe_counter, 16)
    entry["op_own"] = _op_own(opcode, CqeFormat.PLAIN, False, owner)
    return entry.tobytes()
