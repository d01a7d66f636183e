"""Bytes that are in a GPU's memory on return, whatever stream the kernels run on that read them.

Leans on cuda. cudaMemcpy and cudaMemset do not say that: a copy of up to 64 KiB from pageable memory is over for the
host once it is staged, and zeroing as soon as it is queued (CUDA Runtime API, "API synchronization behavior"). What
comes behind them is what waits for the legacy stream, which non-blocking streams, torch's among them, do not. So both
go through a stream of their own here, for which the host waits; it waits for no kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from rdmakit.gpu.cuda import cupy

__all__ = ["put", "zero"]

_HOST_TO_DEVICE = 1  # cudaMemcpyKind


@functools.cache
def _stream(device: int) -> Any:
    """That of the current device, which is `device`."""
    return cupy().cuda.Stream(non_blocking=True)


def put(device: int, address: int, array: np.ndarray[Any, Any]) -> None:
    """Copy what the host has to that GPU."""
    given = np.ascontiguousarray(array)
    with cupy().cuda.Device(device):
        stream = _stream(device)
        cupy().cuda.runtime.memcpyAsync(address, given.ctypes.data, given.nbytes, _HOST_TO_DEVICE, stream.ptr)
        stream.synchronize()


def zero(device: int, address: int, nbytes: int) -> None:
    """Clear memory of that GPU."""
    with cupy().cuda.Device(device):
        stream = _stream(device)
        cupy().cuda.runtime.memsetAsync(address, 0, nbytes, stream.ptr)
        stream.synchronize()
