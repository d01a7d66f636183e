"""The send-queue protocol on the emulated HCA: many producers, full rings, wraps, batches, both dialects, both kinds of
CQ, errors noticed, waits bounded. The device code is cuda/kernels/put_words.cu and put_signal.cu."""

from __future__ import annotations

import numpy as np
import pytest

import rdmakit
from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE
from rdmakit.device.report import REPORT
from rdmakit.errors import BadState, CompletionError, HangError, RdmakitError

MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)
RUNNERS = [("fast", 1), ("timed", 1), ("explore", 1), ("fast", 32), ("explore", 32)]


def memory(mr, key, offset=0):
    return np.array([(mr.address + offset, key)], MEMORY)[0]


class Pair:
    """Two hosts, a QP between them, and words to move from one to the other."""

    def __init__(
        self,
        words,
        *,
        policy="fast",
        lanes=1,
        seed=0,
        sq=64,
        collapsed=False,
        doorbell="dbrec",
        access=None,
        faults=None,
        out_of_order=False,
        **handle,
    ):
        self.world = rdmakit.World(hosts=2, ports=1, policy=policy, seed=seed, doorbell=doorbell, faults=faults)
        self.lanes, self.words = lanes, words
        ends = []
        for host in range(2):
            context = self.world.open(host)
            pd = context.alloc_pd()
            array = self.world.array((max(words, 1),), np.uint64, name=f"words of host {host}")
            plan = self.world.faults
            given = () if access is None or host == 0 else (access,)
            mr = pd.register(array, *given, relaxed_ordering=plan.relaxed_ordering)
            cq = context.create_cq(sq, collapsed=collapsed)
            qp = pd.create_qp(cq, sq_wqebbs=sq, out_of_order=out_of_order or plan.adaptive_routing)
            ends.append((context, array, mr, qp))
        (self.context, self.source, self.from_mr, self.qp), (_, self.sink, self.to_mr, self.peer) = ends
        self.source[:] = np.random.default_rng(seed).integers(0, 2**63, len(self.source), dtype=np.uint64)
        self.sink[:] = 0xDEAD
        self.qp.connect(self.peer)
        self.peer.connect(self.qp)
        self.handle = self.qp.device_handle(**handle)

    def kernel(self, name):
        if self.lanes == 1:
            return self.world.stock_kernel(name)
        from pathlib import Path

        file = {
            "put_words": "put_words",
            "put_and_signal": "put_signal",
            "wait_and_sum": "put_signal",
            "post_each": "post_each",
        }[name]
        code = (Path(rdmakit.get_include()) / "kernels" / f"{file}.cu").read_text()
        return self.world.compile(code, lanes=32, name=f"{file}.cu").get_function(name)

    def put(self, blocks, warps, batch):
        to, origin = memory(self.to_mr, self.to_mr.rkey), memory(self.from_mr, self.from_mr.lkey)
        self.kernel("put_words")((blocks,), (32 * warps,), (self.handle.array, to, origin, self.words, batch))
        self.world.run()
        self.handle.report.raise_for_status()


@pytest.mark.parametrize(("policy", "lanes"), RUNNERS)
@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("doorbell", ["dbrec", "register", "no_dbr"])
def test_many_producers_on_one_small_ring(policy, lanes, collapsed, doorbell, seed):
    """12 warps share a ring of 64 blocks: it is full most of the time, and wraps dozens of times."""
    pair = Pair(1500, policy=policy, lanes=lanes, collapsed=collapsed, doorbell=doorbell, seed=seed)
    pair.put(blocks=3, warps=4, batch=7)
    assert np.array_equal(pair.source, pair.sink)
    assert pair.qp.completed == pair.words
    assert pair.context.counters["errors"] == 0


