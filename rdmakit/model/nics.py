"""Which NIC a GPU uses: the nearest for all of them together, never one NIC for two GPUs while another is idle.

Leans on NumPy. DeepEP issue 466: each GPU took the nearest for itself, and two took the same.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument

__all__ = ["assign_nics", "nearest_nics"]


def nearest_nics(distance: Any) -> list[int]:
    """What each GPU takes that looks at itself alone: the first of the nearest. The trap, for comparison.

    >>> nearest_nics([[0, 1], [0, 1]])
    [0, 0]
    """
    return [int(np.argmin(row)) for row in _checked(distance)]


def assign_nics(distance: Any) -> list[int]:
    """A NIC for each GPU of a host, of least distance in sum, NICs shared as evenly as their number allows.

    `distance[gpu][nic]`: any cost that grows with it (PIX 0, PXB 1, PHB 2, NODE 3, SYS 4); at most 16 of each.

    >>> assign_nics([[0, 1], [0, 1]])
    [0, 1]
    """
    cost = _checked(distance)
    gpus, nics = cost.shape
    room = -(-gpus // nics)  # GPUs that a NIC may have to serve

    @cache
    def best(gpu: int, used: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        if gpu == gpus:
            return 0.0, ()
        found: tuple[float, tuple[int, ...]] = (float("inf"), ())
        for nic in range(nics):
            if used[nic] == room:
                continue
            rest, chosen = best(gpu + 1, (*used[:nic], used[nic] + 1, *used[nic + 1 :]))
            if cost[gpu, nic] + rest < found[0]:
                found = (float(cost[gpu, nic] + rest), (nic, *chosen))
        return found

    return list(best(0, (0,) * nics)[1])


def _checked(distance: Any) -> NDArray[np.float64]:
    cost = np.asarray(distance, np.float64)
    if cost.ndim != 2 or not 1 <= cost.shape[0] <= 16 or not 1 <= cost.shape[1] <= 16 or not np.isfinite(cost).all():
        raise BadArgument(
            "no table of distances",
            value=cost.shape,
            rule="[GPUs, NICs] of finite numbers, 1 to 16 each",
            remedy="one row a GPU, one column a NIC",
        )
    return cost
