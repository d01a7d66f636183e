"""Bars in groups: several kinds of one thing side by side, as floor, measured and a peer. Leans on `figure`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import VEIL, VEIL_OPACITY, series
from rdmakit.show.svg import Markup, box, join, label
from rdmakit.show.text import text_width
from rdmakit.show.units import quantity

_BAR, _GAP = 15, 9
_NAMES = 240


def group_bars(
    groups: Iterable[tuple[str, Sequence[tuple[str, float | None]]]], unit: str = "", *, title: str = "", note: str = ""
) -> Figure:
    """Draw ``groups`` ``(name, [(kind, value), …])``, a bar for each value; None leaves a bar out, and a group
    without any is not drawn.

    A kind has one colour throughout, and each bar its value beside it. ``note`` stands below.

    >>> print(group_bars([("dispatch", [("floor", 83), ("measured", 154)])], "µs", title="Twice the floor"))
    Twice the floor
    dispatch  floor     83 µs
              measured  154 µs
    """
    rows = [(str(name), [(str(k), float(v)) for k, v in bars if v is not None]) for name, bars in groups]
    rows = [(name, bars) for name, bars in rows if bars]
    for name, bars in rows:
        for kind, value in bars:
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"bar {kind!r} of {name!r} is {value}: a bar needs a finite value of at least 0")
    kinds = list(dict.fromkeys(kind for _, bars in rows for kind, _ in bars))
    top = max((value for _, bars in rows for _, value in bars), default=0.0) or 1.0
    left = MARGIN + min(max((text_width(name, 12) for name, _ in rows), default=0), _NAMES) + 10
    said = [quantity(value, unit) for _, bars in rows for _, value in bars]
    room = max((text_width(text, 11) for text in said), default=0) + 4
    span = WIDTH - MARGIN - room - 8 - left
    parts: list[Markup] = []
    keys, used = legend([(kind, series(i)) for i, kind in enumerate(kinds)], 0)
    y = used + 8.0
    for name, bars in rows:
        height = _BAR * len(bars)
        parts.append(box(left, y, span, height, VEIL, fill_opacity=VEIL_OPACITY))
        parts.append(label(left - 10, y + height / 2 + 4, name, left - 10 - MARGIN, size=12, anchor="end"))
        for kind, value in bars:
            width = span * value / top
            fill = series(kinds.index(kind))
            parts.append(box(left, y + 1, width, _BAR - 2, fill, stroke="currentColor", stroke_opacity=0.4))
            parts.append(label(left + width + 6, y + _BAR - 4, quantity(value, unit), room, size=11))
            y += _BAR
        y += _GAP
    if note:
        parts.append(label(MARGIN, y + 8, note, WIDTH - 2 * MARGIN, size=11, opacity=0.85))
        y += 14
    cells = [
        [name if i == 0 else "", kind, quantity(value, unit)]
        for name, bars in rows
        for i, (kind, value) in enumerate(bars)
    ]
    text = columns(cells) + (f"\n{note}" if note else "")
    return Figure(title or f"{len(said)} bars in {len(rows)} groups", join([keys, *parts]), y, text)
