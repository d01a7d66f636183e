"""What the notebooks import: predict, plot the prediction, check an exercise, run on real hardware or say why
not.

Leans on NumPy, `rdmakit.show` and the standard library; matplotlib and IPython are imported when first used.
The checks of each notebook live in `rdmakit.course.checks`; `rdmakit.course.build` makes the notebooks and
proves them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rdmakit.course.exercise import Exercise, Result, check, exercise, forget, passed, results
from rdmakit.course.guard import begin
from rdmakit.course.hardware import HardwareCell, hardware_cell, missing, requirement
from rdmakit.course.plots import display, plot
from rdmakit.course.prediction import Prediction, plot_prediction, predict, predicted, reveal
from rdmakit.course.real_pair import RealPair, how_measured, real_pair, wqe_of_library
from rdmakit.course.trial import Trial, Wrong

if TYPE_CHECKING:
    from rdmakit.course.nic_dispatch import RealDispatch, real_dispatch
    from rdmakit.course.nic_ports import RealPorts, real_ports
    from rdmakit.course.nic_transfers import RealTransfers, real_transfers

__all__ = [
    "Exercise",
    "HardwareCell",
    "Prediction",
    "RealDispatch",
    "RealPair",
    "RealPorts",
    "RealTransfers",
    "Result",
    "Trial",
    "Wrong",
    "begin",
    "check",
    "display",
    "exercise",
    "forget",
    "hardware_cell",
    "how_measured",
    "missing",
    "passed",
    "plot",
    "plot_prediction",
    "predict",
    "predicted",
    "real_dispatch",
    "real_pair",
    "real_ports",
    "real_transfers",
    "requirement",
    "results",
    "reveal",
    "wqe_of_library",
]

# Of cells on real hardware alone, and they lean on the model, ep and signal.
_LATE = {
    **dict.fromkeys(("RealDispatch", "real_dispatch"), "nic_dispatch"),
    **dict.fromkeys(("RealPorts", "real_ports"), "nic_ports"),
    **dict.fromkeys(("RealTransfers", "real_transfers"), "nic_transfers"),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found
