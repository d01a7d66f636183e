"""Our segments against rdma-core's own Python: pyverbs' Wqe, WqeCtrlSeg and WqeDataSeg.

pyverbs is built for the distribution's Python, hence a subprocess. It has no class for the remote address and
atomic segments; `test_layout_mlx5dv.py` covers those from C.
"""

import json
import random
import subprocess
from pathlib import Path

import pytest

from rdmakit.layout import CtrlFlag, Opcode, Sge, encode

PYTHON = "/usr/bin/python3"
ORACLE = """
import ctypes, json, sys
from pyverbs.providers.mlx5.mlx5dv import Wqe, WqeCtrlSeg, WqeDataSeg
answers = []
for pi, opcode, opmod, qpn, fm_ce_se, ds, imm, length, lkey, addr in json.load(sys.stdin):
    ctrl = WqeCtrlSeg(pi, opcode, opmod, qpn, fm_ce_se, ds, 0, imm)
    data = WqeDataSeg(length, lkey, addr)
    wqe = Wqe([ctrl, data])
    answers.append(ctypes.string_at(wqe.address, 32).hex())
json.dump(answers, sys.stdout)
"""


def run_oracle(cases: list[list[int]]) -> list[str]:
    if not Path(PYTHON).exists():
        pytest.skip("no /usr/bin/python3: apt-get install python3 python3-pyverbs")
    probe = [PYTHON, "-c", "import pyverbs.providers.mlx5.mlx5dv"]
    found = subprocess.run(probe, capture_output=True, text=True)
    if found.returncode:
        reason = (found.stderr.strip() or "it failed").splitlines()[-1]
        pytest.skip(f"{PYTHON} has no pyverbs ({reason}): apt-get install python3-pyverbs")
    oracle = [PYTHON, "-c", ORACLE]
    done = subprocess.run(oracle, input=json.dumps(cases), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def swapped(imm: int) -> int:
    """mlx5dv_set_ctrl_seg stores `imm` as it is given: callers pass it in network order."""
    return int.from_bytes(imm.to_bytes(4, "big"), "little")


def test_ctrl_and_data_segments():
    seed = random.randrange(1 << 32)
    print("seed", seed)  # shown by pytest when the test fails
    rng = random.Random(seed)
    cases, ours = [], []
    for _ in range(100):
        index, qpn, imm = rng.randrange(1 << 16), rng.randrange(1 << 24), rng.randrange(1 << 32)
        sge = Sge(rng.randrange(1 << 63), rng.randrange(1, 1 << 30), rng.randrange(1 << 32))
        flags = int(rng.choice([CtrlFlag.NONE, CtrlFlag.CQ_UPDATE, CtrlFlag.CQ_UPDATE | CtrlFlag.FENCE]))
        ctrl = [index, Opcode.SEND_IMM, 0, qpn, flags, 2, swapped(imm)]
        cases.append([*ctrl, sge.length, sge.lkey, sge.addr])
        ours.append(encode.send_imm(index=index, qpn=qpn, imm=imm, sges=sge, flags=flags)[:32].hex())
    assert run_oracle(cases) == ours
