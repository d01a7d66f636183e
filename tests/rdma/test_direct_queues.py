"""Rings written and read here, held against libmlx5: the same work requests, row by row the same completions."""

import errno
import time

import numpy as np
import pytest
from test_batches import SIGNALLED, End

from rdmakit.device import Refused
from rdmakit.errors import BadArgument, BadState
from rdmakit.verbs import RECV_WR, SEND_WR, WC

WRITE, WRITE_IMM, SEND, SEND_IMM, READ, CMP_SWAP, FETCH_ADD = range(7)
FENCE, SOLICITED, INLINE = 1, 4, 8
REGION = 512  # bytes that a request may touch


@pytest.fixture(autouse=True)
def only_mlx5(devices, mlx5):
    if not set(devices) <= mlx5:
        pytest.skip(f"{devices[0]} has no queues of its own: rdmakit connectx -- …")


class Side:
    """One end. `direct`: its queues are driven here, else by libmlx5."""

    def __init__(self, device, rng, direct, *, cq_entries=1024, **sizes):
        self.end = End.__new__(End)
        End.__init__(self.end, device, rng)
        end, sizes = self.end, {"max_send_wr": 64, "max_recv_wr": 64, "max_recv_sge": 1, "max_inline": 200, **sizes}
        end.cq = end.context.create_cq(cq_entries)
        end.qp = end.pd.create_qp(end.cq, **sizes)
        self.mr, self.memory = end.mr, end.memory
        self.cq = end.cq.direct() if direct else end.cq
        self.qp = end.qp.direct(self.cq) if direct else end.qp

    def poll(self, count):
        """So many completions, and no more."""
        found, got, deadline = np.zeros(count + 1, WC), 0, time.monotonic() + 20
        while got < count and time.monotonic() < deadline:
            got += self.cq.poll(found[got:])
            time.sleep(0)
        assert got == count == got + self.cq.poll(found[got:]), f"{got} of {count} completions"
        return found[:count]


def pair(devices, rng, direct, **sizes):
    near, far = Side(devices[0], rng, direct, **sizes), Side(devices[1], rng, direct, **sizes)
    near.end.connect(far.end)
    far.end.connect(near.end)
    return near, far


def requests_of(near, far, rows):
    """SEND_WR of (opcode, flags, bytes), the i-th in the i-th region of both ends."""
    made = np.zeros(len(rows), SEND_WR)
    for i, (opcode, flags, nbytes) in enumerate(rows):
        made[i] = (7000 + i, opcode, flags, near.mr.address + REGION * i, nbytes, near.mr.lkey,
                   far.mr.address + REGION * i, far.mr.rkey, 0xAB000000 + i, 5 + i, 1 << 40 | i)  # fmt: skip
    return made


def drawn(rng, count):
    rows = []
    for opcode in rng.integers(0, 7, count):
        atomic = opcode in (CMP_SWAP, FETCH_ADD)
        nbytes = 8 if atomic else int(rng.choice([0, 1, 31, 32, 33, 64, 100, 188, 200, 512]))
        flags = SIGNALLED | int(rng.choice([0, FENCE, SOLICITED, FENCE | SOLICITED]))
        inline = not atomic and opcode != READ and 0 < nbytes <= 200 and rng.random() < 0.5
        rows.append((int(opcode), flags | INLINE * inline, nbytes))
    return rows


def receives(far, count):
    made = np.zeros(count, RECV_WR)
    made["wr_id"], made["address"] = 100 + np.arange(count), far.mr.address + (1 << 15) + REGION * np.arange(count)
    made["length"], made["lkey"] = REGION, far.mr.lkey
    return made


def played(devices, rows, seed, direct):
    """Completions and memory of both ends after these requests, from the same bytes at the start."""
    rng = np.random.default_rng(seed)
    near, far = pair(devices, rng, direct)
    done, got = [], []
    for first in range(0, len(rows), 16):
        batch = rows[first : first + 16]
        for i, (opcode, *_) in enumerate(batch):
            if opcode == CMP_SWAP and i % 2:  # every other one finds what it expects
                far.memory[REGION * i : REGION * i + 8].view(np.uint64)[0] = 5 + i
        heard = sum(opcode in (WRITE_IMM, SEND, SEND_IMM) for opcode, *_ in batch)
        far.qp.post_recv(receives(far, heard))
        near.qp.post_send(requests_of(near, far, batch))
        done.append(near.poll(len(batch)))
        got.append(far.poll(heard))
    return np.concatenate(done), np.concatenate(got), near.memory.copy(), far.memory.copy()


