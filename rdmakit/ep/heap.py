"""A rank's symmetric heap: named regions at the same offsets on every rank, so that an offset is an address anywhere.

Leans on NumPy. One heap is one memory region of the NIC: rings, signals, receive buffers and staging lie in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Heap", "HeapLayout", "sixteens"]

ALIGNMENT = 128  # a cache line of the GPU's L2: no two regions share one


def sixteens(nbytes: int) -> int:
    """Rounded up to 16 bytes, which warps move at a time.

    >>> sixteens(132)
    144
    """
    return -(-nbytes // 16) * 16


class HeapLayout:
    """Collects regions; `offset[name]` is where each begins, `nbytes` what all of them take.

    >>> layout = HeapLayout(); layout.add("tail", 8); layout.add("ring", 4096)
    >>> layout.offset["ring"], layout.nbytes
    (128, 4224)
    """

    def __init__(self) -> None:
        self.offset: dict[str, int] = {}
        self.size: dict[str, int] = {}
        self.nbytes = 0

    def add(self, name: str, nbytes: int) -> None:
        """Append a region of nbytes bytes, aligned to 128."""
        self.offset[name] = self.nbytes
        self.size[name] = nbytes
        self.nbytes += -(-nbytes // ALIGNMENT) * ALIGNMENT


class Heap:
    """One rank's heap: `memory` is uint8 [layout.nbytes]; `view` gives a region as an array without a copy."""

    def __init__(self, layout: HeapLayout, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.layout = layout
        self.memory = memory
        self.base = int(memory.ctypes.data)

    def address(self, name: str, offset: int = 0) -> int:
        """The address of byte `offset` of region `name`."""
        return self.base + self.layout.offset[name] + offset

    def view(self, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The first elements of region `name` as dtype and shape."""
        kind = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        begin = self.layout.offset[name]
        found: np.ndarray[Any, Any] = self.memory[begin : begin + count * kind.itemsize].view(kind).reshape(shape)
        return found
