"""Dtypes, constants and encoders against the installed `infiniband/mlx5dv.h`, compiled: C is the truth."""

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rdmakit import layout
from rdmakit.layout import CtrlFlag, Opcode, Sge, cqe_is_software_owned, encode

HEADER = Path("/usr/include/infiniband/mlx5dv.h")
pytestmark = [
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc: apt-get install gcc"),
    pytest.mark.skipif(not HEADER.exists(), reason="no infiniband/mlx5dv.h: apt-get install libibverbs-dev"),
]

# C struct, dtype, {our field: C member} where they differ, C sizeof when it counts more than the dtype
STRUCTS = [
    ("mlx5_wqe_ctrl_seg", layout.CTRL, {}, 16),
    ("mlx5_wqe_raddr_seg", layout.RADDR, {}, 16),
    ("mlx5_wqe_data_seg", layout.DATA, {}, 16),
    ("mlx5_wqe_inl_data_seg", layout.INLINE, {}, 4),
    ("mlx5_wqe_atomic_seg", layout.ATOMIC, {}, 16),
    ("mlx5_wqe_av", layout.AV, {"dc_key": "key.dc_key"}, 48),
    ("mlx5_wqe_eth_seg", layout.ETH, {}, 32),  # with inline_hdr[16], which other files call what follows
    ("mlx5_cqe64", layout.CQE64, {}, 64),
    ("mlx5_err_cqe", layout.ERR_CQE, {}, 64),
]
# Names for parts of C words, and what only DOCA names; they have no C member to compare with.
OWN_FIELDS = {"opmod", "wqe_index", "opcode", "ds", "reserved", "inline_data", "hw_err_synd", "hw_synd_type"}
ENUMS = [
    (layout.Opcode, "MLX5_OPCODE_", {"WAIT", "DUMP"}),
    (layout.CtrlFlag, "MLX5_WQE_CTRL_", {"NONE"}),
    (layout.CqeOpcode, "MLX5_CQE_", set()),
    (layout.Syndrome, "MLX5_CQE_SYNDROME_", set()),
    (layout.WcStatus, "IBV_WC_", set()),
    (layout.Access, "IBV_ACCESS_", {"NONE"}),
]
SINGLES = ["SEND_WQE_BB", "INLINE_SEG", "INVALID_LKEY", "RCV_DBR", "SND_DBR", "CQ_DB_REQ_NOT",
           "CQ_DB_REQ_NOT_SOL"]  # fmt: skip


