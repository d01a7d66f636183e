"""A chart of steps: one column for each party, one row for each step, arrows from what causes to what sees it.

Leans on `figure`. Where `sequence` draws messages between parties, this draws what parties do: each step is a box in
its party's column, as high as its text needs; an arrow runs from the edge of one box to that of another, below all
boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import BAD, BLUE, GOOD, SKY, ink_on
from rdmakit.show.svg import Markup, arrow, box, element, join, label, line
from rdmakit.show.text import BOLD, text_width, wrap

_LEFT = 58
_HEAD = 34
_LINE = 14
_SIZE = 11
_MOST_LINES = 4
_FILLS = {"bad": BAD, "good": GOOD, "fence": SKY}
_MARKS = {"bad": "✗ ", "good": "✓ "}


def step_chart(
    lanes: Sequence[str],
    steps: Sequence[Sequence],
    arrows: Sequence[Sequence] = (),
    *,
    title: str = "",
    end: Sequence[str] = (),
) -> Figure:
    """Draw ``steps`` ``(number, lane, text[, "good" | "bad" | "fence"])`` and, between their numbers, ``arrows``
    ``(from, to[, "bad"])``.

    ``lane=""`` is a remark across all columns, a bad arrow one that should have arrived and did not: dashed. An arrow
    whose ends are not both drawn, or are in one column, is left out. ``end`` are paragraphs below.

    >>> steps = [(1, "A", "writes x = 1"), (4, "B", "reads x = 0; old", "bad")]
    >>> print(step_chart(["A", "B"], steps, [(1, 4, "bad")], title="B is too early", end=["B saw 0"]))
    B is too early
    1  A  writes x = 1
    4  B  ✗ reads x = 0; old
    B saw 0
    """
    names = [str(lane) for lane in lanes]
    said = [(int(s[0]), str(s[1]), str(s[2]), str(s[3]) if len(s) > 3 else "") for s in steps]
    for _, lane, _, _ in said:
        if lane and lane not in names:
            raise ValueError(f"{lane!r} is not among the lanes {names}")
    gap = (WIDTH - _LEFT - MARGIN) / max(len(names), 1)
    centre = {lane: _LEFT + (i + 0.5) * gap for i, lane in enumerate(names)}
    widest = gap - min(36.0, gap / 4)
    boxes: list[Markup] = []
    edges: dict[int, tuple[float, float, float]] = {}
    top = _HEAD + 8.0
    for number, lane, text, mood in said:
        if not lane:
            boxes.append(label(_LEFT, top + 14, text, WIDTH - _LEFT - MARGIN, size=_SIZE, opacity=0.8))
            top += 24
            continue
        drawn, width, height = _box(_MARKS.get(mood, "") + text, _FILLS.get(mood, "#666666"), centre[lane], top, widest)
        middle = top + height / 2
        boxes.append(_number(number, middle + 4))
        boxes.append(drawn)
        edges[number] = (centre[lane], middle, width / 2)
        top += height + 7
    parts = [line(x, _HEAD - 6, x, top, stroke_opacity=0.45, stroke_width=1.5) for x in centre.values()]
    for lane, x in centre.items():
        width = min(gap - 10, text_width(lane, 12) * BOLD + 20)
        parts.append(box(x - width / 2, 4, width, 24, BLUE, rx=5))
        parts.append(label(x, 20, lane, width - 12, size=12, anchor="middle", bold=True, fill=ink_on(BLUE)))
    parts.append(label(MARGIN, 20, "step", _LEFT - MARGIN, size=11))
    for a, b, *missed in arrows:
        if a in edges and b in edges and edges[a][0] != edges[b][0]:
            parts.append(_between(edges[a], edges[b], bool(missed)))
    parts += boxes
    for paragraph in end:
        top += 6
        for one in wrap(str(paragraph), WIDTH - 2 * MARGIN, 12):
            parts.append(label(MARGIN, top + 12, one, WIDTH - 2 * MARGIN, size=12))
            top += 17
    rows = [[number, lane, _MARKS.get(mood, "") + text] for number, lane, text, mood in said if lane]
    plain = "\n".join([columns(rows), *(str(paragraph) for paragraph in end)])
    return Figure(title or f"{len(rows)} steps", join(parts), top + 4, plain)


def _number(number: int, y: float) -> Markup:
    return label(_LEFT - 8, y, number, _LEFT - MARGIN, size=10, anchor="end", mono=True, opacity=0.8)


def _box(text: str, fill: str, x: float, top: float, widest: float) -> tuple[Markup, float, float]:
    """A box round as many lines as the text needs, its width and its height."""
    lines = wrap(text, widest - 14, _SIZE)
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], " ".join(lines[_MOST_LINES - 1 :])]
    width = min(widest, max(text_width(one, _SIZE) for one in lines) + 16)
    height = _LINE * len(lines) + 6
    texts = [
        label(x, top + _LINE * (i + 1), one, width - 10, size=_SIZE, least=9, anchor="middle", fill=ink_on(fill))
        for i, one in enumerate(lines)
    ]
    tip = element("title", text)
    return element("g", tip, box(x - width / 2, top, width, height, fill, rx=7), *texts), width, height


def _between(a: tuple[float, float, float], b: tuple[float, float, float], missed: bool) -> Markup:
    side = 1 if b[0] > a[0] else -1
    colour, dash = (BAD, {"stroke_dasharray": "5 4"}) if missed else ("currentColor", {})
    return arrow(a[0] + side * a[2], a[1], b[0] - side * b[2], b[1], colour, 1.5, **dash)
