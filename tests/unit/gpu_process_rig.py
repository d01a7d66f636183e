"""What stands for CUDA in a rank's process (process_rig): Buffer takes the engine of GPUs, the CPU runner runs kernels.

CUDA's rules are enforced, as far as they are about memory: handles are of whole allocations and open in other processes
only, what is registered is registered once. Memory of "GPUs" is a file without a name, so that others can map it.
"""

from __future__ import annotations

import ctypes
import json
import os
from types import SimpleNamespace

import numpy as np

PATIENCE_S = 60.0
UUIDS = {"one": "the only GPU", "each": "GPU of rank "}


class Runtime:
    """CUDA's runtime, of one device."""

    CUDARuntimeError = RuntimeError

    def __init__(self):
        self.live, self.opened = {}, {}

    def malloc(self, nbytes):
        from rdmakit.emu.shared_memory import SharedMemory

        found = SharedMemory(nbytes, "GPU")
        address = int(found.array.ctypes.data)
        self.live[address] = found
        return address

    def free(self, address):
        del self.live[address]

    def export(self, address, nbytes):
        assert nbytes % 4096 == 0 and nbytes <= self.live[address].array.nbytes
        return os.dup(self.live[address].told["file"])

    def ipcGetMemHandle(self, address):
        return json.dumps(self.live[address].told).encode()

    def ipcOpenMemHandle(self, handle):
        from rdmakit.emu.shared_memory import map_shared

        told = json.loads(handle)
        assert told["pid"] != os.getpid(), "CUDA opens no handle of the process itself"
        found = map_shared(told, "GPU of another process")
        address = int(found.ctypes.data)
        self.opened[address] = found
        return address

    def ipcCloseMemHandle(self, address):
        del self.opened[address]

    def memsetAsync(self, address, value, nbytes, stream):
        ctypes.memset(address, value, nbytes)

    def memcpyAsync(self, to, source, nbytes, kind, stream):
        ctypes.memmove(to, source, nbytes)

    def streamSynchronize(self, stream):
        pass

    def getDevice(self):
        return 0

    def deviceGetLimit(self, limit):
        return 1 << 20


class Device:
    """`cupy.cuda.Device`."""

    def __init__(self, device=None):
        self.id, self.compute_capability = 0, "90"
        self.attributes = {"MultiProcessorCount": 24, "MaxSharedMemoryPerBlockOptin": 66_000}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass


class Stream:
    """`cupy.cuda.Stream`: what is queued has happened."""

    ptr = 1

    def __init__(self, non_blocking=False):
        assert non_blocking, "it would wait for kernels"

    def synchronize(self):
        pass


class Kernel:
    """A kernel that has run when `launch` returns."""

    local_bytes = 0

    def __init__(self, world, name):
        self.world, self.name, self.raw = world, name, SimpleNamespace()

    def packed(self, args):
        return tuple(args), []

    def launch(self, grid, block, packed, *, shared_mem=0, stream=None):
        self.world.stock_kernel(self.name)(grid, block, packed, shared_mem=shared_mem, rank=0)
        self.world.run()


