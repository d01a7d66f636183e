"""The device header `cuda/rdmakit/wqe.cuh`, compiled by g++, and the Python layout agree byte for byte."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from rdmakit import layout
from rdmakit.layout import Sge, encode

CUDA = Path(__file__).parents[2] / "cuda"
pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++"),
    pytest.mark.skipif(not (CUDA / "rdmakit" / "wqe.cuh").exists(), reason="no cuda/rdmakit: use a checkout"),
]

# C++ struct, dtype, members; "member=field" where our field has another name
STRUCTS = [
    ("CtrlSeg", layout.CTRL, "opmod_idx_opcode qpn_ds signature dci_stream_channel_id fm_ce_se imm"),
    ("RemoteAddrSeg", layout.RADDR, "raddr rkey"),
    ("DataSeg", layout.DATA, "byte_count lkey addr"),
    ("InlineSeg", layout.INLINE, "byte_count"),
    ("AtomicSeg", layout.ATOMIC, "swap_add compare"),
    ("MaskedFetchAdd4Seg", layout.MASKED_FA4, "add field_boundary"),
    ("MaskedFetchAdd8Seg", layout.MASKED_FA8, "add field_boundary"),
    ("MaskedCmpSwap4Seg", layout.MASKED_CS4, "swap compare swap_mask compare_mask"),
    ("MaskedCmpSwap8Seg", layout.MASKED_CS8, "swap compare swap_mask compare_mask"),
    (
        "Cqe",
        layout.CQE64,
        "flags_rqpn srqn_uidx imm_inval_pkey app app_op app_info byte_count=byte_cnt timestamp sop_drop_qpn "
        "wqe_counter signature op_own",
    ),
    (
        "ErrorCqe",
        layout.ERR_CQE,
        "srqn hw_syndrome=hw_err_synd hw_syndrome_type=hw_synd_type vendor_syndrome=vendor_err_synd syndrome "
        "opcode_qpn=s_wqe_opcode_qpn wqe_counter signature op_own",
    ),
]

CONSTANTS = {
    "kWqebb": layout.SEND_WQE_BB,
    "kDs": layout.DS_BYTES,
    "kMaxDs": layout.MAX_DS,
    "kInlineFlag": layout.INLINE_SEG,
    "kInvalidLkey": layout.INVALID_LKEY,
    "kMaxWrite": layout.MAX_MESSAGE,
    "kSolicited": layout.CtrlFlag.SOLICITED,
    "kCqUpdate": layout.CtrlFlag.CQ_UPDATE,
    "kSmallFence": layout.FenceMode.INITIATOR_SMALL << 5,
    "kReadAtomicFence": layout.FenceMode.FENCE << 5,
    "kStrongOrder": layout.FenceMode.STRONG_ORDERING << 5,
    "kFence": layout.CtrlFlag.FENCE,
    "kOpmodMasked4": layout.Opmod.EXT_ATOMIC_4B,
    "kOpmodMasked8": layout.Opmod.EXT_ATOMIC_8B,
    "kCqeScatter32": layout.CqeFormat.INLINE_SCATTER_32 << 2,
    "kCqeScatter64": layout.CqeFormat.INLINE_SCATTER_64 << 2,
    "kDbrecReceive": layout.RCV_DBR,
    "kDbrecSend": layout.SND_DBR,
    "kDbrecSetCi": layout.SET_CI,
    "kDbrecArm": layout.ARM,
    "kCqeInitial": layout.CQE_INITIAL_OP_OWN,
}
OPCODES = {
    "Opcode::nop": layout.Opcode.NOP,
    "Opcode::send_inval": layout.Opcode.SEND_INVAL,
    "Opcode::write": layout.Opcode.RDMA_WRITE,
    "Opcode::write_imm": layout.Opcode.RDMA_WRITE_IMM,
    "Opcode::send": layout.Opcode.SEND,
    "Opcode::send_imm": layout.Opcode.SEND_IMM,
    "Opcode::read": layout.Opcode.RDMA_READ,
    "Opcode::cmp_swap": layout.Opcode.ATOMIC_CS,
    "Opcode::fetch_add": layout.Opcode.ATOMIC_FA,
    "Opcode::masked_cmp_swap": layout.Opcode.ATOMIC_MASKED_CS,
    "Opcode::masked_fetch_add": layout.Opcode.ATOMIC_MASKED_FA,
    "Opcode::dump": layout.Opcode.DUMP,
    "CqeOpcode::requester": layout.CqeOpcode.REQ,
    "CqeOpcode::responder_write_imm": layout.CqeOpcode.RESP_WR_IMM,
    "CqeOpcode::requester_error": layout.CqeOpcode.REQ_ERR,
    "CqeOpcode::responder_error": layout.CqeOpcode.RESP_ERR,
    "CqeOpcode::invalid": layout.CqeOpcode.INVALID,
    "Syndrome::local_length": layout.Syndrome.LOCAL_LENGTH_ERR,
    "Syndrome::local_qp_op": layout.Syndrome.LOCAL_QP_OP_ERR,
    "Syndrome::local_protection": layout.Syndrome.LOCAL_PROT_ERR,
    "Syndrome::flushed": layout.Syndrome.WR_FLUSH_ERR,
    "Syndrome::mw_bind": layout.Syndrome.MW_BIND_ERR,
    "Syndrome::bad_response": layout.Syndrome.BAD_RESP_ERR,
    "Syndrome::local_access": layout.Syndrome.LOCAL_ACCESS_ERR,
    "Syndrome::remote_invalid_request": layout.Syndrome.REMOTE_INVAL_REQ_ERR,
    "Syndrome::remote_access": layout.Syndrome.REMOTE_ACCESS_ERR,
    "Syndrome::remote_op": layout.Syndrome.REMOTE_OP_ERR,
    "Syndrome::transport_retry_exceeded": layout.Syndrome.TRANSPORT_RETRY_EXC_ERR,
    "Syndrome::rnr_retry_exceeded": layout.Syndrome.RNR_RETRY_EXC_ERR,
    "Syndrome::remote_aborted": layout.Syndrome.REMOTE_ABORTED_ERR,
}


def run_cpp(directory: Path, body: str) -> list[str]:
    source = directory / "oracle.cpp"
    source.write_text(
        '#include <cstddef>\n#include <cstdio>\n#include "rdmakit/wqe.cuh"\nusing namespace rdmakit;\n'
        "template <class T> void hex(const T& v) { const unsigned char* p = (const unsigned char*)&v; "
        'for (size_t i = 0; i < sizeof(T); i++) std::printf("%02x", p[i]); std::printf("\\n"); }\n'
        f"int main() {{\n{body}\n}}\n"
    )
    # Only inline functions of wqe.cuh are called; the runner's symbols that cpu.cuh declares stay unused.
    command = ["g++", "-std=c++17", "-O1", "-w", f"-I{CUDA}", "-o", str(directory / "oracle"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    done = subprocess.run([directory / "oracle"], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_structs_and_constants(tmp_path):
    expected: dict[str, int] = {}
    for struct, dtype, members in STRUCTS:
        expected[f"sizeof({struct})"] = dtype.itemsize
        for pair in members.split():
            member, name = pair.split("=") if "=" in pair else (pair, pair)
            expected[f"offsetof({struct}, {member})"] = dtype.fields[name][1]
            expected[f"sizeof({struct}::{member})"] = dtype.fields[name][0].itemsize
    expected |= {name: int(value) for name, value in (CONSTANTS | OPCODES).items()}
    body = "\n".join(f'std::printf("%u\\n", (unsigned)({expression}));' for expression in expected)
    assert dict(zip(expected, map(int, run_cpp(tmp_path, body)), strict=True)) == expected


def test_builders_write_the_golden_bytes(tmp_path):
    """Each segment builder of wqe.cuh, on random numbers, next to the same segment of a golden WQE."""
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown by pytest when the test fails
    rng = random.Random(seed)
    body, expected = [], []
    for _ in range(20):
        index, qpn, imm, rkey = (rng.randrange(1 << bits) for bits in (16, 24, 32, 32))
        raddr, add, cmp = rng.randrange(1 << 61) * 8, rng.randrange(1 << 64), rng.randrange(1 << 64)
        sge, old = (
            Sge(rng.randrange(1 << 64), rng.randrange(1, 1 << 30), rng.randrange(1 << 32)),
            Sge(8, 8, 1),
        )
        half = [rng.randrange(1 << 32) for _ in range(4)]
        to = {"index": index, "qpn": qpn, "raddr": raddr, "rkey": rkey}
        write = encode.write_imm(**to, imm=imm, sges=sge)
        swap = encode.compare_swap(**to, compare=cmp, swap=add, sge=old)
        masked = encode.masked_compare_swap(
            **to,
            swap=half[0],
            compare=half[1],
            swap_mask=half[2],
            compare_mask=half[3],
            width=4,
            sge=Sge(8, 4, 1),
        )
        adder = encode.masked_fetch_add(**to, add=half[0], boundary=half[1], width=4, sge=Sge(8, 4, 1))
        ctrl = f"ctrl_segment(Opcode::write_imm, 0, {index}u, {qpn}u, 3, kCqUpdate, {imm}u)"
        for call, raw in (
            (ctrl, write[:16]),
            (f"remote_segment({raddr}ull, {rkey}u)", write[16:32]),
            (f"data_segment({sge.addr}ull, {sge.length}u, {sge.lkey}u)", write[32:48]),
            (f"atomic_segment({add}ull, {cmp}ull)", swap[32:48]),
            (f"masked_cmp_swap4_segment({half[0]}u, {half[1]}u, {half[2]}u, {half[3]}u)", masked[32:48]),
            (f"masked_fetch_add4_segment({half[0]}u, {half[1]}u)", adder[32:48]),
            (f"doorbell_last({ctrl})", layout.doorbell_last(write)),
            (f"doorbell_next({qpn}u, {index + (1 << 20)}ull)", layout.doorbell_next(qpn, index + (1 << 20))),
        ):
            body.append(f"hex({call});")
            expected.append((call, raw.hex()))
    seen = run_cpp(tmp_path, "\n".join(body))
    assert list(zip([call for call, _ in expected], seen, strict=True)) == expected


def test_readiness_is_the_same_rule(tmp_path):
    body = (
        "for (unsigned v = 0; v < 256; v++) for (unsigned ci = 0; ci < 48; ci++) "
        "std::putchar(cqe_ready(v, ci, 4) ? '1' : '0'); std::putchar('\\n');"
    )
    ours = "".join("01"[layout.cqe_is_software_owned(v, ci, 4)] for v in range(256) for ci in range(48))
    assert run_cpp(tmp_path, body)[0] == ours
