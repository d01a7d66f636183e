"""Horizontal bars with names and units: bytes by port, time by version, prediction against result.

Leans on `figure` and `units`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import BAD, VEIL, VEIL_OPACITY, series
from rdmakit.show.svg import box, join, label, line
from rdmakit.show.text import text_width
from rdmakit.show.units import digits, quantity

_ROW = 28


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    if high == 0:
        return "all are zero"
    return (
        f"busiest / idlest = {digits(round(high / low, 3))}"
        if low > 0
        else f"{sum(v == 0 for v in values)} of {len(values)} carry nothing"
    )


def port_bars(
    items: Sequence[Sequence],
    unit: str = "B",
    *,
    title: str | None = None,
    reference: tuple[str, float] | None = None,
) -> Figure:
    """Draw ``items``, each ``(name, value)`` or ``(name, value, kind)``; one kind is one colour.

    ``reference`` is ``(name, value)`` of a limit (line rate, a goal), drawn as a dashed line. Values are
    finite and not negative (`ValueError`).

    >>> print(port_bars([("mlx5_0 port 1", 2e9), ("mlx5_0 port 2", 1e9)]))
    busiest / idlest = 2
    mlx5_0 port 1  ████████████████████  2 GB
    mlx5_0 port 2  ██████████            1 GB
    """
    rows = [(str(i[0]), float(i[1]), str(i[2]) if len(i) > 2 else "") for i in items]
    for name, value, _ in rows:
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"bar {name!r} is {value}: a bar needs a finite value of at least 0")
    kinds = list(dict.fromkeys(kind for *_, kind in rows if kind))
    values = [value for _, value, _ in rows]
    top = max([*values, reference[1] if reference else 0.0, 0.0]) or 1.0
    names = max((text_width(name, 12) for name, *_ in rows), default=0)
    left = MARGIN + min(names, 260) + 10
    said = [quantity(value, unit) for value in values]
    room = min(max((text_width(text, 12) for text in said), default=0) + 2, 180)
    span = WIDTH - MARGIN - room - 10 - left
    parts: list[str] = []
    for i, (name, value, kind) in enumerate(rows):
        y = 4 + i * _ROW
        width = span * value / top
        fill = series(kinds.index(kind)) if kind else series(0)
        parts.append(label(left - 10, y + 16, name, left - 10 - MARGIN, size=12, anchor="end"))
        parts.append(box(left, y, span, _ROW - 6, VEIL, fill_opacity=VEIL_OPACITY))
        parts.append(box(left, y, width, _ROW - 6, fill, stroke="currentColor", stroke_opacity=0.4))
        parts.append(label(WIDTH - MARGIN, y + 16, said[i], room, size=12, anchor="end"))
    y = 4 + len(rows) * _ROW
    if reference:
        x = left + span * float(reference[1]) / top
        parts.append(line(x, 0, x, y, BAD, stroke_width=2, stroke_dasharray="6 4"))
        half = "end" if x > WIDTH / 2 else "start"
        limit = x - MARGIN if half == "end" else WIDTH - MARGIN - x
        parts.append(
            label(x, y + 12, f"{reference[0]}: {quantity(reference[1], unit)}", limit, size=11, anchor=half)
        )
        y += 20
    # Where each kind is one bar of the same name, a legend would say everything twice.
    said_already = kinds == [name for name, *_ in rows]
    keys, used = legend([(kind, series(i)) for i, kind in enumerate(kinds) if not said_already], y)
    text = columns(
        [
            [name, _block(value / top).ljust(20), quantity(value, unit), *([kind] if kind != name else [])]
            for name, value, kind in rows
        ]
    )
    if reference:
        text += f"\n{reference[0]}: {quantity(reference[1], unit)}"
    return Figure(
        title or _spread(values) or f"{len(rows)} bar{'s' * (len(rows) != 1)}",
        join([*parts, keys]),
        y + used,
        text,
    )


def _block(fraction: float) -> str:
    return "█" * round(20 * fraction) or ("▏" if fraction > 0 else "")