def install(here, where, gpus="one", adds=False):
    """`where` heaps can lie: "gpu", "host", or "mixed": the last rank's NIC registers no memory of a GPU.

    `gpus`: "one" for all ranks, or one for "each"; `adds`: whether these add atomically to the host's memory.
    """
    from cuda_rig import NumPyArena, StandIn

    from rdmakit.device.report import REPORT, Report
    from rdmakit.emu.outside import OutsideWorld
    from rdmakit.ep import device_gpus
    from rdmakit.ep import engine as engines
    from rdmakit.errors import NotAvailable
    from rdmakit.gpu import device_link, device_queues, host_pages, peer, probe, queue_memory, shared_heaps, transfers

    def no_dmabuf(address, nbytes):
        raise NotAvailable("the driver exports no dma-buf", value=0, rule="-", remedy="-")

    runtime, cuda, world = Runtime(), StandIn(), OutsideWorld(1, patience_s=PATIENCE_S)
    pages = host_pages.HostPages(cuda)
    page = NumPyArena(1 << 17).array(1 << 16, np.uint8, 1 << 16)
    here.cuda, here.runtime, here.page = cuda, runtime, page
    found = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream))
    for module in (peer, device_link, queue_memory, transfers):
        module.cupy = lambda: found
    peer.Arena = device_link.Arena = NumPyArena
    queue_memory.GPU_PAGE = 4096  # that of a file, whose descriptor is the dma-buf
    queue_memory.dmabuf_of = runtime.export if where == "gpu" else no_dmabuf
    peer.pinned_report = lambda: Report(NumPyArena(REPORT.itemsize + 8).array(REPORT.itemsize, np.uint8, 8))
    peer.stock_kernel = lambda name: Kernel(world, name)
    device_queues.Arena, device_queues.host_pages = NumPyArena, lambda: pages
    shared_heaps.DriverRegistrar = lambda: cuda

    refuses = where == "host" or (where == "mixed" and here.rank == here.ranks - 1)
    # A NIC registers what the kernel can pin: nothing that is mapped nowhere (vm.mmap_min_addr).
    address = 0x1000 if refuses else int(page.ctypes.data)
    device_gpus.GpuMemory = lambda: SimpleNamespace(address=address, nbytes=1 << 16)
    device_gpus.dmabuf_of = no_dmabuf
    device_gpus.current_gpu = lambda: probe.Gpu(UUIDS[gpus] + str(here.rank) * (gpus == "each"), adds)
    engines.kernels_on_cpu = lambda: False  # but tensors are the CPU's


def engine_of(here):
    """What this rank's link is, and how many heaps of others it has mapped, by CUDA IPC and as registered memory."""
    link = here.buffer.runtime.link
    mine = [rank for rank, heap in enumerate(link.heaps) if heap]
    registered = sum(begin in link.heaps for begin in set(here.cuda.mapped.values()))
    return type(link).__name__, link.in_host_memory, mine, len(here.runtime.opened), registered


def places(here):
    """What this rank's devices say of their queues."""
    return [path.context.device.where for path in here.buffer.runtime.paths]


def what_cuda_has(here):
    """Allocations, mappings of others' memory, registered pages."""
    import gc

    here.buffer = None
    gc.collect()
    return len(here.runtime.live), len(here.runtime.opened), len(here.cuda.mapped)


def touch(here, seed):
    """Each rank of a host writes to the others' heaps and finds there what they wrote: the addresses are theirs."""
    link, rendezvous = here.buffer.runtime.link, here.buffer._rendezvous
    at = link.heap_bytes - 8 * link.ranks
    for rank, heap in enumerate(link.heaps):
        if heap:
            ctypes.c_uint64.from_address(heap + at + 8 * here.rank).value = seed + 100 * here.rank + rank
    rendezvous.barrier()
    words = [ctypes.c_uint64.from_address(link.heaps[here.rank] + at + 8 * rank).value for rank in range(link.ranks)]
    rendezvous.barrier()
    for rank, heap in enumerate(link.heaps):
        if heap:
            assert words[rank] == seed + 100 * rank + here.rank, (rank, words)


def wait_for_what_does_not_come(here, late):
    """Ranks of the host of `late` wait for a flag; `late` has less patience. What each is told."""
    from rdmakit.errors import RdmakitError

    link = here.buffer.runtime.link
    if late not in link.local:
        return None
    link.patience_s = 0.5 if here.rank == late else 20.0
    try:
        link.wait(lambda: False, "a flag")
    except RdmakitError as error:
        return type(error).__name__, str(error)
    raise AssertionError("nothing came, and nobody said so")


def call_after_a_failure(here, late):
    """A kernel of `late` gives up, which its next call raises; ranks of its host wait for a flag. What each is told."""
    from rdmakit.errors import RdmakitError

    link = here.buffer.runtime.link
    if late not in link.local:
        return None
    try:
        if here.rank == late:
            link.abort()
            here.buffer.get_local_buffer_tensor(here.buffer._backend.kinds.int32)
        else:
            link.patience_s = 20.0
            link.wait(lambda: False, "a flag")
    except RdmakitError as error:
        return type(error).__name__, str(error)
    raise AssertionError("a failure was not raised")
