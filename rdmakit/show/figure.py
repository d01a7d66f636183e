"""What every function of `rdmakit.show` returns: a picture with a title, as SVG, as HTML and as plain text.

Leans on `svg`, `text` and `raster`. Inline HTML takes its ink from the page (``currentColor``); a stand-alone SVG file
asks the viewer with ``prefers-color-scheme``. The plain text is what a terminal and a screen reader get.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rdmakit.show.palette import VEIL, VEIL_OPACITY
from rdmakit.show.raster import check_format, png_of
from rdmakit.show.svg import SANS, Markup, box, element, join, label
from rdmakit.show.text import BOLD, text_width, wrap

WIDTH = 900
MARGIN = 12
_TITLE_SIZE = 15
_SCHEME = Markup("svg{color:#1a1a1a}@media (prefers-color-scheme:dark){svg{color:#e8e8e8}}")


class Figure:
    """A titled picture. ``str()`` gives plain text; Jupyter shows the SVG; `save` writes a file.

    >>> print(Figure("A box", element("rect", width=1), 20, "one box"))
    A box
    one box
    """

    def __init__(self, title: str, body: str, height: float, text: str, width: float = WIDTH) -> None:
        self.title, self.text, self.width = " ".join(title.split()), text, width
        lines = wrap(self.title, (width - 2 * MARGIN) / BOLD, _TITLE_SIZE)
        top = MARGIN + len(lines) * (_TITLE_SIZE + 5)
        self.height = float(round(top + height + MARGIN))
        heading = [
            label(
                MARGIN,
                MARGIN + (i + 1) * (_TITLE_SIZE + 5) - 7,
                text,
                width - 2 * MARGIN,
                size=_TITLE_SIZE,
                bold=True,
            )
            for i, text in enumerate(lines)
        ]
        self._inner = join([*heading, element("g", body, transform=f"translate(0,{top})")])

    def _svg(self, rules: str, **attributes: object) -> Markup:
        size = {"viewBox": f"0 0 {self.width:g} {self.height:g}", "width": self.width, "height": self.height}
        named = {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria_label": self.title}
        return element("svg", rules, self._inner, font_family=SANS, **size, **named, **attributes)

    @property
    def svg(self) -> str:
        """The picture as a stand-alone SVG document."""
        return str(self._svg(element("style", _SCHEME)))

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return str(self._svg("", style=f"max-width:100%;height:auto;display:block;width:{self.width:g}px"))

    def save(self, path: str | Path) -> None:
        """Write the picture to ``path``, whose name ends in .svg or .png (`raster`). BadArgument for another end."""
        if check_format(path) == ".png":
            Path(path).write_bytes(png_of(self.svg))
        else:
            Path(path).write_text(self.svg, encoding="utf-8")

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}"

    # IPython in a terminal shows the repr, and the plain form is the useful one there.
    __repr__ = __str__


def panel(x: float, y: float, width: float, height: float, **attributes: object) -> Markup:
    """A faint rounded backdrop that suits light and dark pages.

    >>> "fill-opacity" in panel(0, 0, 10, 10)
    True
    """
    return box(x, y, width, height, VEIL, fill_opacity=VEIL_OPACITY, rx=6, **attributes)


def legend(
    entries: Iterable[tuple[str, str]], y: float, x: float = MARGIN, right: float = WIDTH - MARGIN
) -> tuple[Markup, float]:
    """Colour swatches with names in as many rows as they need; returns them and the height that they took.

    >>> legend([("free", "#999999")], 0)[1]
    20
    """
    parts: list[str] = []
    left, row = x, 0
    for name, colour in entries:
        limit = min(text_width(name, 11) + 1, right - x - 20)
        if left > x and left + 18 + limit > right:
            left, row = x, row + 1
        top = y + row * 20
        parts.append(box(left, top + 3, 12, 12, colour, stroke="currentColor", stroke_opacity=0.5))
        parts.append(label(left + 18, top + 13, name, limit, size=11))
        left += 18 + limit + 16
    return join(parts), (row + 1) * 20 if parts else 0


def columns(rows: Sequence[Sequence[object]], indent: str = "") -> str:
    """Plain-text rows with their columns lined up.

    >>> print(columns([["a", 1], ["long", 22]]))
    a     1
    long  22
    """
    texts = [[" ".join(str(cell).split()) for cell in row] for row in rows]
    if not texts:
        return ""
    count = max(len(row) for row in texts)
    widths = [max((len(row[i]) for row in texts if i < len(row)), default=0) for i in range(count)]
    return "\n".join(
        (indent + "  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row))).rstrip() for row in texts
    )
