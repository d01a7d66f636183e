"""Matplotlib plots that follow the page's theme, with the house's colours, a finding as title and units on
both axes.

Leans on `rdmakit.show`, and on matplotlib only once a plot is drawn (extra ``[notebooks]``). The plot becomes
inline SVG whose ink is ``currentColor``: a PNG would be a white slab on a dark page, or black ink on it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rdmakit.show.palette import SERIES
from rdmakit.show.svg import escape

# A colour that no plot uses, written where the page's ink shall be.
_INK = "#010203"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_UNIT = re.compile(r"\([^()]+\)\s*$")


def style() -> dict[str, Any]:
    """Matplotlib settings: the palette, transparent ground, ink to be replaced, a size that fits a notebook.

    >>> style()["figure.figsize"]
    (8.2, 3.8)
    """
    ink = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "xtick.color",
        "ytick.color",
        "legend.labelcolor",
        "grid.color",
    )
    return {
        **dict.fromkeys(ink, _INK),
        "figure.figsize": (8.2, 3.8),
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.facecolor": "none",
        "legend.edgecolor": "none",
        "legend.frameon": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "lines.linewidth": 2,
        "lines.markersize": 6,
        "svg.hashsalt": "rdmakit",
    }


class Drawing:
    """A finished plot: inline SVG in a notebook, its title in a terminal.

    >>> Drawing("It grows", "<svg/>")
    It grows
    """

    def __init__(self, title: str, svg: str) -> None:
        self.title, self.svg = title, svg

    def _repr_html_(self) -> str:
        return f'<div style="max-width:900px;color:inherit">{self.svg}</div>'

    def __str__(self) -> str:
        return self.title

    __repr__ = __str__


def _drawing(figure: Any, title: str) -> Drawing:
    """A matplotlib figure as inline SVG."""
    stream = io.StringIO()
    # Date=None: the same plot is the same bytes on every run.
    figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Title": title})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # matplotlib's <style> speaks to every element of the page; the root's own style reaches this picture
    # alone.
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    rules = "max-width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt"
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" style="{rules}" ', 1)
    return Drawing(title, svg)


@contextmanager
def plot(title: str, x: str, y: str, **subplots: Any) -> Iterator[Any]:
    """Axes to draw on; the plot is shown when the block ends. ``x`` and ``y`` end in their unit: ``"size
    (B)"``.

    Without matplotlib the block is given axes that draw nothing, and what to install is printed. A title or a
    unit that is missing raises `ValueError`.

    >>> with plot("Twice the size, twice the time", "size (B)", "time (ns)") as axes:
    ...     _ = axes.plot([1, 2], [10, 20])  # doctest: +ELLIPSIS
    Twice the size, twice the time...
    """
    if not title.strip():
        raise ValueError("a plot needs a title that states its finding")
    for axis, text in (("x", x), ("y", y)):
        if not _UNIT.search(text):
            raise ValueError(
                f"the {axis} label {text!r} names no unit: end it with one in brackets, "
                "as 'time (ns)' or 'queues (count)'"
            )
    try:
        import matplotlib
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{title}\n(no plot: matplotlib is not installed; pip install 'rdmakit[notebooks]')")
        yield _Nothing()
        return
    # Markers differ as well as colours: a plot must survive grey print.
    cycle = cycler(color=SERIES[: len(_MARKERS)]) + cycler(marker=_MARKERS)
    with matplotlib.rc_context({**style(), "axes.prop_cycle": cycle}):
        # A Figure of its own, not pyplot's: pyplot would pick a backend, and may want a display.
        figure = Figure(layout="constrained")
        axes = figure.subplots(**subplots)
        first = axes if hasattr(axes, "set_xlabel") else axes.flat[0]
        first.set_title(title)
        for one in [axes] if hasattr(axes, "set_xlabel") else axes.flat:
            one.set_xlabel(x)
            one.set_ylabel(y)
        yield axes
        shown = _drawing(figure, title)
    display(shown)


class _Nothing:
    """Stands in for axes where nothing can be drawn: every method exists and does nothing."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def __getitem__(self, index: Any) -> Any:
        return self


def display(thing: object) -> None:
    """Show ``thing`` in the notebook, or print it where there is none.

    >>> display("plain")
    plain
    """
    try:
        from IPython import get_ipython
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(thing)
        return
    from IPython.display import display as show

    show(thing)
