"""`rdmakit bench ep`: dispatch and combine over NVLink on this machine's GPUs, beside their floor and NCCL. Measured.

Leans on torch's launcher: a process for each GPU, each runs `bench_ep_rank`. Under torchrun it takes part in its group.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rdmakit.errors import LaunchError

__all__ = ["report", "run"]

LINK_GBS = 370.0  # what SMs move to or from a peer H100, GB/s: docs/nvlink.md
# Goals of the operations that have one, in µs (2 x H100, hidden 7168, top-8), and their floors by LINK_GBS.
GOALS = {
    "fp8_dispatch_us": 105, "bf16_dispatch_us": 185, "bf16_combine_us": 200, "fp8_dispatch_12sm_us": 125,
    "bf16_dispatch_12sm_us": 215, "bf16_combine_12sm_us": 240, "ll_dispatch_us": 14, "ll_combine_us": 24,
}  # fmt: skip


def run(arguments: list[str], processes: int) -> dict[str, Any]:
    """What rank 0 found. LaunchError with the output's end when a rank fails."""
    with tempfile.TemporaryDirectory(prefix="rdmakit-bench-") as folder:
        out = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "-m", "rdmakit.cli.bench_ep_rank", "--out", str(out), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "4"})
        if done.returncode or not out.exists():
            raise LaunchError("a rank of the benchmark failed", value=f"exit status {done.returncode}",
                              rule=(done.stdout + done.stderr)[-1500:],
                              remedy="it needs torch and a GPU for each process")  # fmt: skip
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def report(result: dict[str, Any]) -> list[str]:
    """A table of `run`'s result."""
    c, figures, floors = result["config"], result["figures"], result["floors"]
    lines = [
        f"measured on {result['device']}, {c['ranks']} ranks: {c['tokens']} tokens x {c['hidden']}, top-{c['topk']} of "
        f"{c['experts']} experts; low latency {c['ll_tokens']} tokens, {c['ll_experts']} experts",
        f"results against NumPy: {'all right' if result['ok'] else 'WRONG: ' + ', '.join(result['wrong'])}",
        "",
        f"{'operation':<28} {'GPU µs':>8} {'graph':>8} {'call':>8} {'floor':>8} {'x floor':>8} {'wire GB/s':>10}"
        f" {'logical':>8}",
    ]
    for name in result["operations"]:
        us, floor = figures[f"{name}_us"], floors[name]
        graph, call = (figures.get(f"{name}_{kind}_us") for kind in ("graph", "call"))
        lines.append(
            f"{name:<28} {us:>8.1f} {graph if graph is None else round(graph, 1)!s:>8} "
            f"{call if call is None else round(call, 1)!s:>8} {floor['us']:>8.1f} {us / floor['us']:>8.2f} "
            f"{floor['wire'] / us / 1e3:>10.1f} {floor['logical'] / us / 1e3:>8.1f}"
        )
    lines += [
        "",
        "GPU: from the first kernel's start to the last one's end, the slower rank, median. graph, call: wall time of "
        "a CUDA graph's replay and of plain calls.",
        f"floor: wire bytes over {LINK_GBS:g} GB/s",
        f"peer copy (cudaMemcpyAsync): {figures['peer_copy_gbs']:.0f} GB/s; NCCL all-to-all of the same BF16 payload: "
        f"{figures['nccl_a2a_us']:.0f} µs, permutation not counted",
    ]
    return lines
