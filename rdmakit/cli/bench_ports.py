"""`rdmakit bench ports`: what each port between two hosts carries alone, what all carry together, why that is less.

Leans on bench_ports_rank (measuring), bench_ports_causes (judging), connect and show. Each process is one host: started
by hand with --meet, by torchrun, mpirun or srun. Rank 0 writes, rank 1 is written to; both print the same.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rdmakit.cli.bench_hosts import add_place, devices_of, place_of
from rdmakit.cli.bench_ports_causes import ENOUGH, causes
from rdmakit.cli.bench_ports_facts import CNPS, LOST, PAUSES
from rdmakit.cli.bench_ports_rank import Found, measure
from rdmakit.cli.bench_ports_run import Cause, Seen, max_over_min, ratio
from rdmakit.cli.bench_ports_traffic import Load
from rdmakit.cli.bench_record import finish
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["add_parser", "ports"]


@contextmanager
def meeting_of(args: argparse.Namespace, timeout_s: float) -> Iterator[Any]:
    """Where --meet says; else through torchrun's store, or an mpi4py communicator."""
    from rdmakit.connect import meet

    if args.meet:
        met: Any = meet(args.meet, *place_of(args), timeout_s=timeout_s)
    else:
        from rdmakit.cli.doctor.launch import launched

        of = launched(os.environ)
        if of is None:
            raise BadArgument("where do the two hosts meet?", value="neither --meet nor a launcher's variables",
                              rule="--meet file:DIRECTORY or tcp:HOST:PORT with --rank and --ranks; torchrun; mpirun",
                              remedy="rdmakit bench ports --meet tcp:HOST0:29600 --rank 0 --ranks 2")  # fmt: skip
        if of.how == "torchrun":
            from rdmakit.cli.doctor.meeting import torch_store

            met = meet(torch_store(of), of.rank, of.size, timeout_s=timeout_s)
        else:
            try:
                from mpi4py import MPI
            except ImportError as error:
                raise NotAvailable(f"{of.how} started {of.size} ranks, and mpi4py is missing", value=str(error),
                                   rule="ranks meet through torch.distributed, mpi4py, or --meet",
                                   remedy="pip install mpi4py, or pass --meet") from None  # fmt: skip
            met = meet(MPI.COMM_WORLD, timeout_s=timeout_s)
    yield met
    met.close()


def ports(args: argparse.Namespace) -> dict[str, Any]:
    """This rank's part: the result with `ok`, `figures`, `config`, `causes`, `counters`, and lines to print."""
    from rdmakit.connect import open_paths

    load = Load(args.size, args.batch, args.depth, args.seconds, args.warm_up, args.limit_bytes, args.timeout,
                args.qp_bytes)  # fmt: skip
    for name, value, most in (("qps", args.qps, 64), ("rounds", args.rounds, 100)):
        if not 1 <= value <= most:
            raise BadArgument(f"no such --{name}", value=value, rule=f"1 … {most}", remedy=f"leave --{name} out")
    if not 0 <= args.least <= 16:
        raise BadArgument("no such --least", value=args.least, rule="0 … 16 times one port", remedy="--least 1.9")
    # Who waits for the sender waits for a phase, too.
    patience = args.timeout + load.seconds + load.warm_up + load.patience_s
    with meeting_of(args, patience) as meeting:
        rank, paths = meeting.rank, open_paths(devices_of(args))
        found = measure(meeting, paths, load, qps=args.qps, rounds=args.rounds, policy=args.policy, seed=args.seed)
    config = {
        "rank": rank, "ranks": 2, "sender": [port.near.name for port in found.run.ports],
        "receiver": [port.far.name for port in found.run.ports], "qps_per_port": args.qps, "policy": args.policy,
        "rounds": args.rounds, "size": load.size, "batch": load.batch, "depth": load.depth, "seconds": load.seconds,
        "warm_up": load.warm_up, "qp_bytes": load.qp_bytes, "seed": args.seed, "time": "measured",
        "bandwidth": "payload, medians of rounds",
    }  # fmt: skip
    why, gain = causes(found.run), ratio(found.run)
    figures = figures_of(found)
    enough = not args.least or gain >= args.least
    return {
        "ok": not found.wrong and enough and bool(found.both), "figures": figures, "config": config,
        "causes": [{"name": cause.name, "said": cause.said, "mend": list(cause.mend)} for cause in why],
        "counters": found.counted, "lines": _lines(found, why, args.least),
        "device": ", ".join(config["sender"]),
    }  # fmt: skip


def figures_of(found: Found) -> dict[str, Any]:
    """`port_<n>_gbs`, `both_ports_gbs` (GB/s of payload), `both_over_one`; where ports count bytes of their own
    `port_bytes_max_over_min` and `wire_over_payload`; what counters grew by while all ports worked, over both ends.
    """
    run = found.run
    figures: dict[str, Any] = {f"port_{port.number}_gbs": port.alone_gbs for port in run.ports}
    figures |= {"both_ports_gbs": run.both_gbs, "both_over_one": ratio(run), "wrong": len(found.wrong)}
    sent = [port.sent for port in run.ports if port.up]
    if sent and None not in sent:
        if len(sent) > 1:
            figures["port_bytes_max_over_min"] = max_over_min(count or 0 for count in sent)
        figures["wire_over_payload"] = found.wire
    figures |= {name: _grown(run.ports, names) for name, names in _GROUPS.items()}
    figures |= {"refills_empty": run.empty, "sender_busy": run.busy[0], "receiver_busy": run.busy[1]}
    return figures