@pytest.mark.parametrize("dialect", ["next_index", "last_wqe"])
@pytest.mark.parametrize("batch", [0, 16])
def test_sixteen_bit_index_wraps(dialect, batch, seed):
    """More than 65,536 WQEs: the wire's 16-bit index starts again, the 64-bit counters do not."""
    pair = Pair(140_000, sq=256, seed=seed, dialect=dialect, batch=batch)
    pair.put(blocks=2, warps=2, batch=8)
    assert np.array_equal(pair.source, pair.sink)
    assert pair.qp.completed == 140_000 > 2 * 65_536


def test_batching_rings_less(seed):
    """Doorbells that a later reservation will ring anyway are left out; nothing is left unrung."""
    rung = []
    for batch in (0, 32):
        pair = Pair(4096, sq=256, seed=seed, batch=batch)
        pair.put(blocks=4, warps=4, batch=1)
        assert np.array_equal(pair.source, pair.sink)
        rung.append(pair.context.counters["doorbells"])
    assert rung[1] < rung[0] <= 4096


def test_put_and_signal(seed):
    """The signal stands behind its data on the same QP, so whoever sees it sees the data."""
    pair = Pair(512, seed=seed)
    word = pair.world.array((2,), np.uint64, name="signal and sum")
    word_mr = pair.peer.pd.register(word)
    data = pair.source.view(np.uint32)
    data[:] = np.random.default_rng(seed).integers(0, 2**32, len(data), dtype=np.uint32)
    watch = pair.handle.array[0]["watch"]
    pair.kernel("wait_and_sum")((1,), (32,), (word, 1, pair.sink, len(data), word[1:], watch), rank=1)
    pair.kernel("put_and_signal")(
        (1,),
        (32,),
        (
            pair.handle.array,
            memory(pair.to_mr, pair.to_mr.rkey),
            memory(pair.from_mr, pair.from_mr.lkey),
            pair.source.nbytes,
            memory(word_mr, word_mr.rkey),
        ),
    )
    pair.world.run()
    assert word[0] == 1 and word[1] == data.astype(np.uint64).sum()


@pytest.mark.parametrize(("policy", "lanes"), RUNNERS)
@pytest.mark.parametrize("rounds", [1, 13])
def test_every_kind_of_wqe(policy, lanes, rounds, seed):
    """Against NumPy; thirteen rounds make the two-block WQE wrap at the ring's end (13 * 11 blocks in a ring of 64)."""
    pair = Pair(16, policy=policy, lanes=lanes, seed=seed)
    arguments = (
        pair.handle.array,
        memory(pair.to_mr, pair.to_mr.rkey),
        memory(pair.from_mr, pair.from_mr.lkey),
    )
    for _ in range(rounds):
        start = np.random.default_rng(seed).integers(0, 2**63, 16, dtype=np.uint64)
        start[2] = 2
        pair.sink[:] = start
        pair.kernel("post_each")((1,), (32,), arguments)
        pair.world.run()
        pair.handle.report.raise_for_status()
        want = start.copy()
        want[0], want[2], want[7] = pair.source[0], 222, start[7] + np.uint64(1)
        low = np.uint64(0xFFFF_FFFF)
        want[3] = (start[3] & ~low) | ((start[3] & low) ^ np.uint64(0xFF))
        want[4] = sum(np.uint64((((int(start[4]) >> s) & 0xFF) + 1 & 0xFF) << s) for s in range(0, 64, 8))
        want[5] = (start[5] & ~np.uint64(0xFFFF_0000)) | np.uint64(0xABCD_0000)
        want[6] = (start[6] & ~np.uint64(0xFF)) | np.uint64(0xF0)
        assert np.array_equal(pair.sink, want), [hex(v) for v in pair.sink ^ want]
        assert pair.source[1] == start[1]
    assert pair.qp.completed == 11 * rounds and pair.context.counters["cqes"] == 10 * rounds


# ---- what goes wrong is noticed and said -------------------------------------------------------------------------
def test_error_completion_is_reported_with_its_syndrome():
    pair = Pair(64, access="local_write")  # the peer's memory refuses remote writes
    with pytest.raises(CompletionError) as caught:
        pair.put(blocks=1, warps=2, batch=4)
    assert caught.value.wc_status == "REM_ACCESS_ERR"
    assert f"{pair.qp.qpn:#x}" in str(caught.value)
    assert (pair.sink == 0xDEAD).all()


