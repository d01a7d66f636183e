"""Memory that host and GPUs reach at the same addresses, handed out as NumPy arrays: page-locked, or managed.

Leans on cuda and device.arguments.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rdmakit.device.arguments import host_pointer, refuse
from rdmakit.errors import BadArgument
from rdmakit.gpu.cuda import cupy

__all__ = ["Arena"]


_PREFERRED_LOCATION, _ACCESSED_BY = 3, 5  # cudaMemAdviseSet*


class _Managed:
    """Managed memory as NumPy takes it: its pages lie on the GPU while kernels use them, on the host while it looks."""

    def __init__(self, nbytes: int) -> None:
        self._memory = cupy().cuda.malloc_managed(nbytes)
        data = int(self._memory.ptr), False
        self.__array_interface__ = {"version": 3, "data": data, "shape": (nbytes,), "typestr": "|u1"}


class Arena:
    """`nbytes` of memory, page-locked or `managed`. Arrays keep it alive; what is given back is not given out again."""

    def __init__(self, nbytes: int, managed: bool = False) -> None:
        self.managed = managed
        if managed:
            self._memory = np.asarray(_Managed(nbytes))
            cp = cupy()
            self._home = int(cp.cuda.Device().id)
            self._mapped = {self._home}
            where = int(self._memory.ctypes.data), nbytes, _PREFERRED_LOCATION, self._home
            cp.cuda.runtime.memAdvise(*where)
        else:
            self._memory = np.frombuffer(cupy().cuda.alloc_pinned_memory(nbytes), np.uint8, nbytes)
        self.begin = int(self._memory.ctypes.data)
        self.size = nbytes
        self.used = 0

    @property
    def owner(self) -> np.ndarray[Any, Any]:
        """What its arrays keep alive: all of its memory."""
        return self._memory

    def array(self, shape: int | tuple[int, ...], dtype: Any, alignment: int) -> np.ndarray[Any, Any]:
        """A zeroed C-contiguous array at a multiple of `alignment` bytes. BadArgument when nothing is left."""
        kind = np.dtype(dtype)
        dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        nbytes = math.prod(dims) * kind.itemsize
        start = self.used + -(self.begin + self.used) % alignment
        if start + nbytes > self.size:
            raise BadArgument(
                "the world's memory is used up",
                value=nbytes,
                rule=f"{self.size - self.used} of {self.size} bytes are left",
                remedy="gpu.World(memory=…), in bytes",
            )
        self.used = start + nbytes
        found: np.ndarray[Any, Any] = self._memory[start : start + nbytes].view(kind).reshape(dims)
        found.view(np.uint8).reshape(-1)[...] = 0
        return found

    def map_to(self, gpu: int, stream: Any) -> None:
        """Managed: before kernels of `gpu` use it, move what is in use to the GPU that it prefers; others map it there.

        Pages that each GPU brought to itself would be taken from each other while kernels run.
        """
        if not self.managed or not self.used:
            return
        runtime = cupy().cuda.runtime
        if gpu == self._home:
            runtime.memPrefetchAsync(self.begin, self.used, gpu, stream.ptr)
        elif gpu not in self._mapped:
            runtime.memAdvise(self.begin, self.size, _ACCESSED_BY, gpu)
            self._mapped.add(gpu)

    def holds(self, array: np.ndarray[Any, Any]) -> bool:
        """Whether all of an array lies in here."""
        first = int(array.ctypes.data)
        return self.begin <= first and first + array.nbytes <= self.begin + self.size

    def pointer(self, where: str, value: Any) -> tuple[int, Any]:
        """The address of what lies in here, or an address as it is. BadArgument for memory that GPUs do not reach."""
        address, alive = host_pointer(where, value)
        given = value is None or isinstance(value, (int, np.integer))
        if not given and not self.begin <= address <= self.begin + self.size:
            raise refuse(f"{where} is memory that GPUs do not reach", value, "memory of this world",
                         "make it with world.array(…)")  # fmt: skip
        return address, alive
