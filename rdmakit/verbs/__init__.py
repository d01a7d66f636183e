"""Real RDMA devices through libibverbs and libmlx5, which are opened when they are first needed.

Leans on device. `rdmakit.open("mlx5_0")` gives the same objects as an emulated device; below them `_verbs` has the
verbs as they are, with work requests and completions in NumPy arrays (`SEND_WR`, `RECV_WR`, `WC`).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["RECV_WR", "SEND_WR", "WC"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.batch"), name)
