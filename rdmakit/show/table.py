"""A table: HTML in a notebook, lined-up text in a terminal. Leans on `svg` (escaping) and `figure`
(columns)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rdmakit.show.figure import columns as line_up
from rdmakit.show.svg import Markup, element, join
from rdmakit.show.units import digits

_CELL = (
    "padding:3px 10px;border-bottom:1px solid rgba(128,128,128,.35);vertical-align:top;"
    "overflow-wrap:anywhere;"
)

_LONG = 20  # letters of a word that may be broken


class Table:
    """A titled table; see `data_table`.

    >>> print(Table("Two", ["n"], [[1], [2]]))
    Two
    n
    1
    2
    """

    def __init__(
        self, title: str, heads: Sequence[str], rows: Iterable[Sequence[object]], marked: Iterable[int] = ()
    ) -> None:
        self.title = title
        self.heads = [str(head) for head in heads]
        self.rows = [list(row) for row in rows]
        self.marked = frozenset(marked)
        for i, row in enumerate(self.rows):
            if len(row) != len(self.heads):
                raise ValueError(
                    f"row {i} has {len(row)} cells, but the table has {len(self.heads)} columns: {self.heads}"
                )

    def _repr_html_(self) -> str:
        numeric = [all(_is_number(row[i]) for row in self.rows) for i in range(len(self.heads))]
        align = [
            "text-align:right;font-variant-numeric:tabular-nums" if n else "text-align:left" for n in numeric
        ]
        # Words of usual length are never broken, however narrow their column; a long hex string is.
        whole = ";overflow-wrap:normal"
        head = element(
            "tr",
            *(
                element("th", h, style=_CELL + a + whole, scope="col")
                for h, a in zip(self.heads, align, strict=True)
            ),
        )
        body = []
        for i, row in enumerate(self.rows):
            style = "background:rgba(230,159,0,.25)" if i in self.marked else "background:transparent"
            texts = [_text(cell) for cell in row]
            wraps = ["" if max(map(len, _pieces(t)), default=0) > _LONG else whole for t in texts]
            cells = (
                element("td", _breakable(text), style=_CELL + a + wrap)
                for text, a, wrap in zip(texts, align, wraps, strict=True)
            )
            body.append(element("tr", *cells, style=style))
        # The title is no <caption>: a caption wraps at the width of its table, however narrow that is.
        title = element("div", self.title, style="font-weight:bold;font-size:15px;padding:4px 0")
        style = "border-collapse:collapse;max-width:900px;margin:4px 0;color:inherit;font-size:13px"
        table = element(
            "table", element("thead", head), element("tbody", join(body)), style=style, aria_label=self.title
        )
        return str(element("div", title, table, style="max-width:900px;color:inherit"))

    def __str__(self) -> str:
        rows = [[_text(c) for c in row] for row in self.rows]
        return f"{self.title}\n" + line_up([self.heads, *rows])

    __repr__ = __str__


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    if isinstance(value, float):
        return digits(value)
    if isinstance(value, (bytes, bytearray)):
        return value.hex(" ")
    return str(value)


def _pieces(text: str) -> list[str]:
    """What is to stay on one line: words, and of a long name what lies between its underscores."""
    return [p for word in text.split() for p in (word.split("_") if len(word) > _LONG else [word])]


def _breakable(text: str) -> Markup:
    """A long name may be broken behind an underscore; copied, it is the name still."""
    parts: list[str] = []
    for n, word in enumerate(text.split(" ")):
        parts += [" "] * (n > 0)
        for i, part in enumerate(word.split("_") if len(word) > _LONG else [word]):
            parts += ["_", element("wbr")] * (i > 0)
            parts.append(part)
    return join(parts)


def _plain(value: object) -> object:
    """A NumPy scalar as the Python number that it holds."""
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def data_table(
    data: object,
    heads: Sequence[str] | None = None,
    *,
    title: str | None = None,
    marked: Iterable[int] = (),
) -> Table:
    """A table of a list of rows, a list of dicts, a dict of columns, or a NumPy array (structured ones name
    their columns).

    ``marked`` are indices of rows to highlight. Rows of unequal length raise `ValueError`.

    >>> print(data_table({"port": [1, 2], "bytes": [10, 0]}, title="Port 2 carries nothing"))
    Port 2 carries nothing
    port  bytes
    1     10
    2     0
    """
    if isinstance(data, Mapping):
        found = list(data)
        rows = [list(row) for row in zip(*data.values(), strict=True)]
    else:
        fields = getattr(getattr(data, "dtype", None), "names", None)
        items = list(data)  # type: ignore[call-overload]
        if fields:
            found, rows = list(fields), [[item[f] for f in fields] for item in items]
        elif items and isinstance(items[0], Mapping):
            found = list(dict.fromkeys(key for item in items for key in item))
            rows = [[item.get(key, "") for key in found] for item in items]
        else:
            rows = [
                list(item) if hasattr(item, "__iter__") and not isinstance(item, (str, bytes)) else [item]
                for item in items
            ]
            found = [str(i) for i in range(max((len(row) for row in rows), default=0))]
    rows = [[_plain(cell) for cell in row] for row in rows]
    return Table(title or f"{len(rows)} row{'s' * (len(rows) != 1)}", list(heads or found), rows, marked)
