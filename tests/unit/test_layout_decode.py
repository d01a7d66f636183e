"""decode and hexdump: the kind is found, all that is illegal is listed, and only sizes raise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdmakit.errors import BadArgument, DecodeError
from rdmakit.layout import (
    KINDS,
    CqeFormat,
    CqeOpcode,
    Opcode,
    Sge,
    Syndrome,
    WcStatus,
    cq_dbrec,
    cqe,
    decode,
    decode_all,
    doorbell_last,
    doorbell_next,
    encode,
    error_cqe,
    hexdump,
    qp_dbrec,
)

BUF = Sge(0x2000, 64, 9)
WRITE = encode.write(index=5, qpn=0x123, raddr=0x1000, rkey=7, sges=BUF)
FADD = encode.fetch_add(index=5, qpn=0x123, raddr=0x1000, rkey=7, add=1, sge=Sge(0x20, 8, 9))


def with_bytes(wqe: bytes, **at: int) -> bytes:
    """A copy with some bytes replaced: b7=0 sets byte 7 to 0."""
    changed = bytearray(wqe)
    for name, value in at.items():
        changed[int(name[1:])] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("wqe", "problem"),
    [
        (with_bytes(WRITE, b3=0x77), "opcode 0x77"),
        (with_bytes(WRITE, b7=0), "ds is 0"),
        (with_bytes(WRITE, b7=63), "only 64 given"),
        (with_bytes(WRITE, b7=0x43), "reserved bits 0x40"),
        (with_bytes(WRITE, b7=1), "raddr segment missing"),
        (with_bytes(WRITE, b11=0x19), "reserved bits 0x11 set in fm_ce_se"),
        (with_bytes(WRITE, b11=0xA8), "fence mode 5"),
        (with_bytes(WRITE, b0=9), "opmod 0x9 on RDMA_WRITE"),
        (with_bytes(WRITE, b35=0), "byte_count 0"),
        (with_bytes(WRITE, b32=0x7F), "a WQE may move 1073741824"),
        (with_bytes(WRITE, b32=0x80), "inline segment of 64 bytes, but ds leaves room for 12"),
        (with_bytes(WRITE, b3=Opcode.RDMA_READ, b32=0x80, b35=8), "a READ cannot carry an inline segment"),
        (with_bytes(FADD, b23=1), "raddr 0x1001 is no multiple of the atomic's 8 bytes"),
        (with_bytes(FADD, b7=3), "0 data segments"),
        (with_bytes(FADD, b51=4), "landing buffer of 4 bytes, the atomic has 8"),
        (with_bytes(FADD, b3=Opcode.ATOMIC_MASKED_FA), "opmod 0x0 on a masked atomic"),
    ],
)
def test_each_illegal_thing_is_named(wqe, problem):
    assert any(problem in text for text in decode(wqe, "wqe").problems), decode(wqe, "wqe").problems


def test_a_legal_wqe_has_no_problems():
    assert decode(WRITE).problems == decode(FADD).problems == []


@pytest.mark.parametrize("opcode", [0x00, 0x0E, 0x0F, 0x19, 0x1B, 0x25, 0x2F])
def test_segments_of_opcodes_not_described_here_are_opaque_not_wrong(opcode):
    """NVSHMEM writes its NOPs with ds 2; UMR, WAIT and the like have segments of their own."""
    d = decode(with_bytes(WRITE, b3=opcode), "wqe")
    assert ([s.name for s in d.segments], d.problems) == (["ctrl", "opaque", "opaque"], [])


def test_a_ud_send_has_an_address_vector():
    av = bytes.fromhex("11111111 00000000 80000042").ljust(48, b"\0")
    wqe = encode.send(index=0, qpn=1, sges=BUF)
    ud = with_bytes(wqe[:16] + av + wqe[16:32] + bytes(48), b7=5)
    d = decode(ud, "wqe", qp_type="ud")
    assert [s.name for s in d.segments] == ["ctrl", "av", "data"]
    assert d.segment("av")["dqp_dct"] == 0x8000_0042 and d.problems == []


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (doorbell_next(1, 2), "doorbell"),
        (WRITE, "wqe"),
        (FADD[:48], "wqe"),
        (encode.nop(index=0, qpn=1), "wqe"),
        (WRITE + bytes(64), "wqe"),
        (cqe(qpn=0x123, wqe_counter=5, send_opcode=Opcode.RDMA_WRITE), "cqe"),
        (cqe(CqeOpcode.RESP_WR_IMM, qpn=0x123, wqe_counter=5, imm=7, byte_cnt=9), "cqe"),
        (error_cqe(Syndrome.WR_FLUSH_ERR, qpn=0x123, wqe_counter=5), "cqe"),
        (cqe(qpn=0x123, wqe_counter=5, inline_data=bytes(range(33))), "cqe"),
    ],
)
def test_the_kind_is_found_out(raw, kind):
    assert decode(raw).kind == kind


@given(st.binary(max_size=300), st.sampled_from([None, *KINDS]), st.sampled_from(["rc", "ud", "raw"]))
def test_random_bytes_never_crash(raw, kind, qp_type):
    """DecodeError for a size that cannot be; anything else decodes, dumps and turns into a dict."""
    try:
        d = decode(raw, kind, qp_type=qp_type)
    except DecodeError:
        fits = {8: {"doorbell", "dbrec", "cq_dbrec"}, 64: {"cqe"}, 128: {"cqe"}}.get(len(raw), set())
        assert kind not in fits
        assert not (kind in (None, "wqe", "recv") and len(raw) and len(raw) % 16 == 0)
        return
    lines = hexdump(d).splitlines()
    assert len(lines) == 1 + -(-len(raw) // 16) + len(d.problems)
    assert d.to_dict()["problems"] == d.problems


@given(st.integers(0, 255), st.binary(min_size=1008, max_size=1008), st.integers(0, 63))
def test_random_bodies_under_every_opcode_stay_inside_the_wqe(opcode, body, ds):
    raw = with_bytes(body, b3=opcode, b7=ds)
    for s in decode(raw, "wqe").segments:
        assert s.offset + s.size <= max(16, 16 * ds)
        assert all(s.offset <= f.offset and f.offset + f.size <= s.offset + s.size for f in s.fields)
        assert all(
            raw[f.offset : f.offset + f.size] == f.value for f in s.fields if isinstance(f.value, bytes)
        )


def test_each_fields_value_is_what_lies_at_its_offset():
    for wqe in (WRITE, FADD, cqe(qpn=1, wqe_counter=2, timestamp=3), doorbell_last(WRITE)):
        for f in decode(wqe).fields:
            raw = wqe[f.offset : f.offset + f.size]
            assert f.value == (raw if isinstance(f.value, bytes) else int.from_bytes(raw, "big")), f.name


def test_decode_all_walks_a_slice_of_a_ring_by_basic_blocks():
    to = {"qpn": 1, "raddr": 8, "rkey": 1}
    two = encode.masked_compare_swap(index=7, **to, compare=0, swap=1, sge=Sge(8, 8, 1))
    ring = two + encode.nop(index=9, qpn=1) + encode.write(index=10, **to, sges=BUF)
    assert [(d.opcode_name, d.index) for d in decode_all(ring)] == [
        ("ATOMIC_MASKED_CS", 7), ("NOP", 9), ("RDMA_WRITE", 10)]  # fmt: skip
    assert len(decode_all(bytes(256), "cqe")) == 4
    with pytest.raises(DecodeError):
        decode_all(bytes(65))


GOOD = set(CqeOpcode) - {CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR, CqeOpcode.INVALID}
qpns, counters = st.integers(0, 0xFFFFFF), st.integers(0, 0xFFFF)


@given(st.sampled_from(sorted(GOOD)), qpns, counters, st.sampled_from(Opcode), st.integers(0, 0xFFFFFFFF),
       st.integers(0, (1 << 64) - 1), st.integers(0, 1), st.booleans(), st.binary(max_size=64))  # fmt: skip
def test_round_trip_of_completions(opcode, qpn, counter, send, imm, timestamp, owner, solicited, inline):
    entry = cqe(opcode, qpn=qpn, wqe_counter=counter, send_opcode=send, imm=imm, timestamp=timestamp,
                owner=owner, solicited=solicited, inline_data=inline)  # fmt: skip
    d = decode(entry, "cqe")
    assert (d.opcode, d.qpn, d.wqe_counter, d.send_opcode) == (opcode, qpn, counter, send)
    assert (d.imm, d.timestamp, d.owner, d.solicited) == (imm, timestamp, owner, solicited)
    assert d.format == (CqeFormat.PLAIN if not inline else 1 if len(inline) <= 32 else 2)
    assert (d.inline_data, d.byte_cnt, d.wc_status) == (inline, len(inline), WcStatus.SUCCESS)
    assert d.problems == []


@given(st.sampled_from(Syndrome), qpns, counters, st.integers(0, 255))
def test_round_trip_of_errors(syndrome, qpn, counter, vendor):
    d = decode(error_cqe(syndrome, qpn=qpn, wqe_counter=counter, vendor_err=vendor), "cqe")
    assert (d.is_error, d.syndrome, d.vendor_err) == (True, syndrome, vendor)
    assert (d.qpn, d.wqe_counter) == (qpn, counter)
    assert d.wc_status not in (WcStatus.SUCCESS, WcStatus.GENERAL_ERR) and d.problems == []


@pytest.mark.parametrize(
    ("syndrome", "status"),
    [
        (0x01, WcStatus.LOC_LEN_ERR),
        (0x02, WcStatus.LOC_QP_OP_ERR),
        (0x04, WcStatus.LOC_PROT_ERR),
        (0x05, WcStatus.WR_FLUSH_ERR),
        (0x06, WcStatus.MW_BIND_ERR),
        (0x10, WcStatus.BAD_RESP_ERR),
        (0x11, WcStatus.LOC_ACCESS_ERR),
        (0x12, WcStatus.REM_INV_REQ_ERR),
        (0x13, WcStatus.REM_ACCESS_ERR),
        (0x14, WcStatus.REM_OP_ERR),
        (0x15, WcStatus.RETRY_EXC_ERR),
        (0x16, WcStatus.RNR_RETRY_EXC_ERR),
        (0x22, WcStatus.REM_ABORT_ERR),
        (0x00, WcStatus.GENERAL_ERR),
        (0x99, WcStatus.GENERAL_ERR),
    ],
)
def test_status_of_a_syndrome_is_libmlx5s(syndrome, status):
    """mlx5_handle_error_cqe of rdma-core providers/mlx5/cq.c."""
    assert decode(with_bytes(bytes(64), b55=syndrome, b63=0xD0), "cqe").wc_status is status


@pytest.mark.parametrize(
    ("op_own", "byte_cnt", "problem"),
    [
        (0xF1, 0, "not written this entry yet"),
        (0x70, 0, "CQE opcode 7"),
        (0xD0, 0, "syndrome 0x0"),
        (0xD4, 0, "on a completion in error"),
        (0x04, 33, "holds 32 bytes"),
        (0x08, 8, "decode the 128-byte entry"),
        (0x0C, 0, "compressed session"),
    ],
)
def test_what_is_wrong_with_a_cqe_is_named(op_own, byte_cnt, problem):
    entry = with_bytes(bytes(64), b47=byte_cnt, b63=op_own)
    assert any(problem in text for text in decode(entry, "cqe").problems), decode(entry, "cqe").problems


@pytest.mark.parametrize("register", [doorbell_next(0x123, 0x1_0006), doorbell_last(WRITE)])
def test_both_dialects_of_the_doorbell_say_the_same_next_index(register):
    """DOCA writes the index after the last WQE; libmlx5 the last WQE's own index, 5, with its ds."""
    d = decode(register)
    assert (d.qpn, d.next_index, d.problems) == (0x123, 6, [])
    assert d.dialect == ("last" if register == WRITE[:8] else "next")


