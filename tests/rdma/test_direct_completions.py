"""CQEs written here, bit by bit, into the ring of a CQ that is read here and into that of one which libmlx5 reads.

So what they say, how they follow each other and how many are asked for is drawn, which no device lets one do.
"""

import numpy as np
import pytest
from test_direct_queues import INLINE, SIGNALLED, WRITE, Side, only_mlx5  # noqa: F401

from rdmakit.errors import BadArgument, BadState
from rdmakit.layout import CqeOpcode, Opcode, Syndrome
from rdmakit.layout.cqe import cqe, error_cqe
from rdmakit.verbs import RECV_WR, SEND_WR, WC

SENT = [Opcode.RDMA_WRITE, Opcode.RDMA_WRITE_IMM, Opcode.SEND, Opcode.SEND_IMM, Opcode.RDMA_READ, Opcode.ATOMIC_CS,
        Opcode.ATOMIC_FA]  # fmt: skip
HEARD = [CqeOpcode.RESP_WR_IMM, CqeOpcode.RESP_SEND, CqeOpcode.RESP_SEND_IMM]
SYNDROMES = [Syndrome.REMOTE_ACCESS_ERR, Syndrome.WR_FLUSH_ERR, Syndrome.TRANSPORT_RETRY_EXC_ERR]
QUEUE_PAIRS, ENTRIES = 3, 64
POISONED = np.full(ENTRIES * 48, 0xA5, np.uint8).view(WC)


class Written:
    """Queue pairs on one CQ, whose CQEs are written by `complete` from the first poll on."""

    def __init__(self, devices, rng, direct):
        self.near = near = Side(devices[0], rng, direct, cq_entries=ENTRIES - 1)
        far = Side(devices[1], rng, False)
        self.far, self.qps, self.numbers, self.others = far, [], [], []
        sizes = {"max_send_wr": 512, "max_recv_wr": 64, "max_recv_sge": 1, "max_inline": 200}
        for _ in range(QUEUE_PAIRS):
            for end in (near.end, far.end):
                end.qp = end.pd.create_qp(end.cq, **sizes)
            near.end.connect(far.end)
            far.end.connect(near.end)
            self.qps.append(near.end.qp.direct(near.cq) if direct else near.end.qp)
            self.numbers.append(near.end.qp.qpn)
            self.others.append(far.end.qp)
        self.window = near.cq.completions(POISONED.copy())
        for qp in self.qps:
            qp.post_send(self.writes([8], SIGNALLED))
        near.poll(QUEUE_PAIRS)
        told = near.end.cq.mlx5()
        assert (told["entries"], told["cqe_bytes"]) == (ENTRIES, 64)
        self.ring = np.frombuffer(told["ring"], np.uint8).reshape(ENTRIES, 64)
        self.written = QUEUE_PAIRS
        # libmlx5 finds a queue pair by the number that it gave it, which the device's own CQEs have told.
        self.indices = {}
        for entry in self.ring[:QUEUE_PAIRS]:
            self.indices[int.from_bytes(entry[57:60], "big")] = entry[32:36].copy()

    def writes(self, sizes, flags=0):
        made = np.zeros(len(sizes), SEND_WR)
        made["length"], made["lkey"], made["rkey"] = sizes, self.near.mr.lkey, self.far.mr.rkey
        made["address"], made["remote_address"] = self.near.mr.address, self.far.mr.address
        made["opcode"], made["flags"] = WRITE, flags
        return made

    def complete(self, which, opcode, counter, sent, solicited, syndrome, junk):
        """A CQE of queue pair `which`; `junk` is what lies where it says nothing, the signature among it."""
        number, owner = self.numbers[which], self.written // ENTRIES & 1
        if opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR):
            made = error_cqe(syndrome, qpn=number, wqe_counter=counter, send_opcode=sent, vendor_err=int(junk[0]),
                             opcode=opcode, owner=owner)  # fmt: skip
        else:
            imm, nbytes, source = (int.from_bytes(junk[4 * i : 4 * i + 4], "big") for i in range(3))
            made = cqe(opcode, qpn=number, wqe_counter=counter, send_opcode=sent, byte_cnt=nbytes >> 2, imm=imm,
                       src_qp=source >> 8, solicited=bool(solicited), owner=owner, timestamp=nbytes)  # fmt: skip
        entry = np.frombuffer(made, np.uint8).copy()
        entry[32:36], entry[62] = self.indices[number], junk[13]
        at = self.written % ENTRIES
        self.ring[at, :63] = entry[:63]
        self.ring[at, 63] = entry[63]
        self.written += 1


