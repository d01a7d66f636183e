"""What the subcommands about the model share: how a cluster and what it does are named on the command line.

Leans on model.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

__all__ = ["add_cluster", "add_work", "cluster_of", "with_unit", "work_of"]


def add_cluster(p: argparse.ArgumentParser, preset: str = "roce") -> None:
    """--preset, --ranks, --set."""
    p.add_argument("--preset", default=preset, help=f"shipped name or path of a .preset file (default {preset})")
    p.add_argument(
        "--ranks", type=int, metavar="N", help="EP size: as many hosts as N GPUs need (default: the preset's)"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change a parameter, with its unit: port_rate=200Gb/s; may be given again",
    )


def add_work(p: argparse.ArgumentParser, *, channels: int = 10, tokens: int | None = None) -> None:
    """--kernel, --op, --tokens, --routing, --channels, --chunk, --seed."""
    p.add_argument("--kernel", choices=("normal", "ll"), default="normal", help="normal or low latency")
    p.add_argument("--op", choices=("dispatch", "combine"), default="dispatch")
    shown = "4096, low latency 128" if tokens is None else str(tokens)
    p.add_argument("--tokens", type=int, default=tokens, help=f"of each rank (default {shown})")
    p.add_argument(
        "--routing", choices=("published", "uniform", "recorded", "zipf", "group-limited"), default="published"
    )
    p.add_argument("--channels", type=int, default=channels, help=f"QPs to each peer (default {channels})")
    p.add_argument(
        "--chunk", type=int, metavar="ROWS", help="rows of a put, normal kernels (default: what suits the step)"
    )
    p.add_argument("--seed", type=int, default=1)


def _like(machine: Any) -> Any:
    """The preset of two hosts like a machine, under a name that says so."""
    from rdmakit.cli.doctor.spread import cluster_like

    found = cluster_like(machine, gpus=max(1, len(machine.topology.gpus)))
    return replace(found, name="this machine" if str(machine.root) == "/" else machine.root.resolve().name)


def cluster_of(args: argparse.Namespace, machine: Any = None) -> Any:
    """The preset that the arguments name, or one of hosts like `machine`. BadArgument, CorruptFile."""
    from rdmakit.errors import BadArgument
    from rdmakit.model import load

    changes = {}
    for change in args.set:
        name, equals, value = change.partition("=")
        if not equals or not value:
            raise BadArgument(
                "no change of a parameter",
                value=change,
                rule="--set NAME=VALUE",
                remedy="for example --set port_rate=200Gb/s",
            )
        changes[name.strip()] = with_unit(name.strip(), value)
    preset = (load(args.preset) if machine is None else _like(machine)).changed(**changes)
    return preset if args.ranks is None else preset.for_ranks(args.ranks)


def with_unit(name: str, value: str) -> str:
    """A value as a preset has it: "200Gb/s" becomes "200 Gb/s", a bare count gets its unit.

    >>> with_unit("port_rate", "200Gb/s"), with_unit("hosts", "4"), with_unit("lag", "hash")
    ('200 Gb/s', '4 count', 'hash')
    """
    from rdmakit.model.parameters import PARAMETERS
    from rdmakit.model.units import split_unit

    number, unit = split_unit(value)
    if not unit and name in PARAMETERS and PARAMETERS[name].unit == "count":
        unit = "count"
    return f"{number} {unit}".rstrip()


def work_of(args: argparse.Namespace, preset: Any) -> Any:
    """The workload that the arguments name."""
    from rdmakit.model.workload import sized_for

    options = {} if args.tokens is None else {"tokens": args.tokens}
    return sized_for(
        preset,
        args.kernel,
        args.op,
        routing=args.routing,
        channels=args.channels,
        chunk=args.chunk,
        seed=args.seed,
        **options,
    )
