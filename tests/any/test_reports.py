"""What a hang or a corruption has to say: rank, QP, port, channel, expected and seen, last WQE and CQE, who is late.

The host's errors and the record that device code leaves in memory tell the same, in the same words.
"""

from __future__ import annotations

import numpy as np
import pytest
from lock_rig import Transfers, make_lock, make_world, put_by_hand

import rdmakit
from rdmakit.device import REPORT, Report
from rdmakit.device.queue_record import QueueRecord
from rdmakit.ep.abi import CHANNEL_HANDLE
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.mesh import Mesh
from rdmakit.errors import HangError, SequenceError
from rdmakit.signal import handles

POLICIES = ["fast", "timed", "explore"]
ITEMS = ("rank", "qpn", "port", "channel", "expected", "seen", "last_wqe", "last_cqe", "late", "at")


def hang_of(run):
    with pytest.raises(HangError) as caught:
        run()
    return caught.value


def has_all(error, **wanted):
    """Every item is a fact of the error, and stands in its text."""
    text = str(error)
    for name in ITEMS:
        assert name in error.facts and str(error.facts[name]) in text, (name, text)
    for name, value in wanted.items():
        said = error.facts[name]
        assert value in said if isinstance(value, str) else said == value, (name, said, text)


# ---- the lock's receiver
@pytest.mark.parametrize("policy", POLICIES)
def test_a_receiver_that_waits_for_a_ticket(policy, seed, rng):
    """Three transfers came; the fourth was never sent."""
    world = make_world(policy, seed)
    lock = make_lock(world, "amo", slots=4, max_payload=200, channel=3, credit_every=1)
    moved = Transfers(world, [lock], np.full(4, 24), rng)
    moved.launch(count=3)
    _, receivers = handles([lock])
    world.stock_kernel("lock_receive")(
        1, 32, (receivers, 1, np.array([3], np.uint64), 1, moved.out, moved.stride, moved.got, None), rank=1
    )
    error = hang_of(world.run)
    has_all(
        error, rank=1, qpn=f"{lock.receiver_qp.qpn:#x}", port=1, channel=3, expected=4, seen=3,
        last_wqe="WQE 2: ", last_cqe="CQE 2: CQE REQ", late="rank 0: all that it has posted", at="lock_receive.cu:",
    )  # fmt: skip
    assert "FA" in error.facts["last_wqe"] and f"{lock.sender_qp.qpn:#x}" in error.facts["late"]
    assert "no kernel of it runs" in error.facts["late"] and "the tail to pass the next ticket" in str(error)
    report = lock.reports[1]
    has_all(
        report.error(), rank=1, channel=3, expected=4, seen=3, last_wqe="WQE 2: ", late="rank 0: all that it has posted"
    )


@pytest.mark.parametrize("way", ["imm", "write"])
def test_other_strategies_tell_their_own_completions(way, seed, rng):
    world = make_world("fast", seed)
    lock = make_lock(world, way, slots=4, max_payload=200, channel=1)
    moved = Transfers(world, [lock], np.full(3, 24), rng)
    moved.launch(count=2)
    error = hang_of(lambda: (moved.launch(send=False), None))
    assert error.facts["rank"] == 1 and error.facts["channel"] == 1
    if way == "imm":  # the receive CQ is what it looks at
        assert "RESP" in error.facts["last_cqe"], error.facts


# ---- a queue that waits for a CQE
@pytest.mark.parametrize("policy", POLICIES)
def test_a_queue_whose_doorbell_is_lost(policy, seed):
    world = rdmakit.World(hosts=2, ports=2, policy=policy, seed=seed, faults="doorbell_lost=1")
    ends = []
    for host in range(2):
        pd = world.open(host).alloc_pd()
        words = world.array(4, np.uint64, name=f"words of host {host}")
        ends.append((pd.create_qp(pd.context.create_cq(8), sq_wqebbs=8), pd.register(words)))
    (qp, source), (peer, sink) = ends
    qp.connect(peer, port=2)
    peer.connect(qp, port=2)
    handle = qp.device_handle(peer=1, channel=5, rank=0)
    memory = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)
    to, of = (np.array([(mr.address, key)], memory)[0] for mr, key in ((sink, sink.rkey), (source, source.lkey)))
    world.stock_kernel("put_words")(1, 32, (handle.array, to, of, 4, 1))
    error = hang_of(world.run)
    has_all(
        error, rank=0, qpn=f"{qp.qpn:#x}", port=2, channel=5, expected=4, seen=0, last_wqe="WQE 3: ", last_cqe="none",
        late="rank 0 itself: the NIC has completed basic blocks below 0 of 4", at="put_words.cu:",
    )  # fmt: skip
    assert "RDMA_WRITE" in error.facts["last_wqe"]
    has_all(
        handle.report.error(),
        rank=0,
        port=2,
        channel=5,
        expected=4,
        last_wqe="WQE 3: ",
        last_cqe="none",
        late="the NIC",
    )


