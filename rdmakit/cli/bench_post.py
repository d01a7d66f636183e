"""`rdmakit bench post`: work requests from Python, ours by the array against pyverbs's one at a time, on emulated NICs.

Leans on emu.uverbs and verbs. Both run libmlx5 on the emulated HCA, one after the other, in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rdmakit.cli.bench_record import add_output, finish
from rdmakit.errors import BadArgument, DeviceFault

__all__ = ["add_parser", "measure"]

_PYTHONS = (sys.executable, "/usr/bin/python3")  # pyverbs is built for the distribution's
_PYVERBS = "apt-get install python3-pyverbs"


def _python_with_pyverbs() -> str | None:
    for python in _PYTHONS:
        if Path(python).exists():
            asked = subprocess.run([python, "-c", "import pyverbs.qp"], capture_output=True)
            if asked.returncode == 0:
                return python
    return None


def _run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise DeviceFault(
            "the measurement failed",
            value=" ".join(command[-3:]),
            rule=done.stderr.strip()[-800:],
            remedy="rdmakit connectx -- ibv_devinfo shows whether the emulated NICs work here",
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(repetitions: int = 300) -> dict[str, Any]:
    """`figures`: ns_per_wr, ns_per_cqe and, where pyverbs is installed, its own and how many times less ours are."""
    from rdmakit.emu.uverbs import preloaded

    if not 1 <= repetitions <= 100_000:
        raise BadArgument("no such number of repetitions", value=repetitions, rule="1 … 100000", remedy="300, say")
    with preloaded(2) as environment:
        root = str(Path(__file__).resolve().parents[2])
        ours = _run([sys.executable, "-m", "rdmakit.verbs.bench_batch", str(repetitions)],
                    {**environment, "PYTHONPATH": root})  # fmt: skip
        figures = {name: value for name, value in ours.items() if name != "ok"}
        ok, python = bool(ours["ok"]), _python_with_pyverbs()
        spec = find_spec("rdmakit.verbs")
        if python is not None and spec is not None and spec.origin is not None:
            script = str(Path(spec.origin).with_name("bench_pyverbs.py"))
            theirs = _run([python, script, str(repetitions), "mlx5_0,mlx5_1"], environment)
            ok = ok and bool(theirs.pop("ok"))
            figures.update(theirs)
            figures["post_gain"] = figures["ns_per_wr_pyverbs"] / figures["ns_per_wr"]
            figures["poll_gain"] = figures["ns_per_cqe_pyverbs"] / figures["ns_per_cqe"]
    return {"ok": ok, "figures": figures, "config": {"batch": 64, "bytes": 64, "repetitions": repetitions},
            "device": "emulated ConnectX under libmlx5"}  # fmt: skip


def _table(result: dict[str, Any]) -> list[str]:
    figures = result["figures"]

    def row(name: str, post: str, poll: str) -> str:
        return f"  {name:14s}{figures[post]:8.1f}{'':22s}{figures[poll]:8.1f}"

    lines = [
        "64 WRITEs of 64 bytes, built and posted from Python; libmlx5 on an emulated ConnectX; measured, medians",
        f"  {'':14s}ns a work request{'':13s}ns a completion",
        row("by the array", "ns_per_wr", "ns_per_cqe"),
    ]
    if "post_gain" in figures:
        lines += [
            row("pyverbs", "ns_per_wr_pyverbs", "ns_per_cqe_pyverbs"),
            row("times less", "post_gain", "poll_gain"),
        ]
    else:
        lines.append(f"  pyverbs is not installed: {_PYVERBS}")
    right = "every byte and every completion was right"
    return [*lines, right if result["ok"] else "WRONG: bytes or completions differ"]


def main(args: argparse.Namespace) -> int:
    """Entry of `bench post`."""
    result = measure(args.repetitions)
    return finish(args, "bench post", [f"--repetitions={args.repetitions}"], result, lambda: _table(result))


def add_parser(which: Any) -> None:
    """Register `rdmakit bench post`."""
    parser = which.add_parser("post", help="posting and polling from Python, against pyverbs")
    parser.add_argument("--repetitions", type=int, default=300, help="batches of 64 (default 300)")
    add_output(parser)
    parser.set_defaults(func=main)
