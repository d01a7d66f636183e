"""Timelines as files that Perfetto and chrome://tracing open: the Trace Event Format, written and checked.

Leans on nothing. Format: "Trace Event Format" (Google, 2016), JSON object with `traceEvents`; times in microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["check_trace", "flow", "instant", "lanes", "names", "slice_", "trace_json"]

_PHASES = {"X", "i", "M", "s", "t", "f", "C"}


def _ns(us: float) -> float:
    """Whole nanoseconds, which is what viewers count in: what ends where another begins must not overlap it."""
    return round(us, 3)


def slice_(name: str, begin_us: float, length_us: float, process: int, track: int, **facts: Any) -> dict[str, Any]:
    """Something that lasts. On one track slices may hold one another but not overlap: see `lanes`."""
    begin = _ns(begin_us)
    length = _ns(_ns(begin_us + length_us) - begin)
    return {"ph": "X", "name": name, "ts": begin, "dur": length, "pid": process, "tid": track, "args": facts}


def instant(name: str, when_us: float, process: int, track: int, **facts: Any) -> dict[str, Any]:
    """A moment, of its track."""
    return {"ph": "i", "s": "t", "name": name, "ts": _ns(when_us), "pid": process, "tid": track, "args": facts}


def flow(name: str, number: int, places: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """An arrow through slices or instants that belong together, by time; `number` is its own.

    >>> [e["ph"] for e in flow("WQE", 1, [instant("doorbell", 1, 1, 1), slice_("wire", 2, 1, 2, 1)])]
    ['s', 'f']
    """
    ends = "s" + "t" * (len(places) - 2) + "f"
    found = []
    for phase, place in zip(ends, places, strict=True):
        at = {key: place[key] for key in ("ts", "pid", "tid")}
        found.append({"ph": phase, "bp": "e", "id": number, "name": name, "cat": "flow", **at})
    return found


def lanes(spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each span (begin, end) the first lane, counted from 0, in which nothing overlaps it. Spans by their begin.

    >>> lanes([(0, 5), (3, 6), (5, 9), (6, 6)])
    [0, 1, 0, 1]
    """
    free: list[int] = []
    found = []
    for begin, end in spans:
        lane = next((i for i, until in enumerate(free) if until <= begin), len(free))
        free[lane:] = [end] if lane == len(free) else [end, *free[lane + 1 :]]
        found.append(lane)
    return found


def names(processes: Mapping[int, str], tracks: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """What processes (GPUs, NICs) and their tracks are called, and their order: by number."""
    found: list[dict[str, Any]] = []

    def say(what: str, process: int, track: int, **facts: Any) -> None:
        found.append({"ph": "M", "name": what, "pid": process, "tid": track, "args": facts})

    for process, name in processes.items():
        say("process_name", process, 0, name=name)
        say("process_sort_index", process, 0, sort_index=process)
    for (process, track), name in tracks.items():
        say("thread_name", process, track, name=name)
        say("thread_sort_index", process, track, sort_index=track)
    return found


def trace_json(events: Iterable[Mapping[str, Any]], **facts: Any) -> str:
    """The file's text. `facts` say what was run."""
    return json.dumps(
        {"traceEvents": list(events), "displayTimeUnit": "ns", "otherData": facts}, separators=(",", ":")
    )


def check_trace(text: str) -> list[str]:
    """What breaks the format, in sentences; none for a trace that viewers read. `text`: the file's.

    >>> check_trace(trace_json([slice_("wire", 1.0, 0.5, 1, 2)]))
    []
    >>> check_trace('{"traceEvents": [{"ph": "X", "name": "wire"}]}')
    ['event 0: no ts', 'event 0: no pid', 'event 0: no tid', 'event 0: no dur']
    """
    try:
        whole = json.loads(text)
    except ValueError as error:
        return [f"no JSON: {error}"]
    events = whole.get("traceEvents") if isinstance(whole, dict) else whole
    if not isinstance(events, list):
        return ["no traceEvents"]
    found: list[str] = []
    for i, event in enumerate(events):
        found += [f"event {i}: {problem}" for problem in _problems(event)]
    return found or _overlaps(events) + _loose_flows(events)


def _overlaps(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Slices of one track that neither follow nor hold one another: Perfetto leaves them out."""
    open_until: dict[tuple[Any, Any], list[float]] = {}
    found = []
    slices = [event for event in events if event["ph"] == "X"]
    for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        begin, end = event["ts"], _ns(event["ts"] + event["dur"])
        around = open_until.setdefault((event["pid"], event["tid"]), [])
        while around and around[-1] <= begin:
            around.pop()
        if around and end > around[-1]:
            found.append(f"{event['name']} at {begin} overlaps a slice of track {event['pid']}.{event['tid']}")
        around.append(end)
    return found


def _loose_flows(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Arrows that do not begin, or do not end, and such as touch nothing of their track."""
    places = {(event["ts"], event["pid"], event["tid"]) for event in events if event["ph"] in "Xi"}
    phases: dict[Any, str] = {}
    found = []
    for event in events:
        if event["ph"] in "stf":
            phases[event["id"]] = phases.get(event["id"], "") + event["ph"]
            if (event["ts"], event["pid"], event["tid"]) not in places:
                found.append(f"flow {event['id']} touches nothing at {event['ts']}")
    whole = [(number, order) for number, order in phases.items() if order != "s" + "t" * (len(order) - 2) + "f"]
    return found + [f"flow {number} goes {order}" for number, order in whole]


def _problems(event: Any) -> Sequence[str]:
    if not isinstance(event, dict):
        return ["no object"]
    phase = event.get("ph")
    if phase not in _PHASES:
        return [f"phase {phase!r} is none of {', '.join(sorted(_PHASES))}"]
    wanted = (
        ["name", "pid", "tid"] if phase == "M" else ["name", "ts", "pid", "tid", *(["dur"] if phase == "X" else [])]
    )
    if phase in "stf":
        wanted.append("id")
    found = [f"no {key}" for key in wanted if key not in event]
    for key in ("ts", "dur"):
        value = event.get(key, 0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            found.append(f"{key} is {value!r}")
    if phase == "i" and event.get("s", "t") not in ("g", "p", "t"):
        found.append(f"scope {event.get('s')!r} is none of g, p, t")
    return found
