"""A framed message that reads on light and dark pages: results of checks, skipped cells, predictions. Leans
on `rdmakit.show`."""

from __future__ import annotations

from collections.abc import Iterable

from rdmakit.show.palette import BAD, BLUE, GOOD
from rdmakit.show.svg import element

_STYLE = (
    "border-left:5px solid {edge};background:rgba(128,128,128,.12);padding:8px 14px;margin:4px 0;"
    "max-width:860px;color:inherit"
)


def card(heading: str, paragraphs: Iterable[tuple[str, str]], good: bool | None = None) -> str:
    """HTML of a card: ``paragraphs`` are ``(kind, text)``, ``kind`` being ``""`` or ``"hint"``; ``good=None``
    is neutral.

    >>> "&lt;b&gt;" in card("✓", [("", "<b>")], good=True)
    True
    """
    edge = BLUE if good is None else GOOD if good else BAD
    body = []
    for kind, text in paragraphs:
        style = "margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere" + (
            ";font-style:italic" if kind == "hint" else ""
        )
        body.append(element("div", text, style=style))
    return str(element("div", element("b", heading), *body, style=_STYLE.format(edge=edge)))
