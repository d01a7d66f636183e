"""How kernels of GPUs reach the queues of an RDMA device: `reach(context)`, and every handle has the GPU's addresses.

Leans on host_pages, arena and device. What the device reads or writes is registered with CUDA page by page: libmlx5's
rings and doorbell records as memory, its UAR page as registers. What rdmakit allocates for queues is CUDA's own
page-locked memory from then on. Of a queue in GPU memory (queue_memory) only the register is mapped.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdmakit.device import Context
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.host_pages import PAGE, Hold, HostPages, host_pages
from rdmakit.gpu.queue_memory import GpuQueueMemory

__all__ = ["GpuReach", "reach"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_CHUNK = 1 << 20
_ALIGNMENT = 128
_REMEDY = (
    "options nvidia NVreg_RegistryDwords=\"PeerMappingOverride=1;\" in /etc/modprobe.d, then reload the driver; "
    "root or CAP_SYS_ADMIN where IoMemory is refused; until then queues=proxied"
)  # fmt: skip


class GpuReach:
    """One opened device as kernels reach it. `of_the_gpu`: memory in which they reach its queues as these are.

    `registers` says how its doorbell registers were mapped: "IoMemory", "memory" for those of an emulated NIC, ""
    before the first.
    """

    def __init__(
        self, pages: HostPages | None = None, maps: Path = Path("/proc/self/maps"),
        of_the_gpu: Sequence[GpuQueueMemory] = (),
    ) -> None:  # fmt: skip
        self._pages = host_pages() if pages is None else pages
        self._of_the_gpu = tuple(of_the_gpu)
        self._maps = maps
        self._chunk: Arena | None = None
        self._chunks: list[tuple[int, int, weakref.ref[Any]]] = []
        self._held: dict[int, Hold] = {}  # by id of the array that has its memory
        self._registers: dict[int, Hold] = {}  # by page
        self.registers = ""

    def memory(self, nbytes: int, label: str) -> Bytes:
        """Zeroed page-locked bytes, 128-byte aligned, at one address for host and GPUs."""
        chunk = self._chunk
        if chunk is None or chunk.used + nbytes + _ALIGNMENT > chunk.size:
            chunk = self._chunk = Arena(max(_CHUNK, nbytes + _ALIGNMENT))
            self._chunks = [known for known in self._chunks if known[2]() is not None]
            self._chunks.append((chunk.begin, chunk.size, weakref.ref(chunk.owner)))
        found: Bytes = chunk.array(nbytes, np.uint8, _ALIGNMENT)
        return found

    def map(self, memory: np.ndarray[Any, Any]) -> int:
        """Where kernels reach an array; its pages stay registered as long as that array object lives."""
        address = int(memory.ctypes.data)
        if any(begin <= address < begin + size and owner() is not None for begin, size, owner in self._chunks):
            return address
        if any(known.holds(address) for known in self._of_the_gpu):
            return address
        key = id(memory)
        if key not in self._held:
            hold = self._held[key] = self._pages.hold(address, memory.nbytes)
            weakref.finalize(memory, self._let_go, key, hold).atexit = False
        return self._held[key].pointer

    def register(self, doorbell: int) -> int:
        """Where kernels reach a doorbell register; its page stays mapped until `close`.

        NotAvailable, with what CUDA said, where it maps it neither as registers nor as memory.
        """
        page = doorbell // PAGE
        if page not in self._registers:
            self._registers[page] = self._map_register(page * PAGE)
        return self._registers[page].pointer + doorbell % PAGE

    def _map_register(self, address: int) -> Hold:
        # Memory is no IoMemory, nor the other way round; an emulated NIC's page is memory of this process.
        ways = (True, False) if _is_of_a_device(address, self._maps) else (False, True)
        refused = {}
        for io in ways:
            try:
                hold = self._pages.hold(address, PAGE, io=io)
            except NotAvailable as error:
                refused["IoMemory" if io else "memory"] = f"{error.what}: {error.value}"
                continue
            self.registers = "IoMemory" if io else "memory"
            return hold
        said = "; ".join(f"as {way}, {why}" for way, why in refused.items())
        raise NotAvailable(
            "CUDA does not map the doorbell register", value=said,
            rule="kernels ring registers that CUDA maps (cuMemHostRegister)", remedy=_REMEDY,
        )  # fmt: skip

    def _let_go(self, key: int, hold: Hold) -> None:
        self._held.pop(key, None)
        self._pages.release(hold)

    def close(self) -> None:
        """Unmap the registers. No kernel may be under way that rings one. May be repeated."""
        while self._registers:
            self._pages.release(self._registers.popitem()[1])


def _is_of_a_device(address: int, maps: Path) -> bool:
    """Whether a file of /dev is mapped there (man 5 proc, maps)."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return True
    for line in lines:
        begin, _, end = line.split(maxsplit=1)[0].partition("-")
        if int(begin, 16) <= address < int(end, 16):
            return "/dev/" in line
    return True


def reach(context: Context, pages: HostPages | None = None) -> GpuReach:
    """From now on `device_handle()` of this device's queue pairs and CQs has addresses of GPUs.

    `context`: an opened RDMA device; BadArgument for one of an emulated world, which `gpu.World` serves. NotAvailable
    without CuPy and a GPU. Whether the doorbell can be mapped is tried with the first handle.
    """
    provider: Any = context._provider
    if not hasattr(provider, "reach_by"):
        raise BadArgument("an emulated world's device", value=context.device.spec,
                          rule="a device of libibverbs's", remedy="gpu.World lets GPUs ring emulated HCAs")  # fmt: skip
    placement = getattr(provider, "placement", None)
    parts = [getattr(placement, part, None) for part in ("rings", "completions", "records")]
    found = GpuReach(pages, of_the_gpu=[part for part in parts if isinstance(part, GpuQueueMemory)])
    provider.reach_by(found)
    return found
