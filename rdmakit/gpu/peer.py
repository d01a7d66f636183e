"""A GPU's end of a group that reaches each other's memory: heaps mapped across processes (CUDA IPC) or within one.

Leans on cuda, arena, module, pinned, transfers. Whoever makes a group brings the rendezvous: a function that gathers
one object of every rank (torch.distributed's, mpi4py's). Source: CUDA Runtime API, "Memory Management",
cudaIpcGetMemHandle.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from rdmakit.errors import BadArgument, HangError, NotAvailable, RdmakitError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.module import Kernel, stock_kernel
from rdmakit.gpu.pinned import pinned_report
from rdmakit.gpu.transfers import put, zero

__all__ = ["Allocation", "PeerLink", "Told", "links_in_one_process"]

_PATIENCE_S = 30.0  # for kernels whose own waits are bounded by 10 s
_STATIC_SHARED = 600  # what our kernels declare besides their dynamic shared memory, at most
# Just under what 18 links of NVLink 4 take both ways at once (benchmarks/probes/link.cu: 361 … 367 GB/s).
_PACE_GBS = {"90": 350.0}  # by compute capability
_DEVICE_TO_DEVICE = 3  # cudaMemcpyKind
_STACK = 0  # cudaLimitStackSize


Told = tuple[int, int, int, bytes, int]
"""Memory of a rank's: process, device, address there, CUDA's handle of its allocation, offset in that."""


class Allocation:
    """Zeroed memory of a GPU, given back when nobody has the object any more. Giving back waits for the GPU."""

    def __init__(self, device: int, nbytes: int) -> None:
        cp = cupy()
        with cp.cuda.Device(device):
            self.address = int(cp.cuda.runtime.malloc(max(nbytes, 1)))
        zero(device, self.address, max(nbytes, 1))
        weakref.finalize(self, _free, device, self.address).atexit = False


def _free(device: int, address: int) -> None:
    with suppress(Exception), cupy().cuda.Device(device):  # it may run when CUDA is at its end
        cupy().cuda.runtime.free(address)


class PeerLink:
    """One rank: its heap of `nbytes`, and every other's as this GPU reaches it.

    `gather(value)`: the list of all ranks' values, in rank order, the same on all; it is called twice, collectively.
    Without it the ranks are of one process, and whoever makes them lets them meet. NotAvailable when a rank's GPU
    cannot be reached from this one.
    """

    patience_s = _PATIENCE_S

    def __init__(
        self, rank: int, ranks: int, nbytes: int, gather: Callable[[Any], list[Any]] | None, *,
        device: int | None = None,
    ) -> None:  # fmt: skip
        cp = cupy()
        self.rank, self.ranks, self.heap_bytes = rank, ranks, nbytes
        self.device = int(cp.cuda.Device().id if device is None else device)
        self._kernels: dict[str, Kernel] = {}
        self._checked: set[str] = set()  # whose arguments have been looked at once
        self._owned: list[Allocation] = []
        self._opened: list[int] = []
        self._raised = False
        with cp.cuda.Device(self.device):
            attributes = cp.cuda.Device().attributes
            self.blocks = int(attributes["MultiProcessorCount"])
            self.shared_bytes = int(attributes["MaxSharedMemoryPerBlockOptin"]) - _STATIC_SHARED
            self.warps, self.threads, self.sharing, self.most_threads = 16, 512, 2, 1024
            self.pace_gbs = _PACE_GBS.get(cp.cuda.Device().compute_capability, 0.0) if ranks > 1 else 0.0
            heap, self.heap_owner = self.heap_memory(nbytes)
            self.report = pinned_report()
            self._host: list[Any] = []
        # A process' own memory needs no handle.
        self.told = self.tell(heap, None if gather is None else self.heap_owner)
        self.heaps = [heap]
        if gather is not None:
            self.meet(gather(self.told))
            gather(None)  # nobody writes before everybody has mapped

    def tell(self, address: int, owner: Any) -> Told:
        """What others need to map this memory of ours; without `owner` those of this process alone."""
        if owner is None:
            return os.getpid(), self.device, address, b"", 0
        with cupy().cuda.Device(self.device):  # CUDA's handle is of the whole allocation
            handle = cupy().cuda.runtime.ipcGetMemHandle(owner.address)
        return os.getpid(), self.device, address, handle, address - owner.address

    def meet(self, told: list[Told]) -> None:
        """Map the heaps of all ranks, of which each has `told`, by rank."""
        with cupy().cuda.Device(self.device):
            self.heaps = [said[2] if r == self.rank else self._reach(r, *said) for r, said in enumerate(told)]

    def _reach(self, rank: int, pid: int, device: int, address: int, handle: bytes, offset: int) -> int:
        cp = cupy()
        runtime = cp.cuda.runtime
        if pid == os.getpid():
            if device != self.device:
                if not runtime.deviceCanAccessPeer(self.device, device):
                    raise NotAvailable(
                        f"GPU {self.device} cannot reach GPU {device} of rank {rank}", value="no peer access",
                        rule="NVLink, or PCIe with peer access", remedy="nvidia-smi topo -m shows which can",
                    )  # fmt: skip
                try:
                    runtime.deviceEnablePeerAccess(device)
                except runtime.CUDARuntimeError as error:
                    if "AlreadyEnabled" not in str(error):
                        raise
            return address
        try:
            opened = int(runtime.ipcOpenMemHandle(handle))
        except runtime.CUDARuntimeError as error:
            raise NotAvailable(
                f"the memory of rank {rank} cannot be mapped", value=str(error),
                rule="CUDA IPC between processes of one host whose GPUs have peer access",
                remedy="start all ranks of this group on one host, each seeing its own GPU and its peers'",
            ) from None  # fmt: skip
        self._opened.append(opened)
        return opened + offset

    def memory(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory of this GPU, and its owner: it lives until `close`, and as long as somebody has that."""
        owner = Allocation(self.device, nbytes)
        self._owned.append(owner)
        return owner.address, owner

    def heap_memory(self, nbytes: int) -> tuple[int, Any]:
        """Likewise, for a heap: it lives as long as somebody has its owner."""
        owner = Allocation(self.device, nbytes)
        return owner.address, owner

    def host_memory(self, nbytes: int) -> np.ndarray[Any, Any]:
        """Zeroed page-locked memory."""
        array = Arena(nbytes + 64).array(nbytes, np.uint8, 64)
        self._host.append(array)
        return array

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy what the host has to this GPU; it is there on return."""
        put(self.device, address, array)

    def load(self, *kernels: str) -> None:
        """Compile and load kernels of cuda/kernels, so that none has to be while another waits for a peer's.

        Likewise local memory: a launch that needs more than the device has laid out waits until the device is idle.
        """
        runtime = cupy().cuda.runtime
        with cupy().cuda.Device(self.device):
            for name in kernels:
                if name in self._kernels:
                    continue
                found = self._kernels[name] = stock_kernel(name)
                # All alike, so that an SM need not divide its memory anew between two of them.
                found.raw.preferred_shared_memory_carveout = 100
            most = max(self._kernels[name].local_bytes for name in kernels)
            if most > runtime.deviceGetLimit(_STACK):
                runtime.deviceSetLimit(_STACK, most)

    def launch(
        self, kernel: str, grid: int, block: int, args: Sequence[Any], *, shared_mem: int = 0, stream: int = 0
    ) -> None:
        """Launch on `stream`; nothing is synchronised. `args`: structs by value."""
        if kernel not in self._checked:
            self.load(kernel)
            self._kernels[kernel].packed(args)  # checked once: whoever calls passes the same structs every time
            self._checked.add(kernel)
        found = self._kernels[kernel]
        if int(cupy().cuda.runtime.getDevice()) == self.device:
            found.launch(grid, block, tuple(args), shared_mem=shared_mem, stream=stream)
            return
        with cupy().cuda.Device(self.device):
            found.launch(grid, block, tuple(args), shared_mem=shared_mem, stream=stream)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queue a copy on this GPU."""
        cupy().cuda.runtime.memcpyAsync(to, source, nbytes, _DEVICE_TO_DEVICE, stream)

    def clear(self, address: int, nbytes: int, stream: int = 0) -> None:
        """Queue zeroing."""
        cupy().cuda.runtime.memsetAsync(address, 0, nbytes, stream)

    def settle(self, stream: int = 0) -> None:
        """Synchronise with that stream."""
        cupy().cuda.runtime.streamSynchronize(stream)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Poll, without a call of CUDA's, so that nothing is synchronised."""
        deadline = time.monotonic() + self.patience_s
        turns = 0
        while not done():
            turns += 1
            if turns % 1024:
                continue
            self.check()
            if time.monotonic() > deadline:
                raise HangError(f"{what} did not come", value=f"{self.patience_s:g} s", rule="all ranks take part",
                                remedy="look whether a rank has failed or left")  # fmt: skip

    def check(self, *, unless_told: bool = False) -> None:
        """Raise what has gone wrong so far; `unless_told`: if this has raised it already, don't."""
        if unless_told and self._raised:
            return
        try:
            self._look()
        except RdmakitError:
            self._raised = True
            raise

    def _look(self) -> None:
        if self.report:
            self.report.raise_for_status()

    def abort(self) -> None:
        """Make every kernel of this rank's that waits give up: its waits end with the status `aborted`."""
        self.report.array["state"] = 2
        self.report.array["status"] = 3

    def close(self) -> None:
        """Unmap other heaps, let go of our own memory. Every rank should be through with it: meet them first."""
        cp = cupy()
        runtime = cp.cuda.runtime
        with cp.cuda.Device(self.device):
            cp.cuda.Device().synchronize()
            for address in self._opened:
                runtime.ipcCloseMemHandle(address)
        self._opened, self._owned, self.heap_owner = [], [], None

    def __repr__(self) -> str:
        return f"<PeerLink rank {self.rank} of {self.ranks}: GPU {self.device}, {self.heap_bytes} B>"


def links_in_one_process(ranks: int, nbytes: int, *, gpus: int | None = None) -> list[PeerLink]:
    """A link for each of `ranks` ranks in this process, rank r on GPU r modulo the number of GPUs.

    Ranks that share a GPU wait for each other's kernels: give each a stream of its own, and few blocks.
    """
    count = int(cupy().cuda.runtime.getDeviceCount()) if gpus is None else gpus
    if ranks < 1:
        raise BadArgument("no ranks", value=ranks, rule="one at least", remedy="links_in_one_process(2, nbytes)")
    links = [PeerLink(rank, ranks, nbytes, None, device=rank % count) for rank in range(ranks)]
    for link in links:
        link.meet([other.told for other in links])
    return links
