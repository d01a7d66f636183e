"""The start of a notebook: forget earlier attempts, and bound the time of exercise cells themselves.

Leans on `deadline` and `exercise`. `check` bounds the functions that it calls; a loop written straight into
an exercise cell never reaches a check. Cells whose first line is ``# exercise: NAME`` therefore run under an
alarm of their own.
"""

from __future__ import annotations

import re
from types import FrameType
from typing import Any

from rdmakit.course.deadline import Alarm
from rdmakit.course.exercise import forget

MARK = re.compile(r"\A\s*#\s*exercise:\s*(?P<name>\S+)")
CELL_SECONDS = 30.0
# ipykernel names a cell's code after a file in its temporary directory (/tmp/ipykernel_PID/HASH.py; its own
# ipykernel_launcher.py is below every frame and must not match); plain IPython, <ipython-input-N-HASH>.
_CELL = re.compile(r"[/\\]ipykernel_\d+[/\\]|\A<ipython-input")


def in_cell(frame: FrameType | None) -> bool:
    """Whether ``frame`` is, or was called by, code of a notebook's cell.

    Once a cell has failed, IPython formats its traceback; the alarm must not strike there.

    >>> in_cell(None)
    False
    """
    while frame is not None:
        if _CELL.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


class _Guard:
    """IPython's hooks around each cell."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.alarm: Alarm | None = None

    def before(self, info: Any = None) -> None:
        self.after()
        if info is not None and MARK.match(getattr(info, "raw_cell", None) or ""):
            self.alarm = Alarm(self.seconds, in_cell)
            self.alarm.live = True

    def after(self, result: Any = None) -> None:
        if self.alarm is not None:
            self.alarm.live = False
            self.alarm.stop()
            self.alarm = None


_guard: _Guard | None = None


def begin(seconds: float = CELL_SECONDS) -> None:
    """Call once, at the top of a notebook: clears results and bounds exercise cells to ``seconds``.

    Outside IPython only the results are cleared.

    >>> begin()
    """
    global _guard
    forget()
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is None:
        return
    if _guard is not None:
        for event, hook in (("pre_run_cell", _guard.before), ("post_run_cell", _guard.after)):
            if hook in shell.events.callbacks[event]:
                shell.events.unregister(event, hook)
    _guard = _Guard(seconds)
    shell.events.register("pre_run_cell", _guard.before)
    shell.events.register("post_run_cell", _guard.after)
