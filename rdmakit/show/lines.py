"""Lines over a number: what grows with SMs, bytes or ranks, a line for each way. Leans on `figure` and `axis`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rdmakit.show.axis import ticks
from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import series
from rdmakit.show.svg import Markup, box, element, join, label, line
from rdmakit.show.text import text_width
from rdmakit.show.units import digits

_HEIGHT, _TOP, _BELOW = 330, 30, 46
_DASHES = (None, "7 4", "2 3", "9 3 2 3")
_NEAR = 14  # px between two names at the ends of lines


def line_chart(
    lines: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, title: str = "", log: bool = False,
    marks: Sequence[float] = (), note: str = "",
) -> Figure:  # fmt: skip
    """Draw ``lines``: name → points ``(x, y)``; ``x`` and ``y`` name the axes with their units.

    ``log`` makes the horizontal axis logarithmic, whose points must then be above 0. ``marks``: values with a tick on
    it, by default every one that a line has. Dashes repeat what colours say, and each line's name stands at its end.
    ``note`` stands below.

    >>> print(line_chart({"push": [(1, 49), (8, 330)]}, "SMs", "GB/s", title="Eight SMs fill the link"))
    Eight SMs fill the link
    SMs   1   8
    push  49  330
    """
    drawn = {str(name): [(float(a), float(b)) for a, b in points] for name, points in lines.items() if len(points)}
    flat = [point for points in drawn.values() for point in points]
    for a, b in flat:
        if not (math.isfinite(a) and math.isfinite(b)) or b < 0 or (log and a <= 0):
            raise ValueError(f"point ({a}, {b}): both finite, y at least 0{', x above 0' * log}")
    if not flat:
        raise ValueError("no points: a chart needs a line with one at least")
    where = sorted({a for a, _ in flat})
    place = math.log2 if log else float
    low, high = place(where[0]), place(where[-1])
    steps = ticks(0.0, max(b for _, b in flat) * 1.04 or 1.0)
    top = max(steps[-1], max(b for _, b in flat)) or 1.0
    names = max(text_width(name, 11) for name in drawn) + 14
    left, right = MARGIN + text_width(digits(top), 11) + 14, WIDTH - MARGIN - min(names, 250)

    def at(a: float, b: float) -> tuple[float, float]:
        across = (place(a) - low) / (high - low) if high > low else 0.5
        return left + 8 + (right - left - 16) * across, _TOP + _HEIGHT * (1 - b / top)

    parts: list[Markup] = [label(MARGIN, 16, y, WIDTH - 2 * MARGIN, size=11)]
    for value in steps:
        _, level = at(where[0], value)
        parts.append(line(left, level, right, level, stroke_opacity=0.22))
        parts.append(label(left - 6, level + 4, digits(value), left - 6 - MARGIN, size=11, anchor="end"))
    free = float(MARGIN)
    for value in sorted(marks) or where:
        across, _ = at(value, 0)
        half = text_width(digits(value), 11) / 2
        parts.append(line(across, _TOP + _HEIGHT, across, _TOP + _HEIGHT + 5, stroke_opacity=0.6))
        if across - half >= free:  # a tick too near to the last one goes without its number
            parts.append(label(across, _TOP + _HEIGHT + 18, digits(value), 2 * half + 1, size=11, anchor="middle"))
            free = across + half + 4
    parts.append(label((left + right) / 2, _TOP + _HEIGHT + 38, x, right - left, size=11, anchor="middle"))
    ends: list[tuple[float, float, int, str]] = []
    for i, (name, points) in enumerate(drawn.items()):
        colour, path = series(i), [at(a, b) for a, b in sorted(points)]
        corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in path)
        dash = _DASHES[i // 2 % len(_DASHES)]
        parts.append(
            element("polyline", points=corners, fill="none", stroke=colour, stroke_width=2.5, stroke_dasharray=dash)
        )
        for px, py in path:
            parts.append(
                element("circle", cx=px, cy=py, r=3.2, fill=colour, stroke="currentColor", stroke_opacity=0.5)
                if i % 2 == 0
                else box(px - 3, py - 3, 6, 6, colour, stroke="currentColor", stroke_opacity=0.5)
            )
        ends.append((path[-1][1], path[-1][0], i, name))
    height = _TOP + _HEIGHT + _BELOW
    if note:
        parts.append(label(MARGIN, height + 8, note, WIDTH - 2 * MARGIN, size=11, opacity=0.85))
    text = _text(drawn, where, x) + (f"\n{note}" if note else "")
    return Figure(title or f"{y} over {x}", join([*parts, *_names(ends, right)]), height + 14 * bool(note), text)


def _names(ends: list[tuple[float, float, int, str]], right: float) -> list[Markup]:
    """Names at the ends of lines, moved apart where they would overlap, each led to its line's end."""
    placed: list[float] = []
    for level, *_ in sorted(ends):
        placed.append(max(level, placed[-1] + _NEAR) if placed else level)
    over = placed[-1] - (_TOP + _HEIGHT) if placed else 0.0
    for i in range(len(placed) - 1, -1, -1):
        most = _TOP + _HEIGHT if i == len(placed) - 1 else placed[i + 1] - _NEAR
        placed[i] = min(placed[i], most) if over > 0 else placed[i]
    parts = []
    for (level, across, i, name), height in zip(sorted(ends), placed, strict=True):
        parts.append(line(across, level, right + 6, height, series(i), stroke_opacity=0.5, stroke_width=1))
        parts.append(label(right + 10, height + 4, name, WIDTH - MARGIN - right - 10, size=11))
    return parts


def _text(drawn: Mapping[str, Sequence[tuple[float, float]]], where: Sequence[float], x: str) -> str:
    rows = [[x, *(digits(a) for a in where)]]
    for name, points in drawn.items():
        values = dict(points)
        rows.append([name, *(digits(values[a]) if a in values else "" for a in where)])
    return columns(rows)
