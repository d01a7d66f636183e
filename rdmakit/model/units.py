"""Units that presets may be written in, and what they are worth in the model's own: picoseconds, bytes, a second.

Leans on nothing. A dimension has one base; every unit of it is a factor.
"""

from __future__ import annotations

import re

__all__ = ["DIMENSIONS", "dimension_of", "in_base", "in_unit", "split_unit"]

# dimension → unit → how many of the base (the first unit with factor 1)
DIMENSIONS: dict[str, dict[str, float]] = {
    "time": {"ps": 1, "ns": 1e3, "us": 1e6, "ms": 1e9},
    "rate": {"B/s": 1, "MB/s": 1e6, "GB/s": 1e9, "Gb/s": 1e9 / 8},
    "size": {"B": 1, "KiB": 1024, "MiB": 1024**2},
    "frequency": {"/s": 1, "k/s": 1e3, "M/s": 1e6},
    "count": {"count": 1},
    "ratio": {"ratio": 1, "%": 0.01},
}


def dimension_of(unit: str) -> str | None:
    """Which dimension a unit belongs to; None for a word that is no unit.

    >>> dimension_of("Gb/s"), dimension_of("furlong")
    ('rate', None)
    """
    return next((name for name, units in DIMENSIONS.items() if unit in units), None)


_NUMBER = r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf)"
_UNIT = "|".join(sorted((re.escape(unit) for units in DIMENSIONS.values() for unit in units), key=len, reverse=True))
_WRITTEN = re.compile(rf"((?i:{_NUMBER}))\s*({_UNIT})?", re.ASCII)


def split_unit(text: str) -> tuple[str, str]:
    """The number and the unit of a value, with or without a space between them; no unit where there is none that is
    known, and the first word of what is no number.

    >>> split_unit("200Gb/s"), split_unit("1e3 ns"), split_unit("4"), split_unit("200gb/s"), split_unit("many Gb/s")
    (('200', 'Gb/s'), ('1e3', 'ns'), ('4', ''), ('200gb/s', ''), ('many', 'Gb/s'))
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found:
        return found[1], found[2] or ""
    number, _, unit = text.strip().partition(" ")
    return number, unit.strip()


def in_base(value: float, unit: str) -> float:
    """The value in its dimension's base unit.

    >>> in_base(400, "Gb/s")
    50000000000.0
    """
    dimension = dimension_of(unit)
    if dimension is None:
        raise ValueError(f"no such unit: {unit}")
    return value * DIMENSIONS[dimension][unit]


def in_unit(base: float, unit: str) -> float:
    """The other way.

    >>> in_unit(900_000, "ns")
    900.0
    """
    return base / in_base(1, unit)
