"""A GPU's end where NICs join the hosts: a heap that NICs reach, and those of this host's other ranks, mapped.

Leans on peer, shared_heaps, arena and driver. The heap is memory of the GPU where NICs can register that, and others
map it by CUDA IPC; else page-locked memory of the host, which kernels reach as well, and which ranks of a host share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from rdmakit.device import Context
from rdmakit.errors import RdmakitError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.driver import GPU_PAGE
from rdmakit.gpu.peer import PeerLink, Told
from rdmakit.gpu.shared_heaps import SharedHeaps

__all__ = ["DeviceLink", "Sharing"]

_LOOK_S = 0.2  # between two looks for what has broken
_HOST_PAGE = 4096


class Sharing(Protocol):
    """Processes of one host that share memory of the host, this one among them."""

    def share(self, nbytes: int) -> Sequence[np.ndarray[Any, Any] | None]:
        """Zeroed memory of each, by rank; None for ranks of other hosts. Collective."""

    def tell(self, error: Exception) -> None:
        """This rank has failed."""

    def leave(self) -> None:
        """This rank goes in order."""


class DeviceLink(PeerLink):
    """One rank. `local`: the ranks of its host, by default itself. `patience_s`: after it, a wait is a HangError.

    With `sharing` heaps are memory of the host that its ranks share; `in_host_memory` without it: page-locked memory of
    a rank that is alone on its host. Else they are memory of GPUs, which begins at a page of the GPU's and ends with
    one, as a dma-buf has to. `gather` is needed then where a host has several ranks, and is called once, by all ranks
    of the group; nobody may write before everybody's constructor has returned. NotAvailable where a rank's memory
    cannot be reached.
    """

    def __init__(
        self, rank: int, ranks: int, nbytes: int, *, in_host_memory: bool = False, local: range | None = None,
        gather: Callable[[Any], list[Any]] | None = None, sharing: Sharing | None = None, patience_s: float = 60.0,
        device: int | None = None,
    ) -> None:  # fmt: skip
        self.local = range(rank, rank + 1) if local is None else local
        self.in_host_memory = in_host_memory or sharing is not None
        self._sharing = sharing
        self._rows: list[int] = []  # what `symmetric` mapped last
        super().__init__(rank, ranks, nbytes, None, device=device)
        self.heaps = self._those_of_the_host(self.heaps[0], self.heap_owner, ranks, gather)
        self.pace_gbs = 0.0
        self.patience_s = patience_s
        self._broken: list[Callable[[], Exception | None]] = []
        self._next_look = 0.0

    def heap_memory(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory that NICs reach, and what keeps it."""
        if self._sharing is not None:
            shared = SharedHeaps(self._sharing.share(nbytes))
            return shared.heaps[self.rank], shared
        if self.in_host_memory:
            array = Arena(nbytes + _HOST_PAGE).array(nbytes, np.uint8, _HOST_PAGE)
            return int(array.ctypes.data), array
        address, owner = super().heap_memory(-(-nbytes // GPU_PAGE) * GPU_PAGE + GPU_PAGE)
        return -(-address // GPU_PAGE) * GPU_PAGE, owner

    def _those_of_the_host(
        self, address: int, owner: Any, ranks: int, gather: Callable[[Any], list[Any]] | None
    ) -> list[int]:
        """By rank, as this one reaches them: memory that `heap_memory` gave each; 0 for other hosts'."""
        if isinstance(owner, SharedHeaps):
            return owner.heaps
        if gather is None or len(self.local) == 1:
            return [address if rank == self.rank else 0 for rank in range(ranks)]
        told: list[Told] = gather(self.tell(address, owner))
        with cupy().cuda.Device(self.device):
            return [
                address if rank == self.rank else self._reach(rank, *told[rank]) if rank in self.local else 0
                for rank in range(ranks)
            ]

    def symmetric(self, nbytes: int, gather: Callable[[Any], list[Any]]) -> tuple[list[int], Any]:
        """Zeroed memory of each rank of this host's, such as NICs reach: by rank, and what keeps it; 0 for others'.

        Collective. What the call before it mapped of other ranks' is gone; who uses it must be through.
        """
        while self._rows:
            opened = self._rows.pop()
            self._opened.remove(opened)
            with cupy().cuda.Device(self.device):
                cupy().cuda.runtime.ipcCloseMemHandle(opened)
        before = len(self._opened)
        address, owner = self.heap_memory(nbytes)
        heaps = self._those_of_the_host(address, owner, self.ranks, gather)  # nobody has the old ones mapped any more
        self._rows = self._opened[before:]
        return heaps, owner

    def let_work(self, context: Context) -> None:
        """Nothing to do: for kernels of GPUs a proxy has a thread of its own."""

    def look_for(self, broken: Callable[[], Exception | None]) -> None:
        """Ask this now and then while the host waits: an error, or None while all is well."""
        self._broken.append(broken)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Poll. What goes wrong, ranks that share memory are told."""
        with self._telling():
            super().wait(done, what)

    def check(self, *, unless_told: bool = False) -> None:
        """As a PeerLink's. What goes wrong, ranks that share memory are told."""
        with self._telling():
            super().check(unless_told=unless_told)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except RdmakitError as error:
            if self._sharing is not None:
                self._sharing.tell(error)
            raise

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

    def close(self) -> None:
        """As a PeerLink's; those who share memory learn that this rank left."""
        if self._sharing is not None:
            self._sharing.leave()
        super().close()

    def __repr__(self) -> str:
        where = "the host" if self.in_host_memory else f"GPU {self.device}"
        return f"<DeviceLink rank {self.rank} of {self.ranks}: GPU {self.device}, {self.heap_bytes} B of {where}'s>"
