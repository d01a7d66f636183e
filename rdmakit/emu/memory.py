"""Memory of the emulated GPUs: NumPy arrays aligned as `cudaMalloc` aligns, zeroed, given by the system when
touched.

Leans on NumPy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "aligned_array"]

ALIGNMENT = 128  # a cache line of a GPU; SqState and RDMAKIT_DYNAMIC_SHARED ask for no more


def aligned_array(
    shape: int | tuple[int, ...], dtype: Any = np.uint8, alignment: int = ALIGNMENT
) -> np.ndarray[Any, Any]:
    """A zeroed C-contiguous array whose address is a multiple of `alignment` bytes (a power of two).

    >>> aligned_array((3, 5), np.float32).ctypes.data % 128
    0
    """
    kind = np.dtype(dtype)
    dims = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    nbytes = math.prod(dims) * kind.itemsize
    raw = np.zeros(max(nbytes, 1) + alignment, np.uint8)  # calloc: pages come when they are touched
    skip = -raw.ctypes.data % alignment
    found: np.ndarray[Any, Any] = raw[skip : skip + nbytes].view(kind).reshape(dims)
    return found
