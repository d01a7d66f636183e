"""When do "+100 % on RoCE, +30 % on InfiniBand" hold? The ladder's last step over its first, in the model, over message
size, queue pairs, ports and the hashes of switches and bonds: medians and bands over seeds, never one run.

    python benchmarks/claims.py --out benchmarks/results/DATE-model-claims.json     (and .svg beside it)

A seed draws the routing, the order of events and the hashes. EP32 dispatch, 512 tokens a rank unless a row says
otherwise; either step with puts of the size that is best for it in this row, as the first seed finds it. Takes about 25
minutes of one core; `--seeds 1 --only hidden` is a quick look, and several calls with other `--only` and `--out` give
the same rows.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit import show
from rdmakit.cli.bench_record import keep_of_script
from rdmakit.cli.progress import Progress
from rdmakit.model import Preset, load
from rdmakit.model.puts import SIZES
from rdmakit.model.steps import STEPS
from rdmakit.model.sweep import Swept, sweep
from rdmakit.model.workload import sized_for

TOKENS, CLAIMS = 512, {"roce": 2.0, "ib": 1.3}
# What is swept, in words, its values, and which of them the clusters have anyway: that row is the same for all.
SWEPT: dict[str, tuple[str, list[str], str]] = {
    "hidden": ("size of a row: hidden, FP8", ["2048", "4096", "7168"], "7168"),
    "chunk": ("size of a message: rows of a put in both steps", ["4", "8", "16", "32"], ""),
    "tokens": ("tokens of each rank", ["128", "256", "512", "1024"], "512"),
    "channels": ("QPs of two ranks in the last step: channels", ["4", "10", "16"], "10"),
    "proxy_threads": ("threads that post for a GPU in the first step", ["1 count", "2 count"], "1 count"),
    "ports": ("cabled ports of a NIC, not bonded", ["1 count", "2 count"], ""),
    "lag": ("who chooses the port: bond by hash, by queue, no bond", ["hash", "affinity", "none"], "hash"),
    "routing": ("how switches choose paths", ["ecmp", "adaptive"], "ecmp"),
    "hash_seed": ("the switches' hash alone", [f"{n} count" for n in range(1, 13)], ""),
}
ONLY = {"routing": ("ib",), "ports": ("roce",), "lag": ("roce",), "hash_seed": ("roce",)}


def rows_of(preset: Preset, parameter: str, values: list[str], seeds: int, jobs: int | None, done: Any) -> list[Swept]:
    """A row for each value of one parameter on one cluster."""
    work = sized_for(preset, "normal", "dispatch", tokens=TOKENS, seed=1)
    if parameter == "ports":
        preset = preset.changed(lag="none")  # one port is no bond
    if parameter == "hash_seed":  # one routing and order, so that nothing but the hash differs
        seeds = 1
    return sweep(
        preset,
        work,
        STEPS[-1],
        parameter,
        values,
        seeds=range(seeds),
        against=STEPS[0],
        try_puts=True,
        jobs=jobs,
        done=done,
    )


def row(name: str, parameter: str, value: str, s: Swept) -> dict[str, Any]:
    return {
        "cluster": name,
        "parameter": parameter,
        "value": value.removesuffix(" count"),
        "gains": s.gains,
        "step0_gbs": [r.logical_gbs for r in s.baseline],
        "step5_gbs": [r.logical_gbs for r in s.results],
        "put_rows": [s.baseline[0].put_rows, s.results[0].put_rows],
    }


def swept_rows(wanted: list[tuple[str, str]], seeds: int, jobs: int | None) -> list[dict[str, Any]]:
    """All rows; the one of the cluster as it is runs once."""
    each = {(n, s): [v for v in SWEPT[s][1] if v != SWEPT[s][2]] for n, s in wanted}
    names = sorted({n for n, _ in wanted})
    runs = sum(len(v) * (1 if s == "hash_seed" else seeds) for (_, s), v in each.items())
    tries = len(SIZES) * (sum(len(v) for (_, s), v in each.items() if s != "chunk") + len(names))
    rows = []
    with Progress("claims", total=2 * (runs + seeds * len(names) + tries)) as progress:

        def run(name: str, parameter: str, values: list[str]) -> list[Swept]:
            return rows_of(load(name), parameter, values, seeds, jobs, progress.step)

        as_it_is = {}
        for name in names:
            as_it_is[name] = run(name, "tokens", [str(TOKENS)])[0]
        for (name, parameter), values in each.items():
            found = dict(zip(values, run(name, parameter, values), strict=True))
            found[SWEPT[parameter][2]] = as_it_is[name]
            rows += [row(name, parameter, v, found[v]) for v in SWEPT[parameter][1]]
    return rows


def median(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each cluster: the median of its rows' medians, all that was seen, and the share of runs that reach the
    claim."""
    found: dict[str, float] = {}
    for name, claim in CLAIMS.items():
        mine = [row for row in rows if row["cluster"] == name]
        runs = [gain for row in mine for gain in row["gains"]]
        if not runs:
            continue
        found |= {
            f"{name}_gain_median": median([median(row["gains"]) for row in mine]),
            f"{name}_gain_least": min(runs),
            f"{name}_gain_most": max(runs),
            f"{name}_rows_reaching": sum(median(row["gains"]) >= claim for row in mine) / len(mine),
            f"{name}_runs": len(runs),
        }
    return found


def picture(result: dict[str, Any], name: str) -> show.Figure:
    """One cluster's rows, by parameter."""
    rows: list[Any] = []
    for parameter, (words, *_) in SWEPT.items():
        mine = [r for r in result["rows"] if (r["cluster"], r["parameter"]) == (name, parameter)]
        if parameter == "hash_seed" and mine:
            gains = [r["gains"][0] for r in mine]
            rows += [f"{words}, {len(mine)} of them", ("all", min(gains), median(gains), max(gains))]
        elif mine:
            rows += [words, *((r["value"], min(r["gains"]), median(r["gains"]), max(r["gains"])) for r in mine)]
    f, claim = result["figures"], CLAIMS[name]
    title = (
        f"{name}, EP32 dispatch: step 5 over step 0 is {f[f'{name}_gain_median']:.2f} in the median, "
        f"{f[f'{name}_gain_least']:.2f} to {f[f'{name}_gain_most']:.2f} in all"
    )
    note = f"modelled, {result['date']}, {result['commit']}; {result['config']['seeds']} seeds a row"
    return show.band_rows(rows, "times", title=title, marks=[("the claim", claim)], note=note)


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--only", action="append", choices=sorted(SWEPT), help="only this parameter; may be given again")
    p.add_argument("--out", type=Path, metavar="FILE.json", required=True)
    args = p.parse_args(arguments)
    wanted = [(n, s) for s in SWEPT if args.only is None or s in args.only for n in CLAIMS if n in ONLY.get(s, CLAIMS)]
    rows = swept_rows(wanted, args.seeds, args.jobs)
    result = {
        "ok": True,
        "figures": figures_of(rows),
        "config": {"seeds": args.seeds, "tokens": TOKENS, "claims": CLAIMS, "kernel": "normal", "op": "dispatch"},
        "rows": rows,
    }
    kept = keep_of_script("benchmarks/claims.py", arguments, result, args.out, measured=False)
    for name in sorted({row["cluster"] for row in rows}):
        drawn = picture(kept, name)
        drawn.save(args.out.with_name(f"{args.out.stem}-{name}.svg"))
        print(f"{drawn}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
