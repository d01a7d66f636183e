"""Worlds come and go, with what was made in them, whole or broken: the process does not grow."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from moe import make_inputs

import rdmakit
from rdmakit.ep.normal import NormalBuffer
from rdmakit.errors import BadArgument, HangError


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / (1 << 20)


def whole(seed):
    world = rdmakit.World(hosts=2, gpus_per_host=2, seed=seed)
    buffer = NormalBuffer(world, hidden=256, topk=4, experts=32, max_tokens=16, channels=2, slots=16)
    got = buffer.dispatch(*make_inputs([16] * 4, 256, 32, 4, seed))
    buffer.combine([g.recv_x for g in got], [g.handle for g in got])


def over_the_buffer(seed):
    world = rdmakit.World(hosts=2, seed=seed)
    buffer = NormalBuffer(world, hidden=128, topk=1, experts=2, max_tokens=16, capacity=4, channels=2)
    with pytest.raises(BadArgument):
        buffer.dispatch(*make_inputs([16, 16], 128, 2, 1, seed, masked=0))


def hung(seed):
    world = rdmakit.World(seed=seed)
    word = world.array(4, "u8")
    watch = world.array(24)
    with pytest.raises(HangError):
        world.stock_kernel("wait_and_sum")(8, 512, (word, 1, word, 1, word[1:], watch.view("V24")[0]))
        world.run()


@pytest.mark.parametrize("life", [whole, over_the_buffer, hung])
def test_many_worlds(life, seed):
    for i in range(10):  # pools, caches and the allocator find their size
        life(seed + i)
    gc.collect()
    before = resident_mib()
    for i in range(60):
        life(seed + i)
    gc.collect()
    grown = resident_mib() - before
    assert grown < 12, f"{grown:.1f} MiB more after 60 worlds"  # one world's memory is 1 to 8 MiB
