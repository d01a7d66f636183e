"""Units that presets may be written in, and what they are worth in the model's own: picoseconds, bytes, a second.

Leans on nothing. A dimension has one base; every unit of it is a factor.
"""

from __future__ import annotations

__all__ = ["DIMENSIONS", "dimension_of", "in_base", "in_unit"]

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
