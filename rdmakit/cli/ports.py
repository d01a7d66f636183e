"""`rdmakit ports`: what each RDMA port of this host sends, receives and drops, as rates, again and again.

Leans on show for the drawing, which the model's plans share. Sources: sysfs `class/infiniband/*/ports/*/counters`
(4-byte words for port_*_data, Documentation/ABI/stable/sysfs-class-infiniband) and `hw_counters`; pause frames of
RoCE ports by `ethtool -S`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["COUNTERS", "Port", "add_parser", "rates", "read_ports", "statistics_of"]

COUNTERS = {
    "xmit_bytes": ("counters/port_xmit_data", 4),
    "rcv_bytes": ("counters/port_rcv_data", 4),
    "xmit_discards": ("counters/port_xmit_discards", 1),
    "xmit_wait": ("counters/port_xmit_wait", 1),
    "cnp_sent": ("hw_counters/np_cnp_sent", 1),
    "cnp_handled": ("hw_counters/rp_cnp_handled", 1),
    "ecn_marked": ("hw_counters/np_ecn_marked_roce_packets", 1),
    "out_of_sequence": ("hw_counters/out_of_sequence", 1),
    "packet_seq_err": ("hw_counters/packet_seq_err", 1),
    "timeouts": ("hw_counters/local_ack_timeout_err", 1),
}
_PAUSE = re.compile(r"^\s*((?:rx|tx)_prio\d_pause|(?:rx|tx)_(?:discards|bytes)_phy):\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Port:
    """One port: its counters by the names of COUNTERS, those that the driver has. `netdev`: of a RoCE port."""

    device: str
    number: int
    netdev: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.device} port {self.number}"


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit ports`."""
    p = subparsers.add_parser("ports", help="bytes, CNPs, pauses and discards of this host's RDMA ports, refreshed")
    p.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks (default 1)")
    p.add_argument("--count", type=int, default=0, metavar="N", help="looks; 0 goes on until interrupted (default)")
    p.add_argument("--root", default="/", help="where /sys is looked for (a captured tree)")
    p.add_argument("--json", action="store_true", help="print one JSON object only, after one interval")
    p.set_defaults(func=main)


def read_ports(root: str | Path = "/") -> list[Port]:
    """Every port of every RDMA device below `root`/sys, by name; none where there is no such folder."""
    found = []
    for folder in sorted(Path(root, "sys/class/infiniband").glob("*/ports/*")):
        if not folder.name.isdigit():
            continue
        counters = {}
        for name, (where, unit) in COUNTERS.items():
            try:
                counters[name] = int((folder / where).read_text()) * unit
            except (OSError, ValueError):  # the driver has none of that name, or refuses it inside a container
                continue
        netdev = _netdev(folder)
        if netdev and Path(root) == Path("/"):
            said = statistics_of(netdev)
            counters |= {name: value for name, value in said.items() if not name.endswith("_bytes_phy")}
        found.append(Port(folder.parent.parent.name, int(folder.name), netdev, counters))
    return found


def _netdev(folder: Path) -> str:
    try:
        return (folder / "gid_attrs/ndevs/0").read_text().strip()
    except OSError:
        return ""


def statistics_of(netdev: str) -> dict[str, int]:
    """What only a network device's driver counts: `rx_pfc`, `tx_pfc` (pause frames of all priorities), `rx_discards`,
    `tx_discards`, and `rx_bytes_phy`, `tx_bytes_phy`, which hold RDMA's bytes, too.
    """
    if shutil.which("ethtool") is None:
        return {}
    try:
        done = subprocess.run(["ethtool", "-S", netdev], capture_output=True, text=True, timeout=2)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    totals: dict[str, int] = {}
    for name, value in _PAUSE.findall(done.stdout):
        key = f"{name[:2]}_pfc" if "pause" in name else name if "bytes" in name else name.removesuffix("_phy")
        totals[key] = totals.get(key, 0) + int(value)
    return totals


def rates(before: list[Port], after: list[Port], seconds: float) -> dict[str, dict[str, float]]:
    """Each counter's growth a second, by port; what was reset meanwhile counts from 0. Ports of both readings only."""
    then = {p.name: p.counters for p in before}
    found: dict[str, dict[str, float]] = {}
    for port in after:
        if port.name not in then:
            continue
        old = then[port.name]
        grown = {
            name: value - old[name] if value >= old[name] else value
            for name, value in port.counters.items()
            if name in old
        }
        found[port.name] = {name: value / max(seconds, 1e-9) for name, value in grown.items()}
    return found


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand."""
    from rdmakit.errors import BadArgument, UnknownDevice

    if not 0 < args.every <= 3600 or args.count < 0:
        raise BadArgument(
            "no interval",
            value=(args.every, args.count),
            rule="0 < seconds <= 3600, count >= 0",
            remedy="--every 1 --count 10",
        )
    before, began = read_ports(args.root), time.monotonic()
    if not before:
        raise UnknownDevice(
            "this host shows no RDMA ports",
            value=str(Path(args.root, "sys/class/infiniband")),
            rule="a device of a loaded RDMA driver",
            remedy="rdmakit info says what is missing; --root reads a captured tree",
        )
    looks = 0
    while True:
        time.sleep(args.every)
        after, now = read_ports(args.root), time.monotonic()
        grown = rates(before, after, now - began)
        looks += 1
        if args.json:
            figures = {
                f"{port.replace(' ', '_')}_{name}_per_s": v
                for port, each in grown.items()
                for name, v in each.items()
            }
            print(json.dumps({"ok": True, "figures": figures, "config": {"every": args.every, "measured": True}}))
            return 0
        print(("\033[H\033[J" if sys.stdout.isatty() else "") + _picture(grown), flush=True)
        if looks == args.count:
            return 0
        before, began = after, now


def _picture(grown: dict[str, dict[str, float]]) -> str:
    from rdmakit import show
    from rdmakit.show.units import quantity

    bars = show.port_bars(
        [(name, each.get("xmit_bytes", 0.0), name.split(" ")[-1]) for name, each in grown.items()],
        "B/s",
        title="sent (measured)",
    )
    names = list(dict.fromkeys(n for each in grown.values() for n in each if n != "xmit_bytes"))
    rows = [
        [port, *(quantity(each[n], "B/s" if n.endswith("bytes") else "/s") if n in each else "-" for n in names)]
        for port, each in grown.items()
    ]
    return f"{bars}\n\n{show.data_table(rows, ['port', *names], title='a second')}\n"
