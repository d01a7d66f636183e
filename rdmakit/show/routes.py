"""Which way things go: columns of stations, and lines between neighbours as thick as what they carry. Leans on
`figure`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import VEIL, VEIL_OPACITY, series
from rdmakit.show.svg import box, element, join, label
from rdmakit.show.units import quantity

_ROW, _MOST = 24, 64


def route_map(
    heads: Sequence[object],
    routes: Sequence[Sequence],
    unit: str = "B",
    *,
    title: str | None = None,
    colour_by: int = 1,
) -> Figure:
    """Draw ``routes``, each ``(station in column 0, station in column 1, …, weight)``; ``heads`` name the columns.

    Stations stand in the order in which they come; lines are coloured by the station of column ``colour_by``. At most
    64 stations a column; weights are finite and not negative (`ValueError`).

    >>> print(route_map(["peer", "port"], [("rank 8", "port 1", 3e6), ("rank 8", "port 2", 1e6)]))
    busiest port: port 1, 3 MB of 4 MB
    peer    port    carries
    rank 8  port 1  3 MB
    rank 8  port 2  1 MB
    """
    count = len(heads)
    rows = [(tuple(str(name) for name in route[:-1]), float(route[-1])) for route in routes]
    for names, weight in rows:
        if len(names) != count or not math.isfinite(weight) or weight < 0:
            raise ValueError(
                f"route {names} with weight {weight}: {count} stations and a weight of at least 0 are needed"
            )
    if count < 2 or not 0 <= colour_by < count:
        raise ValueError(f"{count} columns, coloured by column {colour_by}: two columns or more, and one of them")
    stations = [list(dict.fromkeys(names[c] for names, _ in rows)) for c in range(count)]
    if not rows or max(map(len, stations)) > _MOST:
        raise ValueError(f"a route map needs routes, and at most {_MOST} stations a column")
    load = [{name: sum(w for names, w in rows if names[c] == name) for name in stations[c]} for c in range(count)]
    height = max(map(len, stations)) * _ROW
    room = min(190.0, (WIDTH - 2 * MARGIN) / count - 30)
    step = (WIDTH - 2 * MARGIN - room) / (count - 1)
    left = [MARGIN + c * step for c in range(count)]
    top = [{name: 22 + (i + 0.5) * height / len(names) for i, name in enumerate(names)} for names in stations]
    most = max((w for _, w in rows), default=0) or 1.0
    parts: list[str] = [label(left[c], 12, heads[c], room, size=11, bold=True) for c in range(count)]
    for c in range(count - 1):
        bundles: dict[tuple[str, str, str], float] = {}
        for names, w in rows:
            key = (names[c], names[c + 1], names[colour_by])
            bundles[key] = bundles.get(key, 0.0) + w
        for (here, there, by), w in bundles.items():
            x0, x1, y0, y1 = left[c] + room, left[c + 1], top[c][here], top[c + 1][there]
            middle = (x0 + x1) / 2
            path = f"M{x0:.1f},{y0:.1f} C{middle:.1f},{y0:.1f} {middle:.1f},{y1:.1f} {x1:.1f},{y1:.1f}"
            thick = max(0.6, min(9.0, 6 * w / most))
            dash = None if w else "2 4"
            ink = series(stations[colour_by].index(by))
            parts.append(
                element(
                    "path",
                    d=path,
                    fill="none",
                    stroke=ink,
                    stroke_width=thick,
                    stroke_opacity=0.8,
                    stroke_dasharray=dash,
                )
            )
    for c in range(count):
        for name in stations[c]:
            y = top[c][name]
            fill = series(stations[c].index(name)) if c == colour_by else VEIL
            parts.append(
                box(left[c], y - 9, room, 18, fill, rx=3, fill_opacity=0.35 if c == colour_by else VEIL_OPACITY)
            )
            parts.append(
                label(left[c] + 6, y + 4, f"{name}  {quantity(load[c][name], unit)}", room - 10, size=10.5, least=6)
            )
    busiest = max(stations[colour_by], key=lambda name: load[colour_by][name])
    carried, whole = quantity(load[colour_by][busiest], unit), quantity(sum(w for _, w in rows), unit)
    finding = f"busiest {heads[colour_by]}: {busiest}, {carried} of {whole}"
    text = columns([[*heads, "carries"], *([*names, quantity(w, unit)] for names, w in rows)])
    return Figure(title or finding, join(parts), 22 + height + 4, text)
