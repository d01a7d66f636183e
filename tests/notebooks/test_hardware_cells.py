"""The cells "on real hardware" that need an mlx5 NIC, on the emulated ConnectX that libmlx5 itself drives."""

from __future__ import annotations

import ctypes.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.course.build import absent
from rdmakit.course.form import INSTALL, read, sources, tags
from rdmakit.emu.uverbs import library, preloaded
from rdmakit.errors import NotAvailable

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
SAYS = {
    "04": r"mlx5_0: 512 of 512 bytes, 8 completions",
    "08": r"mlx5_0, naive: \d+ of 1000 copies wrong, measured\s+mlx5_0, atomic: 0 of 1000",
    "09": r"mlx5_0: 3000 of 3000 words as sent",
    "13": r"mlx5_0 believes the record",  # as the emulated HCA does
}
RUN = """
import json, sys
from pathlib import Path
from rdmakit.course.execute import execute, solved
from rdmakit.course.form import read, read_solutions, tags
source = Path(sys.argv[1])
run = execute(solved(read(source), read_solutions(source)), source.parent, 120)
printed = [o.get("text", "") for c in run.book.cells if "hardware" in tags(c) for o in c.outputs]
print(json.dumps({"failure": run.failure, "printed": "".join(printed)}))
"""

try:
    library()
    built = True
except NotAvailable:
    built = False
pytestmark = [
    pytest.mark.notebook,
    pytest.mark.skipif(bool(absent()), reason=f"{', '.join(absent())} not installed: {INSTALL}"),
    pytest.mark.skipif(not built, reason="rdmakit.emu._uverbs is not built: apt-get install linux-libc-dev"),
    pytest.mark.skipif(
        not (ctypes.util.find_library("ibverbs") and ctypes.util.find_library("mlx5")),
        reason="no libibverbs: apt-get install libibverbs1 ibverbs-providers",
    ),
]


def of(number: str) -> Path:
    return next(path for path in sources(FOLDER) if path.name.startswith(number))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", SAYS)
def test_the_cell_runs_on_a_nic(number: str):
    with preloaded(2) as environment:
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(of(number))],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=170,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["failure"], found["failure"]
    assert re.search(SAYS[number], found["printed"]), found["printed"]


def test_every_cell_for_a_nic_alone_is_here():
    asks = re.compile(r"""hardware_cell\("mlx5"\)""")
    cells = {
        path.name[:2]
        for path in sources(FOLDER)
        for cell in read(path).cells
        if "hardware" in tags(cell) and asks.search(cell.source)
    }
    assert cells - {"03"} == set(SAYS)  # 03 prints what it has
