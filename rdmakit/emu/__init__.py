"""The emulated backend: a deterministic world of hosts, GPUs and ConnectX HCAs in this process.

Leans on device. `World` is imported when it is asked for: compiling kernels needs no C++ extension.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["World", "compile_source", "stock_kernel"]

_HOMES = {"World": "world", "compile_source": "compile", "stock_kernel": "compile"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
