"""Completions that are known beforehand, and so not read one by one (take_known): rings that no device sees, CQEs
written here as a device would, and what has to come of them known from the requests.
"""

import numpy as np
import pytest
from test_devx_batches import ends  # noqa: F401
from test_direct_completions import merged

from rdmakit.layout import CqeOpcode, Opcode, Syndrome
from rdmakit.layout.cqe import cqe, error_cqe
from rdmakit.verbs import SEND_WR, WC
from rdmakit.verbs._verbs import direct_cq, direct_qp

WRITE, WRITE_IMM, SEND, SEND_IMM, READ = range(5)
SIGNALLED, INLINE = 2, 8
OPCODES = {WRITE: Opcode.RDMA_WRITE, WRITE_IMM: Opcode.RDMA_WRITE_IMM, SEND: Opcode.SEND, SEND_IMM: Opcode.SEND_IMM,
           READ: Opcode.RDMA_READ}  # fmt: skip
WC_OPCODE, WITH_IMM = {WRITE: 1, WRITE_IMM: 1, SEND: 0, SEND_IMM: 0, READ: 2}, {WRITE_IMM, SEND_IMM}
REMOTE_OPERATION, REM_OP_ERR = Syndrome.REMOTE_OP_ERR, 11  # of a CQE, and of ibv_wc_status
BLOCKS, ENTRIES, NUMBERS = 256, 128, (0x101, 0x102, 0x2FFFE)
POISONED = np.full(ENTRIES * 48, 0xA5, np.uint8).view(WC)


class Queues:
    """Queue pairs on one CQ, in memory of the test's; what they complete, in the order of the CQEs."""

    def __init__(self, made, entries=ENTRIES):
        self.entries, self.page = np.zeros((entries, 64), np.uint8), np.zeros(4096, np.uint8)
        self.entries[:, 63] = 0xF1  # nobody's
        self.cq = direct_cq(made, 0x77, self.entries, np.zeros(8, np.uint8))
        self.rings = [np.zeros(64 * BLOCKS, np.uint8) for _ in NUMBERS]
        doorbell = self.page.ctypes.data + 0x800
        self.qps = [
            direct_qp(made, number, ring, None, 16, np.zeros(8, np.uint8), doorbell, self.cq, max_inline=200)
            for number, ring in zip(NUMBERS, self.rings, strict=True)
        ]
        self.posted, self.written, self.polled, self.expected = [0] * len(NUMBERS), 0, 0, []

    def post(self, which, opcodes, flags, sizes, first_id, bad=None):
        """Post; the CQEs that a device would write: from request `bad` on all fail, and each has one."""
        rows = np.zeros(len(opcodes), SEND_WR)
        rows["opcode"], rows["flags"], rows["length"], rows["address"] = opcodes, flags, sizes, self.page.ctypes.data
        rows["wr_id"] = first_id + np.arange(len(rows))
        self.qps[which].post_send(rows)
        ended = []
        for i, (opcode, flag) in enumerate(zip(opcodes.tolist(), flags.tolist(), strict=True)):
            failed = bad is not None and i >= bad
            if failed or flag & SIGNALLED:
                ended.append((which, int(opcode), self.posted[which], failed, int(rows["wr_id"][i])))
            self.posted[which] += 4 if flag & INLINE else 1
        return ended

    def complete(self, which, opcode, index, failed, wr_id, junk):
        number, owner = NUMBERS[which], self.written // len(self.entries) & 1
        row = np.zeros(1, WC)
        row["wr_id"], row["qp_num"] = wr_id, number
        if failed:
            made = error_cqe(REMOTE_OPERATION, qpn=number, wqe_counter=index & 0xFFFF, send_opcode=OPCODES[opcode],
                             vendor_err=int(junk[0]), opcode=CqeOpcode.REQ_ERR, owner=owner)  # fmt: skip
            row["status"], row["vendor_err"] = REM_OP_ERR, junk[0]
        else:
            nbytes = int(junk[1])
            made = cqe(CqeOpcode.REQ, qpn=number, wqe_counter=index & 0xFFFF, send_opcode=OPCODES[opcode],
                       byte_cnt=nbytes, solicited=bool(junk[2] & 1), owner=owner)  # fmt: skip
            row["opcode"], row["wc_flags"] = WC_OPCODE[opcode], 2 * (opcode in WITH_IMM)
            row["byte_len"] = nbytes if opcode == READ else 0
        entry = np.frombuffer(made, np.uint8).copy()
        entry[62] = junk[3]
        self.entries[self.written % len(self.entries)] = entry
        self.written += 1
        self.expected.append(row)

    def check(self, most):
        """Poll so many at most: those that have been written, in their order, and nothing else."""
        rows = POISONED.copy()
        got = self.cq.poll(rows[:most])
        assert got == min(most, self.written - self.polled)
        wanted = np.concatenate(self.expected[:got]) if got else rows[:0]
        for name in WC.names:
            assert np.array_equal(rows[name][:got], wanted[name]), name
        assert (rows[got:] == POISONED[0]).all() and self.cq.failed == np.count_nonzero(wanted["status"])
        self.expected, self.polled = self.expected[got:], self.polled + got


