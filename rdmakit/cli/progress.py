"""Progress on stderr for what takes more than two seconds: silent before that, one line after.

Leans on nothing. On a terminal the line is redrawn in place; elsewhere (a log, CI) it is printed once in a
while. With `quiet` nothing is ever printed.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

__all__ = ["Progress"]

PATIENCE = 2.0  # seconds that need no explanation
REDRAW = 0.1
RELOG = 5.0


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

    def step(self, detail: str = "", count: int = 1) -> None:
        """One more step (or `count`) is done; `detail` says which."""
        self.done += count
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + (REDRAW if self._terminal else RELOG)
        of = f"{self.done}/{self.total}" if self.total is not None else f"{self.done}"
        text = f"{self.task}: {of} {detail}".rstrip() + f", {now - self._began:.0f} s"
        self._stream.write(f"\r\033[K{text}" if self._terminal else f"{text}\n")
        self._stream.flush()
        self._shown = True

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()
