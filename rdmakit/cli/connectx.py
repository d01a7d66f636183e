"""`rdmakit connectx -- COMMAND`: run a program of libibverbs's on emulated ConnectX NICs.

Leans on emu.uverbs. The exit status is the command's. With --json what the command prints goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from rdmakit.cli.terminate import tidy_when_terminated
from rdmakit.errors import BadArgument

__all__ = ["add_parser", "main"]


def main(args: argparse.Namespace) -> int:
    """Run it and wait; returns its exit status."""
    from rdmakit.emu.uverbs import default_nics, preloaded

    command = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not command:
        raise BadArgument(
            "nothing to run",
            value="",
            rule="rdmakit connectx [--nics N] [--lag MODE] -- COMMAND …",
            remedy="for example: rdmakit connectx -- ibv_devinfo",
        )
    with tidy_when_terminated(), preloaded(default_nics(args.nics, args.lag)) as environment:
        try:
            status = subprocess.run(command, env=environment, stdout=sys.stderr if args.json else None).returncode
        except OSError as error:
            raise BadArgument(
                "cannot be run",
                value=command[0],
                rule=str(error.strerror),
                remedy="apt-get install ibverbs-utils has ibv_devinfo and its like",
            ) from None
    if args.json:
        config = {"command": command, "nics": args.nics, "lag": args.lag}
        print(json.dumps({"ok": status == 0, "figures": {"status": status}, "config": config}))
    return status


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `connectx` to an argparse subparsers object; sets `func` to `main`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "connectx",
        help="run a program of libibverbs's on emulated ConnectX NICs",
        description="libibverbs and libmlx5 find emulated NICs, mlx5_0 and so on, in the command and what it starts.",
    )
    parser.add_argument("--nics", type=int, default=2, help="how many (default 2)")
    parser.add_argument(
        "--lag", default="none", choices=("none", "hash", "affinity"), help="bond two ports in each NIC (default none)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="the command and its arguments, after --")
    parser.set_defaults(func=main)
    return parser
