"""SIGTERM as the end of a `with` block: what it made is taken away, and what it started is killed.

`timeout 60 rdmakit connectx -- …` and batch systems end a command so.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["tidy_when_terminated"]


@contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """SystemExit (status 143, as a shell has it) inside the block when SIGTERM comes; as before where that was ignored.

    Signals are the main thread's: in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
