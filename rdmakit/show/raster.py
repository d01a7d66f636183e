"""Pictures as PNG, for what shows no SVG: on white, which reads on a light page and on a dark one.

Leans on resvg (the extra `png`), loaded when first wanted, and on fonts of the system or of matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["FORMATS", "check_format", "png_of"]

FORMATS = (".svg", ".png")
ZOOM = 2  # for screens of many pixels
_LETTER = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><text x="1" y="15">{}</text></svg>'


def check_format(path: str | Path) -> str:
    """How a picture is to be written, by the end of the name: ".svg" or ".png". BadArgument for another;
    NotAvailable where nothing here draws PNG.

    >>> check_format("ladder.svg")
    '.svg'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise BadArgument(
            "no format of a picture",
            value=str(path),
            rule="a name that ends in " + " or ".join(FORMATS),
            remedy=f"{Path(path).name or 'picture'}.svg",
        )
    if suffix == ".png":
        _options(_resvg())
    return suffix


def png_of(svg: str) -> bytes:
    """A stand-alone SVG document as PNG, twice as large. NotAvailable where nothing here draws one."""
    resvg = _resvg()
    drawn: bytes = resvg.svg_to_bytes(svg_string=svg, background="#ffffff", zoom=ZOOM, **_options(resvg))
    return drawn


def _resvg() -> Any:
    try:
        return import_module("resvg_py")
    except ImportError as error:
        raise NotAvailable(
            "nothing here draws PNG",
            value=str(error),
            rule="resvg renders it",
            remedy="pip install 'rdmakit[png]', or a name that ends in .svg",
        ) from error


def _options(resvg: Any) -> dict[str, Any]:
    """Fonts, without which resvg leaves all text out."""
    matplotlib = find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        fonts = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
        return {"font_dirs": [str(fonts)], "sans_serif_family": "DejaVu Sans", "font_family": "DejaVu Sans"}
    if resvg.svg_to_bytes(svg_string=_LETTER.format("x")) == resvg.svg_to_bytes(svg_string=_LETTER.format("")):
        raise NotAvailable(
            "no font to draw PNG with",
            value="resvg leaves all text out",
            rule="a font of the system, or matplotlib's",
            remedy="apt-get install fonts-dejavu-core, or a name that ends in .svg",
        )
    return {}
