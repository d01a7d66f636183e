"""`rdmakit bench ep`: dispatch and combine over NVLink on this machine's GPUs, beside their floor and NCCL. Measured.

Leans on torch's launcher: a process for each GPU, each runs `bench_ep_rank`. Under torchrun it takes part in its group.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rdmakit.ep import tensors
from rdmakit.errors import BadArgument, LaunchError, NotAvailable

__all__ = ["report", "require", "run", "what_failed"]

_TOLD = 1500  # characters of what a rank that failed said

LINK_GBS = 370.0  # what SMs move to or from a peer H100, GB/s: docs/nvlink.md
# Goals of the operations that have one, in µs, on two H100s in the usual shape.
GOALS = {
    "fp8_dispatch_us": 105, "bf16_dispatch_us": 185, "bf16_combine_us": 200, "fp8_dispatch_12sm_us": 125,
    "bf16_dispatch_12sm_us": 215, "bf16_combine_12sm_us": 240, "ll_dispatch_us": 14, "ll_combine_us": 24,
}  # fmt: skip
USUAL = {
    "ranks": 2, "tokens": 4096, "hidden": 7168, "experts": 256, "topk": 8, "ll_tokens": 128, "ll_experts": 288,
}  # fmt: skip


def require(processes: int) -> None:
    """NotAvailable without torch, or with fewer GPUs than ranks: NCCL takes no two ranks of one GPU."""
    if processes < 1:
        raise BadArgument("no ranks", value=processes, rule="1 process at least", remedy="--processes 2")
    tensors.backend()
    count = int(tensors.torch().cuda.device_count())
    if count < processes:
        raise NotAvailable("more ranks than GPUs", value=f"{processes} ranks, {count} GPUs", rule="a GPU for each rank",
                           remedy=f"--processes {count}; look at CUDA_VISIBLE_DEVICES")  # fmt: skip


def run(arguments: list[str], processes: int) -> dict[str, Any]:
    """What rank 0 found. NotAvailable without the GPUs; LaunchError with the output's end when a rank fails."""
    require(processes)
    with tempfile.TemporaryDirectory(prefix="rdmakit-bench-") as folder:
        out = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "-m", "rdmakit.cli.bench_ep_rank", "--out", str(out), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "4"})
        if done.returncode or not out.exists():
            raise LaunchError("a rank of the benchmark failed", value=f"exit status {done.returncode}",
                              rule=what_failed(done.stdout + done.stderr),
                              remedy="it needs torch and a GPU for each process")  # fmt: skip
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def what_failed(said: str) -> str:
    """Of all that torchrun and its ranks wrote: the first rank's traceback, or the end where there is none.

    >>> what_failed("[rank1]: Traceback (most recent call last)\\n[rank1]: Full\\nW1130 12:00 ending")
    'Traceback (most recent call last)\\nFull'
    """
    header = re.search(r"^(\[rank\d+\]: )?Traceback \(most recent call last\)", said, re.MULTILINE)
    if header is None:
        return said[-_TOLD:]
    rank = header[1] or ""
    mine = [line.removeprefix(rank) for line in said[header.start() :].splitlines() if line.startswith(rank)]
    told = "\n".join(mine)
    end = re.search(r"^([WEI]\d{4} |Traceback )", told[1:], re.MULTILINE)  # the launcher's own follow
    told = told[: end.start() + 1].rstrip() if end else told
    return told if len(told) <= _TOLD else f"{told[: _TOLD // 2]}\n…\n{told[-_TOLD // 2 :]}"


def _cell(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'–' if value is None else format(value, f'.{digits}f'):>{width}}"


def report(result: dict[str, Any]) -> list[str]:
    """A table of `run`'s result, an operation a line."""
    c, figures, floors = result["config"], result["figures"], result["floors"]
    usual = all(c[name] == value for name, value in USUAL.items())  # what the goals are for
    lines = [
        f"measured on {c['ranks']} x {result['device']}: {c['tokens']} tokens x {c['hidden']}, top-{c['topk']} of "
        f"{c['experts']} experts; low latency {c['ll_tokens']} tokens, {c['ll_experts']} experts",
        f"results against NumPy: {'all right' if result['ok'] else 'WRONG: ' + ', '.join(result['wrong'])}",
        "",
        f"{'operation':<22} {'SMs':>4} {'GPU µs':>8} {'graph':>8} {'call':>8} {'floor':>7} {'% floor':>8}"
        f" {'wire GB/s':>10} {'logical':>8} {'goal':>6}  result",
    ]
    for name in result["operations"]:
        us, floor, goal = figures[f"{name}_us"], floors[name], GOALS.get(f"{name}_us") if usual else None
        graph, call = (figures.get(f"{name}_{kind}_us") for kind in ("graph", "call"))
        sms = result["sms"][name]
        lines.append(
            f"{name:<22} {'–' if sms is None else sms:>4} {us:>8.1f} {_cell(graph, 8)} {_cell(call, 8)}"
            f" {_cell(floor['us'] or None, 7)} {_cell(100 * floor['us'] / us or None, 8, 0)}"
            f" {floor['wire'] / us / 1e3:>10.1f} {floor['logical'] / us / 1e3:>8.1f} {_cell(goal, 6, 0)}"
            f"  {'right' if result['right'][name] else 'WRONG'}{'' if goal is None else ', goal met' * (us <= goal)}"
        )
    lines += [
        "",
        "GPU: from the first kernel's start to the last one's end, the slower rank, median. graph, call: wall time of "
        "a CUDA graph's replay and of plain calls.",
        f"floor: wire bytes over {LINK_GBS:g} GB/s, what SMs move to or from a peer; % floor: of the time, what the "
        "floor would take. logical: rows of the own rank count, too.",
        f"peer copy (cudaMemcpyAsync, all ranks at once): {figures['peer_copy_gbs']:.0f} GB/s",
    ]
    for name in ("nccl_a2a", "nccl_ll_a2a"):
        lines.append(
            f"{name}: NCCL's all-to-all of the same BF16 rows {figures[f'{name}_us']:.0f} µs, permutation before it "
            f"{figures[f'{name}_before_us']:.0f} µs, behind it {figures[f'{name}_after_us']:.0f} µs, all three "
            f"{figures[f'{name}_permuted_us']:.0f} µs"
        )
    lines += ["", "Buffer's calls: µs until one returns while the GPU is busy; µs each, one behind the other"]
    for name in figures:
        if call := re.fullmatch("buffer_(.+)_call_us", name):
            host_us = figures.get(f"buffer_{call[1]}_host_us")
            lines.append(f"  {call[1]:<16} {_cell(host_us, 7)} {figures[name]:>8.1f}")
    return lines
