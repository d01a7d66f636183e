"""rdmakit: GPU-initiated RDMA that you can read, run and prove.

Importing it is cheap: nothing below is loaded before it is used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.device import open
    from rdmakit.emu.world import World
    from rdmakit.errors import RdmakitError

__version__ = "0.1.0"

__all__ = ["RdmakitError", "World", "__version__", "get_include", "open"]

_HOMES = {"open": "rdmakit.device", "World": "rdmakit.emu.world"}


def get_include() -> str:
    """The directory to give a compiler as an include path: it holds `rdmakit/*.cuh`, and beside it
    `kernels/`.

    >>> (Path(get_include()) / "rdmakit" / "config.cuh").exists()
    True
    """
    package = Path(__file__).resolve().parent
    installed = package / "include"
    return str(installed if (installed / "rdmakit").is_dir() else package.parent / "cuda")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    errors = import_module("rdmakit.errors")
    if home is None and name not in errors.__all__:
        raise AttributeError(f"module 'rdmakit' has no attribute {name!r}")
    found = getattr(errors if home is None else import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *import_module("rdmakit.errors").__all__})
