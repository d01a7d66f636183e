"""Lanes of events over (virtual) time, to scale, with arrows from lane to lane.

Leans on `figure` and `axis`. Within a lane, events whose bars or names would collide go to rows of their own.
Arrows carry a number, and the list under the picture says what each is: names on slanting lines cannot be
kept apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from rdmakit.show.axis import ticks
from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import VEIL, VEIL_OPACITY, ink_on, series
from rdmakit.show.svg import Markup, arrow, box, element, join, label, line
from rdmakit.show.text import text_width
from rdmakit.show.units import digits

_LEFT, _RIGHT = 150, WIDTH - MARGIN - 8
_ROW = 24
_SIZE = 11
_MOST_EVENTS, _MOST_MESSAGES = 300, 24


class _Scale:
    def __init__(self, times: Sequence[float]) -> None:
        self.low, self.high = min(times, default=0.0), max(times, default=1.0)

    def __call__(self, time: float) -> float:
        span = self.high - self.low
        return _LEFT + (_RIGHT - _LEFT) * ((time - self.low) / span if span > 0 else 0.0)


def _place(x0: float, x1: float, name: str) -> tuple[str, float, float, float]:
    """Where a name goes: its side of the bar, the room for it, and the leftmost and rightmost px of bar and
    name."""
    need = text_width(name, _SIZE) + 2
    if not name:
        return "none", 0, x0, x1
    if need <= x1 - x0 - 6:
        return "in", x1 - x0 - 6, x0, x1
    right, left = WIDTH - MARGIN - x1 - 6, x0 - _LEFT - 6
    if need <= right or right >= left:
        room = min(need, right)
        return "right", room, x0, x1 + 6 + room
    room = min(need, left)
    return "left", room, x0 - 6 - room, x1


def _pack(spans: list[tuple[float, float]]) -> list[int]:
    """The first row for each span (left, right) in which it touches no other: greedy, in the given order."""
    ends: list[list[tuple[float, float]]] = []
    rows = []
    for low, high in spans:
        row = next(
            (i for i, taken in enumerate(ends) if all(high + 4 < a or low - 4 > b for a, b in taken)),
            len(ends),
        )
        if row == len(ends):
            ends.append([])
        ends[row].append((low, high))
        rows.append(row)
    return rows


def _edges(x0: float, x1: float, instant: bool) -> tuple[float, float]:
    """What the mark itself covers: a diamond is 12 px wide, however short its moment."""
    return (x0 - 6, x0 + 6) if instant else (x0, x1)


def _event(name: str, x0: float, x1: float, y: float, colour: str, instant: bool) -> Markup:
    side, room, *_ = _place(*_edges(x0, x1, instant), name)
    if instant:
        points = f"{x0:.1f},{y + 3} {x0 + 6:.1f},{y + 10} {x0:.1f},{y + 17} {x0 - 6:.1f},{y + 10}"
        mark = element("polygon", points=points, fill=colour, stroke="currentColor", stroke_opacity=0.5)
        x0, x1 = _edges(x0, x1, instant)
    else:
        mark = box(x0, y + 2, x1 - x0, _ROW - 8, colour, rx=3, stroke="currentColor", stroke_opacity=0.5)
    at = {
        "in": ((x0 + x1) / 2, "middle"),
        "right": (x1 + 5, "start"),
        "left": (x0 - 5, "end"),
        "none": (0, "start"),
    }
    x, anchor = at[side]
    ink = ink_on(colour) if side == "in" else "currentColor"
    return join([mark, label(x, y + 14, name, room, size=_SIZE, anchor=anchor, fill=ink) if name else ""])


_Rectangle = tuple[float, float, float, float]


def _badges(ends: list[_Rectangle], names: list[_Rectangle]) -> Markup:
    """Numbered discs on the arrows, each at the first place along its arrow where it covers no name and no
    earlier disc."""
    placed: list[tuple[float, float]] = []
    parts = []
    for number, (x0, y0, x1, y1) in enumerate(ends, 1):
        spots = [
            (x0 + (x1 - x0) * f, y0 + (y1 - y0) * f) for f in (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9)
        ]
        spots += [(x0 + (x1 - x0) * 0.5 + dx, (y0 + y1) / 2) for dx in (18, -18, 36, -36, 54, -54, 72, -72)]
        spots = [(min(max(x, _LEFT + 8), _RIGHT - 4), y) for x, y in spots]
        clear = [s for s in spots if all(abs(s[0] - p[0]) > 16 or abs(s[1] - p[1]) > 16 for p in placed)]
        bare = [
            s for s in clear if not any(a - 9 < s[0] < c + 9 and b - 9 < s[1] < d + 9 for a, b, c, d in names)
        ]
        x, y = (bare or clear or spots)[0]
        placed.append((x, y))
        parts.append(element("circle", cx=x, cy=y, r=8, fill="#000000", stroke="#ffffff"))
        parts.append(label(x, y + 3.5, str(number), 15, size=10, anchor="middle", fill="#ffffff"))
    return join(parts)


def time_lanes(
    lanes: Sequence[str],
    events: Sequence[Sequence],
    messages: Sequence[Sequence] = (),
    *,
    title: str | None = None,
    unit: str = "ns",
) -> Figure:
    """Draw ``events`` ``(lane, start, end, name[, kind])`` and ``messages`` ``(lane, sent, lane, seen,
    name)`` to scale.

    ``end`` may be ``None`` (an instant, drawn as a diamond). Events of one ``kind`` share a colour; without
    kinds each lane has its own. Past 300 events or 24 messages the rest is left out, and the picture says so.

    >>> events = [("GPU", 0, 40, "WQE"), ("NIC", 90, None, "CQE")]
    >>> print(time_lanes(["GPU", "NIC"], events, [("GPU", 40, "NIC", 90, "bell")]))
    1 message and 2 events in 90 ns
    0   40  GPU        WQE
    90      NIC        CQE
    40  90  GPU → NIC  bell
    """
    names = [str(lane) for lane in lanes]
    rows = [
        (
            str(e[0]),
            float(e[1]),
            None if e[2] is None else float(e[2]),
            str(e[3]),
            str(e[4]) if len(e) > 4 else "",
        )
        for e in events
    ]
    arrows = [(str(a), float(t0), str(b), float(t1), str(text)) for a, t0, b, t1, text in messages]
    for lane in (*(r[0] for r in rows), *(m[0] for m in arrows), *(m[2] for m in arrows)):
        if lane not in names:
            raise ValueError(f"{lane!r} is not among the lanes {names}")
    if any(a == b for a, _, b, _, _ in arrows):
        raise ValueError("a message goes from one lane to another; inside a lane use an event")
    rows.sort(key=lambda r: (r[1], r[2] if r[2] is not None else r[1]))
    arrows.sort(key=lambda m: (m[1], m[3]))
    left_out = max(len(rows) - _MOST_EVENTS, 0), max(len(arrows) - _MOST_MESSAGES, 0)
    shown, flying = rows[:_MOST_EVENTS], arrows[:_MOST_MESSAGES]
    times = [t for r in shown for t in (r[1], r[2]) if t is not None] + [
        t for m in flying for t in (m[1], m[3])
    ]
    scale = _Scale(times)
    kinds = list(dict.fromkeys(r[4] for r in shown if r[4]))
    parts: list[str] = []
    bodies: list[str] = []
    taken: list[_Rectangle] = []
    tops: dict[str, tuple[float, float]] = {}
    y = 6.0
    for index, lane in enumerate(names):
        mine = [r for r in shown if r[0] == lane]
        bars = []
        for _, start, end, text, kind in mine:
            x0 = scale(start)
            x1 = x0 if end is None else max(scale(end), x0 + 3)
            bars.append((text, x0, x1, series(kinds.index(kind)) if kind else series(index), end is None))
        spans = [_place(*_edges(b[1], b[2], b[4]), b[0])[2:] for b in bars]
        at = _pack(spans)
        height = (max(at, default=0) + 1) * _ROW + 6
        tops[lane] = (y, y + height)
        parts.append(box(MARGIN, y, WIDTH - 2 * MARGIN, height, VEIL, fill_opacity=VEIL_OPACITY, rx=4))
        parts.append(label(MARGIN + 8, y + height / 2 + 4, lane, _LEFT - MARGIN - 22, size=12, bold=True))
        for bar, row, span in zip(bars, at, spans, strict=True):
            top = y + 4 + row * _ROW
            bodies.append(_event(*bar[:3], top, *bar[3:]))
            taken.append((span[0], top, span[1], top + _ROW - 4))
        y += height + 16
    ends = [_arrow_ends(scale, tops, m) for m in flying]
    parts += [arrow(*e, stroke_opacity=0.75) for e in ends]
    parts += [*bodies, _badges(ends, taken), _axis(scale, y - 8, unit)]
    y += 30
    for number, (a, t0, b, t1, text) in enumerate(flying, 1):
        said = f"{number}  {text}: {a} at {digits(t0)} → {b} at {digits(t1)} {unit}"
        parts.append(label(MARGIN + 8, y + 12, said, WIDTH - 2 * MARGIN - 16, size=_SIZE))
        y += 17
    for count, what in zip(left_out, ("events", "messages"), strict=True):
        if count:
            parts.append(label(MARGIN + 8, y + 12, f"… and {count} later {what}, not drawn", 600, size=_SIZE))
            y += 17
    keys, used = legend([(kind, series(i)) for i, kind in enumerate(kinds)], y)
    text = columns(
        [[digits(s), "" if e is None else digits(e), lane, name] for lane, s, e, name, _ in rows]
        + [[digits(t0), digits(t1), f"{a} → {b}", name] for a, t0, b, t1, name in arrows]
    )
    counted = [f"{len(x)} {w}{'s' * (len(x) != 1)}" for x, w in ((arrows, "message"), (rows, "event")) if x]
    finding = f"{' and '.join(counted) or 'nothing'} in {digits(scale.high - scale.low)} {unit}"
    return Figure(title or finding, join([*parts, keys]), y + used, text)


def _arrow_ends(
    scale: _Scale, tops: dict[str, tuple[float, float]], message: tuple
) -> tuple[float, float, float, float]:
    """From the near edge of one lane to the near edge of the other."""
    a, t0, b, t1, _ = message
    down = tops[a][0] < tops[b][0]
    return scale(t0), tops[a][1 if down else 0], scale(t1), tops[b][0 if down else 1]


def _axis(scale: _Scale, y: float, unit: str) -> Markup:
    marks = ticks(scale.low, scale.high)
    parts = [line(_LEFT, y, _RIGHT, y, stroke_opacity=0.6)]
    room = (_RIGHT - _LEFT) / max(len(marks), 2) - 6
    for i, mark in enumerate(marks):
        x = scale(mark)
        anchor = "start" if i == 0 else "end" if x > _RIGHT - 30 else "middle"
        parts.append(line(x, y, x, y + 5, stroke_opacity=0.6))
        parts.append(
            label(
                x,
                y + 18,
                digits(mark),
                room / (2 if anchor != "middle" else 1),
                size=10,
                least=6,
                anchor=anchor,
            )
        )
    parts.append(label(MARGIN + 8, y + 18, f"time ({unit})", _LEFT - MARGIN - 16, size=_SIZE))
    return join(parts)
