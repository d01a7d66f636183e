"""A message-sequence chart: one column for each party, time running down, one row for each thing that
happens.

Leans on `figure`. Time is in order but not to scale: that is what keeps every name readable when a hundred
nanoseconds of traffic are followed by a millisecond of silence. `timeline` draws to scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns
from rdmakit.show.palette import BAD, BLUE, GREEN, ORANGE, ink_on
from rdmakit.show.svg import Markup, arrow, box, cross, join, label, line
from rdmakit.show.text import BOLD, text_width
from rdmakit.show.units import digits

_LEFT = 92
_ROW = 27
_HEAD = 34
_MOST_ROWS = 160


def message_chart(
    lanes: Sequence[str],
    messages: Sequence[Sequence] = (),
    notes: Sequence[Sequence] = (),
    *,
    title: str | None = None,
    unit: str = "ns",
) -> Figure:
    """Draw ``messages`` ``(from, sent, to, seen, name)`` and ``notes`` ``(lane, time, text[, "good" |
    "bad"])``.

    ``seen=None`` is a message that never arrives; a message that overtakes an earlier one on its way is drawn
    thick. Past 160 rows the rest is left out, and the picture says so.

    >>> sent = [("A", 1, "B", 9, "data"), ("A", 2, "B", 5, "flag")]
    >>> print(message_chart(["A", "B"], sent, [("B", 6, "flag is up")]))
    1 of 2 messages overtakes an earlier one
    1  A → B  data, seen at 9
    2  A → B  flag, seen at 5  overtakes
    6  B      flag is up
    """
    names = [str(lane) for lane in lanes]
    sent = [
        (str(a), float(t0), str(b), None if t1 is None else float(t1), str(text))
        for a, t0, b, t1, text in messages
    ]
    said = [(str(n[0]), float(n[1]), str(n[2]), str(n[3]) if len(n) > 3 else "") for n in notes]
    for lane in (*(m[0] for m in sent), *(m[2] for m in sent), *(n[0] for n in said)):
        if lane not in names:
            raise ValueError(f"{lane!r} is not among the lanes {names}")
    if any(a == b for a, _, b, _, _ in sent):
        raise ValueError("a message goes from one lane to another; inside a lane use a note")
    fast = [_overtakes(m, sent) for m in sent]
    # Rows: a message that is seen at the same moment as another is sent stands above it.
    moments: list[tuple[float, int, str, int]] = []
    for i, (_, t0, _, t1, _) in enumerate(sent):
        moments.append((t0, 1, "sent", i))
        if t1 is not None:
            moments.append((t1, 0, "seen", i))
    moments += [(n[1], 2, "note", i) for i, n in enumerate(said)]
    moments.sort()
    left_out = len(moments) - _MOST_ROWS
    moments = moments[:_MOST_ROWS]
    gap = (WIDTH - _LEFT - MARGIN) / max(len(names), 1)
    centre = {lane: _LEFT + (i + 0.5) * gap for i, lane in enumerate(names)}
    row = {(what, i): _HEAD + (r + 0.8) * _ROW for r, (_, _, what, i) in enumerate(moments)}
    bottom = _HEAD + (len(moments) + 0.6) * _ROW
    parts: list[str] = []
    for lane in names:
        x = centre[lane]
        width = min(gap - 10, text_width(lane, 12) * BOLD + 20)
        parts.append(line(x, _HEAD - 6, x, bottom, stroke_opacity=0.45, stroke_width=1.5))
        parts.append(box(x - width / 2, 4, width, 24, BLUE, rx=5))
        parts.append(label(x, 20, lane, width - 12, size=12, anchor="middle", bold=True, fill=ink_on(BLUE)))
    parts += _times(moments, unit)
    texts: list[str] = []
    for i, message in enumerate(sent):
        if ("sent", i) in row:
            drawn, name = _message(message, row[("sent", i)], row.get(("seen", i)), centre, gap, fast[i])
            parts.append(drawn)
            texts.append(name)
    for i, (lane, _, text, mood) in enumerate(said):
        if ("note", i) in row:
            texts.append(_note(text, mood, centre[lane], row[("note", i)], gap))
    if left_out > 0:
        texts.append(label(MARGIN, bottom + 14, f"… and {left_out} later rows, not drawn", 600, size=11))
        bottom += 20
    count = sum(fast)
    finding = f"{count} of {len(sent)} messages overtake{'s' * (count == 1)} an earlier one"
    if not count:
        finding = f"{len(sent)} message{'s' * (len(sent) != 1)}, none overtakes another"
    lost = sum(m[3] is None for m in sent)
    finding += f"; {lost} never arrive{'s' * (lost == 1)}" if lost else ""
    return Figure(title or finding, join(parts + texts), bottom, _plain(sent, said, fast))


def _overtakes(message: tuple, sent: list[tuple]) -> bool:
    """Sent after another between the same two parties, seen before it (one that is lost is seen by
    nobody)."""
    a, t0, b, t1, _ = message
    return t1 is not None and any(
        o[0] == a and o[2] == b and o[1] < t0 and o[3] is not None and o[3] > t1 for o in sent
    )


def _times(moments: list[tuple], unit: str) -> list[str]:
    parts: list[str] = [label(MARGIN, 20, f"time ({unit})", _LEFT - MARGIN - 6, size=11)]
    previous = None
    for r, (time, *_) in enumerate(moments):
        if digits(time) != previous:
            y = _HEAD + (r + 0.8) * _ROW + 4
            parts.append(
                label(
                    _LEFT - 24,
                    y,
                    digits(time),
                    _LEFT - MARGIN - 28,
                    size=10,
                    anchor="end",
                    mono=True,
                    opacity=0.8,
                )
            )
        previous = digits(time)
    return parts


def _message(
    message: tuple, y0: float, y1: float | None, centre: dict[str, float], gap: float, fast: bool
) -> tuple[Markup, Markup]:
    """The arrow and, beside its foot, the name on the side to which it flies."""
    a, _, b, t1, text = message
    x0, x1 = centre[a], centre[b]
    side = 1 if x1 > x0 else -1
    colour, width = (ORANGE, 3.0) if fast else ("currentColor", 1.5)
    if t1 is None:
        xm, ym = x0 + (x1 - x0) * 0.55, y0 + 10
        drawn = line(x0, y0, xm, ym, BAD, stroke_width=1.5, stroke_dasharray="6 4")
        drawn = join([drawn, cross(xm, ym, BAD)])
    elif y1 is None:
        drawn = line(
            x0, y0, x0 + (x1 - x0) * 0.5, y0 + _ROW / 2, colour, stroke_width=width, stroke_dasharray="2 3"
        )
    else:
        drawn = arrow(x0, y0, x1, y1, colour, width)
    said = f"{text} (lost)" if t1 is None else text
    name = label(x0 + side * 8, y0 - 4, said, gap - 20, size=11, anchor="start" if side > 0 else "end")
    return drawn, name


def _note(text: str, mood: str, x: float, y: float, gap: float) -> Markup:
    fill = {"good": GREEN, "bad": BAD}.get(mood, "#666666")
    said = {"good": "✓ ", "bad": "✗ "}.get(mood, "") + text
    width = min(gap - 10, text_width(said, 11) + 16)
    return join([
        box(x - width / 2, y - 10, width, 20, fill, rx=9),
        label(x, y + 4, said, width - 12, size=11, anchor="middle", fill=ink_on(fill)),
    ])  # fmt: skip


def _plain(sent: list[tuple], said: list[tuple], fast: list[bool]) -> str:
    rows: list[tuple[float, list[object]]] = []
    for (a, t0, b, t1, text), quick in zip(sent, fast, strict=True):
        fate = "never seen" if t1 is None else f"seen at {digits(t1)}"
        rows.append((t0, [digits(t0), f"{a} → {b}", f"{text}, {fate}", *(["overtakes"] if quick else [])]))
    for lane, time, text, mood in said:
        rows.append((time, [digits(time), lane, {"good": "✓ ", "bad": "✗ "}.get(mood, "") + text]))
    return columns([row for _, row in sorted(rows, key=lambda r: r[0])])
