"""What a run that went wrong has to say: who waits for what at which line, who is late, or which thread faulted where.

Leans on errors, addresses, causes and symbols. Streams of instructions that wait for the same thing at the same line
are told together: a grid that hangs hangs in thousands.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdmakit.emu.addresses import AddressBook
from rdmakit.emu.causes import explain
from rdmakit.emu.symbols import kernel_line, source_line, split_place
from rdmakit.errors import DeviceFault, HangError, RankDied

if TYPE_CHECKING:
    from rdmakit.emu.world import World

__all__ = ["HangReport", "Wait", "device_fault", "hang_error", "rank_died"]

_SHOWN = 8
ENDLESS = "endless loop"


@dataclass(frozen=True)
class Wait:
    """One instruction stream that waits: a warp, or a thread where a fibre is a thread.

    `port`, `last_wqe` and `last_cqe` are those of its queue pair, where it has one; `late` says who has not done what,
    and `depth` how many other waits this one is a consequence of.
    """

    rank: int
    kernel: str
    block: tuple[int, int, int]
    thread: int
    state: str
    what: str
    expected: int
    seen: int
    qpn: int
    peer: int
    channel: int
    address: int
    where: str
    file: str
    line: int
    port: int = 0
    last_wqe: str = ""
    last_cqe: str = ""
    late: str = ""
    depth: int = 0

    @property
    def warp(self) -> int:
        """Of its block."""
        return self.thread // 32

    @property
    def place(self) -> str:
        """file:line of the wait, "" when it is not known."""
        return f"{self.file}:{self.line}" if self.line else self.file

    def _alike(self) -> tuple[Any, ...]:
        return self.kernel, self.state, self.what, self.file, self.line


def _numbers(values: Iterable[int]) -> str:
    """Sorted, runs shortened.

    >>> _numbers([3, 0, 1, 2, 7])
    '0–3, 7'
    """
    ordered = sorted(set(values))
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    shown = ["–".join(map(str, run)) for run in runs[:6]]
    return ", ".join(shown) + (", …" if len(runs) > 6 else "")


class HangReport:
    """The waits at the moment when nothing could go on any more; `groups` puts those alike together."""

    def __init__(self, waits: list[Wait]) -> None:
        self.waits = waits

    @property
    def groups(self) -> list[list[Wait]]:
        """Waits for the same thing at the same line: first what others are a consequence of, then the largest."""
        found: dict[tuple[Any, ...], list[Wait]] = {}
        for wait in self.waits:
            found.setdefault(wait._alike(), []).append(wait)
        return sorted(found.values(), key=lambda group: (min(wait.depth for wait in group), -len(group)))

    @property
    def first(self) -> Wait | None:
        """The wait that stands at the beginning of the chain."""
        return min(self.groups[0], key=lambda wait: wait.depth) if self.waits else None

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for group in self.groups:
            first = min(group, key=lambda wait: wait.depth)
            values = {(wait.expected, wait.seen) for wait in group}
            pairs = {(wait.qpn, wait.peer, wait.channel) for wait in group if wait.qpn}
            rows.append(
                {
                    "streams": len(group),
                    "ranks": _numbers(wait.rank for wait in group),
                    "kernel": first.kernel,
                    "blocks": _numbers(wait.block[0] for wait in group),
                    "warps": _numbers(wait.warp for wait in group),
                    "state": first.state,
                    "for": first.what,
                    "expected": first.expected if len(values) == 1 else "various",
                    "seen": first.seen if len(values) == 1 else "various",
                    "QP": ", ".join(f"{q:#x} → peer {p}, channel {c}" for q, p, c in sorted(pairs)[:2]),
                    "port": _numbers(wait.port for wait in group if wait.last_wqe),
                    "last WQE": first.last_wqe,
                    "last CQE": first.last_cqe,
                    "late": first.late,
                    "at": first.where,
                    "line": first.place,
                }
            )
        return rows

    def __str__(self) -> str:
        lines = []
        rows = self._rows()
        for row in rows[:_SHOWN]:
            seen = "" if row["state"] != "waits" else f", expected {row['expected']}, seen {row['seen']}"
            qp = f", QP {row['QP']}" if row["QP"] else ""
            qp += f", port {row['port']}" if row["port"] else ""
            at = f", {row['at']}" if row["at"] else ""
            verb = "waits for" if row["state"] == "waits" else row["state"] + ": waits for"
            if row["state"] == ENDLESS:
                verb = ENDLESS + ":"
            lines.append(
                f"  rank {row['ranks']}: {row['kernel']}, block {row['blocks']}, warp {row['warps']} "
                f"({row['streams']} streams) {verb} {row['for']}{seen}{qp}{at} [{row['line']}]"
            )
            if row["last WQE"]:
                lines.append(f"      last {row['last WQE']}; last {row['last CQE']}")
            if row["late"]:
                lines.append(f"      late: {row['late']}")
        if len(rows) > _SHOWN:
            lines.append(f"  and {len(rows) - _SHOWN} more groups: see .report.waits")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<HangReport: {len(self.waits)} streams in {len(self.groups)} groups>\n{self}"

    def _repr_html_(self) -> str:
        one = len(self.waits) == 1
        count = f"{len(self.waits)} stream{' waits' if one else 's wait'}"
        title = f"{count}, and nothing can wake {'it' if one else 'them'}"
        try:
            found: str = import_module("rdmakit.show").data_table(self._rows(), title=title)._repr_html_()
        except ImportError:
            return f"<pre>{html.escape(str(self))}</pre>"
        return found


def _wait(entry: dict[str, Any], book: AddressBook) -> Wait:
    address = entry["address"]
    return Wait(
        rank=entry["rank"],
        kernel=entry["kernel"],
        block=entry["block"],
        thread=entry["thread"],
        state=entry["state"],
        what=entry["what"],
        expected=entry["expected"],
        seen=entry["seen"],
        qpn=entry["qpn"],
        peer=entry["peer"],
        channel=entry["channel"],
        address=address,
        where=book.name_of(address) or (f"address {address:#x}" if address else ""),
        file=entry["file"],
        line=entry["line"],
    )


def hang_error(waiting: list[dict[str, Any]], book: AddressBook, world: World | None = None) -> HangError:
    """The error of a run in which nothing could go on: its `report` is a `HangReport`.

    `facts` are those of the first wait in the chain. `world`: whose queue pairs are looked at, to say who is late.
    """
    waits = [_wait(entry, book) for entry in waiting]
    report = HangReport(waits if world is None else explain(waits, world))
    kernels = ", ".join(sorted({wait.kernel for wait in report.waits}))
    first = report.first
    facts: dict[str, Any] = {}
    if first is not None and first.qpn:
        facts = {"rank": first.rank, "qpn": f"{first.qpn:#x}", "port": first.port, "channel": first.channel}
        facts.update(expected=first.expected, seen=first.seen, last_wqe=first.last_wqe, last_cqe=first.last_cqe)
        facts.update(late=first.late, at=first.place)
    what = "nothing is known" if first is None else f"rank {first.rank} waits for {first.what}"
    return HangError(
        f"the world hangs: {len(report.waits)} instruction streams of {kernels or 'no kernel'} wait for ever",
        rule=f"the first in the chain: {what}",
        remedy="the report lists who waits for what at which line; e.report.waits has every one",
        report=report,
        **facts,
    )


def rank_died(dead: dict[int, float], hang: HangError) -> RankDied:
    """The error of a run that could not end without the ranks in `dead` (rank → when, in ns)."""
    ranks = tuple(sorted(dead))
    who = ", ".join(f"rank {rank}" + (f" at {dead[rank] / 1e3:g} µs" if dead[rank] else "") for rank in ranks)
    alive = HangReport([wait for wait in hang.report.waits if wait.rank not in dead])
    waiting = sorted({wait.rank for wait in alive.waits})
    rule = f"ranks {_numbers(waiting)} waited for what they should have had from it" if waiting else "nobody waited"
    return RankDied(
        f"{who} died: its kernels have stopped",
        ranks=ranks,
        rule=rule,
        remedy="go on with the others, or World.revive(rank); buffers and queues hold what the failed run left",
        report=alive,
    )


def endless_error(error: dict[str, Any]) -> HangError:
    """A thread that spun without end while nothing else in the world could move."""
    why, path, offsets = split_place(error["why"])
    file, line = _file_line(source_line(path, offsets) or kernel_line(path, error["kernel"]))
    spinning = Wait(
        rank=error["rank"],
        kernel=error["kernel"],
        block=error["block"],
        thread=error["thread"],
        state=ENDLESS,
        what=why.partition(": ")[2],
        expected=0,
        seen=0,
        qpn=0,
        peer=0,
        channel=0,
        address=0,
        where="",
        file=file,
        line=line,
    )
    report = HangReport([spinning])
    return HangError(
        f"{error['kernel']} loops for ever",
        rule=f"rank {error['rank']}, block {error['block']}, thread {error['thread']}: {why}",
        remedy="a loop that polls memory ends if somebody writes it: who was to, and did it run?",
        report=report,
        at=spinning.place,
    )


def _file_line(place: str) -> tuple[str, int]:
    file, _, line = place.rpartition(":")
    return (file, int(line)) if line.isdigit() else (place, 0)


def device_fault(errors: list[dict[str, Any]]) -> DeviceFault:
    """The error of a run in which device code faulted or trapped."""
    first = errors[0]
    why, path, offsets = split_place(first["why"])
    facts: dict[str, Any] = {}
    place = source_line(path, offsets)
    if place:
        facts["at"] = place
    elif path:
        facts["at"] = f"{Path(path).name}+{offsets[0]:#x}"
    return DeviceFault(
        f"{first['kernel']} failed: {why}",
        rule="an error in one thread ends every launch of the world, as on a GPU",
        remedy="check the pointers and indices at that line; arguments must be alive and large enough",
        rank=first["rank"],
        block=first["block"],
        thread=first["thread"],
        **facts,
        **({"further_errors": len(errors) - 1} if len(errors) > 1 else {}),
    )
