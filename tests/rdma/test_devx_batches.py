"""Batches on queues that commands made: rows as WQEs in their rings, CQEs as rows, against memory at both ends."""

import errno
import time

import numpy as np
import pytest

import rdmakit
from rdmakit.device import Refused, connected_pair
from rdmakit.errors import BadArgument, BadState
from rdmakit.verbs import RECV_WR, SEND_WR, WC, _verbs

WRITE, WRITE_IMM, SEND, _, READ, _, FETCH_ADD = range(7)
SIGNALLED, INLINE = 2, 8
BLOCKS, REGION = 64, 64


@pytest.fixture
def ends(devices, spelled):
    first, second = (spelled(device, "devx") for device in devices)
    with rdmakit.open(first) as here, rdmakit.open(second) as there:
        yield connected_pair(here, there, sq_wqebbs=BLOCKS, rq_wqes=16, cq_entries=128, max_inline=64)


def batches(qp):
    return qp.context._provider.batches(qp.qpn, qp.send_cq.cqn)


def polled(cq, count):
    found, got, deadline = np.zeros(count + 1, WC), 0, time.monotonic() + 20
    while got < count and time.monotonic() < deadline:
        got += cq.poll(found[got:])
        time.sleep(0)
    assert got == count == got + cq.poll(found[got:]), f"{got} of {count} completions"
    return found[:count]


def requests(rng, source, target, count, opcode=WRITE):
    """In an order that is drawn: row i takes region order[i] at both ends."""
    order = rng.permutation(count).astype(np.uint64)
    rows = np.zeros(count, SEND_WR)
    rows["wr_id"], rows["opcode"], rows["flags"], rows["length"] = 7000 + order, opcode, SIGNALLED, REGION
    rows["address"], rows["lkey"] = source.address + REGION * order, source.lkey
    rows["remote_address"], rows["rkey"] = target.address + REGION * order, target.rkey
    return rows


def regions(near, far, rng, count=BLOCKS):
    source = near.pd.register(rng.integers(0, 256, REGION * count, np.uint8))
    target = far.pd.register(np.full(REGION * count, 0xA5, np.uint8))
    return source, target


def test_rings_turn_many_times(ends, rng):
    near, far = ends
    qp, cq = batches(near)
    assert batches(near) == (qp, cq) and qp.qp is None and cq.cq is None
    for _ in range(30):
        source, target = regions(near, far, rng)
        count = int(rng.integers(1, BLOCKS + 1))
        rows = requests(rng, source, target, count)
        qp.post_send(rows)
        found = polled(cq, count)
        assert found["wr_id"].tolist() == rows["wr_id"].tolist() and not found["status"].any() and cq.failed == 0
        assert set(found["qp_num"].tolist()) == {near.qpn}
        assert np.array_equal(target.bytes[: REGION * count], source.bytes[: REGION * count])
        assert (target.bytes[REGION * count :] == 0xA5).all()
    source, target = regions(near, far, rng, BLOCKS + 1)
    rows = requests(rng, source, target, BLOCKS + 1)
    with pytest.raises(Refused, match=f"taken {BLOCKS}") as caught:
        qp.post_send(rows)
    assert caught.value.code == errno.ENOMEM
    polled(cq, BLOCKS)


def test_reads_atomics_inline_and_receives(ends, rng):
    near, far = ends
    (qp, cq), (peer, _) = batches(near), batches(far)
    source, target = regions(near, far, rng)
    target.bytes[:] = rng.integers(0, 256, target.bytes.size, np.uint8)
    qp.post_send(requests(rng, source, target, 8, READ))
    assert (polled(cq, 8)["byte_len"] == REGION).all()
    assert np.array_equal(source.bytes[: 8 * REGION], target.bytes[: 8 * REGION])

    landing = far.pd.register(np.full(2 * REGION, 0xA5, np.uint8))
    receives = np.zeros(2, RECV_WR)
    receives["wr_id"], receives["length"], receives["lkey"] = (31, 32), REGION, landing.lkey
    receives["address"] = landing.address + REGION * np.arange(2, dtype=np.uint64)
    peer.post_recv(receives)
    rows = requests(rng, source, target, 3, SEND)
    rows["opcode"], rows["imm"], rows["compare_add"] = (SEND, WRITE_IMM, FETCH_ADD), 0xC0FFEE, 5
    rows["flags"][0] |= INLINE
    rows["length"][2] = 8
    words, at = target.bytes.view("<u8"), int(rows["remote_address"][2] - target.address) // 8
    before = int(words[at])
    qp.post_send(rows)
    assert not polled(cq, 3)["status"].any()
    got = polled(peer.recv_cq, 2)
    assert got["wr_id"].tolist() == [31, 32] and int(got["imm"][1]) == 0xC0FFEE
    begin = int(rows["address"][0] - source.address)
    assert np.array_equal(landing.bytes[:REGION], source.bytes[begin : begin + REGION])
    assert int(words[at]) == (before + 5) % (1 << 64)
    assert int(source.bytes.view("<u8")[int(rows["address"][2] - source.address) // 8]) == before


def test_what_fails_has_its_status_and_the_rest_is_flushed(ends, rng):
    near, far = ends
    qp, cq = batches(near)
    source, target = regions(near, far, rng)
    rows = requests(rng, source, target, 4)
    rows["rkey"][1] ^= 0x5500
    qp.post_send(rows)
    found = polled(cq, 4)
    assert found["status"].tolist() == [0, 10, 5, 5]  # then REM_ACCESS_ERR, WR_FLUSH_ERR
    assert near.state.name == "ERR"
    for end, other in ((near, far), (far, near)):
        end.modify("RESET").connect(other)
    again, same = batches(near)
    assert again is not qp and same is cq, "a queue pair that was reset begins anew"
    again.post_send(requests(rng, source, target, 4))
    assert not polled(cq, 4)["status"].any()


def test_what_has_been_used_or_is_gone_or_shows_too_little_is_refused(ends, rng):
    near, far = ends
    near.post_nop()
    near.send_cq.wait()
    with pytest.raises(BadState, match="has been used"):
        batches(near)
    qp, cq = batches(far)
    far.close()
    for use in (lambda: qp.post_send(np.zeros(1, SEND_WR)), lambda: qp.post_recv(np.zeros(1, RECV_WR))):
        with pytest.raises(BadState, match=r"closed|gone"):
            use()
    assert cq.poll(np.zeros(4, WC)) == 0, "the CQ is still there"
    context = near.context
    collapsed = context.alloc_pd().create_qp(context.create_cq(64, collapsed=True))
    with pytest.raises(Refused, match="collapsed") as caught:
        batches(collapsed)
    assert caught.value.code == errno.EOPNOTSUPP


def test_memory_that_no_command_named_is_refused(ends):
    made = ends[0].context._provider._made["cq", ends[0].send_cq.cqn][0]
    record = np.zeros(8, np.uint8)
    for ring, dbrec, said in ((np.zeros(63, np.uint8), record, "ring of completions is too short"),
                              (np.zeros(3 * 64, np.uint8), record, "number of entries"),
                              (np.zeros(128, np.uint8), record[:7], "record is too short")):  # fmt: skip
        with pytest.raises(BadArgument, match=said):
            _verbs.direct_cq(made, 1, ring, dbrec)