def test_another_layout_version_is_refused():
    pair = Pair(8)
    pair.handle.array[0]["layout_version"] = 77
    with pytest.raises(RdmakitError) as caught:
        pair.put(blocks=1, warps=1, batch=1)
    assert "77" in str(caught.value) and "layout" in str(caught.value)
    assert (pair.sink == 0xDEAD).all(), "nothing was posted"


def test_reservation_larger_than_the_ring_is_refused():
    pair = Pair(200, sq=64)
    with pytest.raises(RdmakitError) as caught:
        pair.put(blocks=1, warps=1, batch=100)
    assert "100" in str(caught.value) and "64" in str(caught.value)


def test_a_signal_that_never_comes_hangs_with_a_report():
    """Who waits, for what, on which word, at which line."""
    pair = Pair(8)
    word = pair.world.array((2,), np.uint64, name="the word nobody writes")
    pair.kernel("wait_and_sum")(
        (1,), (32,), (word, 3, pair.sink, 8, word[1:], pair.handle.array[0]["watch"]), rank=1
    )
    with pytest.raises(HangError) as caught:
        pair.world.run()
    text = str(caught.value)
    assert "the peer's signal" in text and "the word nobody writes" in text and "put_signal.cu" in text
    assert pair.handle.report.expected == 3 and pair.handle.report.seen == 0
    assert pair.handle.report.status.name == "TIMEOUT"


def test_timed_waits_end_at_their_bound():
    """In virtual time a bounded wait ends at its bound, though others go on."""
    pair = Pair(20_000, policy="timed", sq=64)
    word = pair.world.array((2,), np.uint64)
    watch = pair.handle.array[0]["watch"].copy()
    report = pair.world.array((REPORT.itemsize,), np.uint8)
    watch["report"], watch["timeout_ns"] = report.ctypes.data, 5_000
    pair.kernel("wait_and_sum")((1,), (32,), (word, 1, pair.sink, 8, word[1:], watch), rank=1)
    pair.put(blocks=1, warps=1, batch=1)
    from rdmakit.device.report import Report

    said = Report(report)
    assert said.status.name == "TIMEOUT" and 5_000 <= said.waited_ns < 20_000
    assert pair.world.now_ns > 100_000 and np.array_equal(pair.source, pair.sink)


def test_handle_is_what_the_header_says(seed):
    assert QP_HANDLE.itemsize == 144
    handle = Pair(1, seed=seed).handle
    assert handle["layout_version"] == LAYOUT_VERSION and handle["log_sq"] == 6


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_flushed_work_never_passes_for_done(batch, seed):
    """Whatever the batch and the schedule: the first error is what is reported, not that all slots came free."""
    pair = Pair(64, access="local_write", seed=seed, sq=64)
    with pytest.raises(CompletionError) as caught:
        pair.put(blocks=1, warps=1, batch=batch)
    assert caught.value.wc_status == "REM_ACCESS_ERR"


def test_a_cq_that_kernels_own_takes_no_second_queue_pair():
    pair = Pair(1)
    with pytest.raises(BadState, match="kernels"):
        pair.qp.pd.create_qp(pair.qp.send_cq)


@pytest.mark.parametrize("collapsed", [False, True])
def test_two_block_wqes_among_many_producers(collapsed, seed):
    """The CQE names a WQE's first block only; its size must be read before the slot can be another's."""
    pair = Pair(16, seed=seed, sq=32, collapsed=collapsed)
    arguments = (pair.handle.array, memory(pair.to_mr, pair.to_mr.rkey), memory(pair.from_mr, pair.from_mr.lkey))
    for stream in range(12):
        pair.kernel("post_each")((1,), (32,), arguments, stream=stream)
    pair.world.run()
    pair.handle.report.raise_for_status()
    assert pair.qp.completed == 12 * 11 and pair.context.counters["errors"] == 0
