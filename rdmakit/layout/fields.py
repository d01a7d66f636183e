"""What decoding yields: named fields at byte offsets, grouped in segments, and the list of what is illegal.

Leans on constants (to name values). `Decoded` is the base of one class for each kind of structure; its
picture for notebooks is drawn by `rdmakit.show`, imported when the first one is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import import_module
from typing import Any, ClassVar

import numpy as np

from rdmakit.layout.constants import (
    INLINE_SEG,
    CompletionMode,
    CqeFormat,
    CqeOpcode,
    FenceMode,
    Opcode,
    Syndrome,
)

__all__ = ["Decoded", "Field", "Segment", "enum_name", "fm_ce_se_text", "segment_at", "spec_of"]

Value = int | bytes
Spec = list[
    tuple[str, int, int]
]  # field name, offset in the segment, size; sizes up to 8 are big-endian numbers


@dataclass(frozen=True)
class Field:
    """One named value: `offset` (from the start of the buffer) and `size` in bytes, `text` for people."""

    name: str
    offset: int
    size: int
    value: Value
    text: str


@dataclass(frozen=True)
class Segment:
    """A run of fields. `segment["rkey"]` is that field's value."""

    name: str
    offset: int
    size: int
    fields: tuple[Field, ...] = ()

    def __getitem__(self, name: str) -> Value:
        for entry in self.fields:
            if entry.name == name:
                return entry.value
        raise KeyError(
            f"{name}: not a field of {self.name}, which has {', '.join(f.name for f in self.fields)}"
        )

    def number(self, name: str) -> int:
        """The value of an integer field."""
        value = self[name]
        assert isinstance(value, int), f"{name} holds bytes"
        return value


@dataclass(frozen=True)
class Decoded:
    """Decoded bytes: `raw`, its `segments` in order, and `problems`, one sentence for each illegal thing."""

    kind: ClassVar[str] = ""
    # Attributes that the subclass adds, in the order of `to_dict`
    facts: ClassVar[tuple[str, ...]] = ()

    raw: bytes = field(repr=False)
    segments: tuple[Segment, ...] = field(repr=False)
    problems: list[str]

    @property
    def size(self) -> int:
        """Bytes of `raw` that belong to this structure; a WQE's are whole basic blocks."""
        return len(self.raw)

    @property
    def title(self) -> str:
        """One line: what this is."""
        return self.kind

    @property
    def fields(self) -> Iterator[Field]:
        """All fields of all segments, in byte order."""
        return (entry for segment in self.segments for entry in segment.fields)

    def segment(self, name: str) -> Segment | None:
        """The first segment of that name, or None."""
        return next((segment for segment in self.segments if segment.name == name), None)

    def grid(self, golden: bytes | None = None, *, title: str | None = None) -> Any:
        """The bytes, 16 a row, a colour a segment; fields that differ from `golden` are framed. A `show.Figure`."""
        named = [(segment.name, entry) for segment in self.segments for entry in segment.fields if entry.size]
        cells = [(entry.offset, entry.size, f"{name}.{entry.name}", entry.text) for name, entry in named]
        if title is None and golden is None:
            title = "; ".join([self.title, *self.problems])
        show = import_module("rdmakit.show")
        return show.byte_grid(cells, len(self.raw), title=title, data=self.raw, golden=golden)

    def _repr_html_(self) -> str:
        try:
            return str(self.grid()._repr_html_())
        except (ImportError, ValueError):  # no `show`, or fields that lie upon one another
            return f"<pre>{escape(repr(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Plain Python objects for JSON; bytes as hex strings, enums as names where they have one."""
        facts = {name: _plain(getattr(self, name)) for name in self.facts}
        segments = [
            {
                "name": s.name,
                "offset": s.offset,
                "size": s.size,
                "fields": {f.name: _plain(f.value) for f in s.fields},
            }
            for s in self.segments
        ]
        return {
            "kind": self.kind,
            "title": self.title,
            **facts,
            "segments": segments,
            "problems": list(self.problems),
        }


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value.name if hasattr(value, "name") else value


def enum_name(enum: Any, value: int) -> str:
    """The member's name, or the number in hex when there is none.

    >>> enum_name(Opcode, 8), enum_name(Opcode, 0x77)
    ('RDMA_WRITE', '0x77')
    """
    return enum(value).name if value in enum._value2member_map_ else f"{value:#x}"


def fm_ce_se_text(value: int) -> str:
    """fm_ce_se in words: completion mode, solicited, fence mode.

    >>> fm_ce_se_text(0x08), fm_ce_se_text(0x6A), fm_ce_se_text(0)
    ('CQ_UPDATE', 'CQ_UPDATE|SOLICITED|STRONG_ORDERING', '0')
    """
    mode = CompletionMode(value >> 2 & 3)
    parts = {
        CompletionMode.ON_ERROR: [],
        CompletionMode.ALWAYS: ["CQ_UPDATE"],
        CompletionMode.ALWAYS_AND_EQE: ["CQ_UPDATE_AND_EQE"],
    }.get(mode, [mode.name])
    parts = [
        *parts,
        *(["SOLICITED"] if value & 2 else []),
        *([enum_name(FenceMode, value >> 5)] if value >> 5 else []),
    ]
    if value & 0x11:
        parts.append(f"{value & 0x11:#x}")
    return "|".join(parts) or "0"


def _op_own_text(value: int) -> str:
    form = CqeFormat(value >> 2 & 3).name
    return f"{enum_name(CqeOpcode, value >> 4)}/{form}/se{value >> 1 & 1}/owner{value & 1}"


_TEXT: dict[str, Callable[[int], str]] = {
    "opcode": lambda value: enum_name(Opcode, value),
    "send_opcode": lambda value: enum_name(Opcode, value),
    "syndrome": lambda value: enum_name(Syndrome, value),
    "fm_ce_se": fm_ce_se_text,
    "op_own": _op_own_text,
    "byte_count": lambda value: f"{value & ~INLINE_SEG} inline" if value & INLINE_SEG else str(value),
    **dict.fromkeys(
        (
            "byte_cnt",
            "length",
            "ds",
            "wqe_index",
            "wqe_counter",
            "rcv",
            "snd",
            "set_ci",
            "arm_ci",
            "arm_sn",
            "timestamp",
            "inline_hdr_sz",
            "mss",
        ),
        str,
    ),
}


def spec_of(dtype: np.dtype[np.void], *names: str) -> Spec:
    """(name, offset, size) of those fields of a wire dtype, or of all of them."""
    table: Mapping[str, Any] = dtype.fields or {}
    return [(name, table[name][1], table[name][0].itemsize) for name in names or table]


def segment_at(name: str, raw: bytes, offset: int, size: int, spec: Spec) -> Segment:
    """A segment of `size` bytes at `offset` of `raw`, which must hold them all."""
    fields = []
    for field_name, at, length in spec:
        chunk = raw[offset + at : offset + at + length]
        if length > 8 or field_name in ("data", "rmac", "inline_hdr_start"):
            fields.append(Field(field_name, offset + at, length, chunk, chunk.hex()))
        else:
            number = int.from_bytes(chunk, "big")
            fields.append(Field(field_name, offset + at, length, number, _TEXT.get(field_name, hex)(number)))
    return Segment(name, offset, size, tuple(fields))
