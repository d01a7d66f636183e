"""How many rows a put should have, at each step of the ladder and EP size; and what was published beside it.

    python benchmarks/puts.py --out benchmarks/results/DATE-model-puts.json

Normal dispatch and combine, 4096 tokens a rank, EP16, EP32 and EP64 on `ib` and `roce`, all six steps, puts of 4, 8, 16
and 32 rows: as DeepEP's tests, which try sizes and keep the best. The best over both clusters is what
`rdmakit/model/puts.py` has to say. On `ib` the first step also runs with the fence kept by the GPU's warp
(`proxy_fence = gpu`) in place of the host's thread. Takes about 80 minutes of one core; several calls with other
`--ranks` and `--out` give the same rows.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit.cli.bench_record import keep_of_script
from rdmakit.cli.progress import Progress
from rdmakit.model import load
from rdmakit.model.published import point_of
from rdmakit.model.puts import BEST, SIZES
from rdmakit.model.runs import Run
from rdmakit.model.steps import STEPS
from rdmakit.model.tune import by_size
from rdmakit.model.validate import run_of

CLUSTERS, OPS, RANKS = ("ib", "roce"), tuple(BEST), tuple(BEST["dispatch"])


def runs(ranks: Sequence[int]) -> list[tuple[dict[str, Any], Run]]:
    """Each row's names, and its run; large worlds first, so that processes end together."""
    found = []
    for n in sorted(ranks, reverse=True):
        for cluster in CLUSTERS:
            for op in OPS:
                for step in STEPS:
                    for fence in ("thread", "gpu") if (cluster, step.number) == ("ib", 0) else ("thread",):
                        preset = load(cluster).changed(proxy_fence=fence)
                        names = {"cluster": cluster, "op": op, "ranks": n, "step": step.number, "fence": fence}
                        found.append((names, run_of(preset, "normal", op, n, step.number)))
    return found


def best_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, tuple[int, ...]]]:
    """BEST: of each operation, EP size and step the rows of a put that give the most, over both clusters.

    >>> best_of([{"op": "combine", "ranks": 16, "step": 0, "fence": "thread", "gbs": {"4": 9.0, "8": 9.5}}])
    {'combine': {16: (8,)}}
    """
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    threads = [row for row in rows if row["fence"] == "thread"]
    for op in dict.fromkeys(row["op"] for row in threads):
        found[op] = {}
        for ranks in sorted({row["ranks"] for row in threads}):
            each = [row for row in threads if (row["op"], row["ranks"]) == (op, ranks)]
            found[op][ranks] = tuple(_best([r["gbs"] for r in each if r["step"] == s]) for s in _steps(each))
    return found


def _steps(rows: Sequence[dict[str, Any]]) -> list[int]:
    return sorted({row["step"] for row in rows})


def _best(tables: Sequence[dict[str, float]]) -> int:
    """The size whose product over clusters is largest, the smaller of two."""
    return int(max(tables[0], key=lambda size: (math.prod(t[size] for t in tables), -int(size))))


def published(row: dict[str, Any]) -> float | None:
    point = point_of("normal", row["op"], row["ranks"], row["step"]) if row["cluster"] == "ib" else None
    return None if point is None else point.value


def figures_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Errors of the best size beside what was published: of the last step, and of the first by who keeps its fence."""
    found: dict[str, float] = {}
    for name, step, fence in (("last", 5, "thread"), ("first", 0, "thread"), ("first_gpu", 0, "gpu")):
        errors = [
            max(row["gbs"].values()) / value - 1
            for row in rows
            if (row["step"], row["fence"]) == (step, fence) and (value := published(row)) is not None
        ]
        if errors:
            found |= {
                f"{name}_mean_error": sum(abs(e) for e in errors) / len(errors),
                f"{name}_worst_error": max(errors, key=abs),
            }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As docs/model.md has it."""
    lines = ["| what | EP | step | " + " | ".join(f"{n} rows" for n in SIZES) + " | published |", "|---" * 8 + "|"]
    for row in sorted(rows, key=lambda r: (r["op"] != "dispatch", r["cluster"], r["ranks"], r["step"], r["fence"])):
        best, value = max(row["gbs"].values()), published(row)
        cells = [f"**{gbs:.1f}**" if gbs == best else f"{gbs:.1f}" for gbs in row["gbs"].values()]
        step = f"{row['step']}, fence by the GPU" if row["fence"] == "gpu" else str(row["step"])
        told = "–" if value is None else f"{value:g} ({best / value - 1:+.0%})".replace("-", "−")
        what = [f"`{row['cluster']}` {row['op']}", str(row["ranks"]), step]
        lines.append("| " + " | ".join([*what, *cells, told]) + " |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--ranks", type=int, action="append", choices=RANKS, help="only this size; may be given again")
    p.add_argument("--out", type=Path, metavar="FILE.json", required=True)
    args = p.parse_args(arguments)
    wanted = runs(args.ranks or RANKS)
    with Progress("puts", total=len(wanted) * len(SIZES)) as progress:
        found = by_size([run for _, run in wanted], jobs=args.jobs, done=progress.step)
    rows = [
        names | {"gbs": {str(size): round(got.logical_gbs, 3) for size, got in tried.items()}}
        for (names, _), tried in zip(wanted, found, strict=True)
    ]
    result = {"ok": True, "figures": figures_of(rows), "config": {"tokens": 4096, "slots": 128}, "rows": rows}
    keep_of_script("benchmarks/puts.py", arguments, result, args.out, measured=False)
    print(table(rows))
    print(best_of(rows))
    print(json.dumps(result["figures"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
