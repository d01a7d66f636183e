"""Kernels of the CPU runner over queue pairs of real devices: the same handles and kernels, whoever made the rings."""

import numpy as np
import pytest
from lock_rig import WAYS, Transfers

from rdmakit.emu.outside import OutsideWorld
from rdmakit.errors import CompletionError, NotAvailable
from rdmakit.signal import SequenceLock

MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)
# But narrow tails, which are masked atomics.
WAYS_OF_ALL = ["amo", "amo-crc", "imm", "imm-crc", "eager-crc", "write", "write-crc", "cqe"]


def world_of(contexts, seed):
    world = OutsideWorld(2, seed=seed, patience_s=30)
    for context in contexts:
        world.let_work(context)
    return world


class Words:
    """A queue pair of 64 basic blocks whose kernels move words of 8 bytes, one a WQE."""

    def __init__(self, contexts, words, seed, rng, *, collapsed=False, sink_words=None, **handle):
        here, there = contexts
        self.world, self.words = world_of(contexts, seed), words
        self.source, self.sink = self.world.array((words,), np.uint64), self.world.array((words,), np.uint64, 0xDEAD)
        self.source[:] = rng.integers(0, 2**63, words, np.uint64)
        cq = here.create_cq(512, collapsed=collapsed)  # libmlx5 makes longer rings than are asked for
        self.qp = here.alloc_pd().create_qp(cq, sq_wqebbs=64)
        self.peer = there.alloc_pd().create_qp(there.create_cq(16))
        self.mine = self.qp.pd.register(self.source)
        self.theirs = self.peer.pd.register(self.sink[:sink_words], "local_write|remote_write")
        self.qp.connect(self.peer)
        self.peer.connect(self.qp)
        self.handle = self.qp.device_handle(**handle)

    def put(self, blocks=3, warps=4, batch=7):
        to, origin = (np.array([(mr.address, key)], MEMORY)[0]
                      for mr, key in ((self.theirs, self.theirs.rkey), (self.mine, self.mine.lkey)))  # fmt: skip
        put = self.world.stock_kernel("put_words")
        put((blocks,), (32 * warps,), (self.handle.array, to, origin, self.words, batch))
        self.world.run()
        self.handle.report.raise_for_status()


@pytest.fixture(params=[False, True], ids=["cq", "collapsed"])
def collapsed(request, contexts):
    if request.param and contexts[0].device.where.startswith("mlx5"):
        with pytest.raises(NotAvailable, match="queues=devx"):
            contexts[0].create_cq(16, collapsed=True)
        pytest.skip("verbs make no collapsed CQ of a ConnectX")
    return request.param


@pytest.mark.parametrize(("dialect", "batch"), [("next_index", 0), ("last_wqe", 16)])
def test_many_producers_on_a_small_ring(contexts, collapsed, dialect, batch, seed, rng):
    """12 warps share a ring of 64 blocks, which wraps dozens of times; every word is right."""
    words = Words(contexts, 1500, seed, rng, collapsed=collapsed, dialect=dialect, batch=batch)
    words.put()
    assert np.array_equal(words.source, words.sink)
    assert words.qp.completed == 1500
    assert words.qp.query()["state"] == 3


def test_a_kernel_that_writes_where_it_may_not(contexts, collapsed, seed, rng):
    """The last words lie behind the region: the report names the error, nothing is written there."""
    words = Words(contexts, 128, seed, rng, collapsed=collapsed, sink_words=64)
    with pytest.raises(CompletionError) as caught:
        words.put(blocks=1, warps=1, batch=1)
    assert caught.value.wc_status in ("REM_ACCESS_ERR", "WR_FLUSH_ERR")
    assert (words.sink[64:] == 0xDEAD).all() and words.qp.state.name == "ERR"


@pytest.mark.parametrize("way", WAYS_OF_ALL)
def test_the_sequence_lock(contexts, way, seed, rng):
    """40 transfers of 0 … 600 bytes through 8 slots, each strategy: whole, in order, once."""
    world = world_of(contexts, seed)
    pds = [context.alloc_pd() for context in contexts]
    options = {**WAYS[way], "strategy": way.split("-")[0], "slots": 8, "max_payload": 600}
    try:
        locks = [SequenceLock(*pds, channel=channel, **options) for channel in range(2)]
    except NotAvailable as error:
        pytest.skip(str(error))
    moved = Transfers(world, locks, rng.integers(0, 601, (2, 40)), rng)
    moved.launch()
    moved.check()
