"""ring_view: writing through a view writes the ring, no byte is copied; who owns a CQE."""

import mmap

import numpy as np
import pytest

from rdmakit.errors import BadArgument
from rdmakit.layout import (
    CQE_INITIAL_OP_OWN,
    Opcode,
    Sge,
    cqe,
    cqe_is_software_owned,
    decode,
    encode,
    ring_view,
)

WRITE = encode.write(index=5, qpn=0x123, raddr=0x1000, rkey=7, sges=Sge(0x2000, 64, 9))


@pytest.mark.parametrize(
    "ring",
    [bytearray(256), np.zeros(256, np.uint8), np.zeros((4, 8), np.uint64), mmap.mmap(-1, 256)],
    ids=lambda ring: type(ring).__name__,
)
def test_a_view_is_the_ring(ring):
    sq = ring_view(ring, "sq")
    assert sq.shape == (4,)
    memoryview(ring).cast("B")[64:128] = WRITE
    assert (sq["opcode"][1], sq["wqe_index"][1], sq["qpn_ds"][1] >> 8) == (Opcode.RDMA_WRITE, 5, 0x123)
    sq["opmod_idx_opcode"][2] = 9 << 8 | Opcode.NOP
    assert bytes(memoryview(ring).cast("B")[128:132]) == bytes([0, 0, 9, 0]), "big endian, in place"
    assert np.shares_memory(sq, np.frombuffer(ring, np.uint8))
    del sq


def test_bytes_give_a_read_only_view():
    with pytest.raises(ValueError, match="read-only"):
        ring_view(bytes(64), "cq")["op_own"][0] = 1


def test_a_faulty_wqe_is_made_through_a_view():
    ring = bytearray(WRITE)
    ring_view(ring, "rq")["byte_count"][2] = 0
    assert decode(ring).problems != []


def test_cq_views_of_both_entry_sizes():
    entry = cqe(qpn=0x77, wqe_counter=3, inline_data=bytes(range(40)))
    small, large = ring_view(entry, "cq"), ring_view(entry, "cq128")
    assert small.shape == (2,) and large.shape == (1,)
    assert small["wqe_counter"][1] == large["cqe"]["wqe_counter"][0] == 3
    assert bytes(large["inline_data"][0][:40]) == bytes(range(40))


@pytest.mark.parametrize(("size", "kind"), [(63, "sq"), (64, "cq128"), (4, "qp_dbrec"), (8, "sq")])
def test_partial_entries_are_refused(size, kind):
    with pytest.raises(BadArgument, match="not whole entries"):
        ring_view(bytearray(size), kind)


def test_gaps_and_unknown_kinds_are_refused():
    with pytest.raises(BadArgument, match="gaps"):
        ring_view(np.zeros((4, 128), np.uint8)[:, :64], "sq")
    with pytest.raises(BadArgument, match="unknown ring kind"):
        ring_view(bytearray(64), "eq")


def test_a_cq_is_software_owned_up_to_where_the_device_wrote_on_every_lap():
    """A CQ of 4 entries, initialised as DOCA does; the device writes CQEs, flipping the owner each lap."""
    log_size = 2
    for produced in range(13):
        ring = bytearray(4 * 64)
        view = ring_view(ring, "cq")
        view["op_own"] = CQE_INITIAL_OP_OWN
        for pi in range(produced):
            ring[pi % 4 * 64 : pi % 4 * 64 + 64] = cqe(qpn=1, wqe_counter=pi, owner=pi >> log_size & 1)
        for ci in range(max(0, produced - 4), produced + 4):
            owned = cqe_is_software_owned(int(view["op_own"][ci % 4]), ci, log_size)
            assert owned is (ci < produced), f"produced {produced}, consumer index {ci}"


def test_ownership_of_a_whole_ring_at_once():
    owned = cqe_is_software_owned(np.array([0x00, 0x01, 0xF0, 0xF1], np.uint8), np.arange(4, 8), 2)
    assert owned.tolist() == [False, True, False, False]
