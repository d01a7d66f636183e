"""How a timeline becomes tracks of a viewer: GPUs and NICs are processes, their warps, ports and queue pairs tracks,
and an arrow leads each WQE from its doorbell over the wire to its CQE.

Leans on show.perfetto. Messages that leave by one port while another still waits for PCIe overlap: they get lanes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from rdmakit.show.perfetto import flow, instant, lanes, names, slice_

if TYPE_CHECKING:
    from rdmakit.model.trace import Timeline

__all__ = ["KINDS", "track_events"]

KINDS: Mapping[int, str] = {
    0: "reserve",
    1: "publish",
    2: "doorbell record",
    3: "doorbell",
    4: "signal seen",
    16: "fetched",
    17: "wire",
    18: "executed",
    19: "CQE",
}

# What the number of an event says, by kind: a doorbell's is the first WQE that it does not cover.
_NUMBER = {0: "wqe", 1: "up_to_wqe", 2: "up_to_wqe", 3: "up_to_wqe", 4: "value", 16: "up_to_wqe", 18: "wqe", 19: "wqe"}
_BELL, _NIC, _WIRE, _CQE = 3, 16, 17, 19
_WARPS, _QPS = 1000, 100_000  # tracks below them: a GPU's kernels, a NIC's ports
_LANES = 10_000  # of a port
# Viewers show numbers behind names: "GPU 8 10008", "warp 3 1003".
_GPUS, _NICS = 10_000, 20_000

_Event = dict[str, Any]
_Wqe = tuple[int, int, int]  # NIC, queue pair, index


class _Tracks:
    """Names of what has been drawn on so far."""

    def __init__(self) -> None:
        self.processes: dict[int, str] = {}
        self.names: dict[tuple[int, int], str] = {}

    def gpu(self, rank: int, track: int, name: str) -> tuple[int, int]:
        return self._of(_GPUS + rank, f"GPU {rank}", track, name)

    def nic(self, nic: int, track: int, name: str) -> tuple[int, int]:
        return self._of(_NICS + nic, f"NIC {nic}", track, name)

    def _of(self, process: int, owner: str, track: int, name: str) -> tuple[int, int]:
        self.processes.setdefault(process, owner)
        self.names.setdefault((process, track), name)
        return process, track


def track_events(timeline: Timeline, ranks: set[int] | None, gpus_per_nic: int) -> list[_Event]:
    """Events of a Trace Event Format file, by time, names first. `ranks`: only these and their NICs."""
    tracks = _Tracks()
    found = [
        slice_(name, begin / 1e3, (end - begin) / 1e3, *tracks.gpu(rank, 0, "kernels"))
        for name, rank, begin, end in timeline.kernels
        if ranks is None or rank in ranks
    ]
    nics = None if ranks is None else {rank // gpus_per_nic for rank in ranks}
    bells: dict[tuple[int, int], list[tuple[int, _Event]]] = {}
    ends: dict[_Wqe, _Event] = {}
    for when, _, index, _, kind, unit, qpn, port in timeline.events.tolist():
        shown = nics if kind >= _NIC else ranks
        if kind == _WIRE or (shown is not None and unit not in shown):
            continue
        if kind >= _NIC:
            place = tracks.nic(unit, _QPS + qpn, f"QP {qpn:#x}")
        else:
            place = tracks.gpu(unit, _WARPS + port, f"warp {port}")
        facts = {_NUMBER[kind]: index} | ({"qp": f"{qpn:#x}"} if qpn else {})
        event = instant(KINDS[kind], when / 1e6, *place, **facts)
        found.append(event)
        if kind == _BELL:
            bells.setdefault((unit // gpus_per_nic, qpn), []).append((index, event))
        elif kind == _CQE:
            ends[unit, qpn, index] = event
    wires = _wires(timeline, nics, tracks)
    found += wires.values()
    found += _flows(bells, wires, ends)
    header = names(dict(sorted(tracks.processes.items())), dict(sorted(tracks.names.items())))
    return [*header, *sorted(found, key=lambda event: event["ts"])]


def _wires(timeline: Timeline, nics: set[int] | None, tracks: _Tracks) -> dict[_Wqe, _Event]:
    """A slice for each message that a port has sent, and whose WQE it was."""
    by_port: dict[tuple[int, int], list[tuple[int, int, int, int, int]]] = {}
    for begin, end, index, size, _, nic, qpn, port in timeline.of("wire").tolist():
        if nics is None or nic in nics:
            by_port.setdefault((nic, port), []).append((begin, end, index, size, qpn))
    found = {}
    for (nic, port), sent in by_port.items():
        sent.sort()
        nanoseconds = [(round(begin / 1e3), round(end / 1e3)) for begin, end, *_ in sent]
        taken = zip(sent, nanoseconds, lanes(nanoseconds), strict=True)
        for (_, _, index, size, qpn), (begin, end), lane in taken:
            name = f"port {port}" + (f", lane {lane + 1}" if lane else "")
            place = tracks.nic(nic, port * _LANES + min(lane, _LANES - 1), name)
            facts = {"wqe": index, "bytes": size}
            found[nic, qpn, index] = slice_(f"QP {qpn:#x}", begin / 1e3, (end - begin) / 1e3, *place, **facts)
    return found


def _flows(
    bells: Mapping[tuple[int, int], list[tuple[int, _Event]]],
    wires: Mapping[_Wqe, _Event],
    ends: Mapping[_Wqe, _Event],
) -> list[_Event]:
    """Doorbell, wire, CQE of each WQE, of what is there."""
    found: list[_Event] = []
    numbers = count(1)
    covers = {key: sorted(events, key=lambda e: e[0]) for key, events in bells.items()}
    order = {key: sorted((event for _, event in events), key=lambda e: e["ts"]) for key, events in bells.items()}
    for (nic, qpn, index), wire in wires.items():
        bell = _bell(covers.get((nic, qpn), []), order.get((nic, qpn), []), index, wire["ts"])
        places = [] if bell is None else [bell]
        places.append(wire)
        if (nic, qpn, index) in ends:
            places.append(ends[nic, qpn, index])
        if len(places) > 1:
            found += flow("WQE", next(numbers), places)
    return found


def _bell(
    covers: Sequence[tuple[int, _Event]], order: Sequence[_Event], index: int, begin: float
) -> _Event | None:
    """The doorbell that sent a WQE on its way: the first that covers it, `covers` being by what they cover; where that
    is rung only after `begin`, the last before (`order`, by time): it had the NIC read a doorbell record that another
    warp had moved on.
    """
    first = bisect_right([up_to for up_to, _ in covers], index)
    if first < len(covers) and covers[first][1]["ts"] <= begin:
        return covers[first][1]
    last = bisect_right([event["ts"] for event in order], begin)
    return order[last - 1] if last else None
