"""What a check may ask of an answer, each question with a message that helps and never tells the answer.

Leans on `deadline`. A check gets a `Trial` as its first argument and puts its questions through it. The first
question that fails ends the check; what it says is what the learner reads.
"""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rdmakit.course.deadline import OutOfTime, bounded

# Lines of rdmakit, of Python itself and of installed packages are not the learner's to mend.
_NOT_THEIRS = (
    str(Path(__file__).resolve().parent.parent),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    "<frozen",
)


class Wrong(Exception):
    """An answer that is not right, in words for the learner; ``kind`` is ``wrong``, ``type``, ``exception``
    or ``timeout``."""

    def __init__(self, message: str, kind: str = "wrong") -> None:
        super().__init__(message)
        self.kind = kind


def short(value: object, most: int = 80) -> str:
    """A value on one line, cut to ``most`` characters; a broken ``__repr__`` does not break the message.

    >>> short([1, 2]), short("x" * 100, 8)
    ('[1, 2]', "'xxxxxx…")
    """
    try:
        text = " ".join(repr(value).split())
    except Exception as error:
        text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
    return text if len(text) <= most else text[: most - 1] + "…"


def blame(error: BaseException) -> str:
    """Where in the learner's own code ``error`` was raised: the line's number and text.

    >>> blame(ValueError("never raised"))
    ''
    """
    found: tuple[int, str] | None = None
    where: TracebackType | None = error.__traceback__
    for frame, line in traceback.walk_tb(where):
        name = frame.f_code.co_filename
        # Byte codes that stand for no line of the source have None for one.
        if line is not None and not name.startswith(_NOT_THEIRS):
            text = linecache.getline(name, line).strip()
            if text:
                found = line, text
    return f" in line {found[0]}, `{found[1]}`" if found else ""


class Trial:
    """Questions to one answer. ``seconds`` bounds each call of the learner's code.

    >>> Trial().equal(3, 4, "the number of slots")
    Traceback (most recent call last):
    rdmakit.course.trial.Wrong: the number of slots is 3, which is not right
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the learner's function under the time bound; an exception or an endless loop becomes a
        message."""
        if not callable(function):
            raise Wrong(
                f"pass the function itself; got {short(function)}, of type {type(function).__name__}", "type"
            )
        name = getattr(function, "__name__", "your function")
        try:
            return bounded(self.seconds, function, *args, **kwargs)
        except OutOfTime as error:
            raise Wrong(
                f"{name} was still running after {self.seconds:g} s{blame(error)}: does its loop ever end?",
                "timeout",
            ) from None
        except RecursionError as error:
            raise Wrong(f"{name} calls itself without end{blame(error)}", "exception") from None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise Wrong(
                f"{name} raised {type(error).__name__}: {short(str(error), 300)}{blame(error)}", "exception"
            ) from None

    def require(self, condition: object, message: str) -> None:
        """``message`` is what the learner reads where ``condition`` is false."""
        if not condition:
            raise Wrong(message)

    def is_a(self, value: object, types: type | tuple[type, ...], what: str = "the answer") -> None:
        """``value`` is an instance of one of ``types``; NumPy integers count as `int`, NumPy floats and ints
        as `float`."""
        wanted = types if isinstance(types, tuple) else (types,)
        accepted = (
            wanted
            + ((np.integer,) if int in wanted else ())
            + ((np.floating, np.integer, int) if float in wanted else ())
        )
        if isinstance(value, accepted) and not (isinstance(value, bool) and bool not in wanted):
            return
        names = " or ".join(t.__name__ for t in wanted)
        blank = " (nothing was returned: is there a `return`?)" if value is None else ""
        raise Wrong(
            f"{what} should be of type {names}, but is {type(value).__name__}: {short(value)}{blank}", "type"
        )

    def has_length(self, value: Any, length: int, what: str = "the answer") -> None:
        """``len(value) == length``."""
        try:
            count = len(value)
        except Exception:
            raise Wrong(
                f"{what} should have {length} elements, but is {type(value).__name__}: {short(value)}", "type"
            ) from None
        if count != length:
            raise Wrong(f"{what} should have {length} elements, but has {count}", "type")

    def has_shape(
        self, value: object, shape: tuple[int, ...], dtype: Any = None, what: str = "the answer"
    ) -> None:
        """``value`` is a NumPy array of ``shape`` and, if given, ``dtype``."""
        if not isinstance(value, np.ndarray):
            raise Wrong(
                f"{what} should be a NumPy array of shape {shape}, "
                f"but is {type(value).__name__}: {short(value)}",
                "type",
            )
        if value.shape != tuple(shape):
            raise Wrong(f"{what} should have shape {tuple(shape)}, but has {value.shape}", "type")
        if dtype is not None and value.dtype != np.dtype(dtype):
            raise Wrong(f"{what} should have dtype {np.dtype(dtype)}, but has {value.dtype}", "type")

    def equal(self, value: Any, right: Any, what: str = "the answer") -> None:
        """``value == right``; of sequences, bytes and arrays the message names the first place that
        differs."""
        if isinstance(right, (bytes, list, tuple, np.ndarray)):
            kind = (bytes, bytearray) if isinstance(right, bytes) else (list, tuple, np.ndarray)
            self.is_a(value, kind, what)
            if isinstance(right, np.ndarray):
                value = self._array(value, right.shape, what)
            self.has_length(value, len(right), what)
            self._elements(value, right, what)
            return
        if type(right) in (int, float, str, bool):
            self.is_a(value, type(right), what)
        same = False
        try:
            same = bool(value == right)
        except Exception as error:
            raise Wrong(f"{what} cannot be compared: {type(error).__name__}: {error}", "type") from None
        if not same:
            raise Wrong(f"{what} is {short(value)}, which is not right")

    def _array(self, value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
        try:
            array = np.asarray(value)
        except Exception as error:
            raise Wrong(f"{what} does not make an array: {error}", "type") from None
        self.has_shape(array, shape, what=what)
        return array

    def _elements(self, value: Any, right: Any, what: str) -> None:
        for index, (one, other) in enumerate(zip(value, right, strict=True)):
            if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
                same = np.array_equal(one, other)
            else:
                try:
                    same = bool(one == other)
                except Exception:
                    same = False
            if not same:
                shown = f"{one:#04x}" if isinstance(right, bytes) else short(one)
                raise Wrong(f"{what}: element {index} is {shown}, which is not right")

    def near(self, value: Any, right: float, relative: float, what: str = "the answer") -> None:
        """A number within ``relative`` of ``right`` (0.2 is ±20 %); the message says only too low or too
        high."""
        self.is_a(value, float, what)
        if not np.isfinite(value):
            raise Wrong(f"{what} is {value}: a finite number is asked for", "type")
        if abs(value - right) > relative * abs(right):
            raise Wrong(f"{what} is {value:g}, which is too {'high' if value > right else 'low'}")