def test_completions_and_memory_are_those_of_libmlx5(devices, rng):
    """Every opcode, inline and not, round the rings several times; queue pair numbers differ, nothing else."""
    seed, rows = int(rng.integers(1 << 30)), drawn(rng, 160)
    mine, theirs = (played(devices, rows, seed, direct) for direct in (True, False))
    for ours, libmlx5, which in zip(mine[:2], theirs[:2], ("sent", "received"), strict=True):
        assert len(ours) == len(libmlx5)
        names = ["wr_id", "status", "opcode", "wc_flags"]
        reads = np.ones(len(ours), bool) if which == "received" else ours["opcode"] >= 2
        for name in names:
            assert np.array_equal(ours[name], libmlx5[name]), name
        # libmlx5 leaves fields as they were where they say nothing
        assert np.array_equal(ours["byte_len"][reads], libmlx5["byte_len"][reads])
        imm = (ours["wc_flags"] & 2 != 0) & (which == "received")
        assert np.array_equal(ours["imm"][imm], libmlx5["imm"][imm])
    assert np.array_equal(mine[2], theirs[2]), "the sender's memory"
    assert np.array_equal(mine[3], theirs[3]), "the receiver's memory"
    assert len(np.unique(mine[0]["opcode"])) == 5 and set(mine[1]["opcode"]) == {128, 129}, "all were drawn"


@pytest.mark.parametrize("scatter", [True, False])
def test_what_the_device_leaves_in_the_cqe_is_delivered(devices, rng, scatter):
    """READs, atomics and SENDs of up to 32 bytes; where an atomic's result goes is held against libmlx5 alone."""
    seed, left = int(rng.integers(1 << 30)), []
    reads, sends = (24, 32, 100), (20, 32, 90)
    for direct in (True, False):
        near, far = pair(devices, np.random.default_rng(seed), direct, scatter_to_cqe=scatter, sq_sig_all=True)
        before = far.memory.copy()
        near.qp.post_send(requests_of(near, far, [*((READ, 0, n) for n in reads), (FETCH_ADD, 0, 8)]))
        assert near.poll(4)["byte_len"].tolist() == [*reads, 8]
        for i, nbytes in enumerate(reads):
            at = slice(REGION * i, REGION * i + nbytes)
            assert np.array_equal(near.memory[at], before[at]), (direct, nbytes)
        far.qp.post_recv(receives(far, len(sends)))
        near.qp.post_send(requests_of(near, far, [(SEND, 0, n) for n in sends]))
        assert far.poll(3)["byte_len"].tolist() == list(sends) and (near.poll(3)["status"] == 0).all()
        for i, nbytes in enumerate(sends):
            there = (1 << 15) + REGION * i
            assert np.array_equal(far.memory[there : there + nbytes], near.memory[REGION * i : REGION * i + nbytes])
        left.append((near.memory.copy(), far.memory.copy()))
    assert all(np.array_equal(*both) for both in zip(*left, strict=True)), "libmlx5 leaves the same"


def test_a_full_ring_takes_what_fits_and_room_comes_with_completions(devices, rng):
    near, far = pair(devices, rng, True)
    room = near.end.qp.mlx5()["sq"].nbytes // 64
    rows = requests_of(near, far, [(WRITE, 0, 8)] * (room + 5))
    rows["address"], rows["remote_address"] = near.mr.address, far.mr.address
    rows["flags"][room - 1] = SIGNALLED
    with pytest.raises(Refused, match=rf"post_send.*taken {room}") as caught:
        near.qp.post_send(rows)
    assert caught.value.code == errno.ENOMEM
    assert near.poll(1)["wr_id"].tolist() == [7000 + room - 1], "and with it all before"
    rows["flags"] = SIGNALLED
    near.qp.post_send(rows[:room])
    assert near.poll(room)["wr_id"].tolist() == rows["wr_id"][:room].tolist()
    slots = near.end.qp.mlx5()["rq"].nbytes // near.end.qp.mlx5()["rq_stride"]
    with pytest.raises(Refused, match=rf"post_recv.*taken {slots}"):
        near.qp.post_recv(receives(near, slots + 1))


