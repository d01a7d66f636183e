"""`rdmakit ladder`: what each optimisation buys on a described cluster, the real device code run in virtual time.

Leans on model. Figures are modelled; `--json` has gain_total, port_payload_fraction, step0_gbs … step5_gbs, seconds.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdmakit.cli.cluster import add_cluster, add_work, cluster_of, work_of
from rdmakit.cli.files import drawable, writing
from rdmakit.cli.progress import Progress

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit ladder`."""
    p = subparsers.add_parser("ladder", help="what each optimisation buys, and where the time goes (modelled)")
    add_cluster(p)
    add_work(p, tokens=1024)
    p.add_argument("--seeds", type=int, default=1, help="run so many seeds and show the band (default 1)")
    p.add_argument("--try-puts", action="store_true", help="try puts of all sizes at each step and take the best")
    p.add_argument("--jobs", type=int, help="processes (default: all cores)")
    p.add_argument("--svg", metavar="FILE", help="write the waterfall to FILE, .svg or .png")
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The ladder with `ok`, `figures`, `config` and the tables that the text form prints."""
    from rdmakit.errors import BadArgument
    from rdmakit.model.ladder import climb
    from rdmakit.model.puts import SIZES
    from rdmakit.model.steps import STEPS

    preset = cluster_of(args)
    if preset.count("hosts") < 2:
        raise BadArgument(
            "one host has no network",
            value=preset.count("hosts"),
            rule="at least 2 hosts",
            remedy="--ranks 16, or --set hosts=2",
        )
    if not 1 <= args.seeds <= 64:
        raise BadArgument("seeds make no band", value=args.seeds, rule="1 … 64", remedy="--seeds 5")
    work = work_of(args, preset)
    tries = len(SIZES) if args.try_puts and work.kernel == "normal" and work.chunk is None else 0
    with Progress("ladder", total=len(STEPS) * (args.seeds + tries), quiet=args.json) as progress:
        ladder = climb(
            preset, work, seeds=range(args.seeds), try_puts=args.try_puts, jobs=args.jobs, done=progress.step
        )
    last = ladder.steps[-1]
    figures: dict[str, Any] = {
        "gain_total": ladder.gain_total,
        "port_payload_fraction": last.port_payload_fraction,
        **{f"step{s.number}_gbs": ladder.gbs(s.number) for s in STEPS},
        "seconds": round(ladder.seconds, 3),
        "gain_least": ladder.gain_band[0],
        "gain_most": ladder.gain_band[1],
        **{f"step{s.number}_put_rows": ladder.steps[s.number].put_rows for s in STEPS},
        **{f"step{s.number}_us": ladder.steps[s.number].microseconds for s in STEPS},
        **{f"step{s.number}_wire_gbs": ladder.steps[s.number].wire_gbs for s in STEPS},
    }
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json")}
    config |= {
        "cluster": str(preset),
        "time": "modelled",
        "gbs": "logical: tokens that stay on their host count, too",
    }
    usage = {s.step: dict(s.usage.busiest) for s in ladder.steps}
    verdict = ladder.verdict()
    return {
        "ok": True,
        "figures": figures,
        "config": config,
        "busy": usage,
        "verdict": verdict,
        "ladder": ladder,
    }


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    from rdmakit.model.drawing import ladder_waterfall

    drawable(args.svg)
    result = run(args)
    if args.svg:
        with writing():
            ladder_waterfall(result["ladder"]).save(args.svg)
    if args.json:
        print(json.dumps({k: result[k] for k in ("ok", "figures", "config", "busy", "verdict")}))
    else:
        _show(result, args)
    return 0 if result["ok"] else 1


def _show(result: dict[str, Any], args: argparse.Namespace) -> None:
    from rdmakit.model.drawing import ladder_usage, ladder_waterfall

    ladder, figures = result["ladder"], result["figures"]
    print(result["config"]["cluster"])
    print(
        f"{args.kernel} {args.op}, {ladder.work.tokens} tokens a rank x {ladder.work.hidden}, {args.routing} routing, "
        f"{args.channels} channels; {args.seeds} seed{'s' * (args.seeds != 1)}\n"
    )
    print(f"{ladder_waterfall(ladder)}\n\n{ladder_usage(ladder)}\n")
    print(
        f"gain {figures['gain_total']:.2f} (band {figures['gain_least']:.2f} … {figures['gain_most']:.2f}); "
        f"in the last step payload fills {figures['port_payload_fraction']:.0%} of the ports' line rate"
    )
    for number in range(len(ladder.steps)):
        found = ladder.bottlenecks(number)
        print(f"  step {number} waits for {', '.join(found) if found else 'nothing that is busy: for latency'}")
    print(result["verdict"])
    print(
        f"modelled by the device code's own run in virtual time; every parameter with its source: "
        f"rdmakit plan --preset {args.preset} --parameters. {figures['seconds']:.1f} s"
    )