def drawn_sends(rng, which, posted, sizes):
    """(queue pair, CQE's opcode, counter, what was sent) of some of these WRITEs and of the last; blocks of all."""
    blocks = -(-(2 + -(-(sizes + 4) // 16)) // 4)  # control, address, payload inline: 16 bytes a segment, 64 a block
    starts = posted + np.concatenate([[0], np.cumsum(blocks)[:-1]]).astype(int)
    told = np.flatnonzero(rng.random(len(sizes)) < rng.choice([0.1, 1.0]))
    told = np.union1d(told, len(sizes) - 1)
    sent = np.repeat(rng.choice(SENT, len(told)), rng.integers(1, 40, len(told)))  # one after the other is alike
    failed = rng.random(len(told)) < 0.03
    return [(which, CqeOpcode.REQ_ERR if bad else CqeOpcode.REQ, int(starts[i]) & 0xFFFF, int(opcode))
            for i, opcode, bad in zip(told, sent, failed, strict=False)], int(blocks.sum())  # fmt: skip


def drawn_receives(rng, which, heard, count):
    opcodes = [CqeOpcode.RESP_ERR if rng.random() < 0.1 else CqeOpcode(rng.choice(HEARD)) for _ in range(count)]
    return [(which, opcode, (heard + i) & 0xFFFF, 0) for i, opcode in enumerate(opcodes)]


def merged(rng, lists):
    """The lists in one, each in its order, in turns of random lengths."""
    lists, made = [list(each) for each in lists if each], []
    while lists:
        one = lists[int(rng.integers(len(lists)))]
        turn = int(rng.choice([1, 2, 40]))
        made += one[:turn]
        del one[:turn]
        lists = [each for each in lists if each]
    return made


def polled(side, first, most):
    """Rows from `first` on, at most `most` (None: to the end); the others are as they were."""
    window = side.window
    window.rows[:] = POISONED
    if most is None:
        got = window.poll(first)
        assert window.failed == np.count_nonzero(window.rows["status"][first : first + got])
    else:
        got = side.near.cq.poll(window.rows[first : first + most])
    rows, left = window.rows[first : first + got], np.delete(window.rows, np.s_[first : first + got])
    assert (left == POISONED[0]).all() and window.wr_ids(got, first) == rows["wr_id"].tolist()
    return rows


def agree(mine, ours, theirs, libmlx5):
    """The same, where libmlx5 says something; it leaves the other fields as they were, here they are 0."""
    assert np.array_equal(ours["wr_id"], libmlx5["wr_id"]) and np.array_equal(ours["status"], libmlx5["status"])
    numbers = [[side.numbers.index(qpn) for qpn in rows["qp_num"]] for side, rows in ((mine, ours), (theirs, libmlx5))]
    assert numbers[0] == numbers[1]
    failed = ours["status"] != 0
    heard = ~failed & (ours["opcode"] >= 128)
    tells = {
        "opcode": ~failed,
        "vendor_err": failed,
        "wc_flags": ~failed,
        "byte_len": ~failed & (ours["opcode"] >= 2),
        "src_qp": heard,
        "imm": heard & (ours["wc_flags"] & 2 != 0),
    }
    for name, where in tells.items():
        assert np.array_equal(ours[name][where], libmlx5[name][where]), name
        assert not ours[name][~where].any(), name


def test_rows_are_those_of_libmlx5_whatever_follows_what(devices, rng):
    """Round the ring of CQEs hundreds of times, past 2^16 of a queue pair's counters, in portions of all sizes."""
    mine, theirs = both = [Written(devices, rng, direct) for direct in (True, False)]
    posted, heard, number, seen = [1] * QUEUE_PAIRS, [0] * QUEUE_PAIRS, 0, set()
    while min(posted) < 1 << 16:
        ends = []
        for which in range(QUEUE_PAIRS):
            sizes = rng.choice([8, 60, 200, 200, 200], int(rng.integers(1, 256)))
            receives = np.zeros(int(rng.integers(0, 9)), RECV_WR)
            receives["wr_id"] = number + np.arange(len(receives))
            for side in both:
                rows = side.writes(sizes, INLINE)
                rows["wr_id"] = number + 100 + np.arange(len(sizes))
                side.qps[which].post_send(rows)
                side.qps[which].post_recv(receives)
            sent, blocks = drawn_sends(rng, which, posted[which], sizes)
            ends += [sent, drawn_receives(rng, which, heard[which], len(receives))]
            posted[which], heard[which] = posted[which] + blocks, heard[which] + len(receives)
            number += 1000
        ends, waiting = merged(rng, ends), 0
        while ends or waiting:
            fresh = int(rng.integers(0, ENTRIES - waiting + 1))
            for what in ends[:fresh]:
                noise = int(rng.integers(2)), SYNDROMES[int(rng.integers(3))], rng.integers(0, 256, 14, np.uint8)
                for side in both:
                    side.complete(*what, *noise)
            seen |= {(int(opcode), int(opcode_sent)) for _, opcode, _, opcode_sent in ends[:fresh]}
            waiting += len(ends[:fresh])
            ends = ends[fresh:]
            first, most = int(rng.integers(0, ENTRIES // 2)), int(rng.integers(0, ENTRIES // 2 + 1))
            most = None if rng.random() < 0.5 else most
            ours, libmlx5 = (polled(side, first, most) for side in both)
            assert len(ours) == len(libmlx5) == min(waiting, ENTRIES - first if most is None else most)
            assert mine.near.cq.failed == np.count_nonzero(ours["status"])
            agree(mine, ours, theirs, libmlx5)
            waiting -= len(ours)
    expected = {(CqeOpcode.REQ, opcode) for opcode in SENT} | {(opcode, 0) for opcode in (*HEARD, CqeOpcode.RESP_ERR)}
    assert {(int(a), int(b)) for a, b in expected} <= seen, "all were drawn"
    consumed = int(np.frombuffer(mine.near.end.cq.mlx5()["dbrec"], ">u4")[0])
    assert consumed == mine.written & 0xFFFFFF == theirs.written & 0xFFFFFF


def test_an_array_is_held_for_as_long_as_it_is_filled(devices, rng):
    near = Side(devices[0], rng, True)
    rows = np.zeros(8, WC)
    window = near.cq.completions(rows)
    assert window.rows is rows and window.poll() == window.poll(8) == 0
    assert window.wr_ids(0, 8) == [] and window.wr_ids(2, first=6) == [0, 0]
    with pytest.raises(ValueError, match="resize"):
        rows.resize(16)
    for wrong in (-1, 9):
        with pytest.raises(BadArgument, match="no such rows"):
            window.poll(wrong)
    for count, first in ((-1, 0), (9, 0), (1, 8), (1, -1), (2**31 - 1, 1)):
        with pytest.raises(BadArgument, match="no such rows"):
            window.wr_ids(count, first)
    with pytest.raises(BadArgument, match="multiple of 48"):
        near.cq.completions(np.zeros(47, np.uint8))
    with pytest.raises(BufferError, match="not writable"):
        near.cq.completions(np.zeros(8, WC).tobytes())
    near.qp.close()
    near.end.cq.close()
    with pytest.raises(BadState, match="closed"):
        window.poll()