def run_c(directory: Path, body: str, stdin: str = "") -> list[str]:
    source = directory / "oracle.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n#include <infiniband/verbs.h>\n"
        "#include <infiniband/mlx5dv.h>\n"
        "static void hex(const void *p, int n) { for (int i = 0; i < n; i++) "
        'printf("%02x", ((const unsigned char *)p)[i]); printf("\\n"); }\n'
        f"int main(void) {{\n{body}\nreturn 0; }}\n"
    )
    program = directory / "oracle"
    subprocess.run(["gcc", "-O1", "-o", program, source], check=True, capture_output=True, text=True)
    done = subprocess.run([program], input=stdin, check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[:-1]


def test_offsets_and_sizes_are_those_of_the_c_structs(tmp_path):
    body, expected = [], []
    for struct, dtype, renamed, size in STRUCTS:
        body.append(f'printf("%zu\\n", sizeof(struct {struct}));')
        expected.append((f"sizeof {struct}", size))
        for name in dtype.names:
            if name in OWN_FIELDS:
                continue
            member = renamed.get(name, name)
            body.append(f'printf("%zu\\n", offsetof(struct {struct}, {member}));')
            expected.append((f"{struct}.{name}", dtype.fields[name][1]))
            body.append(f'printf("%zu\\n", sizeof(((struct {struct} *)0)->{member}));')
            expected.append((f"sizeof {struct}.{name}", dtype.fields[name][0].itemsize))
    seen = [int(line) for line in run_c(tmp_path, "\n".join(body))]
    assert dict(zip([name for name, _ in expected], seen, strict=True)) == dict(expected)
    assert all(dtype.itemsize == size for struct, dtype, _, size in STRUCTS if struct != "mlx5_wqe_eth_seg")


def test_constants_have_the_values_of_the_header(tmp_path):
    expected = {f"{prefix}{m.name}": int(m) for enum, prefix, own in ENUMS for m in enum if m.name not in own}
    expected |= {f"MLX5_{name}": getattr(layout, name) for name in SINGLES}
    expected |= {"MLX5_INLINE_SCATTER_32": layout.CqeFormat.INLINE_SCATTER_32 << 2,
                 "MLX5_INLINE_SCATTER_64": layout.CqeFormat.INLINE_SCATTER_64 << 2}  # fmt: skip
    seen = run_c(tmp_path, "\n".join(f'printf("%u\\n", (unsigned){name});' for name in expected))
    assert dict(zip(expected, map(int, seen), strict=True)) == expected


def test_op_own_bits_are_those_of_the_headers_accessors(tmp_path):
    """256 op_own bytes through mlx5dv_get_cqe_{opcode,format,se,owner}."""
    body = (
        "struct mlx5_cqe64 c = {0};\nfor (int v = 0; v < 256; v++) { c.op_own = v;\n"
        'printf("%d %d %d %d\\n", mlx5dv_get_cqe_opcode(&c), mlx5dv_get_cqe_format(&c), '
        "!!mlx5dv_get_cqe_se(&c), mlx5dv_get_cqe_owner(&c)); }"
    )
    for op_own, line in enumerate(run_c(tmp_path, body)):
        cqe = layout.decode(bytes(63) + bytes([op_own]), "cqe")
        assert [cqe.opcode, cqe.format, cqe.solicited, cqe.owner] == [int(word) for word in line.split()]


def test_ctrl_and_data_segments_are_those_that_the_headers_setters_write(tmp_path):
    """Random WRITE, SEND and NOP WQEs through mlx5dv_set_ctrl_seg and mlx5dv_set_data_seg."""
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown by pytest when the test fails
    rng = random.Random(seed)
    cases = []
    for _ in range(200):
        index, qpn, imm = rng.randrange(1 << 16), rng.randrange(1 << 24), rng.randrange(1 << 32)
        sge = Sge(rng.randrange(1 << 64), rng.randrange(1, (1 << 30) + 1), rng.randrange(1 << 32))
        flags = rng.choice([0, CtrlFlag.CQ_UPDATE, CtrlFlag.CQ_UPDATE | CtrlFlag.SOLICITED, CtrlFlag.FENCE])
        wqe = encode.send_imm(index=index, qpn=qpn, imm=imm, sges=sge, flags=flags)
        line = f"{index} {Opcode.SEND_IMM} {qpn} {int(flags)} 2 {imm} {sge.length} {sge.lkey} {sge.addr}"
        cases.append((line, wqe[:32].hex()))
    body = """
        unsigned pi, op, qpn, fm, ds, imm, len, lkey; unsigned long addr;
        while (scanf("%u %u %u %u %u %u %u %u %lu",
                     &pi, &op, &qpn, &fm, &ds, &imm, &len, &lkey, &addr) == 9) {
            struct { struct mlx5_wqe_ctrl_seg c; struct mlx5_wqe_data_seg d; } w;
            memset(&w, 0, sizeof(w));
            mlx5dv_set_ctrl_seg(&w.c, pi, op, 0, qpn, fm, ds, 0, htobe32(imm));
            mlx5dv_set_data_seg(&w.d, len, lkey, addr);
            hex(&w, 32);
        }"""
    assert run_c(tmp_path, body, "\n".join(line for line, _ in cases)) == [expected for _, expected in cases]


def test_software_ownership_is_libmlx5s_rule(tmp_path):
    """get_sw_cqe of providers/mlx5/cq.c: opcode != INVALID and !(owner ^ !!(ci & cqe_cnt))."""
    body = """
        for (unsigned v = 0; v < 256; v++) for (unsigned ci = 0; ci < 48; ci++) {
            struct mlx5_cqe64 c = {0}; c.op_own = v;
            putchar('0' + (mlx5dv_get_cqe_opcode(&c) != MLX5_CQE_INVALID &&
                           !(mlx5dv_get_cqe_owner(&c) ^ !!(ci & 16))));
        } putchar('\\n');"""
    op_own, ci = np.divmod(np.arange(256 * 48), 48)
    ours = cqe_is_software_owned(op_own.astype(np.uint8), ci, 4)
    assert "".join("01"[int(owned)] for owned in ours) == run_c(tmp_path, body)[0]
