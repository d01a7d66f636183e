"""Progress on stderr for what takes more than two seconds: silent before that, one line after.

Leans on nothing. On a terminal the line is redrawn in place, with a bar where it is known how much there is to do;
elsewhere (a log, CI) it is printed once in a while. With `quiet` nothing is ever printed.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

__all__ = ["Progress"]

PATIENCE = 2.0  # seconds that need no explanation
REDRAW = 0.1
RELOG = 5.0
BAR = 20  # characters


class Progress:
    """Counts steps of one named task.

    >>> with Progress("copying", total=3, quiet=True) as progress:
    ...     for name in "abc":
    ...         progress.step(name)
    >>> progress.done
    3
    """

    def __init__(
        self, task: str, total: int | None = None, *, quiet: bool = False, stream: TextIO | None = None
    ) -> None:
        self.task, self.total, self.done = task, total, 0
        self._quiet = quiet
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began = time.monotonic()
        self._next = self._began + PATIENCE
        self._shown = False
        # The first step may take long: a terminal shows before it that there is something to wait for.
        self._first = threading.Timer(PATIENCE, self._draw)
        self._first.daemon = True

    def step(self, detail: str = "", count: int = 1) -> None:
        """One more step (or `count`) is done; `detail` says which."""
        self.done += count
        self._first.cancel()
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + (REDRAW if self._terminal else RELOG)
        self._draw(detail)

    def _draw(self, detail: str = "") -> None:
        of = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        text = f"{of} {detail}".rstrip() + f", {time.monotonic() - self._began:.0f} s"
        if self._terminal and self.total:
            full = BAR * min(self.done, self.total) // self.total
            text = f"{'█' * full}{'░' * (BAR - full)} {text}"
        text = f"{self.task}: {text}"
        self._stream.write(f"\r\033[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()
        self._shown = True

    def __enter__(self) -> Progress:
        if self._terminal and self.total and not self._quiet:
            self._first.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._first.cancel()
        if self._shown and self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()
