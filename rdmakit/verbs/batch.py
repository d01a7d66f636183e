"""The rows that are posted and polled by the hundred: NumPy dtypes of work requests and completions.

Leans on NumPy. SEND_WR and RECV_WR are this project's (native/batch.hpp), WC is struct ibv_wc itself: completions are
polled into it without a copy.
"""

from __future__ import annotations

import numpy as np

__all__ = ["RECV_WR", "SEND_WR", "WC"]

SEND_WR = np.dtype(
    [
        ("wr_id", "<u8"),
        ("opcode", "<u4"),  # IBV_WR_*: 0 write, 1 write_imm, 2 send, 3 send_imm, 4 read, 5 cmp_swap, 6 fetch_add
        ("flags", "<u4"),  # IBV_SEND_*: 1 fence, 2 signalled, 4 solicited, 8 inline
        ("address", "<u8"),
        ("length", "<u4"),  # 0: no payload
        ("lkey", "<u4"),
        ("remote_address", "<u8"),
        ("rkey", "<u4"),
        ("imm", "<u4"),  # in host order
        ("compare_add", "<u8"),
        ("swap", "<u8"),
    ]
)
RECV_WR = np.dtype([("wr_id", "<u8"), ("address", "<u8"), ("length", "<u4"), ("lkey", "<u4")])
WC = np.dtype(
    {
        "names": [
            "wr_id", "status", "opcode", "vendor_err", "byte_len", "imm", "qp_num", "src_qp", "wc_flags", "pkey_index",
            "slid", "sl", "dlid_path_bits",
        ],
        "offsets": [0, 8, 12, 16, 20, 24, 28, 32, 36, 40, 42, 44, 45],
        "formats": ["<u8", "<u4", "<u4", "<u4", "<u4", ">u4", "<u4", "<u4", "<u4", "<u2", "<u2", "u1", "u1"],
        "itemsize": 48,
    }
)  # fmt: skip
