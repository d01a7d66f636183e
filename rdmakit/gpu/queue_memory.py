"""Queues in a GPU's memory: kernels write rings where they lie, NICs are told of them by dma-bufs.

Leans on peer (memory), transfers and driver (dma-bufs). `GpuQueueMemory` is a `QueueMemory` for queues made by command
(rdmakit.verbs.devx_memory). The host reads none of it: what it polls, completions, belongs in its own memory.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.driver import GPU_PAGE, dmabuf_of
from rdmakit.gpu.peer import Allocation
from rdmakit.gpu.transfers import put

__all__ = ["GpuQueueMemory", "GpuRegion"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_CHUNK = 1 << 21
_PAGE = 4096  # of the adapter: rings begin on one


class _Chunk:
    """Whole pages of a GPU's, and their dma-buf, which is closed with the last region."""

    def __init__(self, device: int, nbytes: int) -> None:
        self.size, self.used = -(-nbytes // GPU_PAGE) * GPU_PAGE, 0
        self.memory = Allocation(device, self.size + GPU_PAGE)
        self.begin = -(-self.memory.address // GPU_PAGE) * GPU_PAGE
        with cupy().cuda.Device(device):
            self.descriptor = dmabuf_of(self.begin, self.size)
        weakref.finalize(self, os.close, self.descriptor)


class _Part:
    """Bytes of a chunk in the words of NumPy's array interface, which reads none of them."""

    def __init__(self, chunk: _Chunk, address: int, nbytes: int) -> None:
        self.chunk = chunk
        self.__array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (address, False), "version": 3}


class GpuRegion:
    """`bytes`: uint8 at the GPU's address, for kernels alone: the host that reads or writes them faults."""

    def __init__(self, chunk: _Chunk, offset: int, nbytes: int, device: int) -> None:
        self._device = device
        self.bytes: Bytes = np.asarray(_Part(chunk, chunk.begin + offset, nbytes))
        self.dmabuf: tuple[int, int] | None = (chunk.descriptor, offset)

    def write(self, offset: int, data: Bytes) -> None:
        """It is there on return."""
        put(self._device, int(self.bytes.ctypes.data) + offset, data)


class GpuQueueMemory:
    """Memory of `device`, by default the current GPU. NotAvailable where its driver exports no dma-buf."""

    name = "memory of the GPU"

    def __init__(self, device: int | None = None) -> None:
        self.device = int(cupy().cuda.Device().id if device is None else device)
        self._chunk = _Chunk(self.device, _CHUNK)
        self._chunks = [weakref.ref(self._chunk)]

    def allocate(self, nbytes: int, label: str) -> GpuRegion:
        """Zeroed whole pages."""
        del label
        whole = -(-nbytes // _PAGE) * _PAGE
        if self._chunk.used + whole > self._chunk.size:
            self._chunk = _Chunk(self.device, max(_CHUNK, whole))
            self._chunks = [known for known in self._chunks if known() is not None] + [weakref.ref(self._chunk)]
        chunk, offset = self._chunk, self._chunk.used
        chunk.used += whole
        return GpuRegion(chunk, offset, whole, self.device)

    def holds(self, address: int) -> bool:
        """Whether that is memory of its regions, which kernels reach as it is."""
        alive = (chunk for known in self._chunks if (chunk := known()) is not None)
        return any(chunk.begin <= address < chunk.begin + chunk.size for chunk in alive)
