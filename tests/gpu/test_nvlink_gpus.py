"""Dispatch and combine over NVLink on real GPUs: the checks of tests/any, between two GPUs or within one.

All ranks are in this process, rank r on GPU r modulo their number; ranks of one GPU have a stream and a share of its
SMs each, since they wait for one another.
"""

from __future__ import annotations

import functools
import os

import numpy as np
import pytest
from nvlink_checks import check_low_latency, check_round_trip
from nvlink_rig import Rig

from rdmakit.ep import nvl_memory
from rdmakit.ep.nvlink import Nvlink
from rdmakit.errors import HangError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.peer import links_in_one_process

pytestmark = pytest.mark.gpu
ANYWHERE = 4  # cudaMemcpyDefault


class GpuRig(Rig):
    """Arrays are managed memory, so tests look at them as they are; heaps are each GPU's own."""

    def __init__(self, ranks, *, heap=64 << 20, ll=None, timeout_ns=0, memory=512 << 20, shrink=False):
        cp = cupy()
        self.ranks = ranks
        self.arena = Arena(memory, managed=True)
        ll_bytes = nvl_memory.low_latency_bytes(ranks, *ll) if ll else 0
        self.links = links_in_one_process(ranks, heap + ll_bytes)
        gpus = min(ranks, cp.cuda.runtime.getDeviceCount())
        self.engines, self.streams = [], []
        for link in self.links:
            with cp.cuda.Device(link.device):
                self.streams.append(cp.cuda.Stream(non_blocking=True))
            link.blocks = link.blocks * gpus // ranks // 2
            link.sharing = 1
            link.launch = functools.partial(self._launch, link.launch, int(self.streams[-1].ptr))
            link.copy = functools.partial(self._copy, link)
            link.clear = functools.partial(self._clear, link)
            engine = Nvlink(link, low_latency_bytes=ll_bytes, timeout_ns=timeout_ns, enable_shrink=shrink)
            self.engines.append(engine)

    @staticmethod
    def _launch(launch, on, kernel, grid, block, args, *, shared_mem=0, stream=0):
        launch(kernel, grid, block, args, shared_mem=shared_mem, stream=on)

    def _copy(self, link, to, source, nbytes, stream=0):
        with cupy().cuda.Device(link.device):
            stream = int(self.streams[link.rank].ptr)
            cupy().cuda.runtime.memcpyAsync(to, source, nbytes, ANYWHERE, stream)

    def _clear(self, link, address, nbytes, stream=0):
        with cupy().cuda.Device(link.device):
            cupy().cuda.runtime.memsetAsync(address, 0, nbytes, int(self.streams[link.rank].ptr))

    def array(self, shape, dtype, fill=None):
        made = self.arena.array(shape, np.dtype(dtype), 128)
        made.view(np.uint8)[...] = 0xEE
        if fill is not None:
            made[...] = fill
        return made

    def run(self):
        for link, stream in zip(self.links, self.streams, strict=True):
            with cupy().cuda.Device(link.device):
                stream.synchronize()
        for link in self.links:
            link.report.raise_for_status()

    def view(self, where, shape, dtype):
        found = np.empty(shape, dtype)
        if found.nbytes:
            cupy().cuda.runtime.memcpy(found.ctypes.data, where, found.nbytes, ANYWHERE)
        return found

    def close(self):
        for engine in self.engines:
            engine.close()


@pytest.fixture
def rigs():
    """Makes rigs, and gives their memory back."""
    made = []

    def make(*arguments, **further):
        made.append(GpuRig(*arguments, **further))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("fp8", [False, True])
def test_round_trip(ranks, fp8, seed, rigs):
    rig = rigs(ranks)
    for turn in range(3):
        tokens = [max(200 - 61 * r * (turn + 1), 0) for r in range(ranks)]
        room = 5 + sum(tokens) if turn else 0
        check_round_trip(rig, tokens, 2048, 8 * ranks, 6, seed + turn, fp8=fp8, room=room, num_sms=4 + 4 * turn)


