"""`rdmakit bench post`: work requests from Python, ours by the array against pyverbs's and the `ibverbs` wheel's.

Leans on emu.uverbs and verbs. All run one after the other, in processes of their own, on libmlx5 over the emulated HCA,
or on devices of this machine (soft-RoCE).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from rdmakit.cli.bench_record import add_output, finish
from rdmakit.device import device_strings
from rdmakit.errors import BadArgument, DeviceFault

__all__ = ["add_parser", "measure"]

_PYTHONS = (sys.executable, "/usr/bin/python3")  # pyverbs is built for the distribution's


@dataclass(frozen=True)
class Other:
    """Other bindings: `module` has to be importable, `script` (beside rdmakit.verbs) measures it."""

    name: str
    module: str
    script: str
    install: str


OTHERS = (
    Other("pyverbs", "pyverbs.qp", "bench_pyverbs.py", "apt-get install python3-pyverbs"),
    Other("ibverbs", "ibverbs", "bench_ibverbs.py", "pip install ibverbs"),
)


GAINS = {"post_gain": "ns_per_wr", "poll_gain": "ns_per_cqe", "read_gain": "ns_per_read"}


def _python_with(other: Other) -> tuple[str | None, str]:
    """A Python that imports it; else None, and why not."""
    why = ""
    for python in filter(os.path.exists, dict.fromkeys(_PYTHONS)):
        asked = subprocess.run([python, "-c", f"import {other.module}"], capture_output=True, text=True)
        if asked.returncode == 0:
            return python, ""
        last = (asked.stderr.strip().splitlines() or [""])[-1]
        if not last.startswith("ModuleNotFoundError"):
            why = why or f"{other.name} does not run here: {last}"
    return None, why or f"{other.name} is not installed: {other.install}"


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


def measure(repetitions: int = 300, devices: Sequence[str] = ()) -> dict[str, Any]:
    """`figures`: ns_per_wr, ns_per_cqe, ns_per_read (bench_batch says what), those with `_direct` and, of bindings
    that run here, their own and how many times less ours are; `absent`: why one does not. `devices`: two of this
    machine's that reach each other, or one; without, emulated ones. UnknownDevice for one that is not here.
    """
    from rdmakit.emu.uverbs import preloaded

    if not 1 <= repetitions <= 100_000:
        raise BadArgument("no such number of repetitions", value=repetitions, rule="1 … 100000", remedy="300, say")
    if len(devices) > 2:
        raise BadArgument("too many devices", value=", ".join(devices), rule="two ends", remedy="--devices A,B")
    if devices:
        from rdmakit.verbs._verbs import Context

        for name in devices:
            Context(name).close()
    with nullcontext(dict(os.environ)) if devices else preloaded(2) as environment:
        ok, figures, absent = _compare(repetitions, devices or ("mlx5_0", "mlx5_1"), environment)
    config = {"batch": 64, "bytes": 64, "repetitions": repetitions, "devices": list(devices), "absent": absent}
    return {"ok": ok, "figures": figures, "config": config,
            "device": ", ".join(devices) or "emulated ConnectX under libmlx5"}  # fmt: skip


def _compare(
    repetitions: int, devices: Sequence[str], environment: dict[str, str]
) -> tuple[bool, dict[str, float], dict[str, str]]:
    folder = Path(str(find_spec("rdmakit.verbs").origin)).parent  # type: ignore[union-attr]
    root, given = str(Path(__file__).resolve().parents[2]), [str(repetitions), ",".join(devices)]
    figures = _run([sys.executable, "-m", "rdmakit.verbs.bench_batch", *given], {**environment, "PYTHONPATH": root})
    ok, absent = bool(figures.pop("ok")), {}
    ways = [way for way in ("", "_direct") if f"ns_per_wr{way}" in figures]
    for other in OTHERS:
        python, why = _python_with(other)
        if python is None:
            absent[other.name] = why
            continue
        theirs = _run([python, str(folder / other.script), *given], environment)
        ok = bool(theirs.pop("ok")) and ok
        figures.update(theirs)
        # pyverbs's gains have had no suffix since the first record.
        suffix = "" if other.name == "pyverbs" else f"_{other.name}"
        for way, (gain, cost) in product(ways, GAINS.items()):
            figures[f"{gain}{way}{suffix}"] = figures[f"{cost}_{other.name}"] / figures[f"{cost}{way}"]
    return ok, figures, absent


def _table(result: dict[str, Any]) -> list[str]:
    figures, absent = result["figures"], result["config"]["absent"]
    direct = "ns_per_wr_direct" in figures

    def row(name: str, keys: Iterable[str], suffix: str = "") -> str:
        return f"  {name:26s}" + "".join(f"{figures[key + suffix]:12.1f}" for key in keys)

    lines = [
        f"64 WRITEs of 64 bytes, built and posted from Python on {result['device']}; measured, medians; ns",
        f"  {'':26s}{'post a WR':>12s}{'poll a CQE':>12s}{'and read it':>12s}",
        row("arrays, ibv_post_send", GAINS.values()),
        *([row("arrays, own rings", GAINS.values(), "_direct")] if direct else []),
    ]
    for other in OTHERS:
        if other.name in absent:
            lines.append(f"  {absent[other.name]}")
            continue
        suffix = "" if other.name == "pyverbs" else f"_{other.name}"
        lines += [
            row(other.name, GAINS.values(), f"_{other.name}"),
            row("  times ibv_post_send's", GAINS, suffix),
            *([row("  times own rings'", GAINS, f"_direct{suffix}")] if direct else []),
        ]
    right = "every byte and every completion was right"
    return [*lines, right if result["ok"] else "WRONG: bytes or completions differ"]


def main(args: argparse.Namespace) -> int:
    """Entry of `bench post`."""
    result = measure(args.repetitions, device_strings(args.devices))
    options = [f"--repetitions={args.repetitions}", *([f"--devices={args.devices}"] if args.devices else [])]
    return finish(args, "bench post", options, result, lambda: _table(result))


def add_parser(which: Any) -> None:
    """Register `rdmakit bench post`."""
    parser = which.add_parser("post", help="posting and polling from Python, against pyverbs and ibverbs")
    parser.add_argument("--repetitions", type=int, default=300, help="batches of 64 (default 300)")
    parser.add_argument("--devices", default="", metavar="A,B", help="of this machine (default: emulated ones)")
    add_output(parser)
    parser.set_defaults(func=main)
