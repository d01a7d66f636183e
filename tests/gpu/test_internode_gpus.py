"""Dispatch and combine between hosts on real GPUs: the checks of tests/any in one process, and Buffer in two.

One machine plays the hosts, a GPU each where it has two. The HCA is the GPUs' own warps, its wire the mapping of their
memory.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from internode_checks import check_round_trip
from internode_rig import Rig
from moe import make_inputs

from rdmakit.ep.internode import KERNELS, MAX_TOKENS, Internode
from rdmakit.ep.internode_memory import HostsShape
from rdmakit.errors import HangError
from rdmakit.gpu.arena import Arena
from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.peer import links_in_one_process

pytestmark = pytest.mark.gpu
ANYWHERE = 4  # cudaMemcpyDefault
PROGRAM = Path(__file__).with_name("internode_program.py")
LIMIT_S = 300


class GpuRig(Rig):
    """Arrays are managed memory, so tests look at them as they are; heaps are each GPU's own."""

    def __init__(self, hosts=2, local=1, *, channels=8, nvl=64 << 20, rdma=32 << 20, timeout_ns=0, memory=512 << 20):
        self.ranks, self.local = hosts * local, local
        self.arena = Arena(memory, managed=True)
        shape = HostsShape.of(self.ranks, local, channels, MAX_TOKENS, rdma_bytes=rdma, nvl_bytes=nvl)
        self.links = links_in_one_process(self.ranks, shape.heap_layout().nbytes)
        gpus = min(self.ranks, cupy().cuda.runtime.getDeviceCount())
        self.engines, self.streams = [], []
        for link in self.links:
            with cupy().cuda.Device(link.device):
                self.streams.append(cupy().cuda.Stream(non_blocking=True))
            link.load(*KERNELS)
            link.blocks = link.blocks * gpus // self.ranks // 2  # all ranks of a GPU are resident together
            link.launch = functools.partial(self._launch, link.launch, int(self.streams[-1].ptr))
            self.engines.append(Internode(link, shape, timeout_ns=timeout_ns))

    @staticmethod
    def _launch(launch, on, kernel, grid, block, args, *, shared_mem=0, stream=0):
        launch(kernel, grid, block, args, shared_mem=shared_mem, stream=on)

    def array(self, shape, dtype):
        made = self.arena.array(shape, np.dtype(dtype), 128)
        made.view(np.uint8)[...] = 0xEE
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

    def poison(self, where, nbytes):
        """On the stream of the rank whose memory it is: other ranks may wait for this one already."""
        for link, stream in zip(self.links, self.streams, strict=True):
            if 0 <= where - link.heaps[link.rank] < link.heap_bytes:
                with cupy().cuda.Device(link.device):
                    cupy().cuda.runtime.memsetAsync(where, 0xEE, nbytes, int(stream.ptr))

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


@pytest.mark.parametrize(("hosts", "local"), [(2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_round_trip(hosts, local, fp8, seed, rigs):
    rig = rigs(hosts, local)
    for turn in range(3):
        tokens = [max(200 - 61 * rank * turn, 0) for rank in range(rig.ranks)]
        check_round_trip(rig, tokens, 2048, 8 * rig.ranks, 6, seed + turn, fp8=fp8, num_sms=8 + 4 * turn)


@pytest.mark.parametrize("hidden", [512, 2560, 7168])
@pytest.mark.parametrize("tokens", [1, 129, 1024])
def test_shapes(hidden, tokens, seed, rigs):
    check_round_trip(rigs(nvl=128 << 20), [tokens, max(tokens // 3, 1)], hidden, 16, 8, seed, num_sms=20)


def test_one_engine_for_calls_of_every_shape(seed, rng, rigs):
    rig = rigs()
    for turn in range(30):
        rig.arena.used = 0  # what the turn before used
        tokens = [int(n) for n in rng.integers(0, 300, 2)]
        hidden, experts = 128 * int(rng.integers(1, 17)), 2 * int(rng.integers(1, 20))
        topk = min(int(rng.integers(1, 9)), experts)
        check_round_trip(rig, tokens, hidden, experts, topk, seed + turn, fp8=bool(turn % 2),
                         num_sms=2 * int(rng.integers(2, 13)))  # fmt: skip


def test_a_rank_that_does_not_take_part_is_named(seed, rigs):
    rig = rigs(timeout_ns=300_000_000)
    _, idx, _ = make_inputs([8, 8], 128, 8, 2, seed)
    sents = rig.layouts(idx, 8)
    rig.engines.pop()
    with pytest.raises(HangError, match="token counts from a rail peer"):
        rig.notify(sents[:1], [8], 8)


@pytest.mark.parametrize("shape", [("--tokens", "257", "--hidden", "2048"), ("--tokens", "4096", "--hidden", "7168")],
                         ids=["small", "large"])  # fmt: skip
def test_two_processes_as_two_hosts(shape, seed):
    """`Buffer` in two processes with a GPU each, by DeepEP's calls, against torch."""
    pytest.importorskip("torch", reason="torch is not installed")
    count = cupy().cuda.runtime.getDeviceCount()
    if count < 2:
        pytest.skip(f"two GPUs are needed, a host each; here is {count}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(PROGRAM)]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "RDMAKIT_RANKS_PER_HOST": "1", "PYTHONPATH": root}
    done = subprocess.run([*command, *shape, "--seed", str(seed)], env=environment, capture_output=True, text=True,
                          timeout=LIMIT_S, check=False)  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-6000:])
    assert done.returncode == 0 and "all right" in done.stdout