@pytest.mark.parametrize("hidden", [2048, 2560, 4096, 5120, 7168, 8192])
@pytest.mark.parametrize("tokens", [1, 129, 1024])
def test_shapes(hidden, tokens, seed, rigs):
    check_round_trip(rigs(2, heap=256 << 20), [tokens, max(tokens // 3, 1)], hidden, 16, 8, seed, num_sms=12)


@pytest.mark.parametrize("fp8", [False, True])
def test_many_tokens(fp8, seed, rigs):
    rig = rigs(2, heap=1 << 30, memory=3 << 30)
    check_round_trip(rig, [8192, 8191], 7168, 256, 8, seed, fp8=fp8, num_sms=24)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("halves", [False, True])
def test_low_latency(ranks, halves, seed, rigs):
    hidden, most = 2048, 32
    rig = rigs(ranks, ll=(most, hidden))
    for turn, (fp8, ue8m0) in enumerate([(False, False), (True, False), (True, True), (False, False)]):
        tokens = [max(most - 9 * r * turn, 0) for r in range(ranks)]
        check_low_latency(rig, tokens, most, hidden, 6, 4, seed + turn, fp8=fp8, ue8m0=ue8m0, halves=halves)


def test_who_does_not_take_part_is_named(seed, rigs):
    """One rank's kernel runs alone: its wait ends, and says for whom it waited."""
    rig = rigs(2, timeout_ns=200_000_000)
    rig.engines[0].barrier()
    with pytest.raises(HangError, match="a rank at a barrier"):
        rig.run()


@pytest.mark.parametrize("halves", [False, True])
def test_who_does_not_answer_is_masked(halves, seed, rigs):
    """A rank is gone before a dispatch, another before a combine, another before the region is cleaned."""
    most, hidden = 32, 2048
    rig = rigs(4, ll=(most, hidden), timeout_ns=300_000_000, shrink=True)

    def calls(turn, **further):
        tokens = [most - 5 * r for r in range(4)]
        check_low_latency(rig, tokens, most, hidden, 6, 4, seed + turn, halves=halves, **further)

    calls(0)
    assert rig.masks() == [[]] * 4
    rig.gone = frozenset({1})
    calls(1, dies=[3], fp8=True)
    assert rig.masks() == [[1, 3], [], [1, 3], [1]]
    for turn in range(2, 7):
        calls(turn, fp8=bool(turn % 2))
    rig.gone |= {2}
    rig.engines[0].ll_clean()
    rig.run()
    assert rig.masks()[0] == [1, 2, 3]
    calls(7)
    rig.engines[0].mask_clean()
    assert rig.masks()[0] == []


def test_ranks_that_can_be_masked_lose_nothing(seed, rigs):
    """Many calls of ranks that all live, with masks in the kernels."""
    most, hidden = 64, 1024
    rig = rigs(2, ll=(most, hidden), shrink=True)
    for turn in range(50):
        rig.arena.used = 0
        tokens = [most - turn, turn]
        check_low_latency(rig, tokens, most, hidden, 8, 6, seed + turn, fp8=bool(turn % 2), halves=turn % 3 == 0)
    assert rig.masks() == [[], []]


def test_waits_are_counted(seed, rng, rigs):
    """A rank that comes 20 ms late is waited for, in clocks of an SM."""
    cp, most, hidden = cupy(), 16, 1024
    rig = rigs(2, ll=(most, hidden))
    x = [rng.standard_normal((most, hidden), np.float32).astype("bfloat16") for _ in range(2)]
    idx, weights = [rng.integers(0, 8, (most, 4)) for _ in range(2)], [np.ones((most, 4), np.float32)] * 2
    source = "__global__ void late(unsigned ns) { for (unsigned n = 0; n < ns; n += 1000) __nanosleep(1000); }"
    late = cp.RawKernel(f'extern "C" {source}', "late")

    def be_late():
        with cp.cuda.Device(rig.links[1].device), rig.streams[1]:
            late((1,), (1,), (np.uint32(20_000_000),))

    be_late()
    got = rig.ll_dispatch(x, idx, 8, most)
    be_late()
    rig.ll_combine([mine["x"] for mine in got], got, weights)
    for name in ("waits", "combine_waits"):
        waits = np.stack([got[r][name] for r in range(2)]) - 5
        print(name, waits.tolist())
        assert waits[0, 1] > 5_000_000 and waits[0, 1] > 20 * waits[1, 0] and (waits >= 0).all()


def test_abort_ends_a_wait(seed, rigs):
    """The host's flag is seen by kernels that wait: long before their time is up."""
    rig = rigs(2, timeout_ns=9_000_000_000)
    begin, end = cupy().cuda.Event(), cupy().cuda.Event()
    begin.record(rig.streams[0])
    rig.engines[0].barrier()
    end.record(rig.streams[0])
    rig.links[0].abort()
    rig.streams[0].synchronize()
    assert cupy().cuda.get_elapsed_time(begin, end) < 5000


@pytest.mark.explore
def test_soak(seed, rng, rigs):
    """RDMAKIT_SOAK (20,000) operations of random kinds and sizes over one engine; nothing is lost."""
    most, hidden = 48, 512
    rig = rigs(2, ll=(most, hidden))
    for turn in range(int(os.environ.get("RDMAKIT_SOAK", "20000"))):
        rig.arena.used = 0  # what the turn before used
        tokens = [int(n) for n in rng.integers(0, most + 1, 2)]
        local, topk, fp8 = int(rng.integers(1, 9)), int(rng.integers(1, 5)), bool(rng.integers(2))
        topk = min(topk, 2 * local)
        if rng.integers(2):
            halves = bool(rng.integers(2))
            check_low_latency(rig, tokens, most, hidden, local, topk, seed + turn, fp8=fp8, halves=halves)
        else:
            size, sms = 128 * int(rng.integers(1, 9)), int(rng.integers(1, 25))
            check_round_trip(rig, tokens, size, 2 * local, topk, seed + turn, fp8=fp8, num_sms=sms)
