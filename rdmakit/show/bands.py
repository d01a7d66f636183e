"""Medians and bands: a row for each value, from the least to the largest seen, with a mark at the median. Leans on
`figure` and `axis`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rdmakit.show.axis import ticks
from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import GREY, series
from rdmakit.show.svg import Markup, box, join, label, line
from rdmakit.show.text import text_width
from rdmakit.show.units import digits

_ROW, _HEAD, _NAMES = 20, 22, 260


def band_rows(
    rows: Sequence[tuple[str, float, float, float] | str],
    unit: str = "",
    *,
    title: str = "",
    marks: Sequence[tuple[str, float]] = (),
    note: str = "",
) -> Figure:
    """Draw ``rows``: ``(name, least, median, most)``; a text by itself heads the rows that follow it.

    ``marks`` are ``(name, value)``, drawn as dashed lines through all rows; ``note`` stands below. Values are finite,
    at least 0 and in order (`ValueError`). The axis begins at 0.

    >>> print(band_rows(["chunk", ("4", 1.4, 1.5, 1.9), ("8", 1.9, 1.9, 3.0)], "times", title="Large ones gain"))
    Large ones gain
    chunk
      4    1.5 times  1.4 … 1.9
      8    1.9 times  1.9 … 3
    """
    values = [row for row in rows if not isinstance(row, str)]
    for name, *band in values:
        if not all(math.isfinite(v) and v >= 0 for v in band) or sorted(band) != band:
            raise ValueError(f"band {band} of {name!r}: least, median and most, finite and at least 0")
    if not values:
        raise ValueError("no rows: a band needs one at least")
    largest = max([most for *_, most in values] + [value for _, value in marks]) or 1.0
    steps = ticks(0.0, largest * 1.02)
    top = max(steps[-1], largest)
    said = [f"{digits(median)} {unit}".rstrip() for _, _, median, _ in values]
    left = MARGIN + min(max(text_width(str(name), 12) for name, *_ in values), _NAMES) + 12
    room = max(text_width(text, 11) for text in said) + 6
    span = WIDTH - MARGIN - room - left
    parts: list[Markup] = []
    height = sum(_HEAD if isinstance(row, str) else _ROW for row in rows)
    for value in steps:
        x = left + span * value / top
        parts.append(line(x, 0, x, height, stroke_opacity=0.16))
        parts.append(label(x, height + 14, digits(value), 60, size=11, anchor="middle"))
    y, group, text = 0.0, -1, []
    texts = iter(said)
    for row in rows:
        if isinstance(row, str):
            group += 1
            parts.append(label(MARGIN, y + 15, row, WIDTH - 2 * MARGIN, size=12, bold=True))
            text.append([row])
            y += _HEAD
            continue
        name, least, median, most = row
        colour, middle = series(max(group, 0)), y + _ROW / 2
        a, m, b = (left + span * value / top for value in (least, median, most))
        parts.append(label(left - 10, middle + 4, name, left - 10 - MARGIN, size=12, anchor="end"))
        parts.append(box(a, middle - 3, max(b - a, 1.0), 6, colour, fill_opacity=0.55))
        parts.append(box(m - 2, middle - 7, 4, 14, colour, stroke="currentColor", stroke_opacity=0.6))
        shown = next(texts)
        parts.append(label(left + span + 6, middle + 4, shown, room, size=11))
        text.append([f"  {name}" if group >= 0 else name, shown, f"{digits(least)} … {digits(most)}"])
        y += _ROW
    y += 22
    for name, value in marks:
        x = left + span * value / top
        parts.append(line(x, 0, x, y - 4, GREY, stroke_width=2, stroke_dasharray="6 4"))
        parts.append(label(x, y + 8, f"{name}: {digits(value)} {unit}".rstrip(), WIDTH / 2, size=11, anchor="middle"))
        text.append([name, f"{digits(value)} {unit}".rstrip()])
        y += 16
    if note:
        parts.append(label(MARGIN, y + 8, note, WIDTH - 2 * MARGIN, size=11, opacity=0.85))
        y += 16
    return Figure(title or "medians and bands", join(parts), y + 6, _lines(text) + (f"\n{note}" if note else ""))


def _lines(text: Sequence[Sequence[str]]) -> str:
    """Rows in columns, headings as they are."""
    width = columns([row for row in text if len(row) > 1]).splitlines()
    lines = iter(width)
    return "\n".join(row[0] if len(row) == 1 else next(lines) for row in text)
