"""Memory of the emulated GPUs: NumPy arrays aligned as `cudaMalloc` aligns, zeroed, given by the system when
touched.

Leans on NumPy.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "aligned_array"]

_LARGE = 1 << 20
ALIGNMENT = 128  # a cache line of a GPU; SqState and RDMAKIT_DYNAMIC_SHARED ask for no more


def aligned_array(
    shape: int | tuple[int, ...], dtype: Any = np.uint8, alignment: int = ALIGNMENT, *, sparse: bool = False
) -> np.ndarray[Any, Any]:
    """A zeroed C-contiguous array whose address is a multiple of `alignment` bytes (a power of two). `sparse`: little
    of it will be written, here and there; the system then gives small pages, not the huge ones that NumPy asks for.

    >>> aligned_array((3, 5), np.float32).ctypes.data % 128
    0
    """
    kind = np.dtype(dtype)
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    nbytes = math.prod(dims) * kind.itemsize
    room = max(nbytes, 1) + alignment
    # Either way pages come when they are touched.
    raw = _small_pages(room) if sparse and nbytes >= _LARGE else np.zeros(room, np.uint8)
    skip = -raw.__array_interface__["data"][0] % alignment
    found: np.ndarray[Any, Any] = raw[skip : skip + nbytes].view(kind).reshape(dims)
    return found


def _small_pages(nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)