def alike(rng, most):
    """Opcodes, flags, bytes: all alike and with a completion each, but for some, sometimes."""
    count = int(rng.integers(1, most + 1))
    opcode = rng.choice([WRITE, WRITE, SEND, SEND_IMM])
    opcodes, flags, sizes = (np.full(count, value) for value in (opcode, SIGNALLED, 8))
    odd = rng.random(count) < rng.choice([0, 0, 0.03, 0.5])
    match int(rng.integers(3)):
        case 0:
            flags[odd] = 0
        case 1:
            flags[odd], sizes[odd] = SIGNALLED | INLINE, 200
        case _:
            opcodes[odd] = rng.choice([WRITE, WRITE_IMM, SEND, READ])
    flags[-1] |= SIGNALLED  # or its blocks would stay taken
    return opcodes, flags, sizes


@pytest.fixture
def made(ends):  # noqa: F811
    near = ends[0]
    return near.context._provider._made["cq", near.send_cq.cqn][0]


@pytest.fixture
def queues(made):
    return Queues(made)


def junk(rng):
    return rng.integers(0, 256, 4, np.uint8)


@pytest.mark.parametrize("busy", [1, len(NUMBERS)], ids=["one queue pair", "several"])
def test_rows_are_those_of_the_requests_however_many_are_there(queues, rng, busy):
    """Rings turn hundreds of times, one past 2^16; portions of all sizes; in the end some fail."""
    number, coming = 0, []
    while min(queues.posted[:busy]) < 70_000 // busy:
        for which in range(busy):
            room = min(40, ENTRIES // busy - 1)
            coming.append(queues.post(which, *alike(rng, room), number))
            number += 1000
        for what in merged(rng, coming):
            queues.complete(*what, junk(rng))
            if rng.random() < 0.05:
                queues.check(int(rng.integers(0, ENTRIES)))
        coming = []
        if rng.random() < 0.9:
            queues.check(ENTRIES)
        while queues.written != queues.polled and queues.written - queues.polled > ENTRIES // 4:
            queues.check(int(rng.integers(1, ENTRIES)))
        queues.check(ENTRIES)
    for which in range(busy):
        requests = alike(rng, 30)
        coming.append(queues.post(which, *requests, number, bad=int(rng.integers(len(requests[0]) + 1))))
    for what in merged(rng, coming):
        queues.complete(*what, junk(rng))
    while queues.written != queues.polled:
        queues.check(int(rng.integers(1, ENTRIES)))
    queues.check(ENTRIES)


def test_what_is_known_is_not_read(queues, rng):
    """All but the first and the last entry of a batch may hold anything; where a request is not alike, none may."""
    for odd in (None, 0, 31, 62):
        opcodes, flags, sizes = (np.full(64, value) for value in (WRITE, SIGNALLED, 8))
        if odd is not None:
            opcodes[odd] = SEND
        first = queues.written
        for what in queues.post(0, opcodes, flags, sizes, 7):
            queues.complete(*what, junk(rng))
        hidden = queues.entries[(first + np.arange(1, 63)) % ENTRIES].copy()
        queues.entries[(first + np.arange(1, 63)) % ENTRIES, 63] = 0xF0 | 1 ^ (first // ENTRIES & 1)
        rows = POISONED.copy()
        got = queues.cq.poll(rows)
        if odd is None:
            assert got == 64 and (rows["wr_id"][:64] == 7 + np.arange(64)).all()
            queues.expected, queues.polled = [], queues.polled + 64
            continue
        assert got == 1
        queues.expected, queues.polled = queues.expected[1:], queues.polled + 1
        queues.entries[(first + np.arange(1, 63)) % ENTRIES] = hidden
        queues.check(ENTRIES)


def test_an_entry_of_the_lap_before_may_have_the_same_counter(made, rng):
    """In a CQ of 2^16 entries, where one queue pair completes to it: nobody's until the device writes it anew."""
    queues, plain = Queues(made, 1 << 16), [np.full(64, value) for value in (WRITE, SIGNALLED, 8)]
    for first in range(0, 1 << 16, 64):
        for what in queues.post(0, *plain, first):
            queues.complete(*what, junk(rng))
        queues.check(64)
    ended = queues.post(0, *plain, 1 << 16)
    for there in (1, 63):
        for what in ended[:there]:
            queues.complete(*what, junk(rng))
        ended = ended[there:]
        queues.check(64)
