"""Numbers as people read them: SI prefixes for rates and times, binary prefixes for memory. Leans on
nothing."""

from __future__ import annotations

import math

_SI = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
)
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def digits(value: float) -> str:
    """Three significant digits; below a million no digit before the point is lost.

    >>> digits(3.14159), digits(4096.4), digits(2.5e7)
    ('3.14', '4096', '2.5e+07')
    """
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if 999.5 <= abs(value) < 999_999.5 else f"{value:.3g}"


def quantity(value: float, unit: str = "") -> str:
    """``value`` with an SI prefix: units that already hold one (``ns``, ``Gb/s``) or a count stay as they
    are.

    >>> quantity(3.9e9, "B"), quantity(850, "ns"), quantity(12)
    ('3.9 GB', '850 ns', '12')
    """
    value = float(value)
    if unit not in ("B", "b", "B/s", "b/s", "s", "Hz") or not math.isfinite(value) or value == 0:
        return f"{digits(value)} {unit}".rstrip()
    for scale, prefix in _SI:
        if prefix in ("m", "µ", "n", "p") and unit != "s":
            continue
        if abs(value) >= scale:
            return f"{digits(value / scale)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def memory(length: int) -> str:
    """A length in bytes with a binary prefix, exact where it is a whole number of them.

    >>> memory(4096), memory(100), memory(3 << 29)
    ('4 KiB', '100 B', '1.5 GiB')
    """
    length = int(length)
    for scale, prefix in _BINARY:
        if length >= scale:
            return f"{length // scale if length % scale == 0 else digits(length / scale)} {prefix}"
    return f"{length} B"
