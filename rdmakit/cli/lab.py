"""`rdmakit lab -- COMMAND`: run it in a virtual machine with two hosts of two soft-RoCE ports; `rdmakit lab --setup`
gets the machine's kernel.

Leans on lab. The exit status is the command's. With --json what the command prints goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rdmakit.cli.terminate import tidy_when_terminated

__all__ = ["add_parser", "main"]


def _setup(args: argparse.Namespace) -> int:
    from rdmakit.lab import cache_folder, download_kernel, missing_programs

    kernel = download_kernel()
    missing = missing_programs()
    if args.json:
        config = {"kernel": kernel.version, "cache": str(cache_folder()), "missing": missing}
        print(json.dumps({"ok": not missing, "figures": {}, "config": config}))
        return int(bool(missing))
    print(f"kernel {kernel.version} lies in {kernel.tree}")
    if missing:
        print(f"still missing: sudo apt-get install -y --no-install-recommends {' '.join(missing)}")
    else:
        print("the lab is ready: rdmakit lab -- ip netns exec h0 rdma link")
    return int(bool(missing))


def main(args: argparse.Namespace) -> int:
    """Start the machine, run, stop it; returns the command's exit status."""
    if args.setup:
        return _setup(args)
    from rdmakit.lab import run

    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    with tidy_when_terminated():
        outcome = run(
            command,
            host=args.host,
            hosts=0 if args.bare else 2,
            out=None if args.out is None else Path(args.out),
            seconds=args.seconds,
            memory_mib=args.memory,
            cpus=args.cpus,
            accelerator=args.accelerator,
            stdout=sys.stderr if args.json else None,
        )
    if args.json:
        figures = {"status": outcome.status, "boot_s": round(outcome.boot_s, 2), "total_s": round(outcome.total_s, 2)}
        config = {"command": command, "kernel": outcome.kernel, "host": args.host, "measured": True}
        print(json.dumps({"ok": outcome.status == 0, "figures": figures, "config": config}))
    return outcome.status


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `lab` to an argparse subparsers object; sets `func` to `main`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "lab",
        help="run a program between two hosts of two soft-RoCE ports, in a virtual machine",
        description="The machine sees this one's files, read-only; /out is --out; all else that is written is lost. "
        "Hosts are the network namespaces h0 and h1 with devices h0r0, h0r1, h1r0 and h1r1.",
    )
    parser.add_argument("--setup", action="store_true", help="download the machine's kernel into the cache, once")
    parser.add_argument("--host", choices=("none", "0", "1", "each"), default="none",
                        help="run it on that host, or on each with RANK and WORLD_SIZE set (default none)")
    parser.add_argument("--bare", action="store_true", help="leave both hosts out")
    parser.add_argument("--out", metavar="FOLDER", help="what the machine sees as /out and may write to")
    parser.add_argument("--seconds", type=float, default=600, help="kill the machine after so long (default 600)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MIB", help="of the machine (default 2048)")
    parser.add_argument("--cpus", type=int, default=2, help="of the machine (default 2)")
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), default="tcg",
                        help="kvm only where it is known to boot Debian's kernels (default tcg)")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="the command and its arguments, after --")
    parser.set_defaults(func=main)
    return parser