_GROUPS = {"cnps": CNPS[:2], "ecn_marked": CNPS[2:], "pauses": PAUSES, "losses": LOST}


def _grown(ports: tuple[Seen, ...], names: tuple[str, ...]) -> int:
    return sum(count for port in ports for end in (port.near_grown, port.far_grown)
               for name, count in end.items() if name in names)  # fmt: skip


def _lines(found: Found, why: list[Cause], least: float) -> list[str]:
    from rdmakit import show

    run = found.run
    rows = []
    for port in run.ports:
        state = "" if port.up else "down"
        sent = "not counted" if port.sent is None else f"{port.sent}"
        rows.append([f"{port.number}", f"{port.near.name} → {port.far.name}", f"{8 * port.near.gbs:g}" if port.near.gbs
                     else "?", state or port.failed or f"{port.alone_gbs:.4g}", f"{8 * port.alone_gbs:.4g}",
                     f"{port.qps}", sent, *(_cell(port, names) for names in _GROUPS.values())])  # fmt: skip
    rows.append(["all", "", "", f"{run.both_gbs:.4g}", f"{8 * run.both_gbs:.4g}", f"{sum(p.qps for p in run.ports)}",
                 "", *[""] * len(_GROUPS)])  # fmt: skip
    head = ["port", "sender → receiver", "link Gb/s", "GB/s", "Gb/s", "queue pairs", "B sent, all at work", *_GROUPS]
    lines = [found.table, str(show.data_table(rows, head, title="payload, measured; counters: growth, both ends"))]
    gain, count = ratio(run), len(run.ports)
    even = figures_of(found).get("port_bytes_max_over_min")
    balance = "" if even is None else f"; bytes of the busiest port / the idlest {even:.3f}"
    lines.append(f"{count} ports carry {gain:.2f} times one{balance}")
    if found.wire:
        lines.append(f"{found.wire:.3f} bytes on the wire for each byte of payload")
    if least and gain < least:
        lines.append(f"WRONG less than --least {least:g}")
    for cause in why:
        lines.append(f"likely: {cause.name}: {cause.said}")
        lines += [f"    mend: {what}" for what in cause.mend]
    if not why:
        lines.append(f"enough: {ENOUGH:g} of {count} times one or more")
    lines += [f"WRONG {each}" for each in found.wrong[:8]]
    right = "every byte of what arrived last is right, and nothing else was written"
    return [*lines, "WRONG bytes" if found.wrong else right]


def _cell(port: Seen, names: tuple[str, ...]) -> str:
    known = any(name in end for name in names for end in (port.near_grown, port.far_grown))
    return str(_grown((port,), names)) if known else "-"


def main(args: argparse.Namespace) -> int:
    """Entry of `bench ports`."""
    result = ports(args)
    names = ("qps", "size", "batch", "depth", "seconds", "warm_up", "qp_bytes", "rounds", "seed", "policy")
    options = [f"--{name.replace('_', '-')}={getattr(args, name)}" for name in names]
    return finish(args, "bench ports", options, result, lambda: result["lines"])


def add_parser(which: Any) -> None:
    """Register `rdmakit bench ports`."""
    what = "two hosts: each port's bandwidth, all ports' together, the likely cause where that is not as many times one"
    parser = which.add_parser("ports", help=what, description=f"{what}. Rank 0 writes, rank 1 is written to.")
    add_place(parser, needed=False)
    for option, kind, default, told in (
        ("qps", int, 4, "queue pairs of each port"), ("size", int, 1 << 16, "bytes of a WRITE"),
        ("batch", int, 16, "WRITEs a post"), ("depth", int, 2, "posts under way on each queue pair"),
        ("seconds", float, 1.0, "counted, of each phase"), ("warm-up", float, 0.3, "seconds before"),
        ("rounds", int, 3, "of all phases; medians count"), ("seed", int, 1, "of the bytes"),
        ("limit-bytes", int, 1 << 37, "posted in a phase at most"),
        ("qp-bytes", int, 0, "of each queue pair in each phase, in place of --seconds; 0: by time"),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=kind, default=default, help=f"{told} (default {default})")
    parser.add_argument("--policy", choices=("planned", "hash", "fixed", "first-half"), default="planned",
                        help="queue pairs onto ports, as `rdmakit plan` has them (default planned)")  # fmt: skip
    parser.add_argument("--least", type=float, default=0.0, metavar="RATIO",
                        help="status 1 when all ports carry less than so many times one (default: never)")  # fmt: skip
    parser.set_defaults(func=main)
