"""`rdmakit bench hosts`: dispatch and combine between hosts over real devices, ports as planned, checked with NumPy.

Leans on connect, ep and model. Each process is one rank, and a host, or with --ranks-per-host so many are one: started
by hand, by torchrun, mpirun or srun. Kernels run on the CPU runner, so no GPU is needed, and times are of that; bytes,
ports and queue pairs are the devices' own.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from rdmakit.cli.bench_record import add_output, finish
from rdmakit.device import device_strings
from rdmakit.errors import BadArgument, RdmakitError

__all__ = ["add_parser", "add_place", "devices_of", "hosts", "place_of"]

RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK")
RANKS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE")
MOST = 1.15  # busiest over idlest port that passes
ROW_EXTRA = 256  # bytes of a row's scales, choices, weights and source


def _from_environment(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), None)


def place_of(args: argparse.Namespace) -> tuple[int, int]:
    """Which rank of how many this process is."""
    rank = _from_environment(RANK) if args.rank is None else args.rank
    ranks = _from_environment(RANKS) if args.ranks is None else args.ranks
    if rank is None or ranks is None:
        raise BadArgument("which rank of how many?", value=f"rank {rank} of {ranks}",
                          rule="--rank and --ranks, or what torchrun, mpirun and srun set",
                          remedy="rdmakit bench hosts --meet file:/tmp/meeting --rank 0 --ranks 2")  # fmt: skip
    return rank, ranks


def devices_of(args: argparse.Namespace) -> list[str]:
    """Those that were asked for, or all."""
    if args.devices:
        return device_strings(args.devices)
    from rdmakit.verbs.backend import device_names

    names, why = device_names()
    if not names:
        raise BadArgument("no RDMA device", value=why or "none", rule="libibverbs lists none",
                          remedy="rdmakit connectx -- …, or --devices emu for bench mesh")  # fmt: skip
    return sorted(names, key=lambda name: (len(name), name))


# ---- bench hosts
def hosts(args: argparse.Namespace) -> dict[str, Any]:
    """This rank's part: the result with `ok`, `figures`, `config`, and lines to print."""
    from rdmakit.connect import meet, open_paths
    from rdmakit.ep.device_hosts import doorbells_of, join_hosts, shape_of
    from rdmakit.ep.host_trial import HostTrial, Workload
    from rdmakit.ep.process_rank import ProcessLink
    from rdmakit.model.cluster import steer_by
    from rdmakit.model.execute import plan_for

    rank, ranks = place_of(args)
    work = Workload(args.tokens, args.hidden, args.experts or 2 * ranks, args.topk)
    each = args.ranks_per_host
    _check_hosts(ranks, each)
    paths = open_paths(devices_of(args))
    plan = plan_for(paths, ranks, channels=args.channels, policy=args.policy, ranks_per_host=each)
    row = 2 * work.hidden + ROW_EXTRA
    rings = args.ring_bytes * 2 * ranks * args.channels
    shape = shape_of(ranks, each, num_qps_per_rank=args.channels, rdma_bytes=rings,
                     nvl_bytes=2 * ranks * work.tokens * row, max_tokens=work.tokens)  # fmt: skip
    meeting = meet(args.meet, rank, ranks, timeout_s=args.timeout)
    link = ProcessLink(meeting, rank // each * each, each, shape.heap_layout().nbytes, patience_s=args.timeout,
                       seed=args.seed, at_once=False)  # fmt: skip
    engine = join_hosts(meeting, link, link.heap_owner, paths, shape, steer=steer_by(plan))
    joined = engine.device_queues.mesh
    lines = [f"rank {rank} of {ranks}: {doorbells_of(paths)}", joined.table(), *(f"  plan: {a}" for a in plan.audit())]
    trial = HostTrial(engine, link.world, work, num_sms=2 * args.channels)
    joined.count_from_here()
    calls = [(call, fp8) for call in (trial.normal, trial.low_latency) for fp8 in (False, True)]
    for number, (call, fp8) in enumerate(calls * args.rounds):
        call(args.seed + 100 * number, fp8=fp8)
    meeting.barrier()
    wrong = [each for found in meeting.all_gather(trial.wrong) for each in found]
    figures, said = _ports(joined, plan, args.most)
    figures |= {"qps_per_second": joined.qps_per_second, "qps": len(joined), "wrong": len(wrong)}
    figures |= {f"{name.replace(' ', '_').replace('-', '_')}_s": min(taken) for name, taken in trial.seconds.items()}
    wrong += [line for line in said if "WRONG" in line]
    lines += [*said, *(f"  WRONG {each}" for each in wrong if each not in said)]
    meeting.close()
    engine.close()
    lines.append("every row, scale, weight and sum is NumPy's, bit for bit" if not figures["wrong"] else "WRONG")
    config = {"rank": rank, "ranks": ranks, "ranks_per_host": each, "devices": [str(path) for path in paths],
              "rounds": args.rounds,
              "channels": args.channels, "seed": args.seed, "policy": args.policy, "kernels": "on the CPU runner",
              "bytes": "measured", **vars(work)}  # fmt: skip
    return {"ok": not wrong, "figures": figures, "config": config, "lines": lines, "device": doorbells_of(paths)}


