"""A GPU's memory in `PeerLink`, with CUDA's calls counted: mapped once, freed when nobody has it; and filled in on a
GPU that copies and zeroes as late as CUDA's documents let it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from types import SimpleNamespace

import numpy as np
import pytest

from rdmakit.device import Report
from rdmakit.ep.nvl_memory import Control
from rdmakit.ep.nvlink import Nvlink
from rdmakit.errors import DeviceFault
from rdmakit.gpu import peer, queue_memory, transfers


class Runtime:
    """Enough of CUDA's runtime to make links, and what it was asked for. A GPU's memory is the host's, poisoned."""

    def __init__(self, gpus):
        self.gpus, self.here = gpus, 0
        self.live, self.calls = {}, []
        self._memory, self._queued, self._streams = {}, {}, itertools.count(1)

    def malloc(self, nbytes):
        memory = np.full(nbytes, 0xEE, np.uint8)
        at = int(memory.ctypes.data)
        self.live[at], self._memory[at] = self.here, memory
        return at

    def free(self, at):
        assert self.live.pop(at) == self.here, "freed on another device"
        self.calls.append(("free", at))

    def memset(self, at, value, nbytes):
        self.memsetAsync(at, value, nbytes, 0)

    def memsetAsync(self, at, value, nbytes, stream):
        self._queued.setdefault(stream, []).append((at, bytes([value]) * nbytes))

    def memcpy(self, at, source, nbytes, kind):
        self.memcpyAsync(at, source, nbytes, kind, 0)

    def memcpyAsync(self, at, source, nbytes, kind, stream):
        self._queued.setdefault(stream, []).append((at, ctypes.string_at(source, nbytes)))  # staged at once

    def stream(self, non_blocking):
        assert non_blocking, "it would wait for the legacy stream, and so for kernels"
        number = next(self._streams)
        return SimpleNamespace(ptr=number, synchronize=lambda: self._do(number))

    def _do(self, stream):
        for at, data in self._queued.pop(stream, []):
            ctypes.memmove(at, data, len(data))

    def getDevice(self):
        return self.here

    def getDeviceCount(self):
        return self.gpus

    def deviceCanAccessPeer(self, device, other):
        return True

    def deviceEnablePeerAccess(self, other):
        self.calls.append(("enable", self.here, other))

    def ipcGetMemHandle(self, at):
        return b"handle of %x" % at

    def ipcOpenMemHandle(self, handle):
        self.calls.append(("open", handle))
        return 0xABC000

    def ipcCloseMemHandle(self, at):
        self.calls.append(("close", at))


@pytest.fixture
def runtime(monkeypatch):
    found = Runtime(gpus=3)

    class Device:
        def __init__(self, device=None):
            self.attributes = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
            self.compute_capability = "90"
            self.id = found.here if device is None else device

        def __enter__(self):
            self.before, found.here = found.here, self.id

        def __exit__(self, *_):
            found.here = self.before

        def synchronize(self):
            pass

    cuda = SimpleNamespace(runtime=found, Device=Device, Stream=found.stream)
    for module in (peer, queue_memory, transfers):
        monkeypatch.setattr(module, "cupy", lambda: SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(transfers, "_stream", functools.cache(transfers._stream.__wrapped__))
    monkeypatch.setattr(queue_memory, "dmabuf_of", lambda address, nbytes: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(peer, "pinned_report", Report)
    monkeypatch.setattr(peer, "Arena", lambda nbytes: SimpleNamespace(array=lambda n, kind, _: np.zeros(n, kind)))
    return found


def test_links_of_one_process_map_each_other_once(runtime):
    links = peer.links_in_one_process(4, 4096)
    assert [link.device for link in links] == [0, 1, 2, 0]
    heaps = [link.heaps[link.rank] for link in links]
    assert all(link.heaps == heaps for link in links)
    enabled = [call for call in runtime.calls if call[0] == "enable"]
    # Every other GPU's rank, from every rank: 0 and 3 share a GPU.
    pairs = [(a.device, b.device) for a in links for b in links if a.device != b.device]
    assert sorted(enabled) == sorted(("enable", *pair) for pair in pairs)


def test_a_heap_is_freed_when_nobody_has_it(runtime):
    nbytes = Control(1, 64).nbytes + (1 << 16)
    (link,) = peer.links_in_one_process(1, nbytes)
    engine = Nvlink(link, max_experts=64, enable_shrink=True)
    assert len(runtime.live) == 4  # the heap, progress, masks, scratch
    heap = link.heaps[0]
    block = engine.receive_block(4, 256, 0, 0)
    engine.close()
    assert list(runtime.live) == [heap]
    engine.close()
    assert list(runtime.live) == [heap], "a block that lives keeps it"
    del block
    assert not runtime.live


def test_other_processes_heaps_are_unmapped_at_once(runtime):
    told = []

    def gather(value):
        told.append(value)
        return [value, (1, 0, 0x9000, b"another's", 0x30)]

    link = peer.PeerLink(0, 2, 4096, gather)
    assert link.heaps == [told[0][2], 0xABC030] and told[1] is None and len(told) == 2
    held = link.heap_owner
    link.close()
    assert ("close", 0xABC000) in runtime.calls and len(runtime.live) == 1
    del held
    assert not runtime.live


def bytes_at(address, nbytes):
    return np.frombuffer(ctypes.string_at(address, nbytes), np.uint8)


@pytest.mark.parametrize("rank", [0, 1], ids=["the current GPU", "another"])
def test_memory_is_zeroed_and_filled_in_on_return(runtime, rng, rank):
    link = peer.links_in_one_process(2, 4096)[rank]
    assert not bytes_at(link.heaps[rank], 4096).any()
    address, owner = link.memory(1000)
    assert not bytes_at(address, 1000).any()
    for _ in range(3):
        data = rng.integers(0, 256, (10, 50), np.uint8)[:, ::2]
        link.upload(address, data)
        assert np.array_equal(bytes_at(address, data.size), data.ravel())
    assert owner.address == address and not bytes_at(address + 250, 750).any()


def test_queues_are_zeroed_and_filled_in_on_return(runtime, rng):
    region = queue_memory.GpuQueueMemory(1).allocate(5000, "a ring")
    address, data = int(region.bytes.ctypes.data), rng.integers(0, 256, 128, np.uint8)
    assert region.bytes.nbytes == 8192 and not bytes_at(address, 8192).any()
    region.write(64, data)
    assert np.array_equal(bytes_at(address + 64, 128), data) and not bytes_at(address + 192, 8000).any()


def test_what_a_kernel_reported_is_raised_until_it_is_told(runtime):
    (link,) = peer.links_in_one_process(1, 4096)
    link.check()
    link.abort()
    for _ in range(2):
        with pytest.raises(DeviceFault, match="a kernel gave up"):
            link.check()
    link.check(unless_told=True)
    with pytest.raises(DeviceFault):
        link.check()
