"""Round numbers for a time axis, shared by the pictures that have one. Leans on nothing."""

from __future__ import annotations

import math

_LEAST = 1e-300  # a span whose parts are numbers with all their digits


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) from ``low`` to ``high``, roughly ``about`` of them.

    >>> ticks(0, 100), ticks(0, 0)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0])
    """
    span = high - low
    if not math.isfinite(span) or span < _LEAST:
        return [float(low)]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    if low + step == low:
        return [float(low), float(high)]
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
