"""A benchmark's result as it is kept in benchmarks/results: the figures, and what, where, when and by what they came.

Leans on the standard library.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rdmakit
from rdmakit.errors import BadArgument

__all__ = ["add_output", "commit", "finish", "keep_of_script", "record"]


def commit() -> str | None:
    """The commit that rdmakit runs from, with `+changes` when files differ from it; None outside a checkout.

    >>> commit() is None or len(commit()) >= 7
    True
    """
    root = Path(rdmakit.__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "--short", "HEAD")
    if not head or git("rev-parse", "--show-toplevel") != str(root):
        return None
    return head + "+changes" * bool(git("status", "--porcelain", "--untracked-files=no"))


def record(what: str, arguments: Sequence[str], result: dict[str, Any], *, measured: bool = True) -> dict[str, Any]:
    """`result` (ok, figures, config …) behind what identifies it. `arguments`: of the `rdmakit` command."""
    return {
        "what": f"rdmakit {what}",
        "measured": measured,
        "device": result.get("device"),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": " ".join(["python -m rdmakit", what, *arguments]),
        **{name: value for name, value in result.items() if name not in ("device", "lines")},
    }


def keep_of_script(
    script: str, arguments: Sequence[str], result: dict[str, Any], out: Path, *, measured: bool = True
) -> dict[str, Any]:
    """The record of `python SCRIPT ARGUMENTS`, a file of benchmarks/, as it was written to `out`."""
    kept = record(script, arguments, result, measured=measured)
    kept["what"], kept["command"] = script, " ".join([f"python {script}", *arguments])
    out.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return kept


def add_output(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has for its result."""
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON record there, too")


def finish(
    args: argparse.Namespace, what: str, options: Sequence[str], result: dict[str, Any], table: Callable[[], Any]
) -> int:
    """Print the record or `table()`'s lines, write `--out`; the exit status. BadArgument for a file that cannot be."""
    kept = record(what, options, result)
    if args.out is not None:
        try:
            args.out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadArgument("the record cannot be written", value=str(args.out), rule=str(error.strerror),
                              remedy="name a file in a folder that exists") from None  # fmt: skip
    if args.json:
        print(json.dumps(kept))
    else:
        for line in table():
            print(line)
    return 0 if result["ok"] else 1