def _check_hosts(ranks: int, each: int) -> None:
    asked = f"--ranks-per-host {each} of {ranks} ranks"
    if each < 1 or ranks % each:
        raise BadArgument("ranks cannot be split over hosts", value=asked, rule="as many on each",
                          remedy="another --ranks-per-host")  # fmt: skip
    if ranks == each:
        raise BadArgument("no such hosts", value=asked, rule="several hosts", remedy="more ranks, or fewer on each")


def _ports(mesh: Any, plan: Any, most: float) -> tuple[dict[str, Any], list[str]]:
    """What each port did, and whether that is what was planned: figures, lines."""
    from rdmakit.model.execute import check_executed

    sent, posted, counted = mesh.sent_bytes(), mesh.posted_blocks(), mesh.moved()[1] == "bytes sent"
    figures: dict[str, Any] = {"posted_max_over_min": _ratio(posted)}
    if counted:
        figures["port_bytes_max_over_min"] = _ratio(sent)
    lines = []
    for number, (path, count, blocks) in enumerate(zip(mesh.paths, sent, posted, strict=True), 1):
        bytes_said = f"{count} B sent" if counted else "no bytes are counted for it alone"
        lines.append(f"  port {number} = {path}: {blocks} basic blocks posted, {bytes_said}")
    if _ratio(mesh.moved()[0]) > most:
        lines.append(f"  WRONG ports are not used alike: busiest / idlest more than {most:g}")
    try:
        lines.append(f"  {len(check_executed(plan, mesh, most=most))} queue pairs leave as planned ({plan.policy})")
    except RdmakitError as error:
        lines.append(f"  WRONG {error}")
    return figures, lines


def _ratio(counts: list[int]) -> float:
    """An idle port counts as one, since JSON has no infinity."""
    most, least = max(counts, default=0), min(counts, default=0)
    return most / max(least, 1) if most else 1.0


def main(args: argparse.Namespace) -> int:
    """Entry of `bench hosts`."""
    result = hosts(args)
    options = [f"--meet={args.meet}", f"--seed={args.seed}", f"--rounds={args.rounds}"]
    return finish(args, "bench hosts", options, result, lambda: result["lines"])


def add_place(parser: argparse.ArgumentParser, *, needed: bool) -> None:
    """The options of a command that is one rank of several."""
    meet_help = "where ranks meet: file:DIRECTORY, or tcp:HOST:PORT of rank 0"
    parser.add_argument("--meet", required=needed, metavar="PLACE", help=meet_help)
    parser.add_argument("--rank", type=int, help="this process's (default: what torchrun, mpirun, srun say)")
    parser.add_argument("--ranks", type=int, help="how many there are (default: likewise)")
    parser.add_argument("--devices", default="", metavar="A,B", help="this rank's (default: all there are)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds of patience (default 60)")
    add_output(parser)


def add_parser(which: Any) -> None:
    """Register `rdmakit bench hosts`."""
    what = "dispatch and combine between hosts over real devices, checked; each process is a rank"
    parser = which.add_parser("hosts", help=what)
    add_place(parser, needed=True)
    for option, default, told in (
        ("tokens", 64, "of each rank"), ("hidden", 512, "channels of a row"),
        ("experts", 0, "over all ranks; 0: two of each"), ("topk", 2, "choices of a token"),
        ("ranks-per-host", 1, "processes that share memory"), ("channels", 4, "queue pairs to each host"),
        ("rounds", 2, "of all calls"), ("seed", 1, "of the inputs"),
        ("ring-bytes", 1 << 16, "of each channel's ring"),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=int, default=default, help=f"{told} (default {default})")
    parser.add_argument("--policy", choices=("planned", "hash", "fixed", "first-half"), default="planned",
                        help="queue pairs onto ports, as `rdmakit plan` has them (default planned)")  # fmt: skip
    parser.add_argument("--most", type=float, default=MOST, help=f"busiest over idlest port (default {MOST})")
    parser.set_defaults(func=main)
