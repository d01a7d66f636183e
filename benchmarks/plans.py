"""How even plans are: the tables of docs/model.md, "The plan", remade.

    python benchmarks/plans.py --out benchmarks/results/DATE-model-plans.json

For each preset, EP size and number of channels: the busiest link between leaves and spines over the mean of all, with
one source port for all, with hashes of QP numbers (median of five draws), planned with no bytes known and with the
bytes known; what no plan can be below, whatever it knows; and a NIC's busiest port over its idlest. Normal dispatch of
1024 tokens a rank; up to EP64 the routing is the recorded one, which has 64 experts, beyond it the published test's.
Bytes are counted from the routing, nothing runs. `--splits` adds what no split of a NIC's flows over ports can do that
is made before the routing is known. Takes about two minutes of one core, `--ranks 256 --channels 10` a minute more;
`--presets roce --ranks 32` is a quick look.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, nothing need be installed

from rdmakit.cli.bench_record import keep_of_script
from rdmakit.cli.progress import Progress
from rdmakit.model import Preset, load
from rdmakit.model.plan import Plan, make_plan
from rdmakit.model.workload import sized_for

PRESETS = ("roce", "h800-cx7-roce-affinity", "h800-cx7-roce-unbonded", "h800-cx7-roce-4plane")
RANKS, CHANNELS = (32, 64, 128), (4, 10, 12, 16)
TOKENS, DRAWS, RECORDED = 1024, 5, 64
PLACES = 8  # on the recording, for --splits
MOST = 1.15  # of a NIC's busiest port over its idlest: the goal under the recorded routing
COLUMNS = {
    "one_source_port": "one source port for all", "hashes": "hashes", "planned": "planned, no bytes known",
    "known": "planned, bytes known", "least": "no plan below", "ports_planned": "ports, no bytes known",
    "ports_known": "ports, bytes known", "ports_counted": "ports, equal flows",
}  # fmt: skip


def traffic_of(preset: Preset, channels: int, seed: int = 0) -> Any:
    routing = "recorded" if preset.ranks <= RECORDED else "published"
    work = sized_for(preset, "normal", "dispatch", routing=routing, channels=channels, tokens=TOKENS, seed=seed)
    return work.traffic()


def least(plan: Plan) -> float:
    """No plan's busiest link is below that: what hosts that share leaves send or get, shared by all their links."""
    both = plan.spine_bytes.sum(axis=2).reshape(2, -1, plan.preset.count("ports")).sum(axis=2)
    return float(both.max() / both.mean()) if both.any() else 1.0


def row(preset: Preset, channels: int) -> dict[str, Any]:
    traffic = traffic_of(preset, channels)
    counted = make_plan(preset, channels=channels)
    planned, known = counted.carrying(traffic), make_plan(preset, channels=channels, traffic=traffic)
    options: dict[str, Any] = {"channels": channels, "traffic": traffic}
    chance = [make_plan(preset, **options, policy="hash", seed=s).spine_max_over_mean for s in range(DRAWS)]
    return {
        "preset": preset.name,
        "ranks": preset.ranks,
        "channels": channels,
        "one_source_port": make_plan(preset, **options, policy="fixed").spine_max_over_mean,
        "hashes": float(np.median(chance)),
        "planned": planned.spine_max_over_mean,
        "known": known.spine_max_over_mean,
        "least": least(planned),
        "ports_planned": planned.port_max_over_min,
        "ports_known": known.port_max_over_min,
        "ports_counted": counted.port_max_over_min,
    }


def splits(things: tuple[int, ...], each: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All ways to split things into groups of `each`, the order of groups left out.

    >>> len(list(splits((0, 1, 2, 3), 2)))
    3
    """
    if not things:
        yield ()
        return
    for rest in itertools.combinations(things[1:], each - 1):
        group = (things[0], *rest)
        for others in splits(tuple(t for t in things if t not in group), each):
            yield group, *others


def share_above(preset: Preset, channels: int) -> dict[str, float]:
    """Every split of a NIC's flows into as many for each port, used at every NIC and `PLACES` places on the recording:
    how many NICs it leaves above the goal. The planner's rule is one of them; `known`: the worst NIC if each had the
    split that suits its bytes best.
    """
    ports, local = preset.count("ports"), preset.count("gpus_per_host")
    flows = []
    for seed in range(PLACES):
        traffic = traffic_of(preset, channels, seed)
        for rank in range(preset.ranks):
            peers = [p for p in range(rank % local, preset.ranks, local) if p != rank]
            flows.append(traffic[rank, peers].ravel())
    sizes = np.array(flows, np.float32)
    each = sizes.shape[1] // ports
    groups = {g: sizes[:, list(g)].sum(axis=1) for g in itertools.combinations(range(sizes.shape[1]), each)}
    above, best = [], np.full(len(sizes), np.inf, np.float32)
    for split in splits(tuple(range(sizes.shape[1])), each):
        loads = np.stack([groups[g] for g in split])
        ratio = loads.max(axis=0) / loads.min(axis=0)
        above.append(float((ratio > MOST).mean()))
        best = np.minimum(best, ratio)
    rule = np.stack([sizes[:, port::ports].sum(axis=1) for port in range(ports)])
    ratio = rule.max(axis=0) / rule.min(axis=0)
    found = {"least": min(above), "median": float(np.median(above)), "rule": float((ratio > MOST).mean())}
    return {"splits": len(above), "known": float(best.max()), **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| preset | EP | channels | " + " | ".join(COLUMNS.values()) + " |", "|---" * (3 + len(COLUMNS)) + "|"]
    for r in rows:
        figures = " | ".join(f"{r[name]:.2f}" for name in COLUMNS)
        lines.append(f"| `{r['preset']}` | {r['ranks']} | {r['channels']} | {figures} |")
    return "\n".join(lines)


def figures_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst of all rows."""
    return {
        "spine_max_over_mean": max(r["planned"] for r in rows),
        "spine_max_over_mean_known": max(r["known"] for r in rows),
        "port_max_over_min_known": max(r["ports_known"] for r in rows),
    }


def main(arguments: list[str]) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--presets", nargs="+", default=PRESETS)
    p.add_argument("--ranks", type=int, nargs="+", default=RANKS, help="EP sizes")
    p.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    p.add_argument("--splits", action="store_true", help="four planes, EP32, 4 channels: all splits of 12 flows")
    p.add_argument("--out", type=Path, metavar="FILE.json")
    args = p.parse_args(arguments)
    cases = list(itertools.product(args.presets, args.ranks, args.channels))
    rows = []
    with Progress("plans", total=len(cases)) as progress:
        for name, ranks, channels in cases:
            rows.append(row(load(name).for_ranks(ranks), channels))
            progress.step(f"{name} EP{ranks}, {channels} channels")
    print(table(rows))
    figures = figures_of(rows)
    if args.splits:
        figures |= {f"splits_{k}": v for k, v in share_above(load(PRESETS[-1]).for_ranks(32), 4).items()}
        print({k: v for k, v in figures.items() if k.startswith("splits")})
    if args.out:
        result = {"ok": True, "figures": figures, "config": {"tokens": TOKENS, "draws": DRAWS}, "rows": rows}
        keep_of_script("benchmarks/plans.py", arguments, result, args.out, measured=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
