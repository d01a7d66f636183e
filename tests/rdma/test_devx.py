"""Queue pairs created by command, in memory of our own, by libmlx5's DevX: what a GPU that posts by itself needs."""

import ctypes
import errno
import mmap
import struct
import time

import numpy as np
import pytest
from mlx5_commands import (
    ALLOC_PD,
    CAPABILITY,
    CQC,
    CREATE_CQ,
    CREATE_MKEY,
    CREATE_QP,
    INIT2RTR,
    MKC,
    PATH,
    QPC,
    QUERY_CQ,
    QUERY_HCA_CAP,
    QUERY_QP,
    RST2INIT,
    RTR2RTS,
    RTS2RTS,
    TO_ERR,
    Command,
    Device,
    Refused,
    field,
)  # fmt: skip

import rdmakit
from rdmakit.device.endpoint import gid_bytes
from rdmakit.verbs import _verbs

PAGE = 4096
LOG_SQ, LOG_CQ = 4, 4
WRITE, SIGNALLED = 0x08, 0x08


class Memory:
    """Pages that nobody else uses."""

    def __init__(self, nbytes):
        self._map = mmap.mmap(-1, -(-nbytes // PAGE) * PAGE)
        self.bytes = np.frombuffer(self._map, np.uint8)
        self.address = self.bytes.ctypes.data

    def word(self, offset):
        return ctypes.c_uint32.from_address(self.address + offset)


class End:
    """A queue pair on one device: 16 send WQEBBs, no receives; a CQ of 16 entries, or a collapsed one; one mkey."""

    def __init__(self, name, rng, collapsed=False):
        with rdmakit.open(name) as context:
            self.gid = gid_bytes(context.port(1).gid)
            self.gid_index = context._provider._gid_index[1]
        self.name = name
        self.device = device = Device(name)
        self.uar = device.uar()
        _, self.pd = device.create(Command(ALLOC_PD, 16))
        self.rings, self.records, self.data = Memory(PAGE), Memory(PAGE), Memory(4 * PAGE)
        self.cqes = Memory(PAGE)
        self.cqes.bytes[63::64] = 0xF1
        self.data.bytes[:] = 0xA5
        umem = {m: device.umem(m.address, m.bytes.size) for m in (self.rings, self.records, self.cqes, self.data)}
        self.cq, self.cqn = device.create(Command(CREATE_CQ, 272, {
            (CQC + 0x6, 1): 1, (CQC + 0xB, 1): collapsed, (CQC + 0xE, 1): collapsed,
            (CQC + 0x20, 32): umem[self.records], (CQC + 0x63, 5): LOG_CQ, (CQC + 0x68, 24): self.uar.page_id,
            (CQC + 0x1C0, 64): 64, (0x2C0, 32): umem[self.cqes], (0x2E0, 1): 1,
        }))  # fmt: skip
        self.qp, self.qpn = device.create(Command(CREATE_QP, 272, {
            (QPC + 0x13, 2): 3, (QPC + 0x28, 24): self.pd, (QPC + 0x51, 4): LOG_SQ, (QPC + 0x68, 24): self.uar.page_id,
            (QPC + 0x3E8, 24): self.cqn, (QPC + 0x4E8, 24): self.cqn, (QPC + 0x565, 3): 3, (QPC + 0x683, 1): 1,
            (QPC + 0x720, 32): umem[self.records], (0x840, 32): umem[self.rings], (0x860, 1): 1,
        }))  # fmt: skip
        low_byte = int(rng.integers(256))
        _, index = device.create(Command(CREATE_MKEY, 272, {
            (MKC + 0x11, 5): 0b11111, (MKC + 0x16, 2): 1, (MKC + 0x20, 24): 0xFFFFFF, (MKC + 0x38, 8): low_byte,
            (MKC + 0x68, 24): self.pd, (MKC + 0x80, 64): self.data.address, (MKC + 0xC0, 64): self.data.bytes.size,
            (0x61, 1): 1, (0x320, 32): umem[self.data],
        }))  # fmt: skip
        self.key = index << 8 | low_byte
        self.umem = umem
        self.posted = 0

    def change(self, opcode, fields, nbytes=272):
        self.device.modify(self.qp, Command(opcode, nbytes, {(0x48, 24): self.qpn, **fields}))

    def mac_of(self, peer):
        """The Ethernet address that packets to a peer go to, a number."""
        return int.from_bytes(_verbs.Context(self.name).alloc_pd().resolve(peer.gid, 1, self.gid_index), "big")

    def connect(self, peer, psn, udp_source_port):
        self.change(RST2INIT, {(QPC + 0x490, 3): 0b111, (PATH + 0x128, 8): 1})
        self.change(INIT2RTR, {
            (QPC + 0x40, 3): 3, (QPC + 0x43, 5): 30, (QPC + 0xA8, 24): peer.qpn, (QPC + 0x4A8, 24): psn,
            (QPC + 0x488, 3): 4, (QPC + 0x4A3, 5): 12, (PATH + 0x128, 8): 1, (PATH + 0x48, 8): self.gid_index,
            (PATH + 0x58, 8): 64, (PATH + 0x80, 128): int.from_bytes(peer.gid, "big"),
            (PATH + 0x110, 16): udp_source_port, (PATH + 0x130, 48): self.mac_of(peer),
        })  # fmt: skip
        self.change(RTR2RTS, {
            (QPC + 0x388, 3): 4, (QPC + 0x38D, 3): 7, (QPC + 0x390, 3): 7, (QPC + 0x3C8, 24): psn,
            (PATH + 0x40, 5): 14,
        })  # fmt: skip

    def state(self):
        """The QP's context."""
        return self.device.query(self.qp, Command(QUERY_QP, 16, {(0x48, 24): self.qpn}), 272)

    def write(self, offset, nbytes, peer, peer_offset):
        """Post an RDMA WRITE as device code does: WQE, record, register."""
        ctrl = struct.pack(">IIBHBI", self.posted << 8 | WRITE, self.qpn << 8 | 3, 0, 0, SIGNALLED, 0)
        remote = struct.pack(">QII", peer.data.address + peer_offset, peer.key, 0)
        local = struct.pack(">IIQ", nbytes, self.key, self.data.address + offset)
        wqe = np.frombuffer(ctrl + remote + local, np.uint8)
        at = self.posted % (1 << LOG_SQ) * 64
        self.rings.bytes[at : at + wqe.size] = wqe
        self.posted += 1
        self.records.word(4).value = int.from_bytes(struct.pack(">I", self.posted & 0xFFFF), "little")
        ctypes.c_uint64.from_address(self.uar.reg_addr).value = int.from_bytes(ctrl[:8], "little")

    def entry(self, index, wqe_counter):
        """The CQE at `index`, once it reports `wqe_counter`: (opcode, syndrome)."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            cqe = self.cqes.bytes[index * 64 : index * 64 + 64]
            if cqe[63] >> 4 != 0xF and cqe[63] & 1 == 0 and int.from_bytes(cqe[60:62].tobytes(), "big") == wqe_counter:
                return int(cqe[63] >> 4), int(cqe[55])
        raise AssertionError(f"no completion of WQE {wqe_counter}: {cqe.tobytes().hex()}")

    def close(self):
        self.device.close()


@pytest.fixture
def ends(devices, request, rng):
    made = []
    try:
        made = [End(devices[0], rng, getattr(request, "param", False)), End(devices[1], rng)]
    except (OSError, IndexError, AttributeError) as error:
        pytest.skip(f"no DevX on {devices[0]}: {error} (needs an mlx5 device and CAP_NET_RAW)")
    psn = int(rng.integers(1 << 24))
    made[0].connect(made[1], psn, 0xC123)
    made[1].connect(made[0], psn, 0xC124)
    yield made
    for end in made:
        end.close()


def test_a_write_between_queue_pairs_made_by_command(ends, rng):
    here, there = ends
    payload = rng.integers(0, 256, 5000, np.uint8)
    here.data.bytes[:5000] = payload
    here.write(0, 5000, there, 1234)
    assert here.entry(0, 0)[0] == 0
    assert np.array_equal(there.data.bytes[1234:6234], payload)
    assert (there.data.bytes[:1234] == 0xA5).all() and (there.data.bytes[6234:] == 0xA5).all()


@pytest.mark.parametrize("ends", [True], indirect=True)
def test_a_collapsed_queue_shows_the_last_completion(ends, rng):
    here, there = ends
    for round_ in range(40):  # over the ring's end, more than twice
        here.data.bytes[:64] = rng.integers(0, 256, 64, np.uint8)
        here.write(0, 64, there, 0)
        assert here.entry(0, round_)[0] == 0
        assert np.array_equal(there.data.bytes[:64], here.data.bytes[:64])
    assert (here.cqes.bytes[127::64] == 0xF1).all(), "a collapsed queue has one entry"


def test_what_a_query_shows(ends):
    here, there = ends
    context = here.state()
    assert field(context, QPC + 0x0, 4) == 3, "RTS"
    assert field(context, QPC + 0xA8, 24) == there.qpn
    assert field(context, QPC + 0x3E8, 24) == here.cqn
    assert field(context, PATH + 0x110, 16) == 0xC123
    cq = here.device.query(here.cq, Command(QUERY_CQ, 16, {(0x48, 24): here.cqn}), 272)
    assert field(cq, CQC + 0x63, 5) == LOG_CQ and field(cq, CQC + 0x168, 24) == 0
    here.write(0, 1, there, 0)
    here.entry(0, 0)
    cq = here.device.query(here.cq, Command(QUERY_CQ, 16, {(0x48, 24): here.cqn}), 272)
    assert field(cq, CQC + 0x168, 24) == 1, "one entry written"


def test_the_udp_source_port_changes_while_it_works(ends):
    here, there = ends
    here.change(RTS2RTS, {(0x840, 64): 1 << 2, (PATH + 0x110, 16): 0xE00D})
    assert field(here.state(), PATH + 0x110, 16) == 0xE00D
    here.write(0, 100, there, 0)
    assert here.entry(0, 0)[0] == 0
    with pytest.raises(Refused) as refused:
        here.change(RTS2RTS, {(0x840, 64): 1 << 2, (PATH + 0x110, 16): 0x1234})
    assert refused.value.errno == errno.EREMOTEIO and refused.value.status


def test_in_error_everything_posted_is_flushed(ends):
    here, there = ends
    here.change(TO_ERR, {})
    assert field(here.state(), QPC + 0x0, 4) == 6, "ERR"
    for _ in range(3):
        here.write(0, 8, there, 0)
    assert [here.entry(index, index) for index in range(3)] == [(13, 5)] * 3, "requester error, flushed"
    assert (there.data.bytes == 0xA5).all()


def test_capabilities_that_our_own_code_asks_for(ends):
    answer = ends[0].device.general(Command(QUERY_HCA_CAP, 16, {(0x30, 16): 1}), 16 + 4096)
    assert field(answer, CAPABILITY + 0x1B6, 2) == 1, "Ethernet"
    assert field(answer, CAPABILITY + 0x151, 1) == 1, "rts2rts_qp_udp_sport"
    assert field(answer, CAPABILITY + 0x88, 8) >= 10, "log_max_qp_sz"
    assert field(answer, CAPABILITY + 0x400, 64) >> 4 & 3 == 3, "user contexts and umems"


def test_commands_that_cannot_be(ends):
    here, there = ends
    with pytest.raises(Refused) as refused:  # a ring longer than its memory
        here.device.create(Command(CREATE_QP, 272, {
            (QPC + 0x28, 24): here.pd, (QPC + 0x51, 4): 10, (QPC + 0x68, 24): here.uar.page_id,
            (QPC + 0x3E8, 24): here.cqn, (QPC + 0x4E8, 24): here.cqn, (QPC + 0x565, 3): 3, (QPC + 0x683, 1): 1,
            (QPC + 0x720, 32): here.umem[here.records], (0x840, 32): here.umem[here.rings], (0x860, 1): 1,
        }))  # fmt: skip
    assert refused.value.status
    with pytest.raises(Refused) as refused:  # the object is one, the command names another
        here.device.query(here.qp, Command(QUERY_QP, 16, {(0x48, 24): here.qpn + 1}), 272)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(Refused) as refused:  # MODIFY_LAG is the kernel's own
        here.device.general(Command(0x841, 64), 16)
    assert refused.value.errno == errno.EINVAL
    with pytest.raises(Refused) as refused:  # already in RTS
        here.change(INIT2RTR, {(QPC + 0x40, 3): 3})
    assert refused.value.status
    here.write(0, 8, there, 0)
    assert here.entry(0, 0)[0] == 0, "still works"
