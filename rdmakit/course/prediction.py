"""The reader's guess, written down before the run and put beside the result after it. Leans on `card` and
`rdmakit.show`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from rdmakit.course.card import card
from rdmakit.course.trial import short
from rdmakit.show import Figure, port_bars
from rdmakit.show.units import quantity


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question and the reader's number for it; ``value`` is ``None`` where none was typed."""

    name: str
    question: str
    value: float | None
    unit: str = ""
    complaint: str = ""

    def __str__(self) -> str:
        said = (
            self.complaint or f"your prediction: {quantity(self.value, self.unit)}"
            if self.value is not None
            else self.complaint
        )
        return f"{self.question}\n{said}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return card(self.question, [("", str(self).split("\n", 1)[1])])


_PREDICTIONS: dict[str, Prediction] = {}


def predict(name: str, question: str, value: object = None, unit: str = "") -> Prediction:
    """Record the reader's ``value`` (a number in ``unit``) for ``question`` under ``name``; anything else
    only asks again.

    >>> predict("dbr", "How many bytes is a doorbell record?", 8, "B")
    How many bytes is a doorbell record?
    your prediction: 8 B
    """
    number, complaint = None, ""
    if value is None or value is ...:
        complaint = "Type your number in place of None, run the cell again, and see how near you come."
    elif isinstance(value, bool) or not isinstance(value, Real):
        wanted = f"one number in {unit}" if unit else "one number"
        complaint = f"A prediction is {wanted}; got {short(value)}, of type {type(value).__name__}."
    elif not math.isfinite(value):
        complaint = f"A prediction is a finite number; got {value}."
    else:
        number = float(value)
    _PREDICTIONS[name] = Prediction(name, question, number, unit, complaint)
    return _PREDICTIONS[name]


def predicted(name: str) -> float | None:
    """The number recorded under ``name``, or ``None``.

    >>> predicted("never asked") is None
    True
    """
    return _PREDICTIONS[name].value if name in _PREDICTIONS else None


def verdict(guess: float | None, measured: float) -> str:
    """How near a guess came, in words.

    >>> verdict(10, 20), verdict(21, 20), verdict(None, 20)
    ('you said 2x too little', 'within 5 % of your prediction', 'you made no prediction')
    """
    if guess is None:
        return "you made no prediction"
    if guess == measured:
        return "exactly as you predicted"
    if guess * measured <= 0:
        return "far from your prediction"
    off = abs(guess - measured) / abs(measured)
    if off <= 0.3:
        return f"within {max(off * 100, 0.1):.2g} % of your prediction"
    ratio = guess / measured
    return f"you said {max(ratio, 1 / ratio):.2g}x too {'much' if ratio > 1 else 'little'}"


def plot_prediction(name: str, measured: float, unit: str | None = None) -> Figure:
    """Prediction ``name`` and the result as two bars with a title that says how near they are; negative ones
    as zero bars.

    A reader who has not predicted sees the result alone.

    >>> _ = predict("size", "How many bytes?", 48, "B")
    >>> print(plot_prediction("size", 64).title)
    Result 64 B: within 25 % of your prediction
    """
    made = _PREDICTIONS.get(name)
    unit = unit if unit is not None else (made.unit if made else "")
    measured = float(measured)
    guess = made.value if made else None
    bars = [("result", max(measured, 0.0), "result")]
    if guess is not None:
        bars.insert(0, ("your prediction", max(guess, 0.0), "your prediction"))
    return port_bars(bars, unit, title=f"Result {quantity(measured, unit)}: {verdict(guess, measured)}")


reveal = plot_prediction
