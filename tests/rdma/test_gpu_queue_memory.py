"""Queues made by command whose rings lie in a GPU's memory: the NIC is told by a dma-buf, the host touches none of it.

What stands for CUDA gives memory that the host cannot touch (mapped without any permission), or, where kernels of the
CPU runner have to reach it, memory that it can. A file's descriptor is the dma-buf; the emulated NIC maps that.
"""

import ctypes
import gc
import mmap
import os
from types import SimpleNamespace

import numpy as np
import pytest
from test_gpu_reach import Gpu, places, put

from rdmakit.connect.broken import first_error
from rdmakit.device import connected_pair
from rdmakit.ep import gpu_queues
from rdmakit.errors import NotAvailable
from rdmakit.gpu import device_queues as reaching
from rdmakit.gpu import peer, queue_memory, transfers
from rdmakit.gpu.queue_memory import GpuQueueMemory
from rdmakit.layout import CQE_INITIAL_OP_OWN
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_memory import HostQueueMemory, QueuePlacement

pytestmark = pytest.mark.skipif("SYSFS_PATH" not in os.environ, reason="a ConnectX takes dma-bufs of drivers, no file")
GPU_PAGE = 1 << 16
FIXED = 0x10  # MAP_FIXED (mmap.h)

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Memory:
    """A GPU's: at its address with permission `protection`; `bytes` is another mapping of it."""

    def __init__(self, nbytes, protection):
        size = -(-nbytes // GPU_PAGE) * GPU_PAGE
        self.file = os.memfd_create("a GPU")
        os.ftruncate(self.file, size)
        self.bytes = np.frombuffer(mmap.mmap(self.file, size), np.uint8)
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.reserved = libc.mmap(None, size + GPU_PAGE, 0, anonymous, -1, 0), size + GPU_PAGE
        self.address = -(-self.reserved[0] // GPU_PAGE) * GPU_PAGE
        found = libc.mmap(self.address, size, protection, mmap.MAP_SHARED | FIXED, self.file, 0)
        assert found == self.address, os.strerror(ctypes.get_errno())

    def free(self):
        libc.munmap(*self.reserved)
        os.close(self.file)


class Cuda:
    """Its runtime, as far as memory goes."""

    def __init__(self, protection):
        self.protection, self.live, self.exported = protection, {}, 0

    def malloc(self, nbytes):
        made = Memory(nbytes, self.protection)
        self.live[made.address] = made
        return made.address

    def free(self, address):
        self.live.pop(address).free()

    def of(self, address, nbytes):
        for begin, memory in self.live.items():
            if begin <= address and address + nbytes <= begin + memory.bytes.nbytes:
                return memory, address - begin
        raise AssertionError(f"no memory of the GPU at {address:#x}")

    def memsetAsync(self, address, value, nbytes, stream):
        memory, at = self.of(address, nbytes)
        memory.bytes[at : at + nbytes] = value

    def memcpyAsync(self, to, source, nbytes, kind, stream):
        memory, at = self.of(to, nbytes)
        ctypes.memmove(memory.bytes.ctypes.data + at, source, nbytes)

    def dmabuf_of(self, address, nbytes):
        assert address % GPU_PAGE == 0 and nbytes % GPU_PAGE == 0, "whole pages of the GPU's"
        memory, at = self.of(address, nbytes)
        assert at == 0
        self.exported += 1
        return os.dup(memory.file)


class Device:
    def __init__(self, device=0):
        self.id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def cuda(monkeypatch):
    """`cuda(protection)`, which stands for CUDA from then on; and `.host`, for registration of the host's memory."""

    def made(protection):
        runtime = Cuda(protection)
        found = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=Device))
        for module in (peer, queue_memory, transfers):
            monkeypatch.setattr(module, "cupy", lambda: found)
        monkeypatch.setattr(transfers, "_stream", lambda device: SimpleNamespace(ptr=0, synchronize=lambda: None))
        monkeypatch.setattr(queue_memory, "dmabuf_of", runtime.dmabuf_of)
        runtime.host = Gpu(monkeypatch)
        return runtime

    return made


def opened(devices, completions=HostQueueMemory):
    memory = GpuQueueMemory()
    placement = QueuePlacement(memory, completions=completions and completions())
    contexts = [open_devx(device, placement) for device in devices]
    for context in contexts:
        reaching.reach(context)
    return memory, contexts


def close(contexts):
    for context in contexts:
        with context:
            pass


