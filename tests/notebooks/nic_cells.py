"""What the cells "on real hardware" say with an emulated ConnectX under the distribution's own libmlx5."""

from __future__ import annotations

import re
from typing import Any

from rdmakit.course.form import tags

NIC = re.compile(r"""hardware_cell\("[^"]*(?:rdma|mlx5)[^"]*"\)""")
MEASURED = r"\(?measured, with an emulated NIC"
# Of each notebook: patterns, all of which are there. Figures that do not depend on the machine's speed are themselves.
SAYS = {
    "00": [rf"mlx5_0: 152 B a WRITE, 8 of 8 bytes landed {MEASURED}"],
    "01": [r"mlx5_0: 19 granted; rows unlike those above: none"],
    "02": [r"mlx5_0: 0 of 7 answers differ", r"one byte past the end\s+RDMA_WRITE\s+REM_ACCESS_ERR\s+ERR\s+ERR"],
    "03": [r"mlx5_0: 48 of 48 bytes as libmlx5 writes them; yours moved 64 of 64 bytes"],
    "04": [r"mlx5_0: 512 of 512 bytes, 8 completions"],
    "05": [
        MEASURED,
        *(rf"{who}\s+{each}\s+\d+\s+\d+\s+8 of 8" for who in ("kernel rings", "CPU proxy") for each in (1, 16)),
    ],
    "06": [
        r"fixed, by port_num: the device names no other port than planned",
        r"busiest / idlest port: 1\.0[0-4]\d " + MEASURED,
        r"fixed, mlx5_1 port 1\s+0 B\s",
        r"planned, mlx5_1 port 1\s+█+\s+5[23]\d(?:\.\d)? [Kk]i?B",
    ],
    "07": [
        r"modulo, mlx5_1 port 1\s+0 B\s",
        r"Yours: 26\d,\d{3} and 26\d,\d{3} B " + MEASURED,
    ],
    "08": [r"mlx5_0, naive: \d+ of 1000 copies wrong, measured\s+mlx5_0, atomic: 0 of 1000"],
    "09": [r"mlx5_0: 3000 of 3000 words as sent"],
    "10": [
        r"busiest / idlest port: 1\.[01]\d; with three channels [12]\.\d\d \(measured\)",
        r"4 channels, mlx5_1 port 1\s+█+",
        r"mlx5_1: kernels ring the registers of the NIC's own queues",
        r"all is NumPy's, bit for bit " + MEASURED,
        r"a token that crosses costs 4,[4-8]\d\d B; by v4 above 4,[2-5]\d\d B",
    ],
    "11": [
        r"mlx5_0, measured, with an emulated NIC.*: 1 different results in 8 runs",
        r"the largest error is 0\.\d\d of what is allowed \(yours passed its check: True\)",
    ],
    "12": [
        MEASURED,
        r"\n0\s+1(?:\.0)?\s+1(?:\.0)?\s+\d{7}\s+0\s",  # one port
        *(rf"\n{step}\s+[\d.]+\s+[\d.]+\s+(\d{{7}})\s+\1\s" for step in (2, 3, 5)),  # both, alike
    ],
    "13": [r"mlx5_0 believes the record"],  # as the emulated HCA does
    "14": [r"mlx5_0: 10 of 10 puts of 1 MiB right, 10 signals"],
}  # fmt: skip


def asks_for_a_nic(cell: Any) -> bool:
    """A cell on real hardware that an RDMA device is enough for."""
    return "hardware" in tags(cell) and NIC.search(cell.source) is not None and "gpu" not in NIC.search(cell.source)[0]


def printed(book: Any) -> str:
    """All that its cells for a NIC put out, as text."""
    outputs = [output for cell in book.cells if asks_for_a_nic(cell) for output in cell.outputs]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)
