"""The PODs of the sequence lock, as NumPy dtypes: offsets as C lays them out.

Leans on NumPy and device.handle. Sources: cuda/rdmakit/{lock,lock_stamp}.cuh, cuda/kernels/lock_send.cu; tests compare
every offset with what g++ says.
"""

from __future__ import annotations

import numpy as np

from rdmakit.device.handle import CQ_HANDLE, QP_HANDLE

__all__ = [
    "FLAG_CRC",
    "FLAG_NARROW_TAIL",
    "LOCK_HEADER",
    "LOCK_RECEIVER",
    "LOCK_SENDER",
    "LOCK_STATE",
    "LOCK_TRANSFER",
]

FLAG_CRC, FLAG_NARROW_TAIL = 1, 2  # kLockCrc, kLockNarrowTail

_MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)


def _u32(*names: str) -> list[tuple[str, str]]:
    return [(name, "<u4") for name in names]


def _u64(*names: str) -> list[tuple[str, str]]:
    return [(name, "<u8") for name in names]


LOCK_HEADER = np.dtype(
    [*_u64("ticket"), *_u32("length", "fingerprint", "epoch", "crc", "qpn", "reserved")], align=True
)

LOCK_STATE = np.dtype(_u64("signed_off", "credited", "consumer", "receives"), align=True)

# Nested PODs whose dtypes are given by offsets know no alignment of their own; each starts on an 8-byte boundary here.
LOCK_SENDER = np.dtype(
    [
        *_u32("layout_version", "strategy", "epoch", "flags", "slots", "slot_bytes", "max_payload", "staging_lkey"),
        *_u64("staging", "credit", "next"),
        ("ring", _MEMORY),
        ("signal", _MEMORY),
        ("qp", QP_HANDLE),
        ("signal_qp", QP_HANDLE),
    ],
    align=True,
)

LOCK_RECEIVER = np.dtype(
    [
        *_u32("layout_version", "strategy", "epoch", "flags", "slots", "slot_bytes", "max_payload", "sender_qpn"),
        *_u64("ring", "signal", "state"),
        ("credit", _MEMORY),
        *_u64("receive_dbrec"),
        *_u32("credit_every", "reserved"),
        ("receive_cq", CQ_HANDLE),
        ("qp", QP_HANDLE),
    ],
    align=True,
)

LOCK_TRANSFER = np.dtype([*_u64("offset"), *_u32("length", "reserved")], align=True)
