"""`rdmakit trace`: one operation as a timeline that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Leans on model. Every reserve, publish, doorbell record, doorbell, fetch, wire, execution, CQE and signal seen, in
virtual time.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdmakit.cli.cluster import add_cluster, add_work, cluster_of, work_of
from rdmakit.cli.files import writable, writing

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit trace`."""
    p = subparsers.add_parser("trace", help="a timeline of one operation, for Perfetto (modelled)")
    add_cluster(p)
    add_work(p, channels=4)
    p.set_defaults(tokens=32)
    p.add_argument("--step", type=int, default=5, help="of the ladder (default 5)")
    p.add_argument(
        "--of", type=int, action="append", metavar="RANK", help="only this rank and its NIC; may be given again"
    )
    p.add_argument("--out", default="trace.json", metavar="FILE", help="default trace.json")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs, checks and writes the timeline; `ok`, `figures`, `config`."""
    from rdmakit.errors import BadArgument
    from rdmakit.model.measure import measure
    from rdmakit.model.steps import step_of
    from rdmakit.show.perfetto import check_trace

    preset = cluster_of(args)
    work = work_of(args, preset)
    bad = [rank for rank in args.of or () if not 0 <= rank < preset.ranks]
    if bad:
        raise BadArgument(
            "no such rank", value=bad[0], rule=f"0 … {preset.ranks - 1}", remedy="leave --of out for all"
        )
    measured = measure(preset, work, step_of(args.step), seed=args.seed, timeline=True)
    timeline = measured.timeline
    assert timeline is not None
    text = timeline.to_json(None if args.of is None else set(args.of), preset.count("gpus_per_host") // preset.nics)
    problems = check_trace(text)
    with writing(), open(args.out, "w", encoding="utf-8") as file:
        file.write(text)
    counts = {f"{name.replace(' ', '_').lower()}_events": n for name, n in timeline.counts().items()}
    figures = {
        **counts,
        "events_left_out": timeline.left_out,
        "microseconds": measured.microseconds,
        "bytes": len(text),
    }
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json")}
    return {
        "ok": not problems and not timeline.left_out,
        "figures": figures,
        "config": config | {"cluster": str(preset), "time": "modelled"},
        "problems": problems[:10],
    }


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    writable(args.out)
    result = run(args)
    if args.json:
        print(json.dumps(result))
    else:
        figures = result["figures"]
        print(result["config"]["cluster"])
        for name, n in figures.items():
            if name.endswith("_events"):
                print(f"  {name.removesuffix('_events').replace('_', ' '):16} {n}")
        print(f"{args.out}: {figures['bytes'] / 1e6:.1f} MB; open it at ui.perfetto.dev or chrome://tracing")
        for problem in result["problems"]:
            print(f"  PROBLEM {problem}")
        if figures["events_left_out"]:
            print(f"  PROBLEM {figures['events_left_out']} events did not fit: fewer tokens, or fewer ranks")
    return 0 if result["ok"] else 1
