"""What a prediction rests on most: each parameter that nobody has published, a quarter worse, and what becomes of the
point.

Leans on validate. Computing it takes a run for each parameter and point, so what was found for the shipped preset is
kept beside the presets (`kept`), with a print of the preset that it was computed for: it is not shown for another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rdmakit.model.parameters import PARAMETERS
from rdmakit.model.preset import Preset
from rdmakit.model.published import Point
from rdmakit.model.runs import run_all
from rdmakit.model.units import dimension_of
from rdmakit.model.validate import predict, run_of

__all__ = ["QUARTER", "assumptions", "fingerprint", "kept", "sensitivities", "worse"]

QUARTER = 1.25
FILE = Path(__file__).parent / "presets" / "h800-cx7-ib.sensitivity.json"
_TOKENS = 1024  # of a rank, normal kernels: the change is a ratio, and a quarter of the published size shows it
_COUNTS = ("spines",)  # of those that are counted: what takes a fraction
_ALSO = ("nvlink_rate",)  # published, but not for what the model takes it for


def assumptions(preset: Preset) -> list[str]:
    """Parameters that are assumed, measured on other GPUs, or fitted, and can be a quarter worse."""
    found = []
    for name, setting in preset.settings.items():
        unit = PARAMETERS[name].unit
        scales = name in _COUNTS or (unit and dimension_of(unit) in ("time", "rate", "size", "frequency"))
        if scales and (setting.mark != "published" or name in _ALSO) and name != "mtu":
            found.append(name)
    return found


def worse(preset: Preset, name: str) -> Preset:
    """The preset with this parameter a quarter slower, smaller or fewer.

    >>> from rdmakit.model import load
    >>> worse(load("ib"), "pcie_rate")["pcie_rate"], worse(load("ib"), "placement")["placement"]
    (44000000000.0, 375000.0)
    """
    parameter = PARAMETERS[name]
    up = dimension_of(parameter.unit) == "time"
    value = preset[name] * QUARTER if up else preset[name] / QUARTER
    if name in _COUNTS:
        return preset.changed(**{name: int(value)})
    return preset.changed(**{name: value / (preset[name] / _shown(preset, name))})


def _shown(preset: Preset, name: str) -> float:
    """The value in the parameter's own unit."""
    return float(preset.settings[name].shown.split()[0]) or 1.0


def sensitivities(
    preset: Preset,
    points: Sequence[Point],
    names: Sequence[str] | None = None,
    *,
    jobs: int | None = None,
    done: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """By point and parameter: relative change of the prediction where the parameter is a quarter worse. Whatever a run
    raises.
    """
    chosen = assumptions(preset) if names is None else list(names)
    runs = []
    for point in points:
        tokens = _TOKENS if point.kernel == "normal" else None
        for each in [preset, *(worse(preset, name) for name in chosen)]:
            runs.append(run_of(each, point.kernel, point.op, point.ranks, point.step, tokens=tokens))
    results = run_all(runs, jobs=jobs, done=done)
    found = {}
    for i, point in enumerate(points):
        base, *changed = (
            predict(m, point.unit) for m in results[i * (len(chosen) + 1) : (i + 1) * (len(chosen) + 1)]
        )
        found[point.name] = {name: value / base - 1 for name, value in zip(chosen, changed, strict=True)}
    return found


def fingerprint(preset: Preset) -> str:
    """Of all values, without hosts: what is kept was computed for one preset.

    >>> from rdmakit.model import load
    >>> fingerprint(load("ib")) == fingerprint(load("ib").for_ranks(64)) != fingerprint(load("roce"))
    True
    """
    values = sorted((name, repr(s.value)) for name, s in preset.settings.items() if name != "hosts")
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def kept(preset: Preset) -> Mapping[str, Mapping[str, float]]:
    """What has been found for this very preset; nothing for another."""
    record = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    points: Mapping[str, Mapping[str, float]] = record.get("points", {})
    return points if record.get("preset") == fingerprint(preset) else {}
