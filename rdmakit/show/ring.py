"""A ring of slots (send queue, completion queue) with the state of each and the indices that chase one
another.

Leans on `figure`. Indices are the free-running counters of the protocol (a 16-bit ``wqe_index``, a 64-bit
ticket); the slot that each points at is the index modulo the number of slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import BLUE, GREEN, ORANGE, PURPLE, QUIET, SKY, VERMILLION, YELLOW, ink_on
from rdmakit.show.svg import Markup, arrow_head, box, join, label

# The states of the project's own queues have fixed colours, so that they look alike in every picture.
_KNOWN = {
    "free": QUIET, "empty": QUIET, "reserved": YELLOW, "written": ORANGE, "ready": SKY, "posted": SKY,
    "rung": BLUE, "executed": PURPLE, "valid": GREEN, "done": GREEN, "completed": GREEN, "error": VERMILLION,
}  # fmt: skip
_SPARE = (SKY, ORANGE, GREEN, PURPLE, BLUE, YELLOW, VERMILLION)
_MOST_CELLS = 256


def _states(slots: int | Sequence[object]) -> list[tuple[str, str]]:
    if isinstance(slots, int):
        return [("free", "")] * slots
    found = []
    for slot in slots:
        if isinstance(slot, (tuple, list)):
            state, note = slot
            found.append((str(state), str(note)))
        else:
            found.append((str(slot), ""))
    return found


def _grouped(states: list[tuple[str, str]], each: int) -> list[tuple[str, str]]:
    """Neighbours put together, ``each`` to a cell; a cell shows the state that most of its slots have."""
    cells = []
    for start in range(0, len(states), each):
        part = states[start : start + each]
        cells.append(
            (Counter(state for state, _ in part).most_common(1)[0][0], part[0][1] if len(part) == 1 else "")
        )
    return cells


def _pointers(names: list[str], x: float, y: float, limit: float) -> Markup:
    """Names stacked above a cell, an arrow from the lowest into the cell whose top is at ``y``."""
    parts: list[str] = [arrow_head(x, y - 1, 0, 1, size=7)]
    for level, name in enumerate(reversed(names)):
        parts.append(label(x, y - 11 - level * 13, name, limit, size=10, least=7, anchor="middle"))
    return join(parts)


def queue_ring(
    slots: int | Sequence[object],
    indices: Mapping[str, int] | None = None,
    *,
    title: str | None = None,
    name: str = "ring",
) -> Figure:
    """Draw a ring: each slot is a state (``"free"``, ``"posted"`` …) or ``(state, note)``; ``indices`` point
    into it.

    ``slots`` may be a number (all free). Rings of more than 256 slots are drawn with several slots to a cell.

    >>> print(queue_ring(["posted", "free"], {"producer": 65537, "consumer": 65536}, name="SQ"))
    SQ: 1 of 2 slots in use
    producer = 65537 → slot 1
    consumer = 65536 → slot 0
    slots 0–0  posted
    slots 1–1  free
    """
    states = _states(slots)
    if not states:
        raise ValueError("a ring has at least one slot; got none")
    count = len(states)
    where = {str(key): int(value) for key, value in (indices or {}).items()}
    each = -(-count // _MOST_CELLS)
    cells = _grouped(states, each)
    colours = {
        state: _KNOWN.get(state, _SPARE[i % len(_SPARE)])
        for i, state in enumerate(dict.fromkeys(state for state, _ in states))
    }
    per_row = 16 if len(cells) <= 64 else 64
    across = min(per_row, len(cells))
    width = min((WIDTH - 2 * MARGIN) / across, 110)
    height = 40 if per_row == 16 else 16
    at: dict[int, list[str]] = {}
    for key, value in where.items():
        at.setdefault((value % count) // each, []).append(f"{key} {value}")
    parts: list[str] = []
    y = 4.0
    for first in range(0, len(cells), per_row):
        row = cells[first : first + per_row]
        pointed = [(i, at[first + i]) for i in range(len(row)) if first + i in at]
        levels, placed = _levels(
            [(MARGIN + (i + 0.5) * width, names) for i, names in pointed], max(width, 96)
        )
        y += levels * 13 + (10 if pointed else 0)
        for x, limit, names in placed:
            parts.append(_pointers(names, x, y, limit))
        for i, (state, note) in enumerate(row):
            x, fill = MARGIN + i * width, colours[state]
            parts.append(
                box(x + 1, y, width - 2, height, fill, rx=3, stroke="currentColor", stroke_opacity=0.45)
            )
            if per_row == 16:
                ink = ink_on(fill)
                parts.append(
                    label(
                        x + width / 2,
                        y + 15,
                        str(first + i),
                        width - 6,
                        size=10,
                        anchor="middle",
                        mono=True,
                        fill=ink,
                    )
                )
                parts.append(
                    label(
                        x + width / 2,
                        y + 31,
                        note or state,
                        width - 6,
                        size=10,
                        least=6.5,
                        anchor="middle",
                        fill=ink,
                    )
                )
        y += height + 6
    note = f"one cell = {each} slots, coloured by the most common state" if each > 1 else ""
    if note:
        parts.append(label(MARGIN, y + 12, note, WIDTH - 2 * MARGIN, size=11, opacity=0.8))
        y += 18
    keys, used = legend(colours.items(), y)
    busy = sum(state not in ("free", "empty") for state, _ in states)
    text = columns([[f"{key} = {value} → slot {value % count}"] for key, value in where.items()])
    runs = columns([[f"slots {low}–{high}", state, *notes] for low, high, state, *notes in _runs(states)])
    finding = f"{name}: {busy} of {count} slots in use"
    return Figure(title or finding, join([*parts, keys]), y + used, "\n".join(filter(None, (text, runs))))


def _levels(
    pointed: list[tuple[float, list[str]]], limit: float
) -> tuple[int, list[tuple[float, float, list[str]]]]:
    """How many lines of names a row needs, and each stack with the room that its neighbours leave it."""
    placed = []
    for i, (x, names) in enumerate(pointed):
        gap = min(
            x - pointed[i - 1][0] if i else limit,
            pointed[i + 1][0] - x if i + 1 < len(pointed) else limit,
            2 * (x - MARGIN), 2 * (WIDTH - MARGIN - x), limit,
        )  # fmt: skip
        placed.append((x, gap - 4, names))
    return max((len(names) for _, names in pointed), default=0), placed


def _runs(states: list[tuple[str, str]]) -> list[tuple]:
    """Neighbouring slots in the same state and with the same note, as one line each."""
    runs: list[list] = []
    for i, (state, note) in enumerate(states):
        if runs and runs[-1][2:] == [state, note]:
            runs[-1][1] = i
        else:
            runs.append([i, i, state, note])
    return [tuple(run) for run in runs]
