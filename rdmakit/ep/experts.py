"""Small experts to put between dispatch and combine: a two-layer network each, in float32, made from a seed.

Leans on NumPy. They stand for a model's experts where the point is communication: real work on real rows, the same on
every rank that asks for the same expert.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["Experts"]

Array = NDArray[Any]


class Experts:
    """`count` experts of `hidden` channels and `width` hidden units.

    >>> Experts(2, hidden=128, seed=1).apply(0, np.ones((3, 128), np.float32)).shape
    (3, 128)
    """

    def __init__(self, count: int, *, hidden: int, width: int = 16, seed: int) -> None:
        self.count, self.hidden, self.width, self.seed = count, hidden, width, seed
        self._weights: dict[int, tuple[Array, Array]] = {}

    def _of(self, expert: int) -> tuple[Array, Array]:
        if expert not in self._weights:
            rng = np.random.default_rng([self.seed, expert])
            into = rng.standard_normal((self.hidden, self.width), np.float32) / np.float32(
                np.sqrt(self.hidden)
            )
            out = rng.standard_normal((self.width, self.hidden), np.float32) / np.float32(np.sqrt(self.width))
            self._weights[expert] = (into, out)
        return self._weights[expert]

    def apply(self, expert: int, rows: Array) -> Array:
        """The expert's output, float32 [n, hidden]: rows @ A, SiLU, @ B, plus the rows themselves."""
        into, out = self._of(expert)
        x = rows.astype(np.float32)
        inner = x @ into
        result: Array = x + (inner / (1 + np.exp(-inner))) @ out
        return result

    def mixture(self, rows: Array, topk_idx: Array, topk_weights: Array, first_expert: int = 0) -> Array:
        """What one rank computes for rows that it received: sum over its experts of weight * output, BF16.

        rows [n, hidden]; topk_idx int64 [n, topk], local experts or -1; topk_weights float32 [n, topk].
        """
        total = np.zeros((len(rows), self.hidden), np.float32)
        for local in range(int(topk_idx.max(initial=-1)) + 1):
            token, k = np.nonzero(topk_idx == local)
            if len(token):
                total[token] += topk_weights[token, k][:, None] * self.apply(
                    first_expert + local, rows[token]
                )
        return total.astype(ml_dtypes.bfloat16)
