"""The golden encoders: exact bytes of each operation, round trips through decode, arguments they refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdmakit.errors import BadArgument
from rdmakit.layout import CtrlFlag, Opcode, Sge, decode, encode

BUF = Sge(0x7F00_0000_2000, 64, 0x1234)
OLD8, OLD4 = Sge(0x3000, 8, 9), Sge(0x3000, 4, 9)
TO = {"index": 5, "qpn": 0x123, "raddr": 0x1_0000_1000, "rkey": 0xABCD}
RADDR = "00000001 00001000 0000abcd 00000000"
DATA = "00000040 00001234 00007f00 00002000"
LANDING8, LANDING4 = "00000008 00000009 00000000 00003000", "00000004 00000009 00000000 00003000"

GOLDEN = [
    # mlx5 PRM ctrl segment: opmod | index | opcode, qpn | ds, fm_ce_se in byte 11, immediate at 12
    (encode.nop(index=5, qpn=0x123), "00000500 00012301 00000008 00000000"),
    (encode.nop(index=0x1_FFFF, qpn=0xFFFFFF, flags=0), "00ffff00 ffffff01 00000000 00000000"),
    (encode.write(**TO, sges=BUF), f"00000508 00012303 00000008 00000000 {RADDR} {DATA}"),
    (encode.write(**TO, flags=CtrlFlag.FENCE), f"00000508 00012302 00000080 00000000 {RADDR}"),
    (encode.write_imm(**TO, imm=0xDEADBEEF), f"00000509 00012302 00000008 deadbeef {RADDR}"),
    (encode.write_imm(**TO, imm=1, sges=[BUF, BUF]),
     f"00000509 00012304 00000008 00000001 {RADDR} {DATA} {DATA}"),
    (encode.read(**TO, sges=BUF), f"00000510 00012303 00000008 00000000 {RADDR} {DATA}"),
    (encode.send(index=5, qpn=0x123, sges=BUF), f"0000050a 00012302 00000008 00000000 {DATA}"),
    (encode.send_imm(index=5, qpn=0x123, imm=2, flags=CtrlFlag.CQ_UPDATE | CtrlFlag.SOLICITED),
     "0000050b 00012301 0000000a 00000002"),
    # mlx5_wqe_inl_data_seg: length | 1 << 31, then the bytes at once, 4-byte aligned, not 8
    (encode.write_inline(**TO, data=b"\x11\x22\x33\x44\x55"),
     f"00000508 00012303 00000008 00000000 {RADDR} 80000005 11223344 55000000 00000000"),
    (encode.write_inline(**TO, data=b"", imm=7), f"00000509 00012302 00000008 00000007 {RADDR}"),
    # mlx5_wqe_atomic_seg: swap_add, compare
    (encode.fetch_add(**TO, add=1, sge=OLD8),
     f"00000512 00012304 00000008 00000000 {RADDR} 00000000 00000001 00000000 00000000 {LANDING8}"),
    (encode.compare_swap(**TO, compare=2, swap=3, sge=OLD8),
     f"00000511 00012304 00000008 00000000 {RADDR} 00000000 00000003 00000000 00000002 {LANDING8}"),
    # UCX uct_ib_mlx5_atomic_masked_{fadd,cswap}{32,64}_seg; opmod 8 | (log2(bytes) - 2)
    (encode.masked_fetch_add(**TO, add=1, boundary=0x80000000, width=4, sge=OLD4),
     f"08000515 00012304 00000008 00000000 {RADDR} 00000001 80000000 00000000 00000000 {LANDING4}"),
    (encode.masked_fetch_add(**TO, add=1, boundary=1 << 63, sge=OLD8),
     f"09000515 00012304 00000008 00000000 {RADDR} 00000000 00000001 80000000 00000000 {LANDING8}"),
    (encode.masked_compare_swap(**TO, compare=2, swap=3, swap_mask=0xF0, compare_mask=0, width=4, sge=OLD4),
     f"08000514 00012304 00000008 00000000 {RADDR} 00000003 00000002 000000f0 00000000 {LANDING4}"),
    (encode.masked_compare_swap(**TO, compare=2, swap=3, sge=OLD8),
     f"09000514 00012305 00000008 00000000 {RADDR} 00000000 00000003 00000000 00000002"
     f" ffffffff ffffffff ffffffff ffffffff {LANDING8}"),
    (encode.dump(index=5, qpn=0x123, sge=Sge(0x10, 1, 2)),
     "00000523 00012302 00000008 00000000 00000001 00000002 00000000 00000010"),
]  # fmt: skip


@pytest.mark.parametrize(("wqe", "words"), GOLDEN, ids=[decode(wqe, "wqe").opcode_name for wqe, _ in GOLDEN])
def test_golden_bytes(wqe, words):
    expected = bytes.fromhex(words)
    assert wqe[: len(expected)].hex(" ", 4) == expected.hex(" ", 4)
    assert set(wqe[len(expected) :]) <= {0}, "only zeros pad the last basic block"
    assert len(wqe) == -(-len(expected) // 64) * 64


@pytest.mark.parametrize(("length", "ds"), [(28, 4), (29, 5), (12, 3), (13, 4), (972, 63)])
def test_inline_write_size_is_ceil_of_36_plus_length(length, ds):
    wqe = encode.write_inline(**TO, data=bytes(length))
    assert (wqe[7], len(wqe)) == (ds, -(-16 * ds // 64) * 64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: encode.write(**TO | {"qpn": 1 << 24}, sges=BUF),
        lambda: encode.write(**TO | {"index": -1}, sges=BUF),
        lambda: encode.write(**TO | {"rkey": 1 << 32}, sges=BUF),
        lambda: encode.write(**TO | {"raddr": 1 << 64}, sges=BUF),
        lambda: encode.write(**TO, sges=Sge(0, 0, 1)),  # byte_count 0 would mean 2 GiB
        lambda: encode.write(**TO, sges=Sge(0, (1 << 30) + 1, 1)),
        lambda: encode.write(**TO, sges=[Sge(0, 1 << 30, 1), Sge(0, 1, 1)]),
        lambda: encode.write(**TO, sges=[BUF] * 62),  # ds 64 does not fit six bits
        lambda: encode.write(**TO, flags=0x100),
        lambda: encode.write_imm(**TO, imm=-1),
        lambda: encode.write_inline(**TO, data=bytes(973)),
        lambda: encode.fetch_add(**TO, add=1, sge=OLD4),
        lambda: encode.fetch_add(**TO | {"raddr": 4}, add=1, sge=OLD8),
        lambda: encode.fetch_add(**TO, add=1 << 64, sge=OLD8),
        lambda: encode.masked_fetch_add(**TO, add=1 << 32, width=4, sge=OLD4),
        lambda: encode.masked_fetch_add(**TO, add=1, width=2, sge=OLD4),
        lambda: encode.masked_compare_swap(**TO, compare=0, swap=0, swap_mask=1 << 32, width=4, sge=OLD4),
        lambda: encode.recv(BUF, stride=24),
        lambda: encode.recv([BUF, BUF], stride=16),
    ],
)
def test_what_no_device_would_execute_is_refused(call):
    with pytest.raises(BadArgument) as caught:
        call()
    assert caught.value.rule, "each refusal names the rule"


index, qpn = st.integers(0, 1 << 40), st.integers(0, (1 << 24) - 1)
u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
aligned = st.integers(0, (1 << 61) - 1).map(lambda n: n * 8)
sge = st.builds(Sge, u64, st.integers(1, 1 << 24), u32)
flags = st.sampled_from([0x00, 0x02, 0x08, 0x0A, 0x28, 0x88])


@given(index, qpn, u64, u32, st.lists(sge, max_size=8), u32, flags)
def test_round_trip_of_writes(index, qpn, raddr, rkey, sges, imm, flags):
    to = {"index": index, "qpn": qpn, "raddr": raddr, "rkey": rkey}
    d = decode(encode.write_imm(**to, imm=imm, sges=sges, flags=flags), "wqe")
    assert (d.opcode, d.index, d.qpn) == (Opcode.RDMA_WRITE_IMM, index & 0xFFFF, qpn)
    assert (d.imm, d.fm_ce_se) == (imm, flags)
    assert (d.segment("raddr")["raddr"], d.segment("raddr")["rkey"]) == (raddr, rkey)
    assert [Sge(s["addr"], s["byte_count"], s["lkey"]) for s in d.data] == sges
    assert d.byte_len == sum(s.length for s in sges)
    assert d.problems == []


@given(index, qpn, u64, u32, st.binary(max_size=972), flags)
def test_round_trip_of_inline_writes(index, qpn, raddr, rkey, data, flags):
    wqe = encode.write_inline(index=index, qpn=qpn, raddr=raddr, rkey=rkey, data=data, flags=flags)
    d = decode(wqe, "wqe")
    assert (d.inline_data, d.byte_len, d.size, d.problems) == (data, len(data), len(wqe), [])


@given(index, qpn, aligned, u32, st.data(), st.sampled_from([4, 8]))
def test_round_trip_of_masked_atomics(index, qpn, raddr, rkey, draw, width):
    word = u32 if width == 4 else u64
    to = {
        "index": index,
        "qpn": qpn,
        "raddr": raddr,
        "rkey": rkey,
        "sge": Sge(0x40, width, 3),
        "width": width,
    }
    add, boundary = draw.draw(word), draw.draw(word)
    d = decode(encode.masked_fetch_add(**to, add=add, boundary=boundary), "wqe")
    segment = d.segment(f"masked_fa{width}")
    assert (segment["add"], segment["field_boundary"], d.ds, d.problems) == (add, boundary, 4, [])
    numbers = {name: draw.draw(word) for name in ("swap", "compare", "swap_mask", "compare_mask")}
    d = decode(encode.masked_compare_swap(**to, **numbers), "wqe")
    segment = d.segment(f"masked_cs{width}")
    assert {name: segment[name] for name in numbers} == numbers
    assert (d.ds, d.wqebbs, d.problems) == ((4, 1, []) if width == 4 else (5, 2, []))


@given(st.lists(sge, max_size=4))
def test_round_trip_of_receive_wqes(sges):
    d = decode(encode.recv(sges, stride=64), "recv")
    assert [Sge(s["addr"], s["byte_count"], s["lkey"]) for s in d.segments if s.name == "data"] == sges
    assert (d.segments[-1].name == "end") == (len(sges) < 4), "the list ends early only when it is not full"
    assert d.problems == []
