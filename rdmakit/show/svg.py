"""SVG and HTML elements as strings: escaped once, written the same way each time. Leans on `text`.

Colours are attributes, never a ``<style>`` element: a style inside an inline SVG would apply to the whole
notebook page. Ink is ``currentColor``, which the page's own theme sets, so that a picture reads on light and
on dark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from rdmakit.show.text import BOLD, shrink

SANS = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"

# Characters that XML 1.0 section 2.2 forbids even when escaped; a hexdump in a label may well hold them.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """A string that is markup already and must not be escaped again."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """``text`` safe inside an element or an attribute; `Markup` passes through.

    >>> escape('a<b & "c"')
    'a&lt;b &amp; &quot;c&quot;'
    """
    if isinstance(text, Markup):
        return text
    clean = _FORBIDDEN.sub("\ufffd", str(text))
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        clean = clean.replace(raw, entity)
    return Markup(clean)


def _attribute(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"
    return escape(value)


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """``<tag …>children</tag>``; ``stroke_width=2`` is written ``stroke-width="2"``; ``None`` is left out.

    >>> element("g", element("rect", x=1.5, rx=None), "<")
    '<g><rect x="1.5"/>&lt;</g>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    inner = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{written}>{inner}</{tag}>" if inner else f"<{tag}{written}/>")


def join(parts: Iterable[str]) -> Markup:
    """Markup pieces put one after the other.

    >>> join([element("g"), "a&b"])
    '<g/>a&amp;b'
    """
    return Markup("".join(escape(part) for part in parts))


def label(
    x: float,
    y: float,
    text: object,
    limit: float,
    *,
    size: float = 12,
    least: float = 8,
    anchor: str = "start",
    mono: bool = False,
    bold: bool = False,
    fill: str = "currentColor",
    opacity: float | None = None,
) -> Markup:
    """One line of text whose baseline starts (or ends, or is centred) at ``x, y`` and which fits ``limit``
    px.

    A text that had to be cut carries the whole of itself as its tooltip.

    >>> label(10, 20, "rkey", 50)[:33]
    '<text x="10" y="20" font-size="12'
    """
    whole = " ".join(str(text).split())
    shown, size = shrink(whole, limit / (BOLD if bold else 1.0), size, least, mono)
    if not shown:
        return Markup("")
    tip = element("title", whole) if shown != whole else ""
    return element(
        "text", tip, shown, x=x, y=y, font_size=size, text_anchor=None if anchor == "start" else anchor,
        font_family=MONO if mono else None, font_weight="bold" if bold else None, fill=fill, opacity=opacity,
    )  # fmt: skip


def box(x: float, y: float, width: float, height: float, fill: str = "none", **attributes: object) -> Markup:
    """A rectangle; further attributes (``stroke``, ``rx``, ``opacity`` …) as for `element`.

    >>> box(0, 0, 10, 5, "#fff")
    '<rect x="0" y="0" width="10" height="5" fill="#fff"/>'
    """
    return element("rect", x=x, y=y, width=width, height=height, fill=fill, **attributes)


def line(
    x0: float, y0: float, x1: float, y1: float, stroke: str = "currentColor", **attributes: object
) -> Markup:
    """A straight line.

    >>> line(0, 0, 1, 1)
    '<line x1="0" y1="0" x2="1" y2="1" stroke="currentColor"/>'
    """
    return element("line", x1=x0, y1=y0, x2=x1, y2=y1, stroke=stroke, **attributes)


def arrow_head(
    x: float, y: float, dx: float, dy: float, fill: str = "currentColor", size: float = 8
) -> Markup:
    """A triangle whose tip is at ``x, y`` and which points along ``dx, dy``.

    Drawn, not a ``<marker>``: markers are found by id, and ids of two pictures on one page collide.

    >>> arrow_head(10, 0, 1, 0)
    '<polygon points="10,0 2,3.6 2,-3.6" fill="currentColor"/>'
    """
    norm = math.hypot(dx, dy) or 1.0
    ux, uy = dx / norm, dy / norm
    bx, by = x - size * ux, y - size * uy
    half = size * 0.45
    points = ((x, y), (bx - half * uy, by + half * ux), (bx + half * uy, by - half * ux))
    return element(
        "polygon",
        points=" ".join(f"{_attribute(float(a))},{_attribute(float(b))}" for a, b in points),
        fill=fill,
    )


def arrow(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    stroke: str = "currentColor",
    width: float = 1.5,
    **more: object,
) -> Markup:
    """A straight arrow from the first point to the second.

    >>> arrow(0, 0, 10, 0).count("<polygon")
    1
    """
    return join(
        [
            line(x0, y0, x1, y1, stroke, stroke_width=width, **more),
            arrow_head(x1, y1, x1 - x0, y1 - y0, stroke),
        ]
    )


def cross(x: float, y: float, stroke: str) -> Markup:
    """A bold ✗ centred at ``x, y``: whatever it stands on did not happen.

    >>> cross(6, 6, "#000000").startswith('<path d="M0,0 L12,12 M0,12 L12,0"')
    True
    """
    low, high, left, right = y - 6, y + 6, x - 6, x + 6
    path = f"M{left:g},{low:g} L{right:g},{high:g} M{left:g},{high:g} L{right:g},{low:g}"
    return element("path", d=path, stroke=stroke, stroke_width=3, fill="none")
