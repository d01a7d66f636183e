"""Kernels of the GPU on queue pairs of RDMA devices: as much of gpu.World as the rigs of tests/any ask for."""

from __future__ import annotations

import time

import numpy as np

from rdmakit.errors import HangError
from rdmakit.gpu import stock_kernel
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy

PATIENCE_S = 60.0  # for kernels whose own waits are bounded by 10 s


class Queued:
    """A kernel that `run` launches."""

    def __init__(self, world, kernel):
        self.world, self.kernel = world, kernel

    def __call__(self, grid, block, args=(), *, shared_mem=0, rank=0, stream=0):
        packed, keep = self.kernel.packed(args, self.world.arena.pointer)
        self.world.queued.append((self.kernel, grid, block, packed, shared_mem, (rank, stream), keep))


class DeviceWorld:
    """`contexts[host]` are opened devices that the GPU reaches; arrays are page-locked memory of the host."""

    def __init__(self, contexts, memory=256 << 20):
        self.contexts, self.arena = contexts, Arena(memory)
        self.queued, self._streams = [], {}

    def open(self, host):
        return self.contexts[host]

    def array(self, shape, dtype=np.uint8, fill=0, name=None):
        made = self.arena.array(shape, dtype, 128)
        if fill:
            made[...] = fill
        return made

    def stock_kernel(self, name):
        return Queued(self, stock_kernel(name))

    def run(self):
        """Launches of one rank and stream in order, all others at the same time; returns when all have ended."""
        cp = cupy()
        queued, self.queued = self.queued, []
        waits = []
        for kernel, grid, block, packed, shared_mem, place, keep in queued:
            stream = self._streams.setdefault(place, cp.cuda.Stream(non_blocking=True))
            kernel.launch(grid, block, packed, shared_mem=shared_mem, stream=stream)
            end = cp.cuda.Event()
            end.record(stream)
            waits.append((kernel.name, end, keep))
        deadline = time.monotonic() + PATIENCE_S
        while waits := [wait for wait in waits if not wait[1].done]:
            time.sleep(1e-4)
            if time.monotonic() > deadline:
                raise HangError("kernels have not ended", value=", ".join(name for name, _, _ in waits),
                                rule=f"waits are bounded: {PATIENCE_S:g} s are enough", remedy="see the reports",
                                )  # fmt: skip
