"""A GPU's end where NICs join the ranks: a heap that NICs reach, and nobody else's mapped.

Leans on peer, arena and driver. The heap is memory of the GPU where NICs can register that, else page-locked memory of
the host, which kernels reach as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.device import Context
from rdmakit.errors import RdmakitError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.driver import GPU_PAGE
from rdmakit.gpu.peer import PeerLink

__all__ = ["DeviceLink"]

_LOOK_S = 0.2  # between two looks for what has broken
_HOST_PAGE = 4096


class DeviceLink(PeerLink):
    """One rank, alone on its host. `in_host_memory`: where heaps lie. `patience_s`: after it, a wait is a HangError.

    Heaps of the GPU begin at a page of the GPU's and end with one, as a dma-buf has to.
    """

    def __init__(
        self, rank: int, ranks: int, nbytes: int, *, in_host_memory: bool, patience_s: float = 60.0,
        device: int | None = None,
    ) -> None:  # fmt: skip
        self.in_host_memory = in_host_memory
        super().__init__(rank, ranks, nbytes, None, device=device)
        own, self.heaps = self.heaps[0], [0] * ranks
        self.heaps[rank] = own
        self.pace_gbs = 0.0
        self.patience_s = patience_s
        self._broken: list[Callable[[], Exception | None]] = []
        self._next_look = 0.0

    def heap_memory(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory that NICs reach, and what keeps it."""
        if self.in_host_memory:
            array = Arena(nbytes + _HOST_PAGE).array(nbytes, np.uint8, _HOST_PAGE)
            return int(array.ctypes.data), array
        address, owner = self.memory(-(-nbytes // GPU_PAGE) * GPU_PAGE + GPU_PAGE)
        return -(-address // GPU_PAGE) * GPU_PAGE, owner

    def symmetric(self, nbytes: int, gather: Callable[[Any], list[Any]]) -> tuple[list[int], Any]:
        """Zeroed memory that NICs reach, by rank: 0 for all others, who are other hosts'; and what keeps it."""
        address, owner = self.heap_memory(nbytes)
        return [address if rank == self.rank else 0 for rank in range(self.ranks)], owner

    def let_work(self, context: Context) -> None:
        """Nothing to do: for kernels of GPUs a proxy has a thread of its own."""

    def look_for(self, broken: Callable[[], Exception | None]) -> None:
        """Ask this now and then while the host waits: an error, or None while all is well."""
        self._broken.append(broken)

    def _look(self) -> None:
        try:
            super()._look()
        except RdmakitError as error:  # a kernel waits in vain for what a broken queue pair does not bring
            raise self._first_broken() or error from None
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_S
            if (broken := self._first_broken()) is not None:
                self.abort()
                raise broken

    def _first_broken(self) -> Exception | None:
        return next((error for broken in self._broken if (error := broken()) is not None), None)

    def __repr__(self) -> str:
        where = "the host" if self.in_host_memory else f"GPU {self.device}"
        return f"<DeviceLink rank {self.rank} of {self.ranks}: GPU {self.device}, {self.heap_bytes} B of {where}'s>"