# ---- a ring that waits for credits
def ring(world, slots=2, words=2, channel=0):
    layout = HeapLayout()
    for name, nbytes in (
        ("ring_payload", 8 * words),
        ("staging_payload", 8 * words),
        ("ring_meta", 16),
        ("staging_meta", 16),
    ):
        layout.add(name, slots * nbytes)
    for name in ("tail", "head", "sent", "received"):
        layout.add(name, 128)
    mesh = Mesh(world, layout, sq_wqebbs=8)
    mesh.connect(0, 1, channel + 1)
    handles = world.array((2,), CHANNEL_HANDLE)
    for side in mesh.sides:
        handle, far = handles[side.rank], mesh.sides[1 - side.rank]
        handle["qp"] = handle["credit_qp"] = side.handles[1 - side.rank, channel].array[0]
        for name in (
            "staging_payload",
            "staging_meta",
            "head",
            "ring_payload",
            "ring_meta",
            "tail",
            "sent",
            "received",
        ):
            handle[name] = side.heap.base + layout.offset[name]
        for field in ("payload", "meta", "tail", "head"):
            there = f"ring_{field}" if field in ("payload", "meta") else field
            handle[f"peer_{field}"] = (far.mr.address + layout.offset[there], far.mr.rkey)
        handle["staging_lkey"] = side.mr.lkey
        for name, value in (("slots", slots), ("payload_stride", 8 * words), ("meta_stride", 16), ("chunk", 1)):
            handle[name] = value
    return mesh, handles


@pytest.mark.parametrize("policy", POLICIES)
def test_a_ring_that_waits_for_credit(policy, seed):
    world = rdmakit.World(hosts=2, ports=2, policy=policy, seed=seed)
    mesh, handles = ring(world, channel=1)
    source = world.array((5, 2), np.uint64)
    world.stock_kernel("ring_send")(1, 32, (handles[:1], source, 5), rank=0)
    error = hang_of(mesh.run)
    qp = mesh.sides[0].qps[1, 1]
    has_all(
        error, rank=0, qpn=f"{qp.qpn:#x}", port=2, channel=1, expected=1, seen=0, last_wqe="WQE 5: ",
        last_cqe="CQE 1: ",
        late="rank 1: all that it has posted", at="ring_words.cu:",
    )  # fmt: skip
    assert "credit from the receiver" in str(error) and "no kernel of it runs" in error.facts["late"]
    has_all(mesh.sides[0].report.error(), rank=0, port=2, channel=1, expected=1, seen=0, late="rank 1")


# ---- corruption
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("reason", "lie"),
    [("CORRUPT_PAYLOAD", {"spoil": 4}), ("WRONG_FINGERPRINT", {"qpn": 0x1234}), ("GAP", {"ticket": 6})],
)
def test_what_is_refused(policy, reason, lie, seed, rng):
    world = make_world(policy, seed)
    lock = make_lock(world, "amo-crc", slots=4, max_payload=200, channel=3, credit_every=1)
    moved = Transfers(world, [lock], np.full(3, 24), rng)
    moved.launch(count=2)
    put_by_hand(lock, **{"ticket": 2, "payload": moved.payload(0, 2), **lie})
    with pytest.raises(SequenceError, match=reason) as caught:
        moved.launch(send=False)
    error = caught.value
    has_all(
        error,
        rank=1,
        qpn=f"{lock.receiver_qp.qpn:#x}",
        port=1,
        channel=3,
        last_wqe="WQE 1: ",
        last_cqe="CQE 1: CQE REQ",
        at="lock_receive.cu:",
    )
    assert error.ticket == 2 and error.facts["ticket_seen"] == (6 if reason == "GAP" else 2)
    assert (
        error.facts["late"].startswith("nobody: rank 0 has sent what was refused")
        and f"{lock.sender_qp.qpn:#x}" in error.facts["late"]
    )


