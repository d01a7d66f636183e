"""CuPy and the CUDA driver, found when first asked for: NotAvailable says what is missing and how to get it.

Leans on errors.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

from rdmakit.errors import LaunchError, NotAvailable

__all__ = ["cupy", "parameter_sizes", "stream_of"]

_INVALID_VALUE = 1  # CUDA_ERROR_INVALID_VALUE


@functools.cache
def cupy() -> Any:
    """CuPy, with a GPU that it can use."""
    try:
        import cupy as found
    except ImportError as error:
        raise NotAvailable(
            "no CuPy", value=str(error), rule="rdmakit.gpu compiles and launches through CuPy",
            remedy="pip install 'rdmakit[gpu]' on CUDA 13, 'rdmakit[gpu-cuda12]' on CUDA 12; without a GPU use World",
        ) from None  # fmt: skip
    try:
        devices = found.cuda.runtime.getDeviceCount()
    except found.cuda.runtime.CUDARuntimeError as error:
        raise NotAvailable("CuPy finds no CUDA driver", value=str(error), rule="a driver and a GPU",
                           remedy="run nvidia-smi; without a GPU use World") from None  # fmt: skip
    if devices == 0:
        raise NotAvailable("CuPy sees no GPU", value=0, rule="one at least",
                           remedy="look at CUDA_VISIBLE_DEVICES; without a GPU use World")  # fmt: skip
    return found


@functools.cache
def _driver() -> Any:
    library = ctypes.CDLL("libcuda.so.1")
    if not hasattr(library, "cuFuncGetParamInfo"):
        raise NotAvailable("the CUDA driver is too old", value="no cuFuncGetParamInfo", rule="CUDA 12.4 (driver 550)",
                           remedy="install a newer driver")  # fmt: skip
    return library


def parameter_sizes(function: int) -> tuple[int, ...]:
    """Bytes of each parameter of a kernel, from the driver. `function`: a CUfunction."""
    sizes: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    while True:
        code = _driver().cuFuncGetParamInfo(
            ctypes.c_void_p(function), ctypes.c_size_t(len(sizes)), ctypes.byref(offset), ctypes.byref(size)
        )
        if code == _INVALID_VALUE:
            return tuple(sizes)
        if code != 0:
            raise LaunchError(
                "the driver does not tell a kernel's parameters", value=f"CUresult {code}",
                rule="cuFuncGetParamInfo of a loaded kernel", remedy="look for an earlier error on this device",
            )  # fmt: skip
        sizes.append(size.value)


@dataclass(frozen=True)
class _Stream:
    """All that a launch of CuPy's asks of a stream."""

    ptr: int


def stream_of(stream: Any) -> Any:
    """A stream for CuPy's launches, from one of CuPy's or torch's, or from an address; None for CuPy's current one."""
    if stream is None or hasattr(stream, "ptr"):
        return stream
    if hasattr(stream, "cuda_stream"):
        return _Stream(int(stream.cuda_stream))
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return _Stream(stream)
    raise LaunchError(
        "no stream",
        value=type(stream).__name__,
        rule="cupy.cuda.Stream, torch.cuda.Stream or an address",
        remedy="leave it out for CuPy's current stream",
    )
