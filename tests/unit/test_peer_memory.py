"""A GPU's memory in `PeerLink`, with CUDA's calls counted: mapped once, freed when nobody has it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from rdmakit.device import Report
from rdmakit.ep.nvl_memory import Control
from rdmakit.ep.nvlink import Nvlink
from rdmakit.gpu import peer


class Runtime:
    """Enough of CUDA's runtime to make links, and what it was asked for."""

    def __init__(self, gpus):
        self.gpus, self.here = gpus, 0
        self.live, self.calls = {}, []
        self._next = itertools.count(0x1000, 0x1000)

    def malloc(self, nbytes):
        at = next(self._next)
        self.live[at] = self.here
        return at

    def free(self, at):
        assert self.live.pop(at) == self.here, "freed on another device"
        self.calls.append(("free", at))

    def memset(self, at, value, nbytes):
        pass

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

    monkeypatch.setattr(peer, "cupy", lambda: SimpleNamespace(cuda=SimpleNamespace(runtime=found, Device=Device)))
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
