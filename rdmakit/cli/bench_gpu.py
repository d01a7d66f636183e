"""`rdmakit bench queue | put | primitives`: posting, puts and what their pieces cost, on this machine's GPUs. Measured.

Leans on gpu.bench_queue, gpu.bench_put, gpu.bench_primitives, gpu.bench_copies. Each part runs in a process of its own:
a kernel that fails leaves the others alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rdmakit.cli.bench_record import add_output, finish

__all__ = ["add_parsers", "main_primitives", "main_put", "main_queue"]


def add_parsers(which: Any) -> None:
    """Register `bench queue`, `bench put` and `bench primitives`."""
    queue = which.add_parser("queue", help="WQEs a second that a GPU's warps post, into an HCA that checks each")
    add_output(queue)
    queue.set_defaults(func=main_queue)
    put = which.add_parser("put", help="puts and their signals over their size, through an HCA made of warps")
    put.add_argument("--begin", type=int, default=8, help="bytes of the smallest put (default 8)")
    put.add_argument("--end", type=int, default=1 << 20, help="bytes of the largest (default 1 MiB)")
    put.add_argument("--factor", type=int, default=4, help="between two sizes (default 4)")
    put.add_argument("--seed", type=int, default=1)
    add_output(put)
    put.set_defaults(func=main_put)
    pieces = which.add_parser(
        "primitives", help="fences, atomics, loads, stores, posting, flags, copies: what each costs"
    )
    pieces.add_argument("--rounds", type=int, default=10_000, help="steps of a chain (default 10000)")
    pieces.add_argument("--repeats", type=int, default=7, help="launches of each, of which the median counts")
    pieces.add_argument("--seed", type=int, default=1)
    add_output(pieces)
    pieces.set_defaults(func=main_primitives)


def _measured(
    args: argparse.Namespace, what: str, options: Sequence[str], parts: Sequence[Callable[[], dict[str, Any]]],
    config: dict[str, Any],
) -> int:  # fmt: skip
    """Run the parts, telling each line as it comes; NotAvailable at once where there is no GPU."""
    from rdmakit.gpu import bench_queue
    from rdmakit.gpu.cuda import cupy

    runtime = cupy().cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    if not args.json:
        print(f"measured on {name}", flush=True)
    result = bench_queue.everything(_silent if args.json else _tell, parts)
    wrong = [line for line in result["lines"] if not result["ok"]]
    if args.json and wrong:
        print("\n".join(wrong), file=sys.stderr)
    kept = {"device": name, **result, "config": config}
    return finish(args, what, options, kept, list)


def _silent(line: str) -> None:
    pass


def _tell(line: str) -> None:
    print(line, flush=True)


def main_queue(args: argparse.Namespace) -> int:
    """Entry of `bench queue`."""
    from rdmakit.gpu import bench_queue

    parts = bench_queue.all_processors, bench_queue.shared_queue, bench_queue.one_warp
    return _measured(args, "bench queue", [], parts, {})


def main_put(args: argparse.Namespace) -> int:
    """Entry of `bench put`."""
    from rdmakit.gpu import bench_put, bench_queue

    sizes = bench_put.sizes_between(args.begin, args.end, args.factor)
    config = {"begin": args.begin, "end": args.end, "factor": args.factor, "seed": args.seed}
    options = [f"--{name}={value}" for name, value in config.items()]
    parts = bench_queue.put_signal, bench_queue.put_signal_stages, partial(bench_put.put_sizes, sizes, seed=args.seed)
    return _measured(args, "bench put", options, parts, config)


def main_primitives(args: argparse.Namespace) -> int:
    """Entry of `bench primitives`."""
    from rdmakit.errors import BadArgument
    from rdmakit.gpu import bench_copies, bench_primitives

    for name in ("rounds", "repeats"):
        if getattr(args, name) < 1:
            raise BadArgument(f"no {name}", value=getattr(args, name), rule="1 at least", remedy=f"leave --{name} out")
    config = {"rounds": args.rounds, "repeats": args.repeats, "seed": args.seed}
    options = [f"--{name}={value}" for name, value in config.items()]
    parts = (
        partial(bench_primitives.primitives, rounds=args.rounds, repeats=args.repeats, seed=args.seed),
        partial(bench_copies.copies, repeats=args.repeats, seed=args.seed),
    )
    return _measured(args, "bench primitives", options, parts, config)
