"""The `rdmakit` command (also `python -m rdmakit`): demo, explore, replay, info, doctor, decode, bench, plan,
ladder, validate, sweep, trace, ports, connectx, lab.

Leans on all layers below. Each subcommand is a module here with `add_parser(subparsers)`, which sets `func`:
a function that takes the parsed arguments and returns the exit status. Heavy imports belong inside that
function. Exit status: 0 all checks hold, 1 some do not, 2 the request itself was wrong or cannot be met here.

With `--json` a subcommand prints one object only: `ok` (bool), `figures` (name → number) and `config`.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rdmakit.cli import (
    bench,
    connectx,
    decode,
    demo,
    doctor,
    explore,
    info,
    lab,
    ladder,
    plan,
    ports,
    replay,
    sweep,
    trace,
    validate,
)
from rdmakit.errors import NotAvailable, RdmakitError

__all__ = ["main", "parser"]

SUBCOMMANDS = (
    demo, explore, replay, info, doctor, decode, bench, plan, ladder, validate, sweep, trace, ports, connectx, lab,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line of all subcommands."""
    top = argparse.ArgumentParser(
        prog="rdmakit", description="GPU-initiated RDMA that you can read, run and prove."
    )
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in SUBCOMMANDS:
        module.add_parser(subparsers)
    return top


def _refused(args: argparse.Namespace, error: RdmakitError) -> int:
    print(f"error: {error}", file=sys.stderr)
    if getattr(args, "json", False):
        said = {"type": type(error).__name__, "what": error.what, "rule": error.rule, "remedy": error.remedy}
        config = {"command": args.command}
        print(json.dumps({"ok": False, "figures": {}, "config": config, "error": said}))
    return 2


def _drop_output() -> None:
    """What is still buffered goes nowhere, or the interpreter would try to write it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: `sys.argv`); returns the exit status. Typed errors become `error: …`.

    >>> main(["decode", "--kind", "doorbell", "0001230000"])
    2
    """
    args = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], Any] = args.func
    try:
        status = int(run(args))
        sys.stdout.flush()
        return status
    except RdmakitError as error:
        return _refused(args, error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has left
        _drop_output()
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_output()
        return _refused(args, NotAvailable("the output could not be written", value=error, rule="room where it goes",
                                           remedy="free some, or write elsewhere"))  # fmt: skip
