"""`rdmakit bench plot FILE.json`: pictures of what a benchmark has put on record, as SVG for light and dark pages.

Leans on show. What a record holds decides what is drawn: operations beside floor and peers, copies over SMs, what
primitives cost, puts over their size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rdmakit.errors import BadArgument, CorruptFile
from rdmakit.show import Figure, group_bars, line_chart

__all__ = ["add_parser", "main_plot", "pictures"]

# DeepEP on two H100s of the same kind, µs, its copy and reduce kernels included: the better of V1 and V2
# (docs/nvlink.md).
DEEPEP = {
    "fp8_dispatch": 161.0, "bf16_dispatch": 356.0, "bf16_combine": 288.0, "fp8_dispatch_12sm": 165.0,
    "bf16_combine_12sm": 333.0, "ll_dispatch": 19.0, "ll_combine": 42.6,
}  # fmt: skip
_EP_SHAPE = {"ranks": 2, "tokens": 4096, "hidden": 7168, "topk": 8, "ll_tokens": 128}
_WAYS = {"local": "here", "push": "to the peer", "pull": "from the peer", "push_both": "both push"}


def add_parser(which: Any) -> None:
    """Register `bench plot`."""
    plot = which.add_parser("plot", help="draw what a benchmark's --out FILE holds, as SVG")
    plot.add_argument("record", type=Path, metavar="FILE.json")
    plot.add_argument("-o", "--output", type=Path, metavar="FILE.svg", help="default: beside the record")
    plot.add_argument("--json", action="store_true", help="print one JSON object only: where the pictures are")
    plot.set_defaults(func=main_plot)


def _where(record: dict[str, Any]) -> str:
    kind = "measured" if record.get("measured", True) else "modelled"
    parts = [kind, record.get("device"), record.get("date"), record.get("commit")]
    return ", ".join(str(part) for part in parts if part)


def _operations(record: dict[str, Any]) -> Figure:
    """Floor, measured, NCCL and DeepEP of each operation."""
    figures, floors, config = record["figures"], record["floors"], record["config"]
    alike = all(config.get(name) == value for name, value in _EP_SHAPE.items())
    groups, best = [], []
    for name in record["operations"]:
        if name.startswith("nccl"):
            continue
        us, floor = float(figures[f"{name}_us"]), float(floors[name]["us"])
        nccl = figures.get(f"nccl_{'ll_' if name.startswith('ll') else ''}a2a_permuted_us")
        bars: list[tuple[str, float | None]] = [("floor: wire bytes at 370 GB/s", floor), ("rdmakit", us)]
        bars.append(("DeepEP, the better of V1 and V2", DEEPEP.get(name) if alike else None))
        bars.append(("NCCL all-to-all and both permutations (BF16)", None if name.startswith("fp8") else nccl))
        groups.append((name, bars))
        best.append(floor / us)
    size = f"{config['tokens']} tokens x {config['hidden']}, top-{config['topk']}"
    title = f"Dispatch and combine take {1 / max(best):.1f} to {1 / min(best):.1f} times their floor ({size})"
    return group_bars(groups, "µs", title=title, note=_where(record))


def _copies(record: dict[str, Any]) -> Figure:
    """GB/s over SMs, a line for each way and means."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in record["copies"]:
        lines.setdefault(f"{row['how']}, {_WAYS[row['way']]}", []).append((float(row["sms"]), float(row["gbs"])))
    fastest = max(record["copies"], key=lambda row: float(row["gbs"]))
    title = (
        f"SMs copy at most {float(fastest['gbs']):.0f} GB/s: {fastest['how']}, {_WAYS[fastest['way']]}, "
        f"{fastest['sms']} SMs"
    )
    return line_chart(lines, "SMs", "GB/s, each way, bytes counted once", title=title, log=True, note=_where(record))


def _costs(record: dict[str, Any]) -> Figure:
    """Nanoseconds of each primitive, by the place of its memory."""
    groups: dict[str, list[tuple[str, float | None]]] = {}
    for row in record["costs"]:
        name = str(row["name"])
        if name == "empty":  # the loop that has been subtracted
            continue
        for place in ("_local_stores", "_peer_stores", "_pinned_stores", "_local", "_peer", "_pinned", "_shared"):
            if name.endswith(place) and not name.startswith("flag"):
                name = name.removesuffix(place) + (" behind stores" if place.endswith("stores") else "")
                break
        groups.setdefault(name, []).append((f"{row['where']} memory", float(row["ns"])))
    dearest = max(record["costs"], key=lambda row: float(row["ns"]))
    title = f"What primitives cost: up to {float(dearest['ns']):.0f} ns ({dearest['name']})"
    return group_bars(groups.items(), "ns", title=title, note=_where(record))


def _sizes(record: dict[str, Any]) -> Figure:
    """Time of a put and its signal over its size."""
    rows = record["sizes"]
    points = {"put + signal seen": [(float(r["bytes"]), float(r["us"])) for r in rows],
              "puts in a row, each": [(float(r["bytes"]), float(r["row_us"])) for r in rows]}  # fmt: skip
    first, last = rows[0], rows[-1]
    title = f"A put of {first['bytes']} to {last['bytes']} bytes is seen after {first['us']:.1f} to {last['us']:.1f} µs"
    return line_chart(points, "bytes", "µs", title=title, log=True, note=_where(record))


_DRAWERS = {"operations": _operations, "copies": _copies, "costs": _costs, "sizes": _sizes}


def pictures(record: dict[str, Any]) -> dict[str, Figure]:
    """Everything that can be drawn of a record, by the name of what it shows; CorruptFile when a part is missing."""
    found = {}
    for name, draw in _DRAWERS.items():
        if record.get(name):
            try:
                found[name] = draw(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CorruptFile(f"the record's {name!r} cannot be drawn", value=f"{type(error).__name__}: {error}",
                                  rule="a record as `rdmakit bench … --out FILE` writes it",
                                  remedy="measure again") from None  # fmt: skip
    return found


def main_plot(args: argparse.Namespace) -> int:
    """Entry of `bench plot`."""
    try:
        record = json.loads(args.record.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadArgument("the record cannot be read", value=str(args.record), rule=str(error.strerror),
                          remedy="name a file that `rdmakit bench … --out FILE` wrote") from None  # fmt: skip
    except ValueError as error:
        raise CorruptFile("the record is no JSON", value=str(args.record), rule=str(error),
                          remedy="measure again with --out FILE") from None  # fmt: skip
    drawn = pictures(record) if isinstance(record, dict) else {}
    if not drawn:
        raise BadArgument("nothing in this record can be drawn", value=str(args.record),
                          rule=f"one of {', '.join(_DRAWERS)}",
                          remedy="bench ep, put or primitives with --out FILE")  # fmt: skip
    output = args.output or args.record.with_suffix(".svg")
    written = {}
    for name, figure in drawn.items():
        path = output if len(drawn) == 1 else output.with_name(f"{output.stem}-{name}{output.suffix}")
        try:
            figure.save(path)
        except OSError as error:
            raise BadArgument("the picture cannot be written", value=str(path), rule=str(error.strerror),
                              remedy="name a file in a folder that exists") from None  # fmt: skip
        written[name] = {"path": str(path), "title": figure.title}
        if not args.json:
            print(f"{path}: {figure.title}")
    if args.json:
        config = {"record": str(args.record)}
        print(json.dumps({"ok": True, "figures": {"pictures": len(written)}, "config": config, "pictures": written}))
    return 0
