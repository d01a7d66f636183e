"""`rdmakit plan`: which queue pair takes which port, UDP source port and path, and how even that is.

Leans on model. The plan is made before the routing is known, as it has to be where queue pairs live longer than
batches, and is then loaded with the routing; `--know-traffic` plans for the very bytes. `--machine` describes the hosts
by what one has: GPUs, NICs, ports, their rate, the bond.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rdmakit.cli.cluster import add_cluster, add_work, cluster_of, work_of
from rdmakit.cli.files import drawable, writable, writing

__all__ = ["add_parser", "run"]

MOST = 1.15  # busiest over idlest port that passes


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit plan`."""
    p = subparsers.add_parser("plan", help="queue pairs onto ports, source ports and paths, and how even they are")
    add_cluster(p)
    p.add_argument(
        "--machine", nargs="?", const="/", metavar="DIR",
        help="plan for hosts like this machine, or one whose files `rdmakit doctor --capture` has copied into DIR",
    )  # fmt: skip
    add_work(p)
    how = "planned; hash: what devices do by themselves; fixed: one source port for all; first-half: the trap"
    p.add_argument("--policy", choices=("planned", "hash", "fixed", "first-half"), default="planned", help=how)
    p.add_argument("--know-traffic", action="store_true", help="plan for the very bytes of this routing")
    p.add_argument("--rank", type=int, default=0, help="whose queue pairs are listed and drawn (default 0)")
    p.add_argument("--svg", metavar="FILE", help="write the drawing of that rank's routes to FILE, .svg or .png")
    p.add_argument("--flows", metavar="FILE", help="write all flows to FILE as CSV")
    p.add_argument("--presets", action="store_true", help="list the presets and end")
    p.add_argument(
        "--parameters", action="store_true", help="list the preset's parameters with their sources and end"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def machine_of(args: argparse.Namespace) -> Any:
    """The machine that `--machine` names, as the doctor sees it; None without."""
    if args.machine is None:
        return None
    from rdmakit.cli.doctor.machine import Machine

    return Machine.here(args.machine)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The plan with `ok`, `figures`, `config` and `findings`."""
    from rdmakit.errors import BadArgument
    from rdmakit.model.plan import make_plan

    machine = machine_of(args)
    preset = cluster_of(args, machine)
    if not 0 <= args.rank < preset.ranks:
        raise BadArgument("no such rank", value=args.rank, rule=f"0 … {preset.ranks - 1}", remedy="leave --rank out")
    work = work_of(args, preset)
    traffic = work.traffic()

    def planned(policy: str, known: bool) -> Any:
        plan = make_plan(
            preset,
            args.kernel,
            channels=args.channels,
            policy=policy,
            seed=args.seed,
            traffic=traffic if known else None,
        )
        return plan if known else plan.carrying(traffic)

    plan, blind = planned(args.policy, args.know_traffic), planned("hash", False)
    findings = plan.audit(MOST)
    figures = {
        "port_max_over_min": _finite(plan),
        "spine_max_over_mean": plan.spine_max_over_mean,
        "port_max_over_min_hash": _finite(blind),
        "spine_max_over_mean_hash": blind.spine_max_over_mean,
        "flows": len(plan),
        "payload_bytes": int(plan.flows["bytes"].sum()),
        "nics_idle": plan.nics_idle,
    }
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json")}
    config |= {"cluster": str(preset), "tokens": work.tokens, "mechanism": plan.mechanism, "bytes": "modelled"}
    shown = {"plan": plan, "blind": blind, "topology": machine.topology if machine is not None else None}
    return {"ok": not findings, "figures": figures, "config": config, "findings": findings} | shown


def _finite(plan: Any) -> float:
    """An idle port counts as one byte, since JSON has no infinity."""
    loads = plan.port_bytes.clip(1)[plan.port_bytes.sum(axis=2) > 0]
    return float((loads.max(axis=1) / loads.min(axis=1)).max()) if len(loads) else 1.0


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    if args.presets or args.parameters:
        return _list(args)
    writable(args.flows)
    drawable(args.svg)
    result = run(args)
    plan = result["plan"]
    _write(args, plan)
    if args.json:
        found = {k: result[k] for k in ("ok", "figures", "config", "findings")}
        if result["topology"] is not None:
            found["topology"] = result["topology"].to_dict()
        print(json.dumps(found))
    else:
        _show(result, args)
    return 0 if result["ok"] else 1


def _list(args: argparse.Namespace) -> int:
    from rdmakit.model import load, shipped
    from rdmakit.model.preset import ALIASES

    if args.presets:
        rows = {name: f"the same as {ALIASES[name]}" if name in ALIASES else load(name).title for name in shipped()}
    else:
        preset = cluster_of(args, machine_of(args))
        rows = {name: f"{s.shown} [{s.mark}] {s.source} ({s.where})" for name, s in preset.settings.items()}
    if args.json:
        print(json.dumps({"ok": True, "figures": {"entries": len(rows)}, "config": {"entries": rows}}))
    else:
        print("\n".join(f"{name:26} {text}" for name, text in rows.items()))
    return 0


def _write(args: argparse.Namespace, plan: Any) -> None:
    from rdmakit.model.drawing import rank_routes

    with writing():
        if args.svg:
            rank_routes(plan, args.rank).save(args.svg)
        if args.flows:
            names = plan.flows.dtype.names
            with open(args.flows, "w", encoding="utf-8") as file:
                file.write(",".join(names) + "\n")
                file.writelines(",".join(str(v) for v in row) + "\n" for row in plan.flows.tolist())


def _show(result: dict[str, Any], args: argparse.Namespace) -> None:
    from rdmakit.model.drawing import link_map, plan_ports, rank_routes, ratio

    plan, figures, config = result["plan"], result["figures"], result["config"]
    if result["topology"] is not None:
        print(f"{result['topology'].draw()}\n")
    print(config["cluster"])
    print(
        f"{args.kernel} {args.op}, {config['tokens']} tokens a rank, {args.routing} routing, {args.channels} channels"
    )
    print(f"{figures['flows']} queue pairs, steered by {plan.mechanism}, policy {plan.policy}\n")
    pictures = [plan_ports(plan), link_map(plan)]
    if len(plan) and plan.preset.count("hosts") > 1:
        pictures.append(rank_routes(plan, args.rank))
    for picture in pictures:
        if picture is not None:
            print(f"{picture}\n")
    blind = result["blind"]
    print(f"busiest / idlest port {ratio(plan.port_max_over_min)} (by hash {ratio(blind.port_max_over_min)})")
    print(f"busiest link / mean {plan.spine_max_over_mean:.3f} (by hash {blind.spine_max_over_mean:.3f})")
    print("bytes are counted from the routing, not measured")
    for finding in result["findings"]:
        print(f"  PROBLEM {finding}")
