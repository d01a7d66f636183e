"""`rdmakit sweep`: one parameter of a cluster or of the work through many values, medians and bands over seeds.

Leans on model. Modelled figures; CSV and a plot on request.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdmakit.cli.cluster import add_cluster, add_work, cluster_of, work_of
from rdmakit.cli.files import drawable, writable, writing
from rdmakit.cli.progress import Progress

__all__ = ["add_parser", "run"]

FIELDS = (
    "logical_gbs",
    "wire_gbs",
    "microseconds",
    "port_payload_fraction",
    "port_max_over_min",
    "spine_max_over_mean",
)


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit sweep`."""
    p = subparsers.add_parser("sweep", help="what if: a parameter through many values (modelled)")
    p.add_argument(
        "parameter", metavar="NAME=V1,V2,…", help="of a preset, with units, or tokens, channels, chunk, slots"
    )
    add_cluster(p)
    add_work(p)
    p.set_defaults(tokens=512)
    p.add_argument("--step", type=int, default=5, help="of the ladder (default 5)")
    p.add_argument(
        "--against", type=int, metavar="STEP", help="run this step, too, with the same seeds, and show the gain over it"
    )
    p.add_argument("--seeds", type=int, default=1, help="for medians and bands (default 1)")
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--csv", metavar="FILE", help="write the table to FILE")
    p.add_argument("--svg", metavar="FILE", help="write a picture to FILE, .svg or .png")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The sweep with `ok`, `figures`, `config` and `swept`."""
    from rdmakit.cli.cluster import with_unit
    from rdmakit.errors import BadArgument
    from rdmakit.model.steps import step_of
    from rdmakit.model.sweep import sweep

    name, equals, values = args.parameter.partition("=")
    given = [v for v in values.split(",") if v]
    if not equals or not given:
        raise BadArgument(
            "nothing to sweep",
            value=args.parameter,
            rule="NAME=V1,V2,…",
            remedy="for example port_rate=100Gb/s,200Gb/s",
        )
    if not 1 <= args.seeds <= 64:
        raise BadArgument("seeds make no band", value=args.seeds, rule="1 … 64", remedy="--seeds 5")
    preset = cluster_of(args)
    work = work_of(args, preset)
    against = None if args.against is None else step_of(args.against)
    total = len(given) * args.seeds * (1 if against is None else 2)
    with Progress("sweep", total=total, quiet=args.json) as progress:
        swept = sweep(
            preset,
            work,
            step_of(args.step),
            name,
            [with_unit(name, v) for v in given],
            seeds=range(args.seeds),
            against=against,
            jobs=args.jobs,
            done=progress.step,
        )
    figures: dict[str, Any] = {"values": len(swept)}
    for i, each in enumerate(swept):
        low, high = each.band("logical_gbs")
        figures |= {
            f"value{i}_gbs": each.median("logical_gbs"),
            f"value{i}_gbs_least": low,
            f"value{i}_gbs_most": high,
            f"value{i}_us": each.median("microseconds"),
        }
        if against is not None:
            figures |= {
                f"value{i}_gain": each.gain,
                f"value{i}_gain_least": min(each.gains),
                f"value{i}_gain_most": max(each.gains),
            }
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json")}
    return {
        "ok": True,
        "figures": figures,
        "config": config | {"cluster": str(preset), "values": [_shown(s) for s in swept], "time": "modelled"},
        "swept": swept,
        "name": name,
    }


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    from rdmakit import show

    writable(args.csv)
    drawable(args.svg)
    result = run(args)
    swept, name = result["swept"], result["name"]
    gained = args.against is not None
    if gained:
        title = f"gain of step {args.step} over step {args.against}, by {name} (modelled)"
        bars = show.band_rows([(_shown(s), min(s.gains), s.gain, max(s.gains)) for s in swept], "times", title=title)
    else:
        title = f"logical GB/s over {name} (modelled, step {args.step})"
        bars = show.band_rows(
            [(_shown(s), *_banded(s.median("logical_gbs"), s.band("logical_gbs"))) for s in swept], "GB/s", title=title
        )
    with writing():
        if args.csv:
            _csv(args.csv, name, swept)
        if args.svg:
            bars.save(args.svg)
    if args.json:
        print(json.dumps({k: result[k] for k in ("ok", "figures", "config")}))
        return 0
    rows = []
    for s in swept:
        cells = [_shown(s), *(f"{s.median(f):.4g}" for f in FIELDS), "{:.4g} … {:.4g}".format(*s.band("logical_gbs"))]
        if gained:
            cells.append(f"{s.gain:.2f} ({min(s.gains):.2f} … {max(s.gains):.2f})")
        rows.append(cells)
    heads = [name, *FIELDS, "GB/s, band"] + [f"gain over step {args.against}"] * gained
    print(f"{result['config']['cluster']}\n")
    seeds = f"{args.seeds} seed{'s' * (args.seeds != 1)}"
    print(show.data_table(rows, heads, title=f"step {args.step}, {seeds} (modelled)"))
    print(f"\n{bars}")
    return 0


def _shown(swept: Any) -> str:
    """A value as it is read: counts are bare."""
    value: str = swept.value
    return value.removesuffix(" count")


def _banded(median: float, band: tuple[float, float]) -> tuple[float, float, float]:
    return band[0], median, band[1]


def _csv(path: str, name: str, swept: list[Any]) -> None:
    """A row for each value: medians, and bands."""
    gained = bool(swept[0].baseline)
    with open(path, "w", encoding="utf-8") as file:
        more = ["gain", "gain_least", "gain_most"] * gained
        file.write(",".join([name, *FIELDS, "gbs_least", "gbs_most", *more]) + "\n")
        for s in swept:
            numbers = [*(s.median(f) for f in FIELDS), *s.band("logical_gbs")]
            numbers += [s.gain, min(s.gains), max(s.gains)] if gained else []
            file.write(",".join([_shown(s), *map(repr, numbers)]) + "\n")
