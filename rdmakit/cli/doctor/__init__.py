"""`rdmakit doctor`: what stands between this machine and GPU-initiated RDMA, check by check, with a remedy for each.

Leans on checks (what is looked at), report (a terminal), schema (JSON), launch, meeting, ranks, pairs (many ranks).
Exit status: 0 no check failed, 1 some did, 2 the request was wrong. WARN and SKIP fail nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdmakit.cli.doctor.check import Result
    from rdmakit.cli.doctor.launch import Launched
    from rdmakit.cli.doctor.machine import Machine

__all__ = ["add_parser", "heading", "main"]

NEEDS = ("gpu", "rdma")


def heading(machine: Machine) -> str:
    """The first line: which machine, and what of it is looked at."""
    from rdmakit.cli.doctor.ports import counted

    node = platform.node().strip("()")
    where = (node if node not in ("", "none") else "this machine") if machine.asked is not None else str(machine.root)
    rdma = counted(len(machine.nics), "RDMA device") if machine.nics else "no RDMA device"
    gpus = counted(len(machine.topology.gpus), "GPU") if machine.topology.gpus else "no GPU"
    return f"{where}: {rdma}{' (emulated)' if machine.emulated else ''}, {gpus}"


def _shown(results: Iterable[Result]) -> Iterator[Result]:
    """Passes results on, and prints each line as soon as it is known."""
    from rdmakit.cli.doctor.report import Style, lines_of

    kept: list[Result] = []

    def keeping() -> Iterator[Result]:
        for result in results:
            kept.append(result)
            yield result

    for line in lines_of(keeping(), Style.of(sys.stdout)):
        print(line, flush=True)
    yield from kept


def _alone(args: argparse.Namespace, machine: Machine) -> dict[str, Any]:
    from rdmakit.cli.doctor.checks import examine
    from rdmakit.cli.doctor.schema import as_json

    results = examine(machine)
    if not args.json:
        print(heading(machine), flush=True)
        results = _shown(results)
    return as_json(machine, list(results))


def _together(args: argparse.Namespace, machine: Machine, of: Launched) -> dict[str, Any]:
    from rdmakit.cli.doctor.checks import examine
    from rdmakit.cli.doctor.meeting import meeting
    from rdmakit.cli.doctor.ports import counted
    from rdmakit.cli.doctor.ranks import examine_all
    from rdmakit.cli.doctor.schema import as_json

    with meeting(of) as met:
        results, ranks, lines = examine_all(met, machine, list(examine(machine)), of.local, args.device)
    if of.rank == 0 and not args.json:
        hosts = counted(len(set(ranks["hosts"])), "host")
        print(f"{of.size} ranks of {of.how} on {hosts}; rank 0 on {heading(machine)}")
        list(_shown(results))
        print(*lines, sep="\n")
    return {**as_json(machine, results), "ranks": ranks}


def _capture(args: argparse.Namespace) -> int:
    from rdmakit.cli.doctor.capture import capture

    files = capture(args.capture, args.root)
    if args.json:
        config = {"capture": args.capture, "root": args.root}
        print(json.dumps({"ok": files > 0, "figures": {"files": files}, "config": config}))
    else:
        print(f"{files} files; rdmakit doctor --root {args.capture} looks at them")
    return 0 if files else 1


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand; returns the exit status, which is the same on all ranks."""
    from rdmakit.cli.doctor.launch import launched
    from rdmakit.cli.doctor.machine import Machine
    from rdmakit.cli.doctor.schema import SCHEMA

    if args.schema:
        print(json.dumps(SCHEMA, indent=1))
        return 0
    if args.capture is not None:
        return _capture(args)
    of = None if args.alone or args.root != "/" else launched(os.environ)
    only = tuple(args.device) if of is None else ()  # among ranks each looks at all, and uses these for the rails
    machine = Machine.here(args.root, frozenset(args.need), only)
    result = _alone(args, machine) if of is None else _together(args, machine, of)
    if of is None or of.rank == 0:
        figures = result["figures"]
        counts = ", ".join(f"{figures[name]} {name.upper()}" for name in figures)
        print(json.dumps(result) if args.json else f"{counts}; docs/doctor.md explains each check")
    return 0 if result["ok"] else 1


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `doctor` to an argparse subparsers object; sets `func` to `main`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="check modules, ports, bonds, GPUs and doorbells, with a remedy for each",
        description="Exit status 0: no check fails (WARN and SKIP do not count); 1: some do; 2: it could not be asked. "
        "Under torchrun, mpirun or srun all ranks look, and all pairs meet. docs/doctor.md explains each check.",
    )
    parser.add_argument("--root", default="/", help="where /sys, /proc and /dev are looked for (a captured tree)")
    parser.add_argument("--capture", metavar="DIR", help="copy what is looked at into DIR, for --root, and end")
    parser.add_argument(
        "--need", action="append", default=[], choices=NEEDS, help="fail when it is absent; may be given again"
    )
    parser.add_argument(
        "--device", action="append", default=[], metavar="NAME",
        help="look at this RDMA device alone (default: all); among ranks: one that each uses (default: those nearest "
        "to the rank's GPU); may be given again",
    )  # fmt: skip
    parser.add_argument("--alone", action="store_true", help="look at this machine only, whoever started the process")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of that object and end")
    parser.set_defaults(func=main)
    return parser
