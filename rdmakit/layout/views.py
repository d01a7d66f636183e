"""Zero-copy structured views of live rings: what the device reads and writes, as NumPy arrays.

Leans on the dtypes of wqe, cqe and doorbell. Writing to a view writes to the ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.errors import BadArgument
from rdmakit.layout.cqe import CQE64, CQE128, ERR_CQE
from rdmakit.layout.doorbell import CQ_DBREC, QP_DBREC
from rdmakit.layout.wqe import DATA, WQEBB

__all__ = ["RING_KINDS", "ring_view"]

RING_KINDS: dict[str, np.dtype[np.void]] = {
    "sq": WQEBB,
    "rq": DATA,
    "cq": CQE64,
    "cq_error": ERR_CQE,
    "cq128": CQE128,
    "qp_dbrec": QP_DBREC,
    "cq_dbrec": CQ_DBREC,
}


def ring_view(buffer: Any, kind: str) -> np.ndarray[Any, np.dtype[np.void]]:
    """View `buffer` (bytes-like, or a C-contiguous array of any dtype) as a 1-D structured array; no copy.

    `kind` is a key of `RING_KINDS`: "sq" gives one `WQEBB` a basic block (its ctrl fields mean something only
    where a WQE starts), "rq" one `DATA` segment each 16 bytes, "cq" one `CQE64` each 64 bytes, "cq_error" the
    same entries as `ERR_CQE`, "cq128" one `CQE128` each 128 bytes, "qp_dbrec" and "cq_dbrec" a record each 8
    bytes. The view is writeable when the buffer is. BadArgument when the size is no multiple of the entry's.

    >>> sq = bytearray(4 * 64)
    >>> ring_view(sq, "sq")["opcode"][2] = 0x0A
    >>> sq[2 * 64 + 3], ring_view(sq, "sq").shape
    (10, (4,))
    """
    if kind not in RING_KINDS:
        raise BadArgument("unknown ring kind", value=kind, rule="one of " + ", ".join(RING_KINDS),
                          remedy="name what the memory holds")
    dtype = RING_KINDS[kind]
    view = memoryview(buffer) if not isinstance(buffer, np.ndarray) else None
    array = buffer if view is None else np.frombuffer(view, np.uint8)
    if not array.flags.c_contiguous:
        raise BadArgument(
            "ring buffer with gaps",
            value=array.strides,
            rule="C-contiguous, so that no copy is made",
            remedy="pass the array that owns the memory",
        )
    if array.nbytes % dtype.itemsize:
        raise BadArgument(
            "not whole entries",
            value=array.nbytes,
            rule=f"a multiple of {dtype.itemsize} bytes for kind {kind}",
            remedy="pass the whole ring",
        )
    return array.reshape(-1).view(np.uint8).view(dtype)
