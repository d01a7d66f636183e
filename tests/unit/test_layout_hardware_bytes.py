"""Bytes that real ConnectX devices wrote, from public bug reports, and what the reporters' tools said."""

import pytest

from rdmakit.layout import CqeOpcode, Opcode, Syndrome, WcStatus, decode

# netdev list, January 2021, "xsk: build skb by page" (Xuan Zhuo): ConnectX-4 Lx, printed by mlx5_core as
# "Error cqe on cqn 0x817, ci 0x8, qn 0x1dbb, opcode 0xd, syndrome 0x1, vendor syndrome 0x68", "WQE index 0xf"
NETDEV_CQE = "00" * 52 + "60 10 68 01 0a 00 1d bb 00 0f 9f d2"
NETDEV_WQE = """00 00 0f 0a 00 1d bb 03 00 00 00 08 00 00 00 00
                00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
                00 00 00 2b 00 08 00 00 00 00 00 05 9e e3 08 00
                00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"""

SEND, WRITE = Opcode.SEND, Opcode.RDMA_WRITE


def word_dump(last_words: str) -> bytes:
    """A CQE as libmlx5's "got completion with error" prints it, all but the last words zero."""
    tail = bytes.fromhex(last_words)
    return bytes(64 - len(tail)) + tail


@pytest.mark.parametrize(
    ("raw", "opcode", "syndrome", "vendor", "qpn", "counter", "status"),
    [
        # Juniper/warp17 issue 81
        ("9D005304 0A001542 0019B0D2", SEND, Syndrome.LOCAL_PROT_ERR, 0x53, 0x1542, 0x19, "LOC_PROT_ERR"),
        # openucx/ucx issue 6414: "local protection error qpn 0x82f … vendor_err 0x52"
        ("92005204 0a00082f 0000c5d2", SEND, Syndrome.LOCAL_PROT_ERR, 0x52, 0x82F, 0, "LOC_PROT_ERR"),
        # openucx/ucx issue 857: "Send completion with error: local QP operation error"
        ("01006102 0800012e 1f3a2cd2", WRITE, Syndrome.LOCAL_QP_OP_ERR, 0x61, 0x12E, 0x1F3A, "LOC_QP_OP_ERR"),
        # spdk/spdk issue 961: "CQ error … (4): local protection error"
        ("93005204 0a0019a1 c0921cd2", SEND, Syndrome.LOCAL_PROT_ERR, 0x52, 0x19A1, 0xC092, "LOC_PROT_ERR"),
        # netdev, above
        ("60106801 0a001dbb 000f9fd2", SEND, Syndrome.LOCAL_LENGTH_ERR, 0x68, 0x1DBB, 0xF, "LOC_LEN_ERR"),
    ],
)
def test_error_cqe(raw, opcode, syndrome, vendor, qpn, counter, status):
    cqe = decode(word_dump(raw))
    assert cqe.kind == "cqe", "64 bytes: decode must find out by itself that this is a CQE"
    assert (cqe.opcode, cqe.is_error, cqe.owner) == (CqeOpcode.REQ_ERR, True, 0)
    assert (cqe.send_opcode, cqe.syndrome, cqe.vendor_err) == (opcode, syndrome, vendor)
    assert (cqe.qpn, cqe.wqe_counter) == (qpn, counter)
    assert cqe.wc_status is WcStatus[status]
    assert cqe.problems == []


def test_hardware_syndrome_bytes_are_separate_from_the_vendor_syndrome():
    cqe = decode(bytes.fromhex(NETDEV_CQE))
    assert (cqe.hw_err_synd, cqe.hw_synd_type, cqe.vendor_err, cqe.syndrome) == (0x60, 0x10, 0x68, 0x01)


def test_the_failed_wqe_names_the_queue_and_index_that_its_cqe_names():
    wqe = decode(bytes.fromhex(NETDEV_WQE), qp_type="raw")
    cqe = decode(bytes.fromhex(NETDEV_CQE))
    assert wqe.kind == "wqe"
    assert [segment.name for segment in wqe.segments] == ["ctrl", "eth", "data"]
    assert (wqe.index, wqe.qpn, wqe.opcode) == (cqe.wqe_counter, cqe.qpn, cqe.send_opcode)
    assert wqe.ds == 3 and wqe.signalled
    (data,) = wqe.data
    assert (data["byte_count"], data["lkey"], data["addr"]) == (0x2B, 0x80000, 0x59EE30800)
    assert wqe.problems == []
