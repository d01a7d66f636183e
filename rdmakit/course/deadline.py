"""A time bound on a learner's code: an endless loop ends with a message, and the kernel lives on.

Leans on the standard library. A POSIX timer interrupts Python code between two byte codes of the main thread,
which is where a notebook's cells run; a C call that never returns to the interpreter cannot be interrupted
so.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


class OutOfTime(BaseException):
    """Raised inside code that outlived its bound; no `Exception`, lest ``except Exception`` eat it.

    >>> issubclass(OutOfTime, Exception)
    False
    """


# The alarm strikes again this often, until the code has ended.
_AGAIN = 0.02
# So many exceptions may be swallowed before tracing ends whoever swallows them.
_PATIENCE = 3


class Alarm:
    """A bound of ``seconds``, counted from now and in force while `live`; `stop` restores handler and timer.

    ``strikes(frame)`` says whether the code that the timer has interrupted is the code to stop; if it says
    no, nothing is raised, and the timer tries again.

    >>> alarm = Alarm(60, lambda frame: True)
    >>> alarm.stop()
    """

    def __init__(self, seconds: float, strikes: Callable[[FrameType | None], bool]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "a time bound needs the main thread: run check() in a cell, not in a thread of your own"
            )
        self.live = self._over = False
        self.seconds, self._strikes, self._fired = seconds, strikes, 0
        self._hunt: _Hunt | None = None
        # The former timer stops first: were it to fire into our handler, its owner would never hear of it.
        self._left, self._interval = signal.setitimer(signal.ITIMER_REAL, 0)
        self._started = time.monotonic()
        self._former = signal.signal(signal.SIGALRM, self._interrupt)
        # A bound inside a bound ends with the outer one at the latest.
        signal.setitimer(signal.ITIMER_REAL, min(seconds, self._left) if self._left > 0 else seconds)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._over:
            return
        signal.setitimer(signal.ITIMER_REAL, _AGAIN)
        if self.strikes(frame):
            self._fired += 1
            if self._fired > _PATIENCE:
                self._hunt = self._hunt or _Hunt(self)
                self._hunt.start(frame)
            raise self.error()

    def strikes(self, frame: FrameType | None) -> bool:
        """Whether ``frame`` is to be stopped now."""
        return self.live and self._strikes(frame)

    def error(self) -> OutOfTime:
        """What the stopped code is handed."""
        return OutOfTime(f"still running after {self.seconds:g} s")

    def stop(self) -> None:
        """End the bound; someone else's timer (a test runner's) goes on as if ours had never been."""
        self.live = False
        # From here on an alarm that is already under way starts no timer behind the one that is stopped here.
        self._over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._hunt is not None:
            self._hunt.end()
        signal.signal(signal.SIGALRM, self._former)
        if self._left > 0:
            left = max(self._left - (time.monotonic() - self._started), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, left, self._interval)


class _Hunt:
    """Ends functions that swallow every exception, such as a bare ``except:`` inside ``while True``.

    The interpreter looks for signals at few places, and in such a loop all of them may lie within the
    ``try``. Tracing sees every byte code: once a frame has been handed the exception and goes on none the
    less, it is in its ``except`` clause, and what is raised there leaves the frame. An exception from a trace
    function switches tracing off; a profile function, told of the frame's end, switches it on again for the
    caller, which may swallow too.
    """

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm
        self._former = sys.gettrace(), sys.getprofile()
        self._handed: FrameType | None = None

    def start(self, frame: FrameType | None) -> None:
        self._handed = None
        while frame is not None and self._alarm.strikes(frame):
            frame.f_trace, frame.f_trace_opcodes = self._trace, True
            frame = frame.f_back
        sys.setprofile(self._profile)
        sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not self._alarm.strikes(frame):
            return None
        if event == "exception":
            self._handed = frame
        elif event in ("opcode", "line") and frame is self._handed and frame.f_lineno is not None:
            # Without a line (the first byte code of a handler has none) a traceback could not be printed.
            self._handed = None
            raise self._alarm.error()
        return self._trace

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "return" and sys.gettrace() is None and self._alarm.live:
            sys.settrace(self._trace)

    def end(self) -> None:
        sys.settrace(self._former[0])
        sys.setprofile(self._former[1])


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A frame around ``function``, so that the alarm can tell a C function's run from `bounded`'s own
    lines."""
    return function(*args, **kwargs)


def bounded(seconds: float, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)``, or `OutOfTime` once ``seconds`` have passed.

    Works in the main thread only (`RuntimeError` elsewhere): signals are delivered nowhere else.

    >>> bounded(5, max, 1, 2)
    2
    """
    # An alarm that struck in this frame would skip its clean-up, or lose the result that has just come back.
    alarm = Alarm(seconds, lambda frame: frame is not None and frame.f_code is not bounded.__code__)
    try:
        alarm.live = True
        return _call(function, args, kwargs)
    finally:
        alarm.live = False
        alarm.stop()
