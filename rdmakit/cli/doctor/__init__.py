"""`rdmakit doctor`: what stands between this machine and GPU-initiated RDMA, check by check, with a remedy for each.

Leans on checks (what is looked at), report (a terminal), schema (JSON), ranks and pairs (under torchrun or MPI).
Exit status: 0 no check failed, 1 some did, 2 the request was wrong. WARN and SKIP fail nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

__all__ = ["add_parser", "main", "run"]

NEEDS = ("gpu", "rdma")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The JSON object of one machine or rank; prints a terminal's lines as results come, unless `args.json`."""
    from rdmakit.cli.doctor.checks import examine
    from rdmakit.cli.doctor.machine import Machine
    from rdmakit.cli.doctor.report import Style, lines_of
    from rdmakit.cli.doctor.schema import as_json

    machine = Machine.here(args.root, frozenset(args.need))
    results = []

    def kept() -> Any:
        for result in examine(machine):
            results.append(result)
            yield result

    if args.json or args.quiet:
        for _ in kept():
            pass
    else:
        print(heading(machine))
        for line in lines_of(kept(), Style.of(sys.stdout)):
            print(line, flush=True)
    return as_json(machine, results)


def heading(machine: Any) -> str:
    """The first line: which machine, and what of it is looked at."""
    import platform

    from rdmakit.cli.doctor.ports import counted

    where = platform.node() if machine.asked is not None else str(machine.root)
    rdma = counted(len(machine.nics), "RDMA device") if machine.nics else "no RDMA device"
    gpus = counted(len(machine.topology.gpus), "GPU") if machine.topology.gpus else "no GPU"
    return f"{where}: {rdma}{' (emulated)' if machine.emulated else ''}, {gpus}"


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand; returns the exit status."""
    from rdmakit.cli.doctor.schema import SCHEMA

    if args.schema:
        print(json.dumps(SCHEMA, indent=1))
        return 0
    result = run(args)
    if args.json:
        print(json.dumps(result))
    else:
        print(summary(result))
    return 0 if result["ok"] else 1


def summary(result: dict[str, Any]) -> str:
    """The last line."""
    figures = result["figures"]
    counts = ", ".join(f"{figures[name]} {name.upper()}" for name in ("pass", "warn", "fail", "skip"))
    return f"{counts}; docs/doctor.md explains each check"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `doctor` to an argparse subparsers object; sets `func` to `main`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="check modules, ports, bonds, GPUs and doorbells, with a remedy for each",
        description="Exit status 0: no check fails (WARN and SKIP do not count); 1: some do. docs/doctor.md explains all.",
    )
    parser.add_argument("--root", default="/", help="where /sys, /proc and /dev are looked for (a captured tree)")
    parser.add_argument(
        "--need", action="append", default=[], choices=NEEDS, help="what must be here: its absence fails; may be repeated"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of that object and end")
    parser.set_defaults(func=main, quiet=False)
    return parser
