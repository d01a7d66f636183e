"""Heaps that lie in memory which processes of a host share, registered with CUDA so that kernels reach all of them.

Leans on driver. Each process registers what it has mapped, its own and the others' alike, whole and once. Source: CUDA
Driver API, cuMemHostRegister.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.errors import NotAvailable
from rdmakit.gpu.driver import DriverRegistrar
from rdmakit.gpu.host_pages import Registrar

__all__ = ["SharedHeaps"]


class SharedHeaps:
    """`arrays`: uint8 of each rank of this host as it is mapped here, page aligned; None for ranks of other hosts.

    `heaps`: by rank, the address of each, for kernels as for the host; 0 for other hosts'. Registered and mapped as
    long as somebody has this. NotAvailable, and nothing stays registered, when CUDA refuses.
    """

    def __init__(self, arrays: Sequence[np.ndarray[Any, Any] | None], registrar: Registrar | None = None) -> None:
        cuda: Registrar = DriverRegistrar() if registrar is None else registrar
        self.heaps = [0 if array is None else int(array.ctypes.data) for array in arrays]
        registered: list[int] = []
        kept = tuple(arrays)
        try:
            for address, array in zip(self.heaps, kept, strict=True):
                if array is None:
                    continue
                whole = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
                cuda.register(address, whole, False)
                registered.append(address)
                if cuda.pointer(address) != address:
                    raise NotAvailable(
                        "kernels reach shared memory at another address than the host", value=hex(address),
                        rule="one address for both (cudaDevAttrCanUseHostPointerForRegisteredMem)",
                        remedy="one rank a host, RDMAKIT_RANKS_PER_HOST=1",
                    )  # fmt: skip
        except Exception:
            _give_back(cuda, registered, kept)
            raise
        weakref.finalize(self, _give_back, cuda, registered, kept).atexit = False


def _give_back(cuda: Registrar, registered: list[int], kept: tuple[Any, ...]) -> None:
    """`kept`: the memory stays mapped until CUDA has let go of it."""
    del kept
    while registered:
        cuda.unregister(registered.pop())
