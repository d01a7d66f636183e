"""What the benchmarks of primitives run on: memory near and far, kernels on one GPU or two, a host that answers.

Leans on bare, arena, pinned, module. A `Machine` says what there is; `GpuMachine` is the first two GPUs of this host,
tests bring one over the CPU runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rdmakit.device.report import Report
from rdmakit.errors import HangError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.bare import GpuPlatform, Memory
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.module import stock_kernel
from rdmakit.gpu.pinned import pinned_report

__all__ = ["PLACES", "Call", "GpuMachine", "Machine", "Region"]

Array = np.ndarray[Any, Any]
PLACES = "local", "peer", "pinned"  # of the first GPU, of the second, page-locked of the host
_PATIENCE_S = 30.0


class Region(Protocol):
    """Zeroed memory that every kernel of the machine reaches at `address`."""

    address: int
    nbytes: int

    def write(self, values: Array) -> None:
        """Bytes from the beginning on."""

    def read(self, dtype: Any, count: int) -> Array:
        """A copy of what lies at its beginning."""

    def fill(self, byte: int) -> None: ...


@dataclass(frozen=True)
class Call:
    """One launch, on GPU `gpu` (0 or 1). `args`: numbers, addresses, structs by value."""

    kernel: str
    grid: int
    block: int
    args: tuple[Any, ...]
    gpu: int = 0
    shared_mem: int = 0


class Machine(Protocol):
    """GPUs, and what can be asked of them."""

    processors: int
    device: str
    missing: dict[str, str]  # place → why there is none

    def region(self, where: str, nbytes: int) -> Region: ...
    def memory(self, nbytes: int) -> Memory:
        """As bare.Platform has it."""

    def report(self) -> Report: ...
    def run(self, calls: Sequence[Call], host: Callable[[], None] | None = None) -> list[float]:
        """Launch them together and wait for all; seconds of each. `host` is called while they run."""

    def answer(self, call: Call, mine: Region, theirs: Region, rounds: int) -> None:
        """Run `call`, and let a thread of the host play the other end of flag_ping.cu: both regions are pinned."""

    def same(self, one: Region, other: Region, nbytes: int) -> bool:
        """Whether the first `nbytes` bytes are equal."""


class _GpuRegion:
    def __init__(self, gpu: int, nbytes: int) -> None:
        cp = cupy()
        self.gpu, self.nbytes = gpu, nbytes
        with cp.cuda.Device(gpu):
            self._array = cp.zeros(nbytes, np.uint8)
            cp.cuda.Device().synchronize()
        self.address = int(self._array.data.ptr)

    def write(self, values: Array) -> None:
        with cupy().cuda.Device(self.gpu):
            flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
            self._array[: flat.nbytes].set(flat)

    def read(self, dtype: Any, count: int) -> Array:
        with cupy().cuda.Device(self.gpu):
            found: Array = self._array[: count * np.dtype(dtype).itemsize].get()
            values: Array = found.view(dtype)
            return values

    def fill(self, byte: int) -> None:
        with cupy().cuda.Device(self.gpu):
            self._array.fill(byte)
            cupy().cuda.Device().synchronize()


class _PinnedRegion:
    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.array = Arena(nbytes + 128).array(nbytes, np.uint8, 128)
        self.address = int(self.array.ctypes.data)

    def write(self, values: Array) -> None:
        flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.array[: flat.nbytes] = flat

    def read(self, dtype: Any, count: int) -> Array:
        found: Array = self.array[: count * np.dtype(dtype).itemsize].view(dtype).copy()
        return found

    def fill(self, byte: int) -> None:
        self.array[:] = byte


class GpuMachine:
    """The first GPU, and the second where the two reach each other."""

    def __init__(self) -> None:
        self._platform = GpuPlatform()
        self.processors = self._platform.processors
        cp = cupy()
        runtime = cp.cuda.runtime
        self.missing: dict[str, str] = {}
        self.device = runtime.getDeviceProperties(0)["name"].decode()
        count = int(runtime.getDeviceCount())
        if count < 2:
            self.missing["peer"] = "one GPU: nothing is measured between two"
        elif not (runtime.deviceCanAccessPeer(0, 1) and runtime.deviceCanAccessPeer(1, 0)):
            self.missing["peer"] = "GPUs 0 and 1 have no peer access to each other (nvidia-smi topo -m)"
        else:
            self.device = f"2 x {self.device}"
            for here, there in ((0, 1), (1, 0)):
                with cp.cuda.Device(here):
                    try:
                        runtime.deviceEnablePeerAccess(there)
                    except runtime.CUDARuntimeError as error:
                        if "AlreadyEnabled" not in str(error):
                            raise
        self._streams: dict[int, Any] = {}

    def region(self, where: str, nbytes: int) -> Region:
        """Memory of a place that is not missing."""
        return _PinnedRegion(nbytes) if where == "pinned" else _GpuRegion(int(where == "peer"), nbytes)

    def report(self) -> Report:
        """One that the host reads at any time."""
        return pinned_report()

    def memory(self, nbytes: int) -> Memory:
        """One allocation on the first GPU."""
        return self._platform.memory(nbytes)

    def run(self, calls: Sequence[Call], host: Callable[[], None] | None = None) -> list[float]:
        """Timed by events of each GPU's."""
        cp = cupy()
        kernels = []
        for call in calls:  # all loaded before the first runs: loading may wait for the device
            with cp.cuda.Device(call.gpu):
                kernel = stock_kernel(call.kernel)
                packed, _ = kernel.packed(call.args)
                if call.gpu not in self._streams:
                    self._streams[call.gpu] = cp.cuda.Stream(non_blocking=True)
                kernels.append((kernel, packed, self._streams[call.gpu], cp.cuda.Event(), cp.cuda.Event()))
                cp.cuda.Device().synchronize()
        for call, (kernel, packed, stream, begin, end) in zip(calls, kernels, strict=True):
            with cp.cuda.Device(call.gpu):
                begin.record(stream)
                kernel.launch(call.grid, call.block, packed, shared_mem=call.shared_mem, stream=stream)
                end.record(stream)
        if host is not None:
            host()
        seconds = []
        for call, (_, _, _, begin, end) in zip(calls, kernels, strict=True):
            with cp.cuda.Device(call.gpu):
                end.synchronize()
                seconds.append(float(cp.cuda.get_elapsed_time(begin, end)) / 1e3)
        return seconds

    def answer(self, call: Call, mine: Region, theirs: Region, rounds: int) -> None:
        """The host's end, in Python: a turn of its loop takes some 50 ns, which is in the result."""
        assert isinstance(mine, _PinnedRegion) and isinstance(theirs, _PinnedRegion)
        heard, told = (region.array[:8].view(np.uint64).data for region in (mine, theirs))

        def host() -> None:
            turns = range(1 << 16)
            deadline = time.monotonic() + _PATIENCE_S
            for number in range(1, rounds + 1):
                while True:
                    for _ in turns:
                        if heard[0] >= number:
                            break
                    else:
                        if time.monotonic() > deadline:
                            raise HangError("the GPU's flag did not come", value=f"round {number}",
                                            rule=f"{_PATIENCE_S:g} s for {rounds} rounds",
                                            remedy="see whether its kernel ran")  # fmt: skip
                        continue
                    break
                told[0] = number

        self.run([call], host)

    def same(self, one: Region, other: Region, nbytes: int) -> bool:
        """Compared on the first GPU."""
        cp = cupy()
        with cp.cuda.Device(0):
            a, b = cp.empty(nbytes, np.uint8), cp.empty(nbytes, np.uint8)
            for copy, region in ((a, one), (b, other)):
                cp.cuda.runtime.memcpy(int(copy.data.ptr), region.address, nbytes, 4)  # cudaMemcpyDefault
            return bool(cp.array_equal(a, b))
