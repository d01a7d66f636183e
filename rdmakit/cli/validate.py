"""`rdmakit validate`: the model's predictions beside published figures and beside a ruler through the points it was
fitted on.

Leans on model. `--json` has pairs, worst_error, mean_error, ruler_mean_error and each pair; with --ep one point is
predicted, published or not.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdmakit.cli.cluster import cluster_of
from rdmakit.cli.progress import Progress

__all__ = ["add_parser", "run"]

MOST = 0.15  # of a held-out point


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit validate`."""
    p = subparsers.add_parser("validate", help="predictions beside published figures, and beside a ruler")
    p.add_argument("--preset", default="ib", help="shipped name or path of a .preset file (default ib)")
    p.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change a parameter, with its unit"
    )
    p.add_argument("--kernel", choices=("normal", "ll"), help="only these points")
    p.add_argument("--op", choices=("dispatch", "combine"), help="only these points")
    p.add_argument(
        "--ep", type=int, metavar="N", help="one EP size; needs --kernel and --op, any size that fills hosts"
    )
    p.add_argument("--step", type=int, help="of the ladder: with --ep (default 5), else all points of it")
    p.add_argument(
        "--most-ranks", type=int, default=64, help="leave out larger sizes (default 64; 256 takes minutes)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main, ranks=None)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Comparisons with `ok`, `figures`, `config` and `rows`."""
    from rdmakit.errors import BadArgument
    from rdmakit.model.sensitivity import kept
    from rdmakit.model.validate import PUBLISHED, compare, is_published

    preset = cluster_of(args)
    if any(change.partition("=")[0].strip() == "hosts" for change in args.set):
        raise BadArgument(
            "hosts follow from the EP size",
            value=[change for change in args.set if change.strip().startswith("hosts")],
            rule="--ep says how many ranks",
            remedy="leave it out, or change gpus_per_host",
        )
    points = _points(args)
    with Progress("validate", total=len(points), quiet=args.json) as progress:
        rows = compare(preset, points, jobs=args.jobs, done=progress.step, seed=args.seed)
    published = [r for r in rows if r.point.value == r.point.value]
    held = [r for r in published if not r.point.fitted]
    figures: dict[str, Any] = {"pairs": len(held), "points": len(rows)}
    if held:
        figures["worst_error"] = max(abs(r.error) for r in held)
        figures["mean_error"] = sum(abs(r.error) for r in held) / len(held)
    ruled = [r for r in held if r.ruler_error is not None]
    if ruled:  # the two means are over the same points
        figures["ruler_mean_error"] = sum(abs(r.ruler_error or 0) for r in ruled) / len(ruled)
        figures["mean_error_where_ruled"] = sum(abs(r.error) for r in ruled) / len(ruled)
    for r in rows:
        figures[f"{r.point.name}_predicted"] = r.predicted
        if r in published:
            figures[f"{r.point.name}_published"] = r.point.value
            figures[f"{r.point.name}_error"] = r.error
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json", "ranks")}
    cluster = f"{preset.name}: hosts of {preset.host}" if args.ep is None else str(preset.for_ranks(args.ep))
    config |= {"cluster": cluster, "time": "modelled", "published_on": PUBLISHED}
    # Of another cluster nobody has published anything here: it may differ.
    ok = not is_published(preset) or figures.get("worst_error", 0.0) <= MOST
    return {
        "ok": ok,
        "figures": figures,
        "config": config,
        "rows": rows,
        "rests_on": kept(preset),
        "other": not is_published(preset),
    }


def _points(args: argparse.Namespace) -> list[Any]:
    """The point that is asked for, published or not; else the published ones that fit. BadArgument where none does."""
    from rdmakit.errors import BadArgument
    from rdmakit.model.published import POINTS, Point, point_of
    from rdmakit.model.steps import step_of

    step = step_of(5 if args.step is None else args.step).number
    if args.ep is not None:
        if args.kernel is None or args.op is None:
            raise BadArgument(
                "which operation?",
                value=f"--ep {args.ep}",
                rule="--ep needs --kernel and --op",
                remedy="for example --kernel ll --op dispatch --ep 16",
            )
        unit = "GB/s" if args.kernel == "normal" else "us"
        known = point_of(args.kernel, args.op, args.ep, step)
        return [known or Point(args.kernel, args.op, args.ep, step, float("nan"), unit, "asked for")]
    wanted = {"kernel": args.kernel, "op": args.op, "step": args.step}
    alike = [p for p in POINTS if all(v is None or getattr(p, name) == v for name, v in wanted.items())]
    points = [p for p in alike if p.ranks <= args.most_ranks]
    if not points:
        sizes = ", ".join(str(n) for n in sorted({p.ranks for p in alike})) or "none"
        raise BadArgument(
            "no such point is published",
            value=", ".join(f"{k} {v}" for k, v in wanted.items() if v is not None) or f"up to EP{args.most_ranks}",
            rule=f"published sizes: {sizes}",
            remedy="--ep N with --kernel and --op predicts any, --most-ranks 256 takes all sizes",
        )
    return points


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    result = run(args)
    if args.json:
        shown = {row.point.name for row in result["rows"]}
        result["rests_on"] = {name: found for name, found in result["rests_on"].items() if name in shown}
        print(json.dumps({k: result[k] for k in ("ok", "figures", "config", "rests_on")}))
    else:
        _show(result)
    return 0 if result["ok"] else 1


def _show(result: dict[str, Any]) -> None:
    from rdmakit import show

    rows, other = [], result["other"]
    for r in result["rows"]:
        p = r.point
        most = max(result["rests_on"].get(p.name, {}).items(), key=lambda item: abs(item[1]), default=None)
        known = p.value == p.value
        rows.append(
            [
                f"{p.kernel} {p.op} EP{p.ranks}" + (f" step {p.step}" if p.step != 5 else ""),
                p.unit,
                f"{r.predicted:.1f}",
                f"{p.value:g}" if known else "-",
                f"{r.error:+.1%}" if known else "-",
                "-" if r.ruler is None or not known else f"{r.ruler:.0f} ({r.ruler_error:+.1%})",
                ("another cluster's" if other else "fitted" if p.fitted else "held out") if known else "prediction",
                "-" if most is None else f"{most[0]} ({most[1]:+.0%})",
            ]
        )
    apart = "difference" if other else "error"
    heads = ["what", "unit", "predicted", "published", apart, "ruler", "role", "rests most on (a quarter worse)"]
    print(
        show.data_table(
            rows, heads, title=f"{result['config']['cluster']}: predictions (modelled) and published figures"
        )
    )
    figures = result["figures"]
    if other:
        if any(r.point.value == r.point.value for r in result["rows"]):
            print(f"\npublished figures are of {result['config']['published_on']}: another cluster, no error")
        return
    if "mean_error" in figures:
        print(
            f"\nheld out: {figures['pairs']} pairs, mean error {figures['mean_error']:.1%}, "
            f"worst {figures['worst_error']:.1%}"
        )
    if "ruler_mean_error" in figures:
        print(
            f"where a ruler has an opinion: it errs by {figures['ruler_mean_error']:.1%} in the mean, the model by "
            f"{figures['mean_error_where_ruled']:.1%}"
        )
