"""What the table before multi-QP and IBGDA says of the ladder's first step: who keeps a fence, how large puts are.

    python benchmarks/first_step.py --out benchmarks/results/DATE-model-first-step.json

Its six points, with puts of 8, 16 and 32 rows in rings of 128, as DeepEP's test tries sizes and publishes the best;
where the GPU's warp alone waits for a fence (`proxy_fence = gpu`, which is what the fit was made with), and where the
proxy's thread does (`thread`). Nothing is fitted. Takes about 15 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit.cli.bench_record import keep_of_script
from rdmakit.cli.progress import Progress
from rdmakit.model import load
from rdmakit.model.ladder import Run, run_all
from rdmakit.model.published import EARLIER, POINTS, Point
from rdmakit.model.validate import predict, run_of

CHUNKS, SLOTS, FENCES = (8, 16, 32), 128, ("gpu", "thread")
FIRST = sorted((p for p in (*POINTS, *EARLIER) if p.step == 0), key=lambda p: (p.op != "dispatch", p.ranks))


def run(point: Point, chunk: int, fence: str) -> Run:
    found = run_of(load("ib").changed(proxy_fence=fence), point.kernel, point.op, point.ranks, point.step)
    return replace(found, work=replace(found.work, chunk=chunk, slots=SLOTS))


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of each way to keep a fence: the errors of the best chunk, mean and worst.

    >>> row = {"published": 44, "gpu": {"8": 44.0, "16": 55.0}, "thread": {"8": 33.0, "16": 22.0}}
    >>> figures_of([row])["gpu_worst_error"], figures_of([row])["thread_mean_error"]
    (0.25, 0.25)
    """
    found: dict[str, float] = {}
    for fence in FENCES:
        errors = [abs(max(row[fence].values()) / row["published"] - 1) for row in rows]
        found |= {f"{fence}_mean_error": sum(errors) / len(errors), f"{fence}_worst_error": max(errors)}
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/model.md has it."""
    lines = ["| first step, GB/s | published | " + " | ".join(f"{f}, {c} rows" for f in FENCES for c in CHUNKS) + " |"]
    lines.append("|" + "---|" * (2 + len(FENCES) * len(CHUNKS)))
    for row in rows:
        cells = []
        for fence in FENCES:
            best = max(row[fence].values())
            for value in row[fence].values():
                off = f" ({value / row['published'] - 1:+.0%})" if value == best else ""
                cells.append(f"{value:.1f}{off}")
        lines.append(f"| {row['op']} EP{row['ranks']} | {row['published']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--out", type=Path, metavar="FILE.json", required=True)
    args = p.parse_args(arguments)
    each = [(point, fence, chunk) for point in FIRST for fence in FENCES for chunk in CHUNKS]
    with Progress("first step", total=len(each)) as progress:
        results = run_all([run(p, chunk, fence) for p, fence, chunk in each], jobs=args.jobs, done=progress.step)
    by_point: dict[Point, dict[str, Any]] = {
        p: {"op": p.op, "ranks": p.ranks, "published": p.value, **{fence: {} for fence in FENCES}} for p in FIRST
    }
    for (point, fence, chunk), got in zip(each, results, strict=True):
        by_point[point][fence][str(chunk)] = round(predict(got, point.unit), 3)
    rows = list(by_point.values())
    result = {"ok": True, "figures": figures_of(rows), "config": {"slots": SLOTS}, "rows": rows}
    keep_of_script("benchmarks/first_step.py", arguments, result, args.out, measured=False)
    print(table(rows))
    print(json.dumps(result["figures"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