def test_the_next_index_counts_the_basic_blocks_of_a_long_last_wqe_and_wraps():
    wqe = encode.write_inline(index=0xFFFF, qpn=1, raddr=0, rkey=0, data=bytes(40))
    assert decode(doorbell_last(wqe)).next_index == 1


def test_doorbell_records():
    d = decode(qp_dbrec(rcv=3, snd=0x1_0002), "dbrec")
    assert (d.rcv, d.snd, d.problems) == (3, 2, [])
    d = decode(cq_dbrec(ci=0x100_0005, arm_sn=3, solicited_only=True, arm_ci=4), "cq_dbrec")
    assert (d.set_ci, d.arm_sn, d.solicited_only, d.arm_ci, d.problems) == (5, 3, True, 4, [])
    too_large = decode(b"\x00\x01\x00\x00" * 2, "dbrec")
    assert too_large.problems == ["rcv 0x10000 has more than 16 bits", "snd 0x10000 has more than 16 bits"]
    assert len(decode(b"\xff" * 8, "cq_dbrec").problems) == 2


IMPOSSIBLE = [(0, None), (7, None), (65, None), (16, "cqe"), (64, "doorbell"), (9, "recv")]


@pytest.mark.parametrize(("size", "kind"), IMPOSSIBLE)
def test_impossible_sizes_raise(size, kind):
    with pytest.raises(DecodeError, match=str(size)):
        decode(bytes(size), kind)


def test_unknown_kind_and_qp_type_raise():
    with pytest.raises(BadArgument, match="unknown kind"):
        decode(bytes(64), "eqe")
    with pytest.raises(BadArgument, match="unknown QP type"):
        decode(bytes(64), qp_type="dc")


def test_hexdump_starts_with_the_kernels_lines():
    """The first 57 columns are print_hex_dump's (DUMP_PREFIX_OFFSET, rowsize 16, groupsize 1)."""
    kernel = [f"{at:08x}: {WRITE[at : at + 16].hex(' ')}" for at in range(0, 64, 16)]
    assert [line[:57] for line in hexdump(WRITE).splitlines()[1:]] == kernel
