"""Timelines as files that Perfetto and chrome://tracing open: the Trace Event Format, written and checked.

Leans on nothing. Format: "Trace Event Format" (Google, 2016), JSON object with `traceEvents`; times in microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["check_trace", "instant", "names", "slice_", "trace_json"]

_PHASES = {"X", "i", "M", "s", "t", "f", "C"}


def slice_(name: str, begin_us: float, length_us: float, process: int, track: int, **facts: Any) -> dict[str, Any]:
    """Something that lasts."""
    return {"ph": "X", "name": name, "ts": begin_us, "dur": length_us, "pid": process, "tid": track, "args": facts}


def instant(name: str, when_us: float, process: int, track: int, **facts: Any) -> dict[str, Any]:
    """A moment, of its track."""
    return {"ph": "i", "s": "t", "name": name, "ts": when_us, "pid": process, "tid": track, "args": facts}


def names(processes: Mapping[int, str], tracks: Mapping[tuple[int, int], str]) -> list[dict[str, Any]]:
    """What processes (GPUs, NICs) and their tracks are called, in their order."""
    found: list[dict[str, Any]] = []
    for process, name in processes.items():
        found.append({"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}})
        found.append(
            {"ph": "M", "name": "process_sort_index", "pid": process, "tid": 0, "args": {"sort_index": process}}
        )
    for (process, track), name in tracks.items():
        found.append({"ph": "M", "name": "thread_name", "pid": process, "tid": track, "args": {"name": name}})
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
    return found


def _problems(event: Any) -> Sequence[str]:
    if not isinstance(event, dict):
        return ["no object"]
    phase = event.get("ph")
    if phase not in _PHASES:
        return [f"phase {phase!r} is none of {', '.join(sorted(_PHASES))}"]
    wanted = (
        ["name", "pid", "tid"] if phase == "M" else ["name", "ts", "pid", "tid", *(["dur"] if phase == "X" else [])]
    )
    found = [f"no {key}" for key in wanted if key not in event]
    for key in ("ts", "dur"):
        value = event.get(key, 0)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            found.append(f"{key} is {value!r}")
    if phase == "i" and event.get("s", "t") not in ("g", "p", "t"):
        found.append(f"scope {event.get('s')!r} is none of g, p, t")
    return found
