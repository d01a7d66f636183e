"""DeepEP V1 by its own names: `import rdmakit.compat.deep_ep as deep_ep` is all that a program changes.

Leans on rdmakit.ep. For programs that are not to be changed: `install()`, or this package's directory on PYTHONPATH
(see rdmakit.compat). `__version__` is DeepEP's whose interface this is, with rdmakit's behind it.

>>> import rdmakit.compat.deep_ep as deep_ep
>>> deep_ep.Config(24, 8, 256).num_sms
24
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from rdmakit import __version__ as _ours
from rdmakit.ep.buffer import Buffer
from rdmakit.ep.config import Config
from rdmakit.ep.events import EventOverlap
from rdmakit.errors import BadState

__version__ = f"1.2.1+rdmakit{_ours}"
__all__ = ["Buffer", "Config", "EventOverlap", "install", "topk_idx_t"]


def install() -> None:
    """Make `import deep_ep` in this process find this package. BadState when another one was imported before.

    Before whatever imports DeepEP; processes that this one starts know nothing of it (see rdmakit.compat).
    """
    known = sys.modules.get("deep_ep")
    if known is not None and getattr(known, "install", None) is None:
        raise BadState("deep_ep is imported already", value=getattr(known, "__file__", None),
                       rule="install() before the first import of deep_ep", remedy="call it first")  # fmt: skip
    sys.modules["deep_ep"] = sys.modules[__name__]
    for part in ("buffer", "utils"):
        sys.modules[f"deep_ep.{part}"] = import_module(f"{__name__}.{part}")


def __getattr__(name: str) -> Any:
    if name != "topk_idx_t":
        raise AttributeError(f"module 'deep_ep' has no attribute {name!r}")
    from rdmakit.ep.tensors import Kinds

    return Kinds().int64