def test_what_no_wqe_can_say_is_refused_and_what_came_before_is_posted(devices, rng):
    near, far = pair(devices, rng, True)
    most = near.end.qp.cap["max_inline_data"]
    for wrong in ((7, SIGNALLED, 8), (WRITE, SIGNALLED | INLINE, most + 1), (READ, SIGNALLED | INLINE, 8),
                  (FETCH_ADD, SIGNALLED | INLINE, 8)):  # fmt: skip
        rows = requests_of(near, far, [(WRITE, SIGNALLED, 8), (WRITE, SIGNALLED, 9), wrong, (WRITE, SIGNALLED, 8)])
        with pytest.raises(Refused, match="taken 2") as caught:
            near.qp.post_send(rows)
        assert caught.value.code == errno.EINVAL
        assert near.poll(2)["wr_id"].tolist() == [7000, 7001]
    with pytest.raises(BadArgument, match="multiple of 64"):
        near.qp.post_send(np.zeros(63, np.uint8))
    with pytest.raises(BadArgument, match="multiple of 48"):
        near.cq.poll(np.zeros(47, np.uint8))


def test_errors_have_the_status_and_syndrome_that_libmlx5_tells(devices, rng):
    found = []
    for direct in (True, False):
        near, far = pair(devices, rng, direct)
        rows = requests_of(near, far, [(WRITE, SIGNALLED, 8), (WRITE, SIGNALLED, 8), (WRITE, SIGNALLED, 8)])
        rows["rkey"][1] ^= 0x5500
        near.qp.post_send(rows)
        done = near.poll(3)
        assert not direct or near.cq.failed == 0, "of the last poll, which found nothing"
        found.append([(int(row["wr_id"]), int(row["status"]), int(row["vendor_err"])) for row in done])
    assert found[0] == found[1] and [status for _, status, _ in found[0]] == [0, 10, 5]


def test_a_queue_is_driven_by_one_of_the_two(devices, rng):
    near, far = pair(devices, rng, False)
    near.qp.post_send(requests_of(near, far, [(WRITE, SIGNALLED, 8)]))
    near.poll(1)
    with pytest.raises(BadState, match=r"CQ .* has been used through libmlx5"):
        near.end.cq.direct()
    other = near.end.context.create_cq(64)
    with pytest.raises(BadArgument, match="not the queue pair's send CQ"):
        near.end.qp.direct(other.direct())
    near, far = pair(devices, rng, False)
    cq = near.end.cq.direct()
    near.qp.post_send(requests_of(near, far, [(WRITE, SIGNALLED, 8)]))
    with pytest.raises(BadState, match=r"QP .* has been used through libmlx5"):
        near.end.qp.direct(cq)
    deadline = time.monotonic() + 10
    with pytest.raises(BadState, match=rf"not driven directly.*{near.end.qp.qpn:#x}"):
        while time.monotonic() < deadline:
            cq.poll(np.zeros(4, WC))


def test_a_queue_pair_that_goes_takes_its_completions_and_leaves_the_others(devices, rng):
    near, far = pair(devices, rng, True, cq_entries=60)
    entries = near.end.cq.mlx5()["entries"]
    other_qp, far_qp = (side.end.pd.create_qp(side.end.cq, max_send_wr=64) for side in (near, far))
    kept = near.qp, far.qp
    near.end.qp, far.end.qp = other_qp, far_qp
    other = other_qp.direct(near.cq)
    near.end.connect(far.end)
    far.end.connect(near.end)
    rows = requests_of(near, far, [(WRITE, SIGNALLED, 8)] * 20)
    for _ in range(2 * entries // 20 + 2):  # two laps and a bit
        other.post_send(rows)
        assert (near.poll(20)["status"] == 0).all()
    other.post_send(rows[:5])  # completions that nobody polls
    kept[0].post_send(rows[:3])
    time.sleep(0.2)
    other.close()
    assert near.poll(3)["qp_num"].tolist() == [kept[0].qp.qpn] * 3
    for _ in range(2 * entries // 20 + 2):
        near.qp.post_send(rows)
        assert near.poll(20)["wr_id"].tolist() == rows["wr_id"].tolist()
    assert not near.end.context.async_events()
    del other
