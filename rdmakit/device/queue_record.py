"""What a report keeps of a queue pair: counters, port, the last WQE and CQE; in one line each, and who is late.

Leans on NumPy and layout. Layouts: struct QueueView and QueueRecord of cuda/rdmakit/report.cuh. Device code fills a
record from the rings, wherever those lie; the host fills one from a QP that it has. What is told is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.layout import SEND_WQE_BB, decode
from rdmakit.layout.constants import CqeOpcode

if TYPE_CHECKING:
    from rdmakit.device.cq import CQ
    from rdmakit.device.qp import QP

__all__ = ["QUEUE_RECORD", "QUEUE_VIEW", "QueueRecord", "cq_flags", "nearest", "who_is_late"]

_VIEW_POINTERS = ("sq", "reserved", "ready", "rung", "completed", "cqes", "consumer")
QUEUE_VIEW = np.dtype(
    [
        ("qpn", "<u4"),
        ("port", "<u4"),
        *((name, "<u8") for name in _VIEW_POINTERS),
        *((name, "<u4") for name in ("log_sq", "log_cq", "log_stride", "cq_flags")),
    ]
)
QUEUE_RECORD = np.dtype(
    [
        ("qpn", "<u4"),
        ("port", "<u4"),
        *((name, "<u8") for name in ("reserved", "ready", "rung", "completed", "consumer", "arrived")),
        ("cq_flags", "<u4"),
        ("unused", "<u4"),
        ("wqe", "u1", (2, 64)),
        ("cqe", "u1", 64),
    ]
)
_COLLAPSED, _RECEIVES = 1, 2  # kViewCollapsed, kViewReceives


@dataclass(frozen=True)
class QueueRecord:
    """A queue pair at the moment of a report. `last_wqe` and `last_cqe` are decoded, "none" when there was none.

    `reserved`, `ready`, `rung` and `completed` count basic blocks: taken by a thread, published, rung for, complete as
    far as CQEs say that are there, taken or not. `completed` is None where the CQ at hand does not say.
    """

    qpn: int
    port: int
    reserved: int
    ready: int
    rung: int
    completed: int | None
    last_wqe: str
    last_cqe: str
    failed: bool

    @classmethod
    def from_bytes(cls, record: np.void) -> QueueRecord | None:
        """From a `QUEUE_RECORD`; None where nothing is known."""
        number = {name: int(record[name]) for name in (QUEUE_RECORD.names or ()) if record[name].ndim == 0}
        if number["qpn"] == 0:
            return None
        wqe, start = _last_wqe(record["wqe"], number["ready"], number["qpn"])
        completed: int | None = number["completed"]
        last_cqe, failed = "none", False
        collapsed = bool(number["cq_flags"] & _COLLAPSED)
        if number["arrived"]:
            cqe: Any = decode(record["cqe"].tobytes(), "cqe")
            which = "CQE" if collapsed else f"CQE {number['arrived'] - 1}"
            last_cqe, failed = f"{which}: {cqe.title}", bool(cqe.is_error)
            if cqe.opcode == CqeOpcode.REQ and number["arrived"] != number["consumer"]:
                # It names a WQE's first basic block; how many follow shows only of the last one.
                done = nearest(cqe.wqe_counter, number["completed"])
                completed = max(number["completed"], number["ready"] if done == start else done + 1)
        if number["cq_flags"] & _RECEIVES:
            completed = None
        counted = {name: number[name] for name in ("qpn", "port", "reserved", "ready", "rung")}
        return cls(**counted, completed=completed, last_wqe=wqe, last_cqe=last_cqe, failed=failed)

    @classmethod
    def of(cls, qp: QP) -> QueueRecord:
        """Of a QP of this process, as it stands now."""
        state, cq = qp._sends.state, qp._told_by
        record = np.zeros((), QUEUE_RECORD)
        record["qpn"], record["port"] = qp.qpn, qp.physical_port
        for name in ("reserved", "ready", "rung", "completed"):
            record[name] = state[name]
        flags = cq_flags(qp, cq)
        arrived = cq.consumer
        entries = cq._ring.reshape(-1, cq.cqe_bytes)[:, -64:]
        if cq.collapsed:
            arrived += entries[0, 63] >> 4 != CqeOpcode.INVALID
        else:
            while arrived - cq.consumer < len(entries) and cq._entry(arrived) is not None:
                arrived += 1
        record["consumer"], record["arrived"], record["cq_flags"] = cq.consumer, arrived, flags
        record["cqe"] = entries[0 if cq.collapsed else (arrived - 1) % len(entries)]
        blocks = qp._sends.ring.reshape(-1, SEND_WQE_BB)
        for back in range(2):
            record["wqe"][back] = blocks[(int(state["ready"]) - 2 + back) % len(blocks)]
        found = cls.from_bytes(record.reshape(1)[0])
        assert found is not None
        return found

    @property
    def waits_for(self) -> str:
        """What its own side has not done yet, "" when all that was posted is complete."""
        if self.failed:
            return f"QP {self.qpn:#x} has failed: {self.last_cqe}"
        if self.reserved > self.ready:
            return f"a thread has reserved basic blocks {self.ready} … {self.reserved - 1} and not published them"
        if self.ready > self.rung:
            return f"WQEs are published up to {self.ready} and rung for up to {self.rung}"
        if self.completed is not None and self.rung > self.completed:
            port = "; every port is down" if self.port == 0 else ""
            return f"the NIC has completed basic blocks below {self.completed} of {self.rung}{port}"
        return ""


def who_is_late(rank: int, peer: int, own: QueueRecord | None, theirs: QueueRecord | None) -> str:
    """Whose turn it is: this rank's or its NIC's, as long as what it posted is not complete; else the peer's.

    `own`, `theirs`: the queue pairs of both ends, None for what is not known.
    """
    if own is not None and own.waits_for:
        return f"rank {rank} itself: {own.waits_for}"
    if theirs is None:
        done = "" if own is None else f", since all that rank {rank} has posted is complete"
        return f"rank {peer}{done}"
    if theirs.waits_for:
        return f"rank {peer}: {theirs.waits_for}"
    return f"rank {peer}: all that it has posted on QP {theirs.qpn:#x} is complete (last {theirs.last_wqe})"


def cq_flags(qp: QP, cq: CQ) -> int:
    """`QueueView.cq_flags` of a CQ by which reports of a QP are told."""
    return (_COLLAPSED if cq.collapsed else 0) | (_RECEIVES if cq is not qp.send_cq else 0)


def nearest(low16: int, base: int) -> int:
    """The index whose low 16 bits are `low16` nearest to `base`."""
    distance = (low16 - base) & 0xFFFF
    return base + (distance - 0x10000 if distance & 0x8000 else distance)


def _last_wqe(blocks: np.ndarray[Any, Any], ready: int, qpn: int) -> tuple[str, int]:
    """In words, and its index. Of the last two basic blocks, one that says its own index and queue pair begins it."""
    for back in (1, 2):
        block = blocks[2 - back].tobytes()
        index = (ready - back) & 0xFFFF
        if ready >= back and block[1:3] == index.to_bytes(2, "big") and block[4:7] == qpn.to_bytes(3, "big"):
            whole = block + b"".join(b.tobytes() for b in blocks[3 - back :])
            return f"WQE {ready - back}: {decode(whole, 'wqe').title}", ready - back
    return ("none", -1) if ready == 0 else (f"a WQE that ends at {ready} and began too long ago", -1)
