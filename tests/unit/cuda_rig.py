"""A stand-in for CUDA's registration of the host's memory, which enforces CUDA's rules and remembers what is mapped."""

from __future__ import annotations

import numpy as np

from rdmakit.errors import NotAvailable

PAGE = 4096


def refused(word):
    return NotAvailable("cuMemHostRegister_v2 was refused", value=word, rule="CUDA", remedy="-")


class StandIn:
    """`offset`: what device pointers differ by; `no_io`, `no_memory`: kinds of pages that it refuses."""

    def __init__(self, offset=0, no_io="", no_memory=""):
        self.offset, self.no_io, self.no_memory = offset, no_io, no_memory
        self.mapped, self.io, self.calls = {}, set(), 0
        self.refuse_after = None  # so many more registrations succeed

    def register(self, address, nbytes, io):
        assert address % PAGE == 0 and nbytes > 0 and nbytes % PAGE == 0, "CUDA takes whole pages"
        self.calls += 1
        if self.refuse_after is not None:
            if self.refuse_after == 0:
                raise refused("CUDA_ERROR_OUT_OF_MEMORY")
            self.refuse_after -= 1
        if (io and self.no_io) or (not io and self.no_memory):
            raise refused(self.no_io if io else self.no_memory)
        for page in range(address, address + nbytes, PAGE):
            if page in self.mapped:
                raise refused("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED")
        for page in range(address, address + nbytes, PAGE):
            self.mapped[page] = address
            self.io |= {page} if io else set()

    def pointer(self, address):
        if address not in self.mapped:
            raise refused("CUDA_ERROR_INVALID_VALUE")
        return address + self.offset

    def unregister(self, address):
        pages = [page for page, begin in self.mapped.items() if begin == address]
        if not pages:
            raise refused("CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED")
        for page in pages:
            del self.mapped[page]
            self.io.discard(page)

    def covers(self, address, nbytes):
        """Whether kernels reach all of it."""
        first = address // PAGE * PAGE
        return all(page in self.mapped for page in range(first, address + nbytes, PAGE))


class NumPyArena:
    """`gpu.arena.Arena`, but for page-locking."""

    def __init__(self, nbytes, managed=False):
        self.owner = np.zeros(nbytes, np.uint8)
        self.begin, self.size, self.used = int(self.owner.ctypes.data), nbytes, 0

    def array(self, shape, dtype, alignment):
        kind = np.dtype(dtype)
        start = self.used + -(self.begin + self.used) % alignment
        self.used = start + int(np.prod(shape)) * kind.itemsize
        assert self.used <= self.size
        return self.owner[start : self.used].view(kind).reshape(shape)
