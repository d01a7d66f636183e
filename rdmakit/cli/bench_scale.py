"""`rdmakit bench scale`: dispatch and combine at every number of ranks that this machine's GPUs allow. Measured.

Leans on bench_ep (what is needed), bench_scale_plan, torch's launcher: for each number of ranks one group of processes,
each of which runs `bench_scale_rank`. It ends before its limit with what it has, and says what it has left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rdmakit.cli import bench_ep, bench_plot
from rdmakit.cli.bench_record import add_output, finish, record
from rdmakit.cli.bench_scale_plan import COPY_GOAL, LL_GOALS, cases, derived, flatness, rank_counts, share
from rdmakit.ep import tensors
from rdmakit.errors import BadArgument

__all__ = ["add_parser", "gathered", "main_scale", "report", "run"]

_RESERVE_S = 12.0  # of the limit: for ending processes, the record, the picture
_LAST_CASE_S = 20.0  # that a case begun in time may still take
_LEAST_S = 30.0


def add_parser(which: Any) -> None:
    """Register `bench scale`."""
    scale = which.add_parser("scale", help="dispatch and combine at 1, 2, 4, 8 ranks, as many as there are GPUs")
    scale.add_argument("--ranks", type=int, action="append", metavar="N", help="this number only; may be repeated")
    scale.add_argument("--hidden", type=int, default=7168, help="default 7168")
    scale.add_argument("--limit-s", type=float, default=540.0, help="seconds that all may take (default 540)")
    scale.add_argument("--seed", type=int, default=1)
    scale.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw it, too (several: FILE-what.svg)")
    add_output(scale)
    scale.set_defaults(func=main_scale)


def _checked(args: argparse.Namespace) -> list[int]:
    """The rank counts; what would be refused after minutes is refused now."""
    for path in (args.out, args.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise BadArgument("no such folder", value=str(path), rule="a file in a folder that exists",
                              remedy="make the folder first")  # fmt: skip
    if not args.limit_s >= _LEAST_S:
        raise BadArgument("too little time", value=args.limit_s, rule=f"{_LEAST_S:g} s at least",
                          remedy="some 35 s for each number of ranks: --limit-s 540 for 8 GPUs")  # fmt: skip
    if args.hidden < 1 or args.hidden % 128:
        raise BadArgument("hidden is no multiple of the FP8 block", value=args.hidden, rule="hidden % 128 == 0",
                          remedy="--hidden 7168")  # fmt: skip
    for ranks in args.ranks or ():
        if ranks not in (1, 2, 4, 8):
            raise BadArgument("no such number of ranks", value=ranks, rule="1, 2, 4 or 8: experts are shared evenly",
                              remedy="leave --ranks out for all that the machine has")  # fmt: skip
    bench_ep.require(max(args.ranks or [1]))
    there = rank_counts(int(tensors.torch().cuda.device_count()))
    return [ranks for ranks in there if not args.ranks or ranks in args.ranks]


def _group(ranks: int, options: list[str], out: Path, until: float, end: float) -> dict[str, Any]:
    """What one group of processes found: all of it, or what there was when it failed or was ended."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
        "-m", "rdmakit.cli.bench_scale_rank", "--out", str(out), "--until", repr(until), *options,
    ]  # fmt: skip
    said, failed = out.with_suffix(".log"), None
    begin = time.time()
    with said.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                                   env=os.environ | {"OMP_NUM_THREADS": "4"})  # fmt: skip
        try:
            status = process.wait(max(1.0, min(until + _LAST_CASE_S, end) - begin))
            if status:
                failed = f"exit status {status}: " + bench_ep.what_failed(said.read_text(errors="replace"))
        except subprocess.TimeoutExpired:
            failed = f"ended after {time.time() - begin:.0f} s: its time was up"
        finally:
            _end(process)
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"ranks": ranks, "rows": [], "wrong": [],
        "left_out": [f"{ranks} ranks, {case.name}: ended" for case in cases()]}  # fmt: skip
    return found | {"wall_s": time.time() - begin, "failed": failed}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and the ranks that it has started."""
    if process.poll() is None:
        process.terminate()  # torchrun passes it on to its ranks, which may be of sessions of their own
        try:
            process.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(counts: list[int], options: list[str], limit_s: float, begin: float) -> list[dict[str, Any]]:
    """What each number of ranks found, in that order, within `limit_s` of `begin` (by time.time())."""
    end = begin + limit_s - _RESERVE_S
    groups = []
    with tempfile.TemporaryDirectory(prefix="rdmakit-scale-") as folder:
        for number, ranks in enumerate(counts):
            now = time.time()
            if end - now < _LEAST_S / 3:
                left = [f"{ranks} ranks, {case.name}: no time" for case in cases()]
                groups.append({"ranks": ranks, "rows": [], "wrong": [], "left_out": left, "failed": None, "wall_s": 0})
                continue
            # A case that begins in time ends in time.
            until = share(now, max(now, end - _LAST_CASE_S), len(counts) - number)
            groups.append(_group(ranks, options, Path(folder) / f"{ranks}.json", until, end))
    return groups


def gathered(groups: list[dict[str, Any]], config: dict[str, Any]) -> dict[str, Any]:
    """One result of all groups: rows with rates and goals, figures by name, whether times are flat."""
    rates: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    wrong: list[str] = []
    left_out: list[str] = []
    device = None
    for group in groups:
        peer, ranks = group.get("peer") or {}, group["ranks"]
        device = device or group.get("device")
        rates += [derived(row, peer.get("peer_copy_gbs", 0.0)) for row in group["rows"]]
        figures |= {f"{name.removesuffix('_gbs')}_{ranks}r_gbs": value for name, value in peer.items()}
        wrong += group["wrong"] + ([f"{ranks} ranks: {group['failed']}"] if group["failed"] else [])
        left_out += group["left_out"]
    for row in rates:
        sms = f"_{row['sms']}sm" if row["kind"] == "normal" and row["sms"] else ""
        kind = f"_{row['kind']}" if row["operation"].startswith("nccl") else ""
        figures[f"{row['operation']}{kind}_{row['tokens']}_{row['routing']}{sms}_{row['ranks']}r_us"] = row["us"]
    flat = flatness(rates)
    for line in flat:
        if line["ratio"]:
            sms = f"_{line['sms']}sm" if not line["operation"].startswith("ll") else ""
            figures[f"flat_{line['operation']}{sms}_ratio"] = line["ratio"]
    most = max((group["ranks"] for group in groups if group["rows"]), default=0)
    return {
        "ok": bool(rates) and not wrong and all(row["right"] for row in rates),
        "device": f"{most} x {device}" if device else None, "wrong": wrong, "left_out": left_out,
        "seconds": {str(group["ranks"]): group["wall_s"] for group in groups},
        "config": config, "figures": figures, "rates": rates, "scaling": flat,
    }  # fmt: skip


def _cell(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'–' if value is None else format(value, f'.{digits}f'):>{width}}"


def report(result: dict[str, Any]) -> list[str]:
    """Tables of `gathered`'s result."""
    lines = [
        f"measured on {result['device']}; results: "
        + ("all right" if result["ok"] else "WRONG OR FAILED: " + "; ".join(result["wrong"] or ["nothing measured"]))
    ]
    for ranks in sorted({row["ranks"] for row in result["rates"]}):
        peers = ", ".join(
            f"{what} {result['figures'][f'{name}_{ranks}r_gbs']:.0f} GB/s"
            for name, what in (("peer_copy", "cudaMemcpyAsync"), ("sm_push_24sm", "24 SMs by bulk copies"),
                               ("sm_push_12sm", "12 SMs"))
            if f"{name}_{ranks}r_gbs" in result["figures"]
        )  # fmt: skip
        lines += [
            "", f"{ranks} rank{'s' * (ranks > 1)}, {result['seconds'][str(ranks)]:.0f} s; copies to the next rank, all "
            f"at once: {peers}",
            f"{'operation':<20} {'tokens':>6} {'routing':<9} {'SMs':>4} {'GPU µs':>8} {'graph':>8} {'call':>8}"
            f" {'floor':>7} {'% floor':>8} {'wire GB/s':>10} {'% copy':>7}  {'goal':<14} result",
        ]  # fmt: skip
        for row in result["rates"]:
            if row["ranks"] == ranks:
                met = {None: "", True: ", goal met", False: ", goal missed"}[row["goal_met"]]
                lines.append(
                    f"{row['operation']:<20} {row['tokens']:>6} {row['routing']:<9} {row['sms'] or '–':>4}"
                    f" {row['us']:>8.1f} {_cell(row['graph_us'], 8)} {_cell(row['call_us'], 8)}"
                    f" {_cell(row['floor_us'], 7)} {_cell(row['of_floor'], 8, 0)} {_cell(row['wire_gbs'], 10)}"
                    f" {_cell(row['of_peer_copy'], 7, 0)}  {row['goal'] or '–':<14}"
                    f" {'right' if row['right'] else 'WRONG'}{met}"
                )
    if result["scaling"]:
        lines += ["", "at fixed wire bytes a rank (half of a token's experts at home, half on one other rank):"]
    for line in result["scaling"]:
        times = ", ".join(f"{ranks} ranks {us:.1f} µs" for ranks, us in line["us"])
        verdict = {None: "2 ranks and more are needed to compare", True: "flat within 10 %", False: "NOT flat"}
        ratio = f"{line['ratio']:.2f} of 2 ranks' time, " if line["ratio"] else ""
        lines.append(f"{line['operation']:<16} {line['sms'] or '–':>4} SMs: {times}: {ratio}{verdict[line['flat']]}")
    lines += ["", *(f"left out: {text}" for text in result["left_out"])]
    goals = " / ".join(f"{us:g}" for us in LL_GOALS.values())
    lines.append(
        f"wire: of the busiest rank's busier direction. Goals: {COPY_GOAL:g} % of the driver's peer copy with at most "
        f"24 SMs; low latency {goals} µs. Floor: {bench_ep.LINK_GBS:g} GB/s."
    )
    return lines


def main_scale(args: argparse.Namespace) -> int:
    """Entry of `bench scale`."""
    begin = time.time()
    counts = _checked(args)
    options = [f"--hidden={args.hidden}", f"--seed={args.seed}"]
    if not args.json:
        print(f"ranks {', '.join(map(str, counts))}: at most {args.limit_s:g} s", flush=True)
    config = {"hidden": args.hidden, "seed": args.seed, "topk": 8, "ranks": counts, "limit_s": args.limit_s}
    result = gathered(run(counts, options, args.limit_s, begin), config)
    given = [f"--limit-s={args.limit_s:g}", *(f"--ranks={ranks}" for ranks in args.ranks or ()), *options]
    status = finish(args, "bench scale", given, result, lambda: report(result))
    if args.plot is not None and result["rates"]:
        for path, title in bench_plot.save(bench_plot.pictures(record("bench scale", given, result)), args.plot):
            if not args.json:
                print(f"{path}: {title}")
    return status