@pytest.mark.parametrize("completions", [HostQueueMemory, None], ids=["completions in host memory", "all"])
def test_the_host_touches_none_of_it(cuda, devices, spelled, completions):
    """Made, connected, asked, looked at for errors, reached by kernels, closed: memory without permissions."""
    spelled(devices[0], "devx")
    there = cuda(0)
    memory, contexts = opened(devices, completions)
    near, far = connected_pair(*contexts, sq_wqebbs=64)
    handle = near.device_handle()
    assert near.query()["state"] == 3 and "memory of the GPU" in contexts[0].device.where
    theirs, _ = places(handle)
    on_gpu = {"sq", "dbrec", *(() if completions else ("entries", "cq dbrec"))}
    for name, (address, nbytes) in theirs.items():
        assert memory.holds(int(address)) == (name in on_gpu), name
        assert (name in on_gpu) != there.host.reached(int(address), nbytes), name
    if completions:
        assert first_error(near) is None
    else:
        nbytes = near.send_cq.entries * 64
        written, at = there.of(int(handle["cq"]["entries"]), nbytes)
        assert (written.bytes[at + 63 : at + nbytes : 64] == CQE_INITIAL_OP_OWN).all(), "entries are the NIC's at first"
    assert there.exported == 1, "queues share a chunk"
    del handle
    close(contexts)
    del near, far, contexts, memory
    gc.collect()
    assert not there.live and not there.host.cuda.mapped


@pytest.mark.parametrize("completions", [HostQueueMemory, None], ids=["completions in host memory", "all"])
def test_kernels_put_through_rings_of_the_gpu(cuda, devices, spelled, seed, completions):
    spelled(devices[0], "devx")
    cuda(mmap.PROT_READ | mmap.PROT_WRITE)
    _, contexts = opened(devices, completions)
    put(contexts, seed)
    close(contexts)


def test_more_than_a_chunk(cuda):
    there = cuda(0)
    memory = GpuQueueMemory()
    regions = [memory.allocate(nbytes, "ring") for nbytes in (1, 4096, 3 << 20, 5000)]
    assert [region.bytes.nbytes for region in regions] == [4096, 4096, 3 << 20, 8192]
    begins = [int(region.bytes.ctypes.data) for region in regions]
    assert all(memory.holds(begin) and begin % 4096 == 0 for begin in begins) and len(there.live) == 3
    for region in regions:
        data = np.random.default_rng().integers(0, 256, 100, np.uint8)
        region.write(7, data)
        found, at = there.of(int(region.bytes.ctypes.data), 4096)
        assert np.array_equal(found.bytes[at + 7 : at + 107], data)
        assert os.fstat(region.dmabuf[0]).st_ino == os.fstat(found.file).st_ino and region.dmabuf[1] == at
    assert not memory.holds(min(begins) - 1)
    kept = regions[2].bytes[:10]
    del regions, region, memory
    gc.collect()
    assert len(there.live) == 1 and kept.nbytes == 10, "an array keeps its memory"


# ---- which way is taken
def test_the_gpus_memory_where_the_device_takes_it(cuda, devices, spelled, seed):
    spelled(devices[0], "devx")
    cuda(mmap.PROT_READ | mmap.PROT_WRITE)
    contexts, said = zip(*(gpu_queues.open_for_gpus(f"{name}:queues=devx") for name in devices), strict=True)
    assert "made by command, rings in memory of the GPU, completions in host memory, mapped as memory" in said[0]
    put(contexts, seed)
    close(contexts)


def no_mapping(address, nbytes):
    """A descriptor that nobody maps, as a GPU's dma-buf is to the emulated NIC."""
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def no_export(address, nbytes):
    raise NotAvailable("the driver exports no dma-buf", value=0, rule="-", remedy="-")


@pytest.mark.parametrize(("exports", "text"), [(no_mapping, "umem"), (no_export, "exports no dma-buf")])
def test_else_the_hosts_memory_with_the_reason(cuda, devices, spelled, monkeypatch, seed, exports, text):
    spelled(devices[0], "devx")
    there = cuda(0)
    monkeypatch.setattr(queue_memory, "dmabuf_of", exports)
    contexts, said = zip(*(gpu_queues.open_for_gpus(f"{name}:queues=devx") for name in devices), strict=True)
    assert all("made by command, in host memory, for the GPU's was refused: " in words for words in said), said
    assert all(text in words for words in said), said
    gc.collect()
    assert not there.live and contexts[0].device.where == "devx queues in host memory"
    put(contexts, seed)
    close(contexts)
