"""`rdmakit bench …`: what the project promises about speed, with a check beside every number.

Leans on all layers below. `bench ep` and `scale` measure dispatch and combine on GPUs, `bench queue`, `put` and
`primitives` what a GPU posts and what its primitives cost; `bench hosts`, `mesh` and `ports` need RDMA devices and no
GPU; `bench signal` models what signals cost; `bench emu` times the CPU runner and the emulated HCA, each part in a
process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

from rdmakit.cli import (
    bench_emu,
    bench_ep,
    bench_gpu,
    bench_hosts,
    bench_mesh,
    bench_plot,
    bench_ports,
    bench_post,
    bench_scale,
    bench_signal,
)
from rdmakit.cli.bench_record import add_output, finish

__all__ = ["add_parser"]

PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "queue": bench_emu.queue,
    "ep8": bench_emu.ep8,
    "ranks64": bench_emu.ranks64,
    "linear": bench_emu.linear,
}


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit bench`."""
    p = subparsers.add_parser("bench", help="benchmarks, each with its correctness check")
    which = p.add_subparsers(dest="bench", required=True, metavar="WHAT")
    emu = which.add_parser("emu", help="the CPU runner and the emulated HCA")
    emu.add_argument("--only", choices=sorted(PARTS), action="append", help="run these parts only")
    emu.add_argument("--tokens", type=int, default=4096, help="tokens of each of the 8 ranks (default 4096)")
    emu.add_argument("--hidden", type=int, default=7168)
    emu.add_argument("--seed", type=int, default=1)
    emu.add_argument("--json", action="store_true", help="print one JSON object only")
    emu.set_defaults(func=main_emu)
    ep = which.add_parser("ep", help="dispatch and combine over NVLink, on this machine's GPUs")
    ep.add_argument("--processes", type=int, default=2, help="ranks, a GPU each (default 2)")
    for name, default in (("tokens", 4096), ("hidden", 7168), ("experts", 256), ("topk", 8)):
        ep.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    ep.add_argument("--ll-tokens", type=int, default=128, help="of the low-latency operations (default 128)")
    ep.add_argument("--ll-experts", type=int, default=288, help="default 288")
    ep.add_argument("--seed", type=int, default=1)
    add_output(ep)
    ep.set_defaults(func=main_ep)
    bench_scale.add_parser(which)
    bench_gpu.add_parsers(which)
    bench_plot.add_parser(which)
    bench_ports.add_parser(which)
    bench_post.add_parser(which)
    bench_hosts.add_parser(which)
    bench_mesh.add_parser(which)
    signal = which.add_parser("signal", help="what each strategy of the sequence lock costs, in virtual time")
    signal.add_argument("--seed", type=int, default=1)
    signal.add_argument("--length", type=int, action="append", help="bytes of a transfer; several may be given")
    signal.add_argument("--json", action="store_true", help="print one JSON object only")
    signal.set_defaults(func=main_signal)


def main_signal(args: argparse.Namespace) -> int:
    """Entry of `bench signal`."""
    lengths = tuple(args.length or bench_signal.LENGTHS)
    result = bench_signal.signal(seed=args.seed, lengths=lengths)
    if args.json:
        config = {"seed": args.seed, "lengths": list(lengths), "time": "modelled"}
        print(json.dumps({"ok": result["ok"], "figures": result["figures"], "config": config}))
    else:
        print("\n".join(result["lines"]))
    return 0 if result["ok"] else 1


def main_ep(args: argparse.Namespace) -> int:
    """Entry of `bench ep`."""
    names = ("tokens", "hidden", "experts", "topk", "ll_tokens", "ll_experts", "seed")
    given = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    result = bench_ep.run(given, args.processes)
    options = [f"--processes={args.processes}", *given]
    return finish(args, "bench ep", options, result, lambda: bench_ep.report(result))


def _isolated(part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one part in a fresh process; the parent stays small."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(PARTS[part], kwds=options)


def main_emu(args: argparse.Namespace) -> int:
    """Entry of `bench emu`."""
    options = {"tokens": args.tokens, "hidden": args.hidden, "seed": args.seed}
    figures: dict[str, Any] = {}
    ok = True
    for part in args.only or PARTS:
        if not args.json:
            print(f"{part} …", file=sys.stderr, flush=True)
        result = _isolated(part, options)
        figures.update(result["figures"])
        ok = ok and result["ok"]
        if not args.json:
            for line in result["lines"]:
                print(line, flush=True)
    if args.json:
        print(json.dumps({"ok": ok, "figures": figures, "config": options}))
    return 0 if ok else 1
