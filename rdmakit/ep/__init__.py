"""Expert parallelism: MoE dispatch and combine, their NumPy truth, routers and recorded routing.

`Buffer` is DeepEP's object, on GPUs; it is loaded when first named, torch when one is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.ep.buffer import Buffer
    from rdmakit.ep.config import Config
    from rdmakit.ep.events import EventHandle, EventOverlap

__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap"]

_HOMES = {"Buffer": "buffer", "Config": "config", "EventHandle": "events", "EventOverlap": "events"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rdmakit.ep' has no attribute {name!r}")
    found = getattr(import_module(f"rdmakit.ep.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
