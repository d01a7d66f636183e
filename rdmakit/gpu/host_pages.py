"""Pages of the host's memory that GPUs reach: each registered with CUDA once, however many queues lie on it.

Leans on driver. Rings, records and registers are other libraries' memory, which CUDA takes page by page and takes only
once. A page is given back when nobody holds it any more, before whoever owns it unmaps it: CUDA would go on to reach
what was there.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass, field
from typing import Protocol

from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.gpu.driver import DriverRegistrar

__all__ = ["PAGE", "Hold", "HostPages", "Registrar", "host_pages"]

PAGE = 4096


class Registrar(Protocol):
    """What CUDA is asked. Each raises NotAvailable, with CUDA's own word as its value."""

    def register(self, address: int, nbytes: int, io: bool) -> None:
        """Map whole pages for all GPUs; `io`: they are another device's registers."""

    def pointer(self, address: int) -> int:
        """Where kernels reach it."""

    def unregister(self, address: int) -> None:
        """Of what `register` was given."""


@dataclass
class _Page:
    pointer: int
    holders: int = 0


@dataclass(eq=False)
class Hold:
    """Pages that stay registered until `HostPages.release`; `pointer` is where kernels reach the first byte."""

    address: int
    nbytes: int
    pointer: int
    pages: range = field(repr=False)
    released: bool = False


class HostPages:
    """Which pages are registered, and how many holders each has."""

    def __init__(self, registrar: Registrar | None = None) -> None:
        self._cuda: Registrar = DriverRegistrar() if registrar is None else registrar
        self._pages: dict[int, _Page] = {}  # by address / PAGE
        self._lock = threading.RLock()  # a finalizer of one thread may release while another holds

    def __len__(self) -> int:
        """Pages that are registered now."""
        return len(self._pages)

    def hold(self, address: int, nbytes: int, *, io: bool = False) -> Hold:
        """Register what is not yet registered of the pages of `nbytes` bytes at `address`; hold all of them.

        NotAvailable, and nothing has changed, when CUDA refuses, or has no one range of addresses for them.
        """
        if nbytes <= 0 or address <= 0:
            raise BadArgument("no memory", value=f"{nbytes} bytes at {address:#x}", rule="one byte at least",
                              remedy="give the queue's own address and size")  # fmt: skip
        pages = range(address // PAGE, (address + nbytes - 1) // PAGE + 1)
        with self._lock:
            made: list[int] = []
            try:
                for number in pages:
                    if number not in self._pages:
                        self._cuda.register(number * PAGE, PAGE, io)
                        made.append(number)
                        self._pages[number] = _Page(self._cuda.pointer(number * PAGE))
                first = self._pages[pages[0]].pointer
                for number in pages:
                    if self._pages[number].pointer != first + (number - pages[0]) * PAGE:
                        raise NotAvailable(
                            "CUDA scatters registered memory", value=f"page {number * PAGE:#x}",
                            rule="kernels see one range of addresses (cudaDevAttrCanUseHostPointerForRegisteredMem)",
                            remedy="queues=proxied: its queues are memory of CUDA's own",
                        )  # fmt: skip
            except Exception:
                for number in reversed(made):
                    self._pages.pop(number, None)
                    self._cuda.unregister(number * PAGE)
                raise
            for number in pages:
                self._pages[number].holders += 1
            return Hold(address, nbytes, first + address % PAGE, pages)

    def release(self, hold: Hold) -> None:
        """Let go; what nobody else holds is given back. Kernels that use it must have ended. May be repeated."""
        with self._lock:
            if hold.released:
                return
            hold.released = True
            for number in hold.pages:
                page = self._pages[number]
                page.holders -= 1
                if page.holders == 0:
                    del self._pages[number]
                    self._cuda.unregister(number * PAGE)


@functools.cache
def host_pages() -> HostPages:
    """Those of this process: CUDA takes a page once, whichever device's queues lie there."""
    return HostPages()
