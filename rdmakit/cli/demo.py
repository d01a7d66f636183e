"""`rdmakit demo`: a whole MoE layer over an emulated cluster, checked against NumPy, with what happened on the way.

Eight ranks on four hosts; GPU-initiated device code, run by the CPU runner in virtual time, drives each GPU's dual-port
NIC. Input is recorded: hidden states and expert choices of a small MoE language model on held-out text.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from rdmakit.cli.progress import Progress

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Register `rdmakit demo`."""
    p = subparsers.add_parser(
        "demo", help="MoE dispatch → experts → combine over emulated NICs, checked against NumPy"
    )
    p.add_argument("--hosts", type=int, default=4)
    p.add_argument("--gpus-per-host", type=int, default=2)
    p.add_argument("--tokens", type=int, default=256, help="tokens of each rank (default 256)")
    p.add_argument("--hidden", type=int, default=2048, help="channels of a token (default 2048)")
    p.add_argument("--channels", type=int, default=10, help="QPs to each rail peer (default 10)")
    p.add_argument(
        "--lag", choices=("none", "hash", "affinity"), default="none", help="how the two ports are bonded"
    )
    p.add_argument("--policy", choices=("timed", "fast"), default="timed")
    p.add_argument("--routing", choices=("recorded", "uniform", "zipf", "group-limited"), default="recorded")
    p.add_argument(
        "--faults", metavar="PLAN", help="what goes wrong, e.g. loss=0.001,delay=5us (default: RDMAKIT_FAULTS)"
    )
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--json", action="store_true", help="print one JSON object only")
    p.set_defaults(func=main)


