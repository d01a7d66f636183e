"""The performance model: clusters described by presets, plans of queue pairs, ports and paths, and predictions.

`load("roce")` and `load("ib")` are the two reference clusters.
"""

from rdmakit.model.preset import Preset, Setting, load, parse, shipped

__all__ = ["Preset", "Setting", "load", "parse", "shipped"]
