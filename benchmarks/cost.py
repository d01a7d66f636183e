"""What a run of the model costs: CPU seconds and memory over the messages that it carries, 8 to 256 ranks.

    python benchmarks/cost.py --out benchmarks/results/DATE-model-cost.json     (and .svg beside it)

Low-latency dispatch, 128 tokens a rank, each size in a process of its own. Messages are WQEs: rows that cross to
another host, and the counts behind them. Within one host there are none: EP8 says what a run costs without. CPU time,
not the clock's: machines have other work. What is set up before (queue pairs, most of all, which a message has twice as
many of from EP32 on as at EP16) is told apart from the run itself. Takes about a minute of one core and 3 GB.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit import show
from rdmakit.cli.bench_record import keep_of_script
from rdmakit.cli.progress import Progress

RANKS = (8, 16, 32, 64, 128, 256)
TOKENS = 128
SLACK = 0.13  # of an exponent: a large world does not fit into caches; measured on a busy machine: 1.06, 1.12


def one(ranks: int) -> dict[str, Any]:
    """Runs one size; this process's CPU time and largest memory, what Python took to start left out."""
    before = os.times()
    from rdmakit.model import load
    from rdmakit.model.measure import measure
    from rdmakit.model.plan import make_plan
    from rdmakit.model.validate import run_of

    run = run_of(load("ib"), "ll", "dispatch", ranks)
    got = measure(run.preset, run.work, run.step, seed=run.seed)
    used, after = resource.getrusage(resource.RUSAGE_SELF), os.times()
    # What follows counts queue pairs, and is no part of the cost.
    return {
        "ranks": ranks,
        "messages": got.wqes,
        "queue_pairs": len(make_plan(run.preset, "ll", channels=run.work.channels)),
        "cpu_seconds": after.user + after.system - before.user - before.system,
        "setup_cpu_seconds": got.setup_cpu_s,
        "run_cpu_seconds": after.user + after.system - before.user - before.system - got.setup_cpu_s,
        "memory_bytes": used.ru_maxrss * 1024,
        "microseconds": got.microseconds,
    }


def exponent(rows: Sequence[dict[str, Any]], what: str) -> float:
    """Slope of log cost over log messages, least squares: 1 grows as messages do.

    >>> round(exponent([{"messages": 10, "s": 3.0}, {"messages": 1000, "s": 300.0}], "s"), 9)
    1.0
    """
    counted = [row for row in rows if row["messages"]]
    x = [math.log(row["messages"]) for row in counted]
    y = [math.log(row[what]) for row in counted]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def picture(result: dict[str, Any]) -> show.Figure:
    rows, f = [row for row in result["rows"] if row["messages"]], result["figures"]
    cost = {
        "CPU ms a 1000 messages": [(r["messages"], 1e6 * r["cpu_seconds"] / r["messages"]) for r in rows],
        "of which the run": [(r["messages"], 1e6 * r["run_cpu_seconds"] / r["messages"]) for r in rows],
        "KB of memory a message": [(r["messages"], r["memory_bytes"] / r["messages"] / 1e3) for r in rows],
    }
    title = (
        f"A run of the model grows as messages to the power of {f['cpu_exponent']:.2f} in CPU time, "
        f"{f['memory_exponent']:.2f} in memory"
    )
    note = (
        f"low-latency dispatch, {rows[0]['ranks']} to {rows[-1]['ranks']} ranks; {result['date']}, {result['commit']}"
    )
    what = "cost of a message: level where cost grows as messages do"
    return show.line_chart(cost, "messages", what, title=title, log=True, note=note)


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="EP sizes, at least two")
    p.add_argument("--out", type=Path, metavar="FILE.json", required=True)
    args = p.parse_args(arguments)
    rows = []
    with Progress("cost", total=len(args.ranks)) as progress:
        for ranks in args.ranks:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(one, (ranks,)))
            progress.step(f"EP{ranks}")
    figures = {
        "cpu_exponent": exponent(rows, "cpu_seconds"),
        "run_cpu_exponent": exponent(rows, "run_cpu_seconds"),
        "memory_exponent": exponent(rows, "memory_bytes"),
        **{f"ep{row['ranks']}_cpu_seconds": row["cpu_seconds"] for row in rows},
    }
    result = {"ok": True, "figures": figures, "config": {"tokens": TOKENS}, "rows": rows}
    kept = keep_of_script("benchmarks/cost.py", arguments, result, args.out)
    drawn = picture(kept)
    drawn.save(args.out.with_suffix(".svg"))
    print(drawn)
    if max(figures["cpu_exponent"], figures["memory_exponent"]) > 1 + SLACK:
        print("a run grows faster than its messages")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
