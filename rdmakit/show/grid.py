"""A coloured grid of bytes: the fields of a WQE or a CQE where they lie, 16 bytes a row.

Leans on `figure`. A field is drawn once for each row that it touches; its name stands in its widest piece.
The part of a name before the first dot (``ctrl.opcode``) is its segment, and a segment has one colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rdmakit.show.figure import WIDTH, Figure, columns, legend
from rdmakit.show.palette import BAD, VEIL, VEIL_OPACITY, ink_on, series
from rdmakit.show.svg import Markup, box, join, label

Field = tuple[int, int, str, object]

_ROW = 16
_GUTTER = 56
_CELL = (WIDTH - _GUTTER - 12) / _ROW


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of a field that lies in one row."""

    row: int
    start: int
    stop: int


def _pieces(offset: int, size: int) -> list[_Piece]:
    rows = range(offset // _ROW, (offset + size - 1) // _ROW + 1)
    return [_Piece(r, max(offset - r * _ROW, 0), min(offset + size - r * _ROW, _ROW)) for r in rows]


def _checked(fields: Sequence[Field], size: int) -> list[Field]:
    ordered = sorted(((int(o), int(s), str(n), v) for o, s, n, v in fields), key=lambda f: (f[0], f[1], f[2]))
    end, previous = 0, ""
    for offset, length, name, _ in ordered:
        if length < 1 or offset < 0 or offset + length > size:
            raise ValueError(
                f"field {name!r} at {offset}..{offset + length} lies outside the {size} bytes of the grid"
            )
        if offset < end:
            raise ValueError(
                f"field {name!r} at byte {offset} overlaps {previous!r}, which ends at {end}: merge the two"
            )
        end, previous = offset + length, name
    return ordered


def _hex(data: bytes, start: int, stop: int) -> str:
    return " ".join(f"{byte:02x}" for byte in data[start:stop])


def _value(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex(" ")
    return "" if value is None else str(value)


def _wrong(golden: bytes | None, data: bytes | None, offset: int, size: int) -> bool:
    if golden is None or data is None:
        return False
    return data[offset : offset + size] != golden[offset : offset + size]


def byte_grid(
    fields: Sequence[Field],
    size: int = 64,
    *,
    title: str | None = None,
    data: bytes | None = None,
    golden: bytes | None = None,
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Draw ``size`` bytes with their named fields, each ``(offset, size, name, value)``.

    With ``data`` the bytes themselves stand under the fields; with ``golden`` as well, fields whose bytes
    differ are framed and marked ``✗``. ``colours`` gives segments colours of your choice.
    Fields may not overlap (`ValueError`); bytes without a field are drawn as reserved.

    >>> print(byte_grid([(0, 4, "ctrl.opcode", 8), (4, 4, "ctrl.qpn", "0x12")], 16))
    16 bytes, 2 fields
    0  4  ctrl.opcode  8
    4  4  ctrl.qpn     0x12
    """
    ordered = _checked(fields, size)
    data = None if data is None else bytes(data)
    golden = None if golden is None else bytes(golden)
    for name, given in (("data", data), ("golden", golden)):
        if given is not None and len(given) != size:
            raise ValueError(
                f"{name} holds {len(given)} bytes, but the grid has {size}: pass size=len({name})"
            )
    rows = -(-size // _ROW)
    row_height = 58 if data is not None else 44
    segments: dict[str, str] = {}
    chosen = dict(colours or {})
    parts: list[str] = []
    head = 22
    for column in range(min(_ROW, size)):
        x = _GUTTER + (column + 0.5) * _CELL
        parts.append(label(x, 14, f"+{column}", _CELL, size=10, anchor="middle", mono=True, opacity=0.7))
    for row in range(rows):
        y = head + row * row_height
        parts.append(
            label(
                _GUTTER - 8,
                y + 24,
                f"0x{row * _ROW:02x}",
                _GUTTER - 12,
                size=11,
                anchor="end",
                mono=True,
                opacity=0.7,
            )
        )
        width = min(_ROW, size - row * _ROW) * _CELL
        parts.append(box(_GUTTER, y, width, row_height - 4, VEIL, fill_opacity=VEIL_OPACITY))
        if data is not None:
            for column in range(min(_ROW, size - row * _ROW)):
                x = _GUTTER + (column + 0.5) * _CELL
                byte = data[row * _ROW + column]
                parts.append(label(x, y + 50, f"{byte:02x}", _CELL, size=11, anchor="middle", mono=True))
    lines: list[list[object]] = []
    bad = 0
    for offset, length, name, value in ordered:
        segment = name.split(".", 1)[0] if "." in name else name
        colour = segments.setdefault(segment, chosen.get(segment, series(len(segments))))
        wrong = _wrong(golden, data, offset, length)
        bad += wrong
        lines.append([offset, length, name, _value(value), *(["✗ differs"] if wrong else [])])
        parts.append(_field(name, _value(value), colour, _pieces(offset, length), head, row_height, wrong))
    by_segment = [
        entry
        for entry in segments.items()
        if any("." in f[2] and f[2].startswith(entry[0] + ".") for f in ordered)
    ]
    keys, used = legend(by_segment, head + rows * row_height + 4)
    finding = f"{bad} of {len(ordered)} fields differ from the golden bytes" if golden is not None else ""
    finding = finding or f"{size} bytes, {len(ordered)} field{'s' * (len(ordered) != 1)}"
    text = columns(lines)
    if data is not None:
        dump = (f"{start:4d}  {_hex(data, start, start + _ROW)}" for start in range(0, size, _ROW))
        text = "\n".join([text, *dump])
    return Figure(title or finding, join([*parts, keys]), head + rows * row_height + 4 + used, text)


def _field(
    name: str, value: str, colour: str, pieces: list[_Piece], head: float, row_height: float, wrong: bool
) -> Markup:
    """One field: its pieces, with name and value in the first of the widest."""
    widest = max(pieces, key=lambda p: (p.stop - p.start, -p.row))
    ink = ink_on(colour)
    parts: list[str] = []
    for piece in pieces:
        x = _GUTTER + piece.start * _CELL
        y = head + piece.row * row_height
        width = (piece.stop - piece.start) * _CELL
        frame = (
            {"stroke": BAD, "stroke_width": 3}
            if wrong
            else {"stroke": "currentColor", "stroke_opacity": 0.45}
        )
        parts.append(box(x + 1, y + 1, width - 2, 36, colour, rx=3, **frame))
        limit = width - 8
        if piece is widest:
            shown = name.split(".", 1)[1] if "." in name else name
            parts.append(
                label(
                    x + width / 2,
                    y + (16 if value else 24),
                    ("✗ " if wrong else "") + shown,
                    limit,
                    size=11,
                    least=7,
                    anchor="middle",
                    fill=ink,
                )
            )
            parts.append(
                label(
                    x + width / 2,
                    y + 31,
                    value,
                    limit,
                    size=11,
                    least=7,
                    anchor="middle",
                    mono=True,
                    fill=ink,
                )
            )
        else:
            parts.append(label(x + width / 2, y + 24, "⋯", limit, size=11, anchor="middle", fill=ink))
    return join(parts)
