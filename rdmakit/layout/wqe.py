"""The segments of an mlx5 send or receive WQE as NumPy structured dtypes, big endian, with exact offsets.

Leans on wire. Sources: rdma-core `providers/mlx5/mlx5dv.h` (`struct mlx5_wqe_*`) for all but the masked
atomics, which follow UCX `src/uct/ib/mlx5/ib_mlx5.h` (`uct_ib_mlx5_atomic_masked_*_seg`).

A WQE is a ctrl segment and what its opcode asks for, counted in units of 16 bytes (DS), laid out in basic
blocks (WQEBB) of 64 bytes. Fields narrower than a word have names of their own on top of the word's: in
`CTRL`, `opmod`, `wqe_index` and `opcode` overlap `opmod_idx_opcode`, and `ds` overlaps `qpn_ds`.

>>> import numpy as np
>>> ring = np.zeros(2, WQEBB)
>>> ring["opmod_idx_opcode"][1] = 7 << 8 | 0x08
>>> int(ring["wqe_index"][1]), int(ring["opcode"][1])
(7, 8)
"""

from __future__ import annotations

from typing import Any

from rdmakit.layout.wire import wire_dtype

__all__ = [
    "ATOMIC",
    "AV",
    "CTRL",
    "DATA",
    "ETH",
    "INLINE",
    "MASKED_CS4",
    "MASKED_CS8",
    "MASKED_FA4",
    "MASKED_FA8",
    "RADDR",
    "WQEBB",
]

_CTRL_FIELDS: dict[str, tuple[int, Any]] = {
    "opmod_idx_opcode": (0, ">u4"),  # opmod[31:24] | index of the first basic block[23:8] | opcode[7:0]
    "qpn_ds": (4, ">u4"),  # qpn[31:8] | size in DS[5:0]
    "signature": (8, "u1"),
    "dci_stream_channel_id": (9, ">u2"),
    "fm_ce_se": (11, "u1"),
    "imm": (12, ">u4"),
    "opmod": (0, "u1"),
    "wqe_index": (1, ">u2"),
    "opcode": (3, "u1"),
    "ds": (7, "u1"),  # the two high bits are reserved
}

# struct mlx5_wqe_ctrl_seg, 16 B
CTRL = wire_dtype(16, **_CTRL_FIELDS)

# One basic block of an SQ ring, seen as a ctrl segment and the 48 bytes after it, 64 B
WQEBB = wire_dtype(64, **_CTRL_FIELDS, body=(16, ("u1", (48,))))

# struct mlx5_wqe_raddr_seg, 16 B
RADDR = wire_dtype(16, raddr=(0, ">u8"), rkey=(8, ">u4"), reserved=(12, ">u4"))

# struct mlx5_wqe_data_seg, 16 B. Bit 31 of byte_count marks an inline segment instead.
DATA = wire_dtype(16, byte_count=(0, ">u4"), lkey=(4, ">u4"), addr=(8, ">u8"))

# struct mlx5_wqe_inl_data_seg, 4 B: INLINE_SEG | length; the bytes follow at once, padded to the next DS
INLINE = wire_dtype(4, byte_count=(0, ">u4"))

# struct mlx5_wqe_atomic_seg, 16 B. FETCH_ADD ignores compare.
ATOMIC = wire_dtype(16, swap_add=(0, ">u8"), compare=(8, ">u8"))

# Masked fetch-and-add, 16 B: a 1 in field_boundary stops the carry above that bit
MASKED_FA4 = wire_dtype(16, add=(0, ">u4"), field_boundary=(4, ">u4"), reserved=(8, ">u8"))
MASKED_FA8 = wire_dtype(16, add=(0, ">u8"), field_boundary=(8, ">u8"))

# Masked compare-and-swap: 16 B, and 32 B in the 8-byte form, whose data segment is in the second basic block
MASKED_CS4 = wire_dtype(
    16, swap=(0, ">u4"), compare=(4, ">u4"), swap_mask=(8, ">u4"), compare_mask=(12, ">u4")
)
MASKED_CS8 = wire_dtype(
    32, swap=(0, ">u8"), compare=(8, ">u8"), swap_mask=(16, ">u8"), compare_mask=(24, ">u8")
)

# struct mlx5_wqe_av = mlx5_wqe_datagram_seg, 48 B (UD and DC). For UD the key is qkey << 32.
AV = wire_dtype(
    48,
    dc_key=(0, ">u8"),
    dqp_dct=(8, ">u4"),
    stat_rate_sl=(12, "u1"),
    fl_mlid=(13, "u1"),
    rlid=(14, ">u2"),
    rmac=(20, ("u1", (6,))),
    tclass=(26, "u1"),
    hop_limit=(27, "u1"),
    grh_gid_fl=(28, ">u4"),
    rgid=(32, ("u1", (16,))),
)

# struct mlx5_wqe_eth_seg of raw packet queues, its fixed 16 B; longer inline headers follow
ETH = wire_dtype(
    16, cs_flags=(4, "u1"), mss=(6, ">u2"), inline_hdr_sz=(12, ">u2"), inline_hdr_start=(14, ("u1", (2,)))
)
