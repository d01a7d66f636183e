"""Where a sequence lock stands, told: who waits for whom, tickets and credits, last work request and completion.

Leans on device and layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rdmakit.device.notebook import table_html
from rdmakit.device.report import DeviceStatus
from rdmakit.layout import decode

if TYPE_CHECKING:
    from rdmakit.signal.ends import End
    from rdmakit.signal.lock import SequenceLock

__all__ = ["Story"]


@dataclass(frozen=True)
class Story:
    """What both ends of a lock know, as rows of (what, sender, receiver), and who is late, in a sentence.

    `print` it, or let a notebook show it.
    """

    title: str
    late: str
    rows: tuple[tuple[str, str, str], ...]

    @classmethod
    def of(cls, lock: SequenceLock) -> Story:
        """The story of a lock as it stands now."""
        ends: tuple[End, End] = (lock._sender, lock._receiver)
        credit = int(lock._sender.credit_word(lock.epoch)[0])
        state = lock._receiver.state
        rows = (
            ("rank", *_both(ends, lambda end: str(end.rank))),
            ("QP", *_both(ends, lambda end: f"{end.qps[0].qpn:#x} {end.qps[0].state.name}")),
            ("port", *_both(ends, lambda end: str(end.qps[0].physical_port))),
            ("ticket", f"next {lock.next_ticket}", f"signed off below {lock.signed_off}"),
            ("credit", f"may send below {credit + lock.slots}", f"gave back below {int(state['credited'])}"),
            ("last WQE", *_both(ends, _last_wqe)),
            ("last CQE", *_both(ends, _last_cqe)),
            ("report", *_both(ends, _reported)),
        )
        return cls(_title(lock), _who_is_late(lock, credit), rows)

    def __str__(self) -> str:
        widths = [max(len(row[i]) for row in self.rows) for i in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in self.rows]
        return "\n".join([self.title, self.late, *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        rows: list[dict[str, Any]] = [{"": a, "sender": b, "receiver": c} for a, b, c in self.rows]
        return table_html(rows, str(self), title=f"{self.title}: {self.late}")


def _both(ends: tuple[End, End], tell: Callable[[End], str]) -> tuple[str, str]:
    return tell(ends[0]), tell(ends[1])


def _title(lock: SequenceLock) -> str:
    options = " with checksums" if lock.crc else ""
    return f"sequence lock by {lock.strategy.name.lower()}{options}, channel {lock.channel}, epoch {lock.epoch}"


def _who_is_late(lock: SequenceLock, credit: int) -> str:
    for end, name in ((lock._receiver, "the receiver"), (lock._sender, "the sender")):
        if end.report and end.report.status is not DeviceStatus.TIMEOUT:
            return f"{name} gave up: {end.report.status.name}, {end.report.what}"
    for end, name in ((lock._sender, "sender"), (lock._receiver, "receiver")):
        if end.qps[0].state.name != "RTS":
            return f"the {name}'s QP {end.qps[0].qpn:#x} is in {end.qps[0].state.name}: reconnect"
    if lock.in_flight == 0:
        return f"all that was sent has been signed off; ticket {lock.next_ticket} is next"
    waiting = f"ticket {lock.signed_off} has been sent and is not signed off"
    if lock.next_ticket - credit >= lock.slots:
        return f"{waiting}, and the window is full: the receiver is late"
    return f"{waiting}: the receiver is late"


def _last_wqe(end: End) -> str:
    qp = end.qps[0]
    if qp.posted == 0:
        return "none"
    wqe = qp.wqe(qp.posted - 1)  # every work request of a lock is one basic block
    return f"{qp.posted - 1}: {wqe.title}"


def _last_cqe(end: End) -> str:
    cq = end.qps[0].send_cq if end.receive_cq is None else end.receive_cq
    if cq.consumer == 0:
        return "none"
    entry = cq.view()[(cq.consumer - 1) % cq.entries]
    return f"{cq.consumer - 1}: {decode(entry.tobytes(), 'cqe').title}"


def _reported(end: End) -> str:
    if not end.report:
        return "nothing"
    report = end.report
    numbers = f"expected {report.expected}, seen {report.seen}"
    return f"{report.status.name} at {report.file}:{report.line}: {report.what}, {numbers}"
