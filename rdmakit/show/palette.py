"""The colours of every picture: Okabe and Ito's set, which colour-blind people can tell apart.

Leans on nothing. Source of the eight colours: M. Okabe and K. Ito, "Color Universal Design" (2008),
https://jfly.uni-koeln.de/color/. A colour never carries a meaning alone: a label, a mark or a dash repeats
it.
"""

from __future__ import annotations

ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#999999"

GOOD, BAD, QUIET = GREEN, VERMILLION, GREY

# Yellow comes last: a thin yellow line is hard to see on white.
SERIES = (SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILLION, YELLOW, GREY)

# A panel is a veil over whatever stands behind, so that it suits a light and a dark page alike.
VEIL = "#808080"
VEIL_OPACITY = 0.13


def series(index: int) -> str:
    """The colour of the ``index``-th thing in a picture; repeats after eight.

    >>> series(0), series(8) == series(0)
    ('#56B4E9', True)
    """
    return SERIES[index % len(SERIES)]


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 to 1 (WCAG 2.1, "relative luminance").

    >>> luminance("#ffffff"), luminance("#000000")
    (1.0, 0.0)
    """
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return round(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2], 6)


def ink_on(colour: str) -> str:
    """Black or white, whichever reads better on a fill of ``colour``.

    >>> ink_on("#F0E442"), ink_on("#0072B2")
    ('#000000', '#ffffff')
    """
    value = luminance(colour)
    return "#000000" if (value + 0.05) / 0.05 >= 1.05 / (value + 0.05) else "#ffffff"


def blend(fraction: float) -> str:
    """A sequential scale from pale to dark for heat maps; ``fraction`` is 0 to 1.

    Lightness falls all the way, so the order survives grey print and every kind of colour blindness.

    >>> blend(0.0), blend(1.0)
    ('#f0f4d8', '#08306b')
    """
    stops = ((0xF0, 0xF4, 0xD8), (0x7F, 0xC4, 0xBF), (0x2B, 0x7D, 0xB5), (0x08, 0x30, 0x6B))
    position = min(max(fraction, 0.0), 1.0) * (len(stops) - 1)
    low = min(int(position), len(stops) - 2)
    part = position - low
    mixed = (round(a + (b - a) * part) for a, b in zip(stops[low], stops[low + 1], strict=True))
    return "#" + "".join(f"{c:02x}" for c in mixed)
