"""A matrix of numbers as shaded cells with the numbers in them: token flow between ranks, contention. Leans
on `figure`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import blend, ink_on
from rdmakit.show.svg import box, join, label
from rdmakit.show.text import shrink, text_width
from rdmakit.show.units import digits

_MOST = 64


def heat_map(
    values: object,
    rows: Sequence[object] | None = None,
    heads: Sequence[object] | None = None,
    *,
    title: str | None = None,
    unit: str = "",
    down: str = "from",
    across: str = "to",
) -> Figure:
    """Draw a two-dimensional array, at most 64 × 64; ``down`` and ``across`` name its axes.

    >>> print(heat_map([[0, 4], [2, 0]], unit="tokens"))
    largest: from 0 to 1, 4 tokens
    from \\ to  0  1
    0          0  4
    1          2  0
    """
    table = [[float(cell) for cell in row] for row in values]  # type: ignore[attr-defined]
    count, width = len(table), len(table[0]) if table else 0
    if not table or not width or any(len(row) != width for row in table) or max(count, width) > _MOST:
        raise ValueError(
            f"a heat map needs 1 to {_MOST} rows of 1 to {_MOST} numbers, all of one length; "
            f"got {count} × {width}"
        )
    if not all(math.isfinite(cell) for row in table for cell in row):
        raise ValueError("a heat map needs finite numbers")
    names = [str(name) for name in (rows if rows is not None else range(count))]
    tops = [str(name) for name in (heads if heads is not None else range(width))]
    if len(names) != count or len(tops) != width:
        raise ValueError(f"{len(names)} row and {len(tops)} column names for {count} × {width} numbers")
    low, high = min(map(min, table)), max(map(max, table))
    left = MARGIN + min(max(text_width(name, 11) for name in [*names, f"{down} ↓"]), 160) + 10
    cell = min((WIDTH - MARGIN - left) / width, 72)
    tall = min(cell, 30) if cell < 30 else 30
    parts: list[str] = [
        label(
            left,
            12,
            f"{across} →" + (f"   ({unit})" if unit else ""),
            WIDTH - MARGIN - left,
            size=11,
            opacity=0.8,
        )
    ]
    parts.append(label(left - 10, 30, f"{down} ↓", left - MARGIN - 10, size=11, anchor="end", opacity=0.8))
    small = min(shrink(name, cell - 2, 11, 5)[1] for name in tops)
    for c, name in enumerate(tops):
        parts.append(label(left + (c + 0.5) * cell, 30, name, cell - 2, size=small, least=5, anchor="middle"))
    for r, row in enumerate(table):
        y = 36 + r * tall
        parts.append(
            label(
                left - 10,
                y + tall / 2 + 4,
                names[r],
                left - MARGIN - 10,
                size=min(11, tall),
                least=5,
                anchor="end",
            )
        )
        for c, value in enumerate(row):
            fill = blend((value - low) / (high - low)) if high > low else blend(0.0)
            x = left + c * cell
            parts.append(box(x + 0.5, y + 0.5, cell - 1, tall - 1, fill))
            if cell >= 22:
                said = digits(value)
                parts.append(
                    label(
                        x + cell / 2,
                        y + tall / 2 + 4,
                        said,
                        cell - 4,
                        size=11,
                        least=6,
                        anchor="middle",
                        fill=ink_on(fill),
                    )
                )
    peak = max(((value, -r, -c) for r, row in enumerate(table) for c, value in enumerate(row)))
    finding = (
        f"largest: {down} {names[-peak[1]]} {across} {tops[-peak[2]]}, {digits(peak[0])} {unit}".rstrip()
    )
    text = columns(
        [
            [f"{down} \\ {across}", *tops],
            *([name, *map(digits, row)] for name, row in zip(names, table, strict=True)),
        ]
    )
    marks = (
        [(digits(low + (high - low) * i / 4), blend(i / 4)) for i in range(5)]
        if high > low
        else [(digits(low), blend(0))]
    )
    keys, used = legend(marks, 42 + count * tall, x=left)
    return Figure(title or finding, join([*parts, keys]), 42 + count * tall + used, text)
