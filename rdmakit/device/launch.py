"""Shapes of launches, as every backend takes them.

Leans on NumPy and errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rdmakit.errors import LaunchError

__all__ = ["Shape", "dim3"]

Shape = int | Sequence[int]


def dim3(what: str, given: Shape) -> tuple[int, int, int]:
    """CUDA's dim3 of a number or of one to three; LaunchError, which names `what`, for anything else.

    >>> dim3("grid", 7), dim3("block", (32, 4))
    ((7, 1, 1), (32, 4, 1))
    """
    parts = (given,) if isinstance(given, (int, np.integer)) else tuple(given)
    if not 1 <= len(parts) <= 3 or not all(isinstance(n, (int, np.integer)) and 0 < n < 1 << 31 for n in parts):
        raise LaunchError(f"bad {what}", value=given, rule="one to three positive integers",
                          remedy="pass a number, or a tuple as CUDA's dim3")  # fmt: skip
    x, y, z = (*(int(n) for n in parts), 1, 1)[:3]
    return x, y, z