# ---- which of many comes first
def test_the_first_in_the_chain_is_named_first(seed):
    """Rank 2 waits for rank 1 by many blocks, rank 1 for rank 0, which waits for its NIC."""
    source = """
#include <rdmakit/signal.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL waits(const QpHandle* qp, const u64* word) {
    u64 seen = 0;
    if (warp_id() == 0) wait_signal(word, 1, qp->watch, about(*qp, "a signal", 1), &seen);
    block_sync();
}
"""
    world = rdmakit.World(hosts=3, seed=seed, faults="doorbell_lost=1")
    words = world.array((3, 16), np.uint64, name="signals")
    pds = [world.open(rank).alloc_pd() for rank in range(3)]
    links = {}
    for a, b in ((0, 1), (1, 2)):
        qps = [pds[rank].create_qp(pds[rank].context.create_cq(8), sq_wqebbs=8) for rank in (a, b)]
        qps[0].connect(qps[1])
        qps[1].connect(qps[0])
        links[a, b] = [
            qp.device_handle(rank=rank, peer=peer) for qp, rank, peer in zip(qps, (a, b), (b, a), strict=True)
        ]
    module = world.compile(source, name="chain.cu")
    waits = module.get_function("waits")
    waits(6, 64, (links[1, 2][1].array, words[2]), rank=2)
    waits(1, 64, (links[0, 1][1].array, words[1]), rank=1)
    mr = pds[0].register(world.array(4, np.uint64))
    far = pds[1].register(words[1])
    memory = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)
    to, of = (np.array([(m.address, key)], memory)[0] for m, key in ((far, far.rkey), (mr, mr.lkey)))
    world.stock_kernel("put_words")(1, 32, (links[0, 1][0].array, to, of, 1, 1), rank=0)
    error = hang_of(world.run)
    first = error.report.first
    assert (first.rank, first.depth) == (0, 0) and "NIC" in first.late and error.facts["rank"] == 0
    by_rank = {wait.rank: wait for wait in error.report.waits if wait.state == "waits"}
    assert [by_rank[rank].depth for rank in range(3)] == [0, 1, 2]
    assert "it waits for completion" in by_rank[1].late and "it waits for a signal" in by_rank[2].late
    barrier = [wait for wait in error.report.waits if wait.state == "at a barrier" and wait.rank == 2]
    assert len(barrier) == 6 and all(wait.depth == 3 and "rank 2 itself" in wait.late for wait in barrier)
    ranks = [line.split(":")[0].strip() for line in str(error).splitlines() if line.startswith("  rank")]
    assert ranks[0] == "rank 0" and "the first in the chain: rank 0" in str(error)


# ---- the record
def test_the_record_alone_tells_as_much(seed, rng):
    """As a host reads it that reaches nothing else of the GPU: bytes, and no queue pair of this process."""
    world = make_world("fast", seed)
    lock = make_lock(world, "amo-crc", slots=4, max_payload=200, channel=3, credit_every=1)
    moved = Transfers(world, [lock], np.full(3, 24), rng)
    moved.launch(count=2)
    put_by_hand(lock, 2, moved.payload(0, 2), spoil=1)
    with pytest.raises(SequenceError) as caught:
        moved.launch(send=False)
    bytes_of_it = lock.reports[1].array.view(np.uint8).copy()
    alone = Report(bytes_of_it).error()
    here = {name: value for name, value in caught.value.facts.items() if name != "late"}
    assert here == {name: value for name, value in alone.facts.items() if name != "late"}
    assert alone.facts["late"] == "nobody: rank 0 has sent what was refused"
    assert len(bytes_of_it) == REPORT.itemsize


def test_a_record_is_what_the_host_sees_of_the_same_queue(seed):
    """Device code copies rings and counters; the host reads them: equal, at every lap."""
    world = rdmakit.World(hosts=2, ports=1, seed=seed)
    pds = [world.open(host).alloc_pd() for host in range(2)]
    qps = [pd.create_qp(pd.context.create_cq(8), sq_wqebbs=8) for pd in pds]
    qps[0].connect(qps[1])
    qps[1].connect(qps[0])
    handle = qps[0].device_handle(rank=0, peer=1)
    mrs = [pd.register(world.array(4, np.uint64)) for pd in pds]
    memory = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)
    to, of = (np.array([(m.address, key)], memory)[0] for m, key in ((mrs[1], mrs[1].rkey), (mrs[0], mrs[0].lkey)))
    stop = world.compile("""
#include <rdmakit/queue.cuh>
RDMAKIT_KERNEL stop(const rdmakit::QpHandle* qp) {
    using namespace rdmakit;
    fail(qp->watch, Status::timeout, about(*qp, "nothing", 0), 0, 0, 0, 0, 0, Site::here());
}
""", name="stop.cu").get_function("stop")  # fmt: skip
    for words in (0, 1, 3, 4, 4, 4):
        handle.report.clear()
        if words:
            world.stock_kernel("put_words")(1, 32, (handle.array, to, of, words, 1))
            world.run()
        stop(1, 32, (handle.array,))
        world.run()
        found = handle.report.queue
        assert found == QueueRecord.of(qps[0])
        posted = qps[0].posted
        assert found.last_wqe.startswith(f"WQE {posted - 1}: ") if posted else found.last_wqe == "none"
        assert found.last_cqe.startswith(f"CQE {posted - 1}: ") if posted else found.last_cqe == "none"
        assert found.waits_for == "" and found.port == 1
