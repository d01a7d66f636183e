"""The report that a device thread leaves when it gives up: who waited for what, at which line, and who is late.

Leans on NumPy, queue_record and errors. It lies in memory that kernels write and the host reads, and holds whatever it
tells: no other memory of a GPU's need be reachable. Layout: struct Report of cuda/rdmakit/report.cuh.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device.notebook import table_html
from rdmakit.device.queue_record import QUEUE_RECORD, QUEUE_VIEW, QueueRecord, cq_flags, who_is_late
from rdmakit.errors import CompletionError, DeviceFault, HangError, LaunchError, RdmakitError, SequenceError
from rdmakit.layout import wc_status

if TYPE_CHECKING:
    from rdmakit.device.cq import CQ
    from rdmakit.device.qp import QP

__all__ = ["REPORT", "DeviceStatus", "Report"]


class DeviceStatus(IntEnum):
    """enum class Status of report.cuh."""

    OK = 0
    TIMEOUT = 1
    COMPLETION_ERROR = 2
    ABORTED = 3
    LAYOUT_MISMATCH = 4
    BAD_ARGUMENT = 5
    GAP = 6
    REPEATED = 7
    STALE_EPOCH = 8
    WRONG_FINGERPRINT = 9
    CORRUPT_PAYLOAD = 10
    ABSENT = 11


# What the receiver of a sequence lock refuses, and why it must (cuda/rdmakit/lock.cuh).
_REFUSALS = {
    DeviceStatus.GAP: "tickets are signed off strictly in order: one is missing",
    DeviceStatus.REPEATED: "a ticket is signed off once: it came again, or its signal came before its data",
    DeviceStatus.STALE_EPOCH: "what a connection of an earlier epoch has left is never signed off",
    DeviceStatus.WRONG_FINGERPRINT: "a fingerprint binds queue pair, epoch, ticket, length and checksum",
    DeviceStatus.CORRUPT_PAYLOAD: "the payload must fit the checksum that its header carries",
}


_WORDS = (
    "layout_version",
    "state",
    "status",
    "rank",
    "block",
    "warp",
    "qpn",
    "peer",
    "channel",
    "line",
    "syndrome",
    "vendor_syndrome",
)
_LONGS = ("expected", "seen", "index", "waited_ns")

REPORT = np.dtype(
    {
        "names": [*_WORDS, *_LONGS, "what", "file", "queues", "queue_count", "reserved", "queue"],
        "offsets": [*range(0, 48, 4), *range(48, 80, 8), 80, 144, 208, 216, 220, 224],
        "formats": [*["<u4"] * 12, *["<u8"] * 4, "S64", "S64", "<u8", "<u4", "<u4", QUEUE_RECORD],
        "itemsize": 224 + QUEUE_RECORD.itemsize,
    }
)

_WRITTEN = 2


class Report:
    """One `Report`, in memory that kernels write; true once something has been reported.

    Every field of the struct is an attribute (`report.qpn`, `report.line` …); `what` and `file` are text.

    >>> report = Report()
    >>> bool(report), report.status.name
    (False, 'OK')
    """

    def __init__(self, memory: np.ndarray[Any, np.dtype[np.uint8]] | None = None) -> None:
        raw = np.zeros(REPORT.itemsize, np.uint8) if memory is None else memory[: REPORT.itemsize]
        self.array = raw.view(REPORT)
        self._views = np.zeros(0, QUEUE_VIEW)
        self._followed: dict[int, weakref.ref[QP]] = {}
        self._places: dict[int, int] = {}  # of queue pairs among the views, by number

    def follow(self, qp: QP, cq: CQ | None = None, consumer: int = 0) -> None:
        """Let reports that concern a queue pair tell its last WQE and CQE; `QP.device_handle` does.

        `cq`: another than the one of its sends, with the address of its consumer index.
        """
        cq = qp._told_by = qp.send_cq if cq is None else cq
        provider = qp.context._provider
        state = provider.for_kernels(qp._sends.state_memory)
        offsets: Any = qp._sends.state.dtype.fields
        at = self._places.setdefault(qp.qpn, len(self._places))
        if at == len(self._views):
            memory = provider.memory(QUEUE_VIEW.itemsize * max(4, 2 * at), "queues of a report")
            grown = memory.view(QUEUE_VIEW)
            grown[:at] = self._views
            self._views = grown
            self.array["queues"] = provider.for_kernels(memory)
        self._views[at] = (
            qp.qpn,
            qp.physical_port,
            provider.for_kernels(qp._sends.ring),
            *(state + offsets[name][1] for name in ("reserved", "ready", "rung", "completed")),
            provider.for_kernels(cq._ring),
            consumer or state + offsets["consumer"][1],
            qp._sends.size.bit_length() - 1,
            cq.log_entries,
            cq.cqe_bytes.bit_length() - 1,
            cq_flags(qp, cq),
        )
        self.array["queue_count"] = len(self._places)
        self._followed[qp.qpn] = weakref.ref(qp)

    @property
    def address(self) -> int:
        """Where the struct lies."""
        return int(self.array.ctypes.data)

    def __bool__(self) -> bool:
        return int(self.array[0]["state"]) == _WRITTEN

    @property
    def status(self) -> DeviceStatus:
        """What the thread that reported gave up with; OK when none has."""
        return DeviceStatus(int(self.array[0]["status"])) if self else DeviceStatus.OK

    def __getattr__(self, name: str) -> Any:
        if name in ("what", "file"):
            return bytes(self.array[0][name]).decode(errors="replace")
        if name in (REPORT.names or ()) and name != "queue":
            return int(self.array[0][name])
        raise AttributeError(f"a report has no field {name!r}")

    def clear(self) -> None:
        """Make it ready for the next launch; kernels leave at once while a report stands."""
        queues, count = self.queues, self.queue_count
        self.array[:] = np.zeros(1, REPORT)
        self.array["queues"], self.array["queue_count"] = queues, count

    @property
    def queue(self) -> QueueRecord | None:
        """The queue pair that the report is about, as it was then; None where there is none."""
        return QueueRecord.from_bytes(self.array[0]["queue"])

    def _late(self, own: QueueRecord | None) -> str:
        qp = self._followed.get(self.qpn, lambda: None)()
        peer_of: Callable[[QP], QP | None] = getattr(qp.context._provider if qp else None, "peer_of", lambda qp: None)
        found = peer_of(qp) if qp is not None and not qp.closed else None
        theirs = None if found is None else QueueRecord.of(found)
        if self.status in _REFUSALS:
            last = "" if theirs is None else f", last on QP {theirs.qpn:#x} {theirs.last_wqe}"
            return f"nobody: rank {self.peer} has sent what was refused{last}"
        return who_is_late(self.rank, self.peer, own, theirs)

    def _facts(self) -> dict[str, Any]:
        """Port, last WQE and CQE, who is late, as far as they are known."""
        own = self.queue
        if own is None:
            return {}
        return {"port": own.port, "last_wqe": own.last_wqe, "last_cqe": own.last_cqe, "late": self._late(own)}

    def error(self) -> RdmakitError | None:
        """The error that the report stands for, or None."""
        if not self:
            return None
        facts: dict[str, Any] = {
            "rank": self.rank,
            "block": self.block,
            "warp": self.warp,
            "peer": self.peer,
            "channel": self.channel,
            "at": f"{self.file}:{self.line}",
            **self._facts(),
        }
        waits = {"expected": self.expected, "seen": self.seen}
        if self.status is DeviceStatus.COMPLETION_ERROR:
            return CompletionError(
                f"a kernel's work request failed while it waited for {self.what}",
                syndrome=self.syndrome,
                wc_status=wc_status(self.syndrome).name,
                vendor_error=self.vendor_syndrome,
                qpn=self.qpn,
                wqe_index=self.index,
                remedy="poll the CQ or query the QP; the first error puts the QP into ERR",
                **facts,
            )
        facts = {"qpn": f"{self.qpn:#x}", **facts, **waits}
        if self.status is DeviceStatus.LAYOUT_MISMATCH:
            return LaunchError(
                self.what,
                rule="headers and handles share RDMAKIT_LAYOUT_VERSION",
                remedy="recompile",
                **facts,
            )
        if self.status is DeviceStatus.BAD_ARGUMENT:
            return LaunchError(f"a kernel refused {self.what}", **facts)
        if self.status in _REFUSALS:
            # Tickets are judged first: what is refused for another reason has the one that was due.
            of_ticket = self.status in (DeviceStatus.GAP, DeviceStatus.REPEATED)
            facts["ticket_seen"] = self.seen if of_ticket else self.index
            return SequenceError(
                f"{self.status.name}: a receiver refused {self.what}",
                reason=self.status.name,
                rule=_REFUSALS[self.status],
                remedy="reconnect the lock, which begins a new epoch; its story() tells what both ends saw",
                ticket=self.index,
                **facts,
            )
        if self.status is DeviceStatus.TIMEOUT:
            waited = f"{self.waited_ns / 1e9:g} s" if self.waited_ns else "until nothing moved"
            return HangError(f"a kernel waited for {self.what}", rule=f"it waited {waited}", **facts)
        return DeviceFault(f"a kernel gave up: {self.status.name}", **facts)

    def raise_for_status(self) -> Report:
        """Itself when nothing was reported, else CompletionError, HangError, LaunchError, SequenceError or
        DeviceFault."""
        error = self.error()
        if error is not None:
            raise error
        return self

    def _rows(self) -> list[dict[str, Any]]:
        rows = [{"field": name, "value": getattr(self, name)} for name in REPORT.names or () if name != "queue"]
        return rows + [{"field": name, "value": value} for name, value in self._facts().items()]

    def __repr__(self) -> str:
        if not self:
            return "<Report: nothing reported>"
        return (
            f"<Report: {self.status.name}, rank {self.rank} block {self.block} warp {self.warp} "
            f"waited for {self.what} (QP {self.qpn:#x}, expected {self.expected}, seen {self.seen}) "
            f"at {self.file}:{self.line}>"
        )

    def _repr_html_(self) -> str:
        return table_html(
            self._rows() if self else [{"report": "nothing reported"}], repr(self), title=repr(self)[1:-1]
        )
