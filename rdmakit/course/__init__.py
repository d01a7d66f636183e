"""What the notebooks import: predict, plot the prediction, check an exercise, run on real hardware or say why
not.

Leans on NumPy, `rdmakit.show` and the standard library; matplotlib and IPython are imported when first used.
The checks of each notebook live in `rdmakit.course.checks`; `rdmakit.course.build` makes the notebooks and
proves them.
"""

from rdmakit.course.exercise import Exercise, Result, check, exercise, forget, passed, results
from rdmakit.course.guard import begin
from rdmakit.course.hardware import HardwareCell, hardware_cell, missing, requirement
from rdmakit.course.plots import plot
from rdmakit.course.prediction import Prediction, plot_prediction, predict, predicted, reveal
from rdmakit.course.real_pair import RealPair, real_pair
from rdmakit.course.trial import Trial, Wrong

__all__ = [
    "Exercise",
    "HardwareCell",
    "Prediction",
    "RealPair",
    "Result",
    "Trial",
    "Wrong",
    "begin",
    "check",
    "exercise",
    "forget",
    "hardware_cell",
    "missing",
    "passed",
    "plot",
    "plot_prediction",
    "predict",
    "predicted",
    "real_pair",
    "requirement",
    "results",
    "reveal",
]
