"""Memory regions on one broken address axis, with their keys, and accesses that hit or miss them.

Leans on `figure` and `units`. Regions may overlap (two keys for the same bytes are common), so each has a
row. The axis leaves out what no region and no access touches, and says how much that was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, columns, legend
from rdmakit.show.palette import BAD, GOOD, SKY, VEIL, VEIL_OPACITY
from rdmakit.show.svg import box, join, label, line
from rdmakit.show.units import memory

_LEFT = 400
_RIGHT = WIDTH - MARGIN
_BREAK = 22
_ROW = 40


class _Axis:
    """Addresses to px: each stretch in use gets room by its length (but never next to none), each gap a fixed
    break."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        merged: list[list[int]] = []
        for low, high in sorted(spans):
            if merged and low <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], high)
            else:
                merged.append([low, high])
        self.stretches = [(low, high) for low, high in merged]
        count = max(len(self.stretches), 1)
        room = float(_RIGHT - _LEFT)
        self.gap = min(_BREAK, room / (3 * count))
        room -= self.gap * (count - 1)
        floor = room / (3 * count)
        total = sum(high - low for low, high in self.stretches) or 1
        self.at: list[tuple[float, float]] = []
        x = float(_LEFT)
        for low, high in self.stretches:
            width = floor + (room - floor * count) * ((high - low) / total)
            self.at.append((x, x + width))
            x += width + self.gap

    def __call__(self, address: int, end: bool = False) -> float:
        for (low, high), (x0, x1) in zip(self.stretches, self.at, strict=True):
            if low <= address < high or (end and low < address <= high) or low == high == address:
                return x0 + (x1 - x0) * ((address - low) / (high - low) if high > low else 0)
        raise AssertionError("every drawn address lies in a stretch")


def _region(given: Mapping | Sequence) -> dict:
    if not isinstance(given, Mapping):
        given = dict(zip(("name", "base", "length", "lkey", "rkey", "access"), given, strict=False))
    region = dict(given)
    region["base"], region["length"] = int(region["base"]), int(region["length"])
    if region["base"] < 0 or region["length"] < 0:
        raise ValueError(
            f"region {region.get('name')!r}: base {region['base']} and length {region['length']} "
            "must be at least 0"
        )
    return region


def _keys(region: Mapping) -> str:
    keys = [f"{name} {region[name]:#x}" if isinstance(region[name], int) else f"{name} {region[name]}"
            for name in ("lkey", "rkey") if region.get(name) is not None]  # fmt: skip
    access = region.get("access")
    return "  ".join([*keys, *([str(access)] if access else [])])


def _range(base: int, length: int) -> str:
    # "8193 B", not "8 KiB": whether an access fits hangs on the last byte.
    return f"{base:#x} + {f'{length} B' if length % 1024 else memory(length)}"


def address_map(
    regions: Sequence[Mapping | Sequence], accesses: Sequence[Sequence] = (), *, title: str | None = None
) -> Figure:
    """Draw ``regions`` ``(name, base, length[, lkey, rkey, access])`` (or dicts) and ``accesses`` ``(name,
    base, length, ok, why)``.

    An access is green with ✓ where ``ok``, else vermillion with ✗ and the reason. Addresses and lengths are
    in bytes.

    >>> recv = ("recv", 4096, 64, 1, 2, "REMOTE_WRITE")
    >>> print(address_map([recv], [("WRITE", 4144, 32, False, "16 B past the end")]))
    1 of 1 access refused: 16 B past the end
    region  recv   0x1000 + 64 B  lkey 0x1 rkey 0x2 REMOTE_WRITE
    access  WRITE  0x1030 + 32 B  ✗ 16 B past the end
    """
    mapped = sorted(
        (_region(r) for r in regions), key=lambda r: (r["base"], -r["length"], str(r.get("name")))
    )
    tried = [(str(a[0]), int(a[1]), int(a[2]), bool(a[3]), str(a[4]) if len(a) > 4 else "") for a in accesses]
    spans = [(r["base"], r["base"] + r["length"]) for r in mapped] + [(a[1], a[1] + a[2]) for a in tried]
    axis = _Axis(spans)
    rows = len(mapped) + len(tried)
    parts: list[str] = []
    head = 24
    for (low, _), (x0, x1) in zip(axis.stretches, axis.at, strict=True):
        parts.append(box(x0, head, x1 - x0, rows * _ROW, VEIL, fill_opacity=VEIL_OPACITY))
        parts.append(label(x0, 16, f"{low:#x}", x1 - x0, size=10, least=6, mono=True))
    for i, (_, high) in enumerate(axis.stretches[:-1]):
        x = (axis.at[i][1] + axis.at[i + 1][0]) / 2
        parts.append(line(x, head, x, head + rows * _ROW, stroke_dasharray="2 4", stroke_opacity=0.5))
        skipped = memory(axis.stretches[i + 1][0] - high)
        # Half of each neighbouring stretch is this label's, the other half that of the next gap.
        room = axis.gap + min(36.0, *(x1 - x0 for x0, x1 in axis.at[i : i + 2]))
        parts.append(
            label(x, head + rows * _ROW + 13, skipped, room, size=8.5, least=5, anchor="middle", opacity=0.8)
        )
    y = float(head)
    for region in mapped:
        parts += _row(
            str(region.get("name", "region")), _range(region["base"], region["length"]), _keys(region), y
        )
        x0, x1 = axis(region["base"]), axis(region["base"] + region["length"], end=True)
        parts.append(
            box(x0, y + 8, max(x1 - x0, 3), _ROW - 16, SKY, stroke="currentColor", stroke_opacity=0.5, rx=2)
        )
        y += _ROW
    for name, base, length, ok, why in tried:
        colour = GOOD if ok else BAD
        parts += _row(f"{'✓' if ok else '✗'} {name}", _range(base, length), why, y)
        x0, x1 = axis(base), axis(base + length, end=True)
        parts.append(
            box(x0, y + 12, max(x1 - x0, 3), _ROW - 24, colour, stroke="currentColor", stroke_opacity=0.5)
        )
        parts.append(line(x0, head, x0, y + 12, colour, stroke_dasharray="3 3"))
        parts.append(line(max(x1, x0 + 3), head, max(x1, x0 + 3), y + 12, colour, stroke_dasharray="3 3"))
        y += _ROW
    y += 18
    keys, used = legend(
        [("region", SKY), *([("access allowed ✓", GOOD), ("access refused ✗", BAD)] if tried else [])], y + 4
    )
    bad = [a for a in tried if not a[3]]
    finding = f"{len(mapped)} region{'s' * (len(mapped) != 1)}, {memory(sum(r['length'] for r in mapped))}"
    if tried:
        said = f"{len(bad) or 'none'} of {len(tried)} access{'es' * (len(tried) != 1)} refused"
        finding = said + (f": {bad[0][4]}" if bad and bad[0][4] else "")
    text = columns(
        [["region", r.get("name", ""), _range(r["base"], r["length"]), _keys(r)] for r in mapped]
        + [["access", a[0], _range(a[1], a[2]), f"{'✓' if a[3] else '✗'} {a[4]}"] for a in tried]
    )
    return Figure(title or finding, join([*parts, keys]), y + 4 + used, text)


def _row(name: str, where: str, detail: str, y: float) -> list[str]:
    return [
        label(MARGIN, y + 16, name, 172, size=12, bold=True),
        label(MARGIN + 180, y + 16, where, _LEFT - MARGIN - 190, size=11, mono=True),
        label(MARGIN, y + 32, detail, _LEFT - MARGIN - 10, size=11, opacity=0.85),
    ]
