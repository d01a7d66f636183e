"""`rdmakit bench mesh`: a full mesh of queue pairs, and how many a second were made, exchanged and brought to RTS.

Leans on connect. All ranks in one process, a thread each, over emulated or real devices; or with --meet one rank of it.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from typing import Any

from rdmakit.cli.bench_hosts import add_place, devices_of, place_of
from rdmakit.cli.bench_record import finish
from rdmakit.errors import RdmakitError

__all__ = ["add_parser", "mesh"]


def mesh(args: argparse.Namespace) -> dict[str, Any]:
    """A full mesh: this process's rank with --meet, else all ranks, a thread each."""
    from rdmakit.connect import ConnectedMesh, connect_mesh, meet, open_paths

    names = devices_of(args)

    def join(rank: int, ranks: int, where: str, devices: list[str]) -> ConnectedMesh:
        meeting = meet(where, rank, ranks, timeout_s=args.timeout)
        made = connect_mesh(meeting, open_paths(devices), qps=args.qps)
        meeting.close()
        return made

    made: list[ConnectedMesh] = []
    if args.meet:
        rank, ranks = place_of(args)
        made.append(join(rank, ranks, args.meet, names))
    else:
        ranks = args.ranks or 4
        made += _threads(ranks, args.timeout, lambda rank, where: join(rank, ranks, where, _share(names, rank, ranks)))
    slowest = min(made, key=lambda each: each.qps_per_second)
    figures = {"qps": sum(len(each) for each in made), "qps_per_second": sum(each.qps_per_second for each in made),
               **{f"{step}_s": max(each.seconds[step] for each in made) for step in slowest.seconds}}  # fmt: skip
    right = all(len(each) == args.qps * (ranks - 1) for each in made)
    config = {"ranks": ranks, "qps_per_pair": args.qps, "devices": names, "threads": len(made), "time": "measured"}
    lines = [f"{ranks} ranks, {args.qps} queue pairs to each other: {figures['qps']} made, exchanged and in RTS",
             *(each.table() for each in made[:4]),
             f"{figures['qps_per_second']:.0f} queue pairs a second, of all ranks here together; "
             + ", ".join(f"{step} {figures[f'{step}_s'] * 1e3:.1f} ms" for step in slowest.seconds)]  # fmt: skip
    for each in made:
        each.close()
    return {"ok": right, "figures": figures, "config": config, "lines": lines, "device": ", ".join(names)}


def _share(names: list[str], rank: int, ranks: int) -> list[str]:
    """A rank's devices when all ranks are here: its own part, one at least; `emu` gives each a host of one world."""
    if names == ["emu"]:
        return [f"emu:world=bench-mesh,hosts={ranks},host={rank}"]
    each = max(1, len(names) // ranks)
    first = rank * each % len(names)
    return names[first : first + each]


def _threads(ranks: int, timeout_s: float, join: Any) -> list[Any]:
    found: list[Any] = [None] * ranks
    with tempfile.TemporaryDirectory(prefix="rdmakit-mesh-") as folder:

        def run(rank: int) -> None:
            try:
                found[rank] = join(rank, f"file:{folder}/meeting")
            except RdmakitError as error:
                found[rank] = error

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * timeout_s + 10)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


def main(args: argparse.Namespace) -> int:
    """Entry of `bench mesh`."""
    result = mesh(args)
    return finish(args, "bench mesh", [f"--qps={args.qps}"], result, lambda: result["lines"])


def add_parser(which: Any) -> None:
    """Register `rdmakit bench mesh`."""
    parser = which.add_parser("mesh", help="a full mesh of queue pairs: how many a second")
    add_place(parser, needed=False)
    parser.add_argument("--qps", type=int, default=16, help="queue pairs of each pair of ranks (default 16)")
    parser.set_defaults(func=main)