def _inputs(args: argparse.Namespace, ranks: int) -> tuple[list[Any], list[Any], list[Any], int, str]:
    from rdmakit.ep import recording, routing

    if args.routing == "recorded":
        tape = recording.shipped()
        tiles = [tape.tile(args.tokens, args.hidden, r, args.seed) for r in range(ranks)]
        how = f"recorded: {tape!r}"
        return (
            [t.x for t in tiles],
            [t.topk_idx for t in tiles],
            [t.topk_weights for t in tiles],
            tape.num_experts,
            how,
        )
    import ml_dtypes

    make = {"uniform": routing.uniform, "zipf": routing.zipf, "group-limited": routing.group_limited}[
        args.routing
    ]
    chosen = [make(args.tokens, num_experts=256, top_k=8, seed=args.seed + 1000 * r) for r in range(ranks)]
    rng = np.random.default_rng(args.seed)
    x = [
        rng.standard_normal((args.tokens, args.hidden), np.float32).astype(ml_dtypes.bfloat16)
        for _ in range(ranks)
    ]
    return x, [c.topk_idx for c in chosen], [c.topk_weights for c in chosen], 256, f"synthetic: {chosen[0]!r}"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the demo; returns `ok`, `figures`, `config`, and the tables that the text form prints."""
    import rdmakit
    from rdmakit.ep import verify
    from rdmakit.ep.experts import Experts
    from rdmakit.ep.normal import NormalBuffer
    from rdmakit.ep.routing import skew

    began = time.monotonic()
    with Progress("demo", total=6, quiet=args.json) as progress:
        world = rdmakit.World(  # first: it refuses sizes and seeds that nothing can be drawn for
            hosts=args.hosts,
            gpus_per_host=args.gpus_per_host,
            ports=2,
            lag=args.lag,
            policy=args.policy,
            seed=args.seed,
            faults=args.faults,
        )
        ranks = args.hosts * args.gpus_per_host
        x, topk_idx, topk_weights, experts, how = _inputs(args, ranks)
        uneven = skew(np.concatenate(topk_idx), experts, ranks)
        progress.step("inputs")
        buffer = NormalBuffer(
            world,
            hidden=args.hidden,
            topk=topk_idx[0].shape[1],
            experts=experts,
            max_tokens=max(args.tokens, 1),
            channels=args.channels,
        )
        progress.step("world, heaps and queue pairs")
        t0 = world.now_ns
        got = buffer.dispatch(x, topk_idx, topk_weights)
        t1 = world.now_ns
        progress.step("dispatch")
        checks = list(verify.check_dispatched(got, x, topk_idx, topk_weights, experts))
        progress.step("dispatch checked")
        mlp = Experts(experts, hidden=args.hidden, seed=args.seed)
        y = []
        for r, mine in enumerate(got):
            rows = buffer.combine_rows(r, mine.handle)
            rows[:] = mlp.mixture(
                mine.recv_x, mine.recv_topk_idx, mine.recv_topk_weights, r * (experts // ranks)
            )
            y.append(rows)
        t2 = world.now_ns
        out, weights = buffer.combine(y, [g.handle for g in got], [g.recv_topk_weights for g in got])
        t3 = world.now_ns
        progress.step("experts and combine")
        checks += verify.check_combined(
            out, y, topk_idx, experts, args.gpus_per_host, weights, [g.recv_topk_weights for g in got]
        )
        checks += _check_end_to_end(out, x, topk_idx, topk_weights, mlp)
        checks += _check_conservation(buffer)
        progress.step("combine checked")
    ports = buffer.mesh.port_bytes()
    balance = _balance(ports)
    failed = [c for c in checks if not c.ok]
    counters = [side.context.counters for side in buffer.mesh.sides]
    traffic = {name: sum(c[name] for c in counters) for name in ("wqes", "doorbells", "cqes", "atomics")}
    traffic["signals"] = traffic.pop("atomics")  # every atomic of these kernels is an in-QP signal
    figures = {
        "checks": len(checks),
        "checks_failed": len(failed),
        "seconds": round(time.monotonic() - began, 3),
        "port_bytes_max_over_min": round(balance, 4),
        "routing_skew": round(uneven["rank_max_over_mean"], 4),
        "expert_skew": round(uneven["expert_max_over_mean"], 4),
        **traffic,
        **{f"faults_{name}": n for name, n in world.fault_counts.items()},
        "dispatch_us": (t1 - t0) / 1e3,
        "combine_us": (t3 - t2) / 1e3,
    }
    config = {k: v for k, v in vars(args).items() if k not in ("func", "command", "json")} | {
        "routing_how": how,
        "faults": str(world.faults),
    }
    return {
        "ok": not failed,
        "figures": figures,
        "config": config,
        "checks": checks,
        "ports": ports,
        "world": world,
    }


def _check_end_to_end(
    out: list[Any], x: list[Any], idx: list[Any], weights: list[Any], mlp: Any
) -> list[Any]:
    """The layer without any communication, in float32: what a single machine would compute."""
    from rdmakit.ep.reference import calc_diff
    from rdmakit.ep.verify import Check

    found = []
    for r, mine in enumerate(out):
        want = np.zeros(mine.shape, np.float32)
        for expert in np.unique(idx[r][idx[r] >= 0]):
            token, k = np.nonzero(idx[r] == expert)
            want[token] += weights[r][token, k][:, None] * mlp.apply(int(expert), x[r][token])
        diff = calc_diff(mine.astype(np.float32), want)
        found.append(
            Check(
                "the layer end to end, against one machine",
                r,
                diff < 1e-5,
                f"calc_diff {diff:.1e}, rule < 1e-5",
            )
        )
    return found


def _check_conservation(buffer: Any) -> list[Any]:
    """What ports sent is what ports received, unless packets were lost, and no WQE completed in error."""
    from rdmakit.ep.verify import Check

    counters = [p.counters for side in buffer.mesh.sides for p in side.context.ports]
    sent, received = sum(c["xmit_bytes"] for c in counters), sum(c["rcv_bytes"] for c in counters)
    errors = sum(side.context.counters["errors"] for side in buffer.mesh.sides)
    faulty = bool(buffer.mesh.world.fault_counts)
    equal = sent >= received if faulty else sent == received
    what = "bytes sent ≥ bytes received, packets having got lost" if faulty else "bytes sent = bytes received"
    return [
        Check(f"{what}, over all ports", -1, equal, f"{sent} and {received}"),
        Check("no completion in error", -1, errors == 0, f"{errors}"),
    ]


def _balance(ports: dict[tuple[int, int], int]) -> float:
    """Busiest over idlest port, of the NIC where that is worst; an idle port counts as one byte, as JSON has no inf."""
    worst = 1.0
    for rank in {r for r, _ in ports}:
        mine = [max(bytes_, 1) for (r, _), bytes_ in ports.items() if r == rank]
        worst = max(worst, max(mine) / min(mine))
    return worst


def _show(result: dict[str, Any]) -> None:
    figures, config = result["figures"], result["config"]
    print(
        f"{config['hosts']} hosts x {config['gpus_per_host']} GPUs, a dual-port NIC each (lag {config['lag']}); "
        f"{config['tokens']} tokens a rank x {config['hidden']} BF16; {config['routing_how']}"
    )
    print(
        f"routing skew: busiest rank {figures['routing_skew']:.2f}, busiest expert "
        f"{figures['expert_skew']:.2f} times the mean\n"
    )
    print("bytes sent, by port (measured by the emulated NIC)")
    most = max(result["ports"].values()) or 1
    for (rank, port), sent in sorted(result["ports"].items()):
        print(f"  rank {rank} port {port} {sent / 1e6:8.2f} MB {'#' * round(40 * sent / most)}")
    idle = "" if min(result["ports"].values()) else " (a port that sent nothing counts as one byte)"
    print(f"  busiest / idlest port of a NIC, at worst: {figures['port_bytes_max_over_min']:.3f}{idle}\n")
    print(
        f"WQEs {figures['wqes']}, doorbells {figures['doorbells']}, CQEs {figures['cqes']}, "
        f"signals {figures['signals']}"
    )
    if config["policy"] == "timed":
        print(
            f"virtual time (modelled, parameters in rdmakit/emu/hca/timing.hpp and cuda/rdmakit/cost.cuh): "
            f"dispatch {figures['dispatch_us']:.1f} us, combine {figures['combine_us']:.1f} us"
        )
    if config["faults"]:
        happened = {k.removeprefix("faults_"): n for k, n in figures.items() if k.startswith("faults_")}
        print(f"faults {config['faults']}: " + (", ".join(f"{n} {k}" for k, n in happened.items()) or "none happened"))
    print()
    by_name: dict[str, list[Any]] = {}
    for check in result["checks"]:
        by_name.setdefault(check.what, []).append(check)
    for what, group in by_name.items():
        bad = [c for c in group if not c.ok]
        example = bad[0] if bad else group[0]
        print(
            f"  {'FAIL' if bad else 'ok  '} {what}: {len(group) - len(bad)} of {len(group)} ({example.detail})"
        )
    print(f"\n{figures['checks']} checks, {figures['checks_failed']} failed, {figures['seconds']:.1f} s")


def main(args: argparse.Namespace) -> int:
    """Entry of the subcommand: prints, returns the exit status."""
    result = run(args)
    if args.json:
        print(json.dumps({k: result[k] for k in ("ok", "figures", "config")}))
    else:
        _show(result)
    return 0 if result["ok"] else 1
