"""What each step of several adds or takes: bars that begin where the last one ended. Leans on `figure`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import BAD, GOOD, GREY, SKY, VEIL, VEIL_OPACITY
from rdmakit.show.svg import box, join, label, line
from rdmakit.show.text import text_width
from rdmakit.show.units import digits

_ROW = 34


def waterfall(
    steps: Sequence[Sequence],
    unit: str,
    *,
    title: str | None = None,
    marks: Sequence[tuple[str, float]] = (),
) -> Figure:
    """Draw ``steps``, each ``(name, value)`` or ``(name, value, low, high)`` with a band; a step's bar spans from the
    value before it to its own.

    ``marks`` are ``(name, value)`` of published points or limits, drawn as dashed lines. Values are finite and at
    least 0 (`ValueError`).

    >>> print(waterfall([("proxy", 20), ("GPU rings", 30)], "GB/s", marks=[("line rate", 50)]))
    from 20 to 30 GB/s: 1.5 times
    proxy      20 GB/s
    GPU rings  30 GB/s  +10
    line rate  50 GB/s
    """
    rows = [
        (str(s[0]), float(s[1]), float(s[2]) if len(s) > 3 else None, float(s[3]) if len(s) > 3 else None)
        for s in steps
    ]
    numbers = [v for row in rows for v in row[1:] if v is not None] + [float(v) for _, v in marks]
    if not rows or not all(math.isfinite(v) and v >= 0 for v in numbers):
        raise ValueError("a waterfall needs steps, and finite values of at least 0")
    top = max(numbers) or 1.0
    names = min(max(text_width(name, 12) for name, *_ in rows), 330)
    left = MARGIN + names + 12
    said = [digits(round(value, 3)) + f" {unit}" for _, value, *_ in rows]
    room = max(text_width(text, 12) for text in said) + 60
    span = WIDTH - MARGIN - room - left
    parts: list[str] = []
    before = 0.0
    lines = []
    for i, (name, value, low, high) in enumerate(rows):
        y = 4 + i * _ROW
        grows = value >= before
        fill = SKY if i == 0 else GOOD if grows else BAD
        x0, x1 = left + span * min(before, value) / top, left + span * max(before, value) / top
        if i == 0:
            x0 = left
        parts.append(label(left - 10, y + 17, name, names, size=12, least=7, anchor="end"))
        parts.append(box(left, y, span, _ROW - 10, VEIL, fill_opacity=VEIL_OPACITY))
        parts.append(box(x0, y, max(x1 - x0, 1.0), _ROW - 10, fill, stroke="currentColor", stroke_opacity=0.4))
        if low is not None and high is not None:
            at = y + (_ROW - 10) / 2
            a, b = left + span * low / top, left + span * high / top
            parts += [line(a, at, b, at, "currentColor", stroke_width=1.5)]
            parts += [line(x, at - 5, x, at + 5, "currentColor", stroke_width=1.5) for x in (a, b)]
        change = "" if i == 0 else f"{'+' if grows else '−'}{digits(abs(round(value - before, 3)))}"
        parts.append(label(left + span + 8, y + 17, f"{said[i]}  {change}".rstrip(), room - 8, size=12, least=7))
        band = "" if low is None or high is None else f"{digits(low)} … {digits(high)}"
        lines.append([name, said[i], change, band] if band else [name, said[i], *([change] if change else [])])
        before = value
    y = 4 + len(rows) * _ROW
    for name, value in marks:
        x = left + span * float(value) / top
        parts.append(line(x, 0, x, y + 3, GREY, stroke_width=2, stroke_dasharray="6 4"))
        anchor = "end" if x > WIDTH / 2 else "start"
        limit = x - MARGIN if anchor == "end" else WIDTH - MARGIN - x
        text = f"{name}: {digits(value)} {unit}"
        parts.append(label(x, y + 14, text, limit, size=11, least=7, anchor=anchor))
        lines.append([name, f"{digits(value)} {unit}"])
        y += 17
    first, last = rows[0][1], rows[-1][1]
    times = f": {digits(round(last / first, 3))} times" if first else ""
    finding = f"from {digits(round(first, 3))} to {digits(round(last, 3))} {unit}{times}"
    return Figure(title or finding, join(parts), y + 8, columns(lines))
