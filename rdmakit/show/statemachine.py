"""The states of a queue pair with the transitions that are allowed, those refused, and the one that it is in.

Leans on `figure`. States and transitions: InfiniBand Architecture Specification vol. 1, section 10.3.1 "QP/EE
context states"; for which attributes each needs, `man ibv_modify_qp`. Any state may go to RESET, and any but
RESET to ERR, so these two fans of arrows are a note, not thirteen lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rdmakit.show.figure import Figure, legend
from rdmakit.show.palette import BAD, BLUE, GREEN, ORANGE, VEIL, VEIL_OPACITY, ink_on
from rdmakit.show.svg import Markup, arrow, arrow_head, box, cross, element, join, label

STATES = ("RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR")

# RTS → SQE is taken by the hardware alone, on a send error of an unreliable QP; software may only leave it.
ALLOWED = (
    ("RESET", "INIT"), ("INIT", "INIT"), ("INIT", "RTR"), ("RTR", "RTS"), ("RTS", "RTS"),
    ("RTS", "SQD"), ("SQD", "SQD"), ("SQD", "RTS"), ("SQE", "RTS"), ("RTS", "SQE"),
)  # fmt: skip
FORBIDDEN = (("RESET", "RTR"), ("INIT", "RTS"))

_MEANING = {
    "RESET": "just created", "INIT": "may post receives", "RTR": "ready to receive", "RTS": "ready to send",
    "SQD": "send queue drained", "SQE": "send error (not RC)", "ERR": "all work flushed",
}  # fmt: skip
_W, _H = 128, 50
_PLACE = {
    "RESET": (16, 112), "INIT": (200, 112), "RTR": (384, 112), "RTS": (568, 112),
    "SQD": (756, 30), "SQE": (756, 194), "ERR": (384, 236),
}  # fmt: skip


def allowed(source: str, target: str) -> bool:
    """Whether software may take a QP from ``source`` to ``target`` by a modify call.

    >>> allowed("INIT", "RTR"), allowed("INIT", "RTS"), allowed("RTS", "SQE"), allowed("SQD", "ERR")
    (True, False, False, True)
    """
    if target in ("RESET", "ERR"):
        return (
            target == "RESET" or source != "RESET"
        )  # Linux's table of RC has no RESET → ERR (ib_modify_qp_is_ok)
    return (source, target) in ALLOWED and target != "SQE"


def _edge_points(source: str, target: str) -> tuple[float, float, float, float]:
    """Where a straight arrow leaves one box and meets the other."""
    (ax, ay), (bx, by) = _PLACE[source], _PLACE[target]
    if ay == by:
        return (ax + _W, ay + _H / 2, bx, by + _H / 2) if bx > ax else (ax, ay + _H / 2, bx + _W, by + _H / 2)
    # The two arrows between RTS and a neighbour run side by side, a finger's breadth apart.
    shift = 12 if "RTS" == source else -12
    near, far = (ax + _W, bx) if bx > ax else (ax, bx + _W)
    if target == "ERR":
        return ax + _W / 2, ay + _H, bx + _W / 2, by
    return near, ay + _H / 2 + shift, far, by + _H / 2 + shift


def _straight(source: str, target: str, colour: str, width: float, mark: bool = False) -> Markup:
    x0, y0, x1, y1 = _edge_points(source, target)
    dash = "6 4" if mark or (source, target) == ("RTS", "SQE") else None
    parts = [arrow(x0, y0, x1, y1, colour, width, stroke_dasharray=dash)]
    return join([*parts, cross((x0 + x1) / 2, (y0 + y1) / 2, BAD)] if mark else parts)


def _loop(state: str, colour: str, width: float) -> Markup:
    """An arrow from a state to itself, on the top of its box."""
    x, y = _PLACE[state]
    x += _W - 34
    path = f"M{x},{y} C{x},{y - 24} {x + 22},{y - 24} {x + 22},{y - 2}"
    return join(
        [
            element("path", d=path, fill="none", stroke=colour, stroke_width=width),
            arrow_head(x + 22, y, 0, 1, colour),
        ]
    )


def _arc(source: str, target: str, level: int) -> Markup:
    """A forbidden edge: a dashed bow below the row, with a cross at its middle."""
    (ax, ay), (bx, by) = _PLACE[source], _PLACE[target]
    lane = 24 if bx > ax else -24
    x0, x1 = ax + _W / 2 + lane, bx + _W / 2 - lane
    y0, y1 = ay + _H, by + _H
    dip = max(y0, y1) + 26 + 18 * level
    path = f"M{x0:g},{y0:g} C{x0:g},{dip:g} {x1:g},{dip:g} {x1:g},{y1 + 3:g}"
    middle = (x0 + x1) / 2, (y0 + y1) / 8 + dip * 0.75
    curve = element("path", d=path, fill="none", stroke=BAD, stroke_width=1.6, stroke_dasharray="6 4")
    return join([curve, arrow_head(x1, y1, 0, -1, BAD), cross(*middle, BAD)])


def qp_states(
    current: str | None = None,
    *,
    history: Sequence[str] = (),
    forbidden: Iterable[tuple[str, str]] = FORBIDDEN,
    refused: tuple[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the QP state machine: ``current`` is filled, ``history`` is the path so far, ``refused`` an
    attempt just denied.

    Names are the seven of `STATES` (`ValueError` otherwise).

    >>> print(qp_states("RTR", history=["RESET", "INIT", "RTR"]))
    QP is in RTR: ready to receive
    RESET → INIT → RTR
    next: RTS, RESET, ERR
    """
    forbidden = [(source, target) for source, target in forbidden]
    mentioned = [
        *history,
        *([current] if current else []),
        *(s for edge in forbidden for s in edge),
        *(refused or ()),
    ]
    for state in mentioned:
        if state not in STATES:
            raise ValueError(f"{state!r} is no QP state: use one of {', '.join(STATES)}")
    taken = set(pairwise(history))
    parts: list[str] = []
    for edge in ALLOWED:
        colour, width = (GREEN, 3.5) if edge in taken else ("currentColor", 1.5)
        parts.append(_loop(edge[0], colour, width) if edge[0] == edge[1] else _straight(*edge, colour, width))
    shown = [*forbidden, *([refused] if refused and refused not in forbidden else [])]
    row = {"RESET", "INIT", "RTR", "RTS"}
    for level, edge in enumerate(edge for edge in shown if edge[0] != edge[1]):
        if set(edge) <= row:
            parts.append(_arc(*edge, level % 2))
        else:
            parts.append(_straight(*edge, BAD, 1.6, mark=True))
    for state in STATES:
        parts.append(
            _state(state, state == current, state in history, refused is not None and state == refused[1])
        )
    x, y = _PLACE["ERR"]
    fans = (
        "any state → RESET: by a modify",
        "any state but RESET → ERR: by a modify,",
        "or after a completion error",
    )
    for i, note in enumerate(fans):
        parts.append(label(x + _W + 14, y + 14 + 16 * i, note, 224, size=11, opacity=0.85))
    keys, used = legend(
        [("current state", ORANGE), ("path taken", GREEN), ("refused (✗)", BAD), ("been there", BLUE)], 300
    )
    lines = [" → ".join(history)] if history else []
    if refused:
        lines.append(f"refused: {refused[0]} → {refused[1]}")
    if current:
        steps = [s for s in STATES if s not in ("RESET", "ERR")] + ["RESET", "ERR"]
        lines.append("next: " + ", ".join(s for s in steps if s != current and allowed(current, s)))
    else:
        lines += [f"{a} → {b}" for a, b in ALLOWED] + [f"{a} ✗ {b}" for a, b in forbidden]
    finding = (
        f"QP is in {current}: {_MEANING[current]}"
        if current
        else "A QP climbs one step at a time; shortcuts are refused"
    )
    if refused:
        finding = f"{refused[0]} → {refused[1]} is refused" + (
            f"; the QP stays in {current}" if current else ""
        )
    return Figure(title or finding, join([*parts, keys]), 300 + used, "\n".join(lines))


def _state(state: str, is_current: bool, is_past: bool, is_refused: bool) -> Markup:
    x, y = _PLACE[state]
    fill = ORANGE if is_current else BLUE if is_past else None
    ink = ink_on(fill) if fill else "currentColor"
    stroke, width = (BAD, 3) if is_refused else ("currentColor", 3 if is_current else 1.2)
    back = box(x, y, _W, _H, fill or VEIL, fill_opacity=None if fill else VEIL_OPACITY, rx=10)
    edge = box(x, y, _W, _H, "none", rx=10, stroke=stroke, stroke_width=width)
    name = label(x + _W / 2, y + 21, state, _W - 12, size=14, anchor="middle", bold=True, fill=ink)
    return join(
        [
            back,
            edge,
            name,
            label(
                x + _W / 2, y + 39, _MEANING[state], _W - 10, size=10.5, least=8, anchor="middle", fill=ink
            ),
        ]
    )
