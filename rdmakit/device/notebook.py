"""HTML of the objects for notebooks, drawn by `rdmakit.show`, which is imported when the first one is shown.

Leans on the standard library. Where a picture cannot be drawn (a closed object, a package without `show`),
the text of `repr` takes its place: a cell must never fail for want of a drawing.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

__all__ = ["drawing", "memory_html", "preformatted", "table_html"]


def preformatted(text: str) -> str:
    """Plain text as HTML.

    >>> preformatted("a < b")
    '<pre>a &lt; b</pre>'
    """
    return f"<pre>{html.escape(text)}</pre>"


def drawing(draw: Callable[[Any], Any], fallback: str) -> str:
    """HTML of what `draw(rdmakit.show)` returns, or the fallback as text."""
    try:
        return str(draw(import_module("rdmakit.show"))._repr_html_())
    except (ImportError, AttributeError, ValueError, TypeError):
        return preformatted(fallback)


def table_html(
    rows: Sequence[Mapping[str, Any]], fallback: str, *, title: str | None = None, marked: Iterable[int] = ()
) -> str:
    """A table of dicts."""
    return drawing(lambda show: show.data_table(list(rows), title=title, marked=marked), fallback)


def memory_html(regions: Sequence[Any], fallback: str) -> str:
    """The address map of memory regions."""
    from rdmakit.device.access import access_names

    given = [
        {
            "name": region.name,
            "base": region.address,
            "length": region.nbytes,
            "lkey": region.lkey,
            "rkey": region.rkey,
            "access": access_names(region.access),
        }
        for region in regions
    ]
    title = fallback.strip("<>")
    return drawing(lambda show: show.address_map(given, title=title), fallback)
