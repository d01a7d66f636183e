"""What an engine asks of whatever runs its kernels: heaps that all ranks reach, launches, a wait.

Leans on device. `WorldLink` is a rank of an emulated world; `rdmakit.gpu.peer.PeerLink` is a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from rdmakit.device import Context
from rdmakit.device.report import REPORT, Report
from rdmakit.errors import HangError

__all__ = ["Gather", "HostLink", "Link", "WorldLink"]

Gather = Callable[[Any], list[Any]]
"""Collective: one value of every rank, by rank, the same list on all."""


class Link(Protocol):
    """One rank's end. Addresses are ints; `stream` is a cudaStream_t as int, or whatever the backend calls one."""

    rank: int
    ranks: int
    heaps: list[int]  # address of every rank's heap, as this rank reaches it
    heap_bytes: int
    heap_owner: Any  # this rank's heap lives as long as somebody has this
    report: Report
    blocks: int  # that are resident together, one on each SM
    shared_bytes: int  # of a block, at most
    warps: int  # of a block that moves rows, at most
    threads: int  # of a block of the low-latency kernels
    sharing: int  # of those blocks on each SM
    most_threads: int  # of any block
    pace_gbs: float  # at which others' memory takes what this rank writes; 0: not known, nothing is held back

    def memory(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory of this rank's own: its address, and what keeps it alive."""

    def host_memory(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Zeroed memory of the host that kernels write and the host reads, uint8; its address is the same for both."""

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy what the host has to this rank's memory; it is there on return."""

    def launch(
        self, kernel: str, grid: int, block: int, args: Sequence[Any], *, shared_mem: int = 0, stream: int = 0
    ) -> None:
        """Queue a kernel of cuda/kernels; it waits for nothing."""

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queue a copy within this rank's memory."""

    def clear(self, address: int, nbytes: int, stream: int = 0) -> None:
        """Queue zeroing this rank's memory."""

    def settle(self, stream: int = 0) -> None:
        """Return once all that was queued there has run."""

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Return once `done()` holds; raise when the report says that something failed, or HangError in the end."""

    def check(self, *, unless_told: bool = False) -> None:
        """Raise what has gone wrong so far; it waits for nothing. `unless_told`: not what it has raised before."""

    def close(self) -> None:
        """Give back what it holds; memory whose owner somebody else has lives on."""


class HostLink(Link, Protocol):
    """What an engine asks besides, where RDMA devices join the hosts."""

    def symmetric(self, nbytes: int, gather: Gather) -> tuple[list[int], Any]:
        """Zeroed memory of each rank of this host's, such as NICs reach once it is registered with them: where it
        lies, by rank, 0 for other hosts'; and what keeps this rank's own. Collective over the group, when all are
        through with what the call before gave: of other ranks' memory nothing is left of that.
        """

    def let_work(self, context: Context) -> None:
        """Kernels use queue pairs of this device from now on."""

    def look_for(self, broken: Callable[[], Exception | None]) -> None:
        """Ask this now and then while somebody waits: an error, or None while all is well."""


class WorldLink:
    """A rank of an emulated world: kernels run when somebody waits, or when the world is run.

    `heaps` by rank; None for ranks of other hosts, which real devices reach. `gpu`: which of the world's it is; the
    rank's own number by default.
    """

    def __init__(
        self, world: Any, rank: int, heaps: Sequence[np.ndarray[Any, Any] | None], *, blocks: int = 4, warps: int = 4,
        most_threads: int = 1024, gpu: int | None = None,
    ) -> None:  # fmt: skip
        self.world = world
        self.rank, self.ranks = rank, len(heaps)
        self.gpu = rank if gpu is None else gpu
        self.heaps = [0 if heap is None else int(heap.ctypes.data) for heap in heaps]
        own = heaps[rank]
        assert own is not None, "a rank has its own heap"
        self.heap_bytes = own.nbytes
        self.heap_owner = own
        self._kept: list[Any] = [heaps]
        self._raised = False
        self.report = Report(self.host_memory(REPORT.itemsize))
        self.blocks = blocks
        self.shared_bytes = 64 << 10
        self.warps, self.threads, self.sharing, self.most_threads = warps, 32 * warps, 1, most_threads
        self.pace_gbs = 0.0

    def memory(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory of the world's."""
        array = self.world.array((nbytes,), np.uint8)
        return int(array.ctypes.data), array

    def symmetric(self, nbytes: int, gather: Gather) -> tuple[list[int], Any]:
        """See `HostLink.symmetric`."""
        address, owner = self.memory(nbytes)
        told = gather(address)
        return [int(at) if heap else 0 for at, heap in zip(told, self.heaps, strict=True)], owner

    def let_work(self, context: Context) -> None:
        """The world does, from now on."""
        self.world.let_work(context)

    def look_for(self, broken: Callable[[], Exception | None]) -> None:
        """The world does."""
        self.world.look_for(broken)

    def host_memory(self, nbytes: int) -> np.ndarray[Any, Any]:
        """The same."""
        array: np.ndarray[Any, Any] = self.world.array((nbytes,), np.uint8)
        self._kept.append(array)
        return array

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """At once."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def launch(
        self, kernel: str, grid: int, block: int, args: Sequence[Any], *, shared_mem: int = 0, stream: int = 0
    ) -> None:
        """Queue it; the rank's launches run in order."""
        self.world.stock_kernel(kernel)(grid, block, tuple(args), shared_mem=shared_mem, rank=self.gpu, stream=stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """At once: what is to be copied has to be there, not queued."""
        ctypes.memmove(to, source, nbytes)

    def clear(self, address: int, nbytes: int, stream: int = 0) -> None:
        """At once, as copy."""
        ctypes.memset(address, 0, nbytes)

    def settle(self, stream: int = 0) -> None:
        """Run the world, if launches are queued."""
        self.wait(lambda: self.world.queued == 0, "what was queued")

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Run the world, after which there is nothing more to come."""
        if not done():
            self.world.run()
        self.check()
        if not done():
            raise HangError(f"{what} did not come", value="the world has run to its end", rule="all ranks take part",
                            remedy="look whether each has made the call")  # fmt: skip

    def check(self, *, unless_told: bool = False) -> None:
        """What its kernels have reported."""
        if self.report and not (unless_told and self._raised):
            self._raised = True
            self.report.raise_for_status()

    def close(self) -> None:
        """Arrays belong to the world."""
