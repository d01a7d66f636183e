"""What each prediction rests on most: writes what `rdmakit validate` shows beside errors.

    python benchmarks/sensitivity.py [--most-ranks 64]

For every published point up to EP16 and every parameter that is not published (or those of `--names`), a run with the
parameter a quarter worse; for larger ones only those that matter there, and the network's. Takes about 10 minutes of
one core up to EP32.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit.cli.bench_record import commit
from rdmakit.cli.progress import Progress
from rdmakit.model import load
from rdmakit.model.published import POINTS, Point
from rdmakit.model.sensitivity import FILE, fingerprint, sensitivities

LEAST = 0.002  # changes smaller than this are left out of the file
SMALL = 16  # ranks up to which everything is tried
MOST = 6  # of the parameters that matter most to a kernel at those sizes
NETWORK = ["spines", "uplink_rate", "pfc_threshold", "hop_latency"]


def telling(found: dict[str, dict[str, float]], point: Point) -> list[str]:
    """Parameters that matter most to this kernel and operation at small sizes; in the first step the proxy's, too."""
    most: dict[str, float] = {}
    for name, each in found.items():
        if name.startswith(f"{point.kernel}_{point.op}_ep"):
            for parameter, change in each.items():
                most[parameter] = max(most.get(parameter, 0.0), abs(change))
    names = sorted((n for n in most if n not in NETWORK), key=lambda n: -most[n])[:MOST]
    return names + [n for n in most if n.startswith("proxy_") and point.step < 3 and n not in names]


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--most-ranks", type=int, default=32)
    p.add_argument("--names", nargs="+", metavar="PARAMETER", help="try these only, at small sizes")
    p.add_argument("--jobs", type=int)
    p.add_argument("--out", type=Path, default=FILE)
    args = p.parse_args(arguments)
    preset = load("ib")
    points = [point for point in POINTS if point.ranks <= args.most_ranks]
    small = [point for point in points if point.ranks <= SMALL]
    with Progress("sensitivity") as progress:
        found = sensitivities(preset, small, args.names, jobs=args.jobs, done=progress.step)
        for point in points:
            if point not in small:
                names = telling(found, point) + NETWORK
                found |= sensitivities(preset, [point], names, jobs=args.jobs, done=progress.step)
    rows = {
        name: {p: round(v, 4) for p, v in sorted(each.items(), key=lambda item: -abs(item[1])) if abs(v) >= LEAST}
        for name, each in found.items()
    }
    record = {
        "what": "relative change of each prediction where a parameter is a quarter worse (modelled)",
        "command": " ".join(["python benchmarks/sensitivity.py", *arguments]),
        "commit": commit(),
        "preset": fingerprint(preset),
        "points": rows,
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, each in rows.items():
        print(name, ", ".join(f"{p} {v:+.1%}" for p, v in list(each.items())[:4]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
