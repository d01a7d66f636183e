"""`rdmakit bench hosts`: dispatch and combine between hosts over real devices; `bench mesh`: queue pairs a second.

Leans on connect and ep. Each process is one rank, and one host: started by hand, by torchrun, mpirun or srun. Kernels
run on the CPU runner, so no GPU is needed, and times are of that; bytes, ports and queue pairs are the devices' own.
"""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any

from rdmakit.cli.bench_record import add_output, finish
from rdmakit.errors import BadArgument, RdmakitError

__all__ = ["add_parsers"]

RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PMI_RANK")
RANKS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "PMI_SIZE")
MOST = 1.15  # busiest over idlest port that passes


def _from_environment(names: tuple[str, ...]) -> int | None:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), None)


def _place(args: argparse.Namespace) -> tuple[int, int]:
    rank = _from_environment(RANK) if args.rank is None else args.rank
    ranks = _from_environment(RANKS) if args.ranks is None else args.ranks
    if rank is None or ranks is None:
        raise BadArgument("which rank of how many?", value=f"rank {rank} of {ranks}",
                          rule="--rank and --ranks, or what torchrun, mpirun and srun set",
                          remedy="rdmakit bench hosts --meet file:/tmp/meeting --rank 0 --ranks 2")  # fmt: skip
    return rank, ranks


def _devices(args: argparse.Namespace) -> list[str]:
    if args.devices:
        return [name for name in args.devices.split(",") if name]
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
    from rdmakit.ep.device_hosts import RunnerHost, doorbells_of, shape_of
    from rdmakit.ep.host_trial import HostTrial, Workload
    from rdmakit.model.cluster import steer_by
    from rdmakit.model.execute import check_executed, plan_for

    rank, ranks = _place(args)
    work = Workload(args.tokens, args.hidden, args.experts or 2 * ranks, args.topk)
    paths = open_paths(_devices(args))
    rows = 2 * ranks * work.tokens * (2 * work.hidden + 256)
    shape = shape_of(ranks, 1, num_qps_per_rank=args.channels, rdma_bytes=args.ring_bytes * 2 * ranks * args.channels,
                     nvl_bytes=rows, max_tokens=max(work.tokens, 1))  # fmt: skip
    host = RunnerHost(shape, rank, patience_s=args.timeout, seed=args.seed)
    meeting = meet(args.meet, rank, ranks, timeout_s=args.timeout)
    plan = plan_for(paths, ranks, channels=args.channels, policy=args.policy)
    engine = host.join(meeting, paths, steer=steer_by(plan))
    joined = engine.device_queues.mesh
    lines = [f"rank {rank} of {ranks}: {doorbells_of(paths)}", joined.table(), *(f"  plan: {a}" for a in plan.audit())]
    trial = HostTrial(engine, host.world, work, num_sms=2 * args.channels)
    joined.count_from_here()
    for turn in range(args.rounds):
        for number, (call, fp8) in enumerate(((trial.normal, False), (trial.normal, True), (trial.low_latency, False),
                                              (trial.low_latency, True))):  # fmt: skip
            call(args.seed + 1000 * turn + 100 * number, fp8=fp8)
    meeting.barrier()
    sent, posted = joined.sent_bytes(), joined.posted_blocks()
    wrong = meeting.all_gather(trial.wrong)
    figures: dict[str, Any] = {
        "qps_per_second": joined.qps_per_second, "qps": len(joined), "wrong": sum(len(each) for each in wrong),
        "posted_max_over_min": _ratio(posted),
    }  # fmt: skip
    figures |= {f"{name.replace(' ', '_').replace('-', '_')}_s": min(taken) for name, taken in trial.seconds.items()}
    counted = all(count > 0 for count in sent)
    if counted:
        figures["port_bytes_max_over_min"] = _ratio(sent)
    for number, (path, count, blocks) in enumerate(zip(paths, sent, posted, strict=True), 1):
        said = f"{count} B sent" if counted else "the device counts no bytes"
        lines.append(f"  port {number} = {path}: {blocks} basic blocks posted, {said}")
    lines += [f"  WRONG {each}" for found in wrong for each in found]
    fair = figures.get("port_bytes_max_over_min", figures["posted_max_over_min"]) <= args.most
    if not fair:
        lines.append(f"  WRONG ports are not used alike: busiest / idlest more than {args.most:g}")
    try:
        lines.append(f"  {len(check_executed(plan, joined, most=args.most))} queue pairs leave as planned ({args.policy})")
    except RdmakitError as error:
        fair = False
        lines.append(f"  WRONG {error}")
    meeting.close()
    engine.close()
    lines.append("every row, scale, weight and sum is NumPy's, bit for bit" if not figures["wrong"] else "WRONG")
    config = {"rank": rank, "ranks": ranks, "devices": [str(path) for path in paths], "rounds": args.rounds,
              "channels": args.channels, "seed": args.seed, "policy": args.policy, "kernels": "on the CPU runner", "bytes": "measured",
              **vars(work)}  # fmt: skip
    return {"ok": not figures["wrong"] and fair, "figures": figures, "config": config, "lines": lines,
            "device": doorbells_of(paths)}  # fmt: skip


def _ratio(counts: list[int]) -> float:
    """An idle port counts as one, since JSON has no infinity."""
    most, least = max(counts, default=0), min(counts, default=0)
    return most / max(least, 1) if most else 1.0


# ---- bench mesh
def mesh(args: argparse.Namespace) -> dict[str, Any]:
    """A full mesh: this process's rank with --meet, else all ranks, a thread each."""
    from rdmakit.connect import ConnectedMesh, connect_mesh, meet, open_paths

    names = _devices(args)

    def join(rank: int, ranks: int, where: str, devices: list[str]) -> ConnectedMesh:
        meeting = meet(where, rank, ranks, timeout_s=args.timeout)
        made = connect_mesh(meeting, open_paths(devices), qps=args.qps)
        meeting.close()
        return made

    made: list[ConnectedMesh] = []
    if args.meet:
        rank, ranks = _place(args)
        made.append(join(rank, ranks, args.meet, names))
    else:
        ranks = args.ranks or 4
        made += _threads(ranks, args.timeout, lambda rank, where: join(rank, ranks, where, _share(names, rank, ranks)))
    slowest = min(made, key=lambda each: each.qps_per_second)
    figures = {"qps": sum(len(each) for each in made), "qps_per_second": sum(each.qps_per_second for each in made),
               **{f"{step}_s": max(each.seconds[step] for each in made) for step in slowest.seconds}}  # fmt: skip
    right = all(len(each) == args.qps * (ranks - 1) for each in made)
    config = {"ranks": ranks, "qps_per_pair": args.qps, "devices": names, "threads": len(made), "time": "measured"}
    lines = [f"{ranks} ranks, {args.qps} queue pairs to each other: {figures['qps']} made, exchanged and in RTS",
             *(each.table() for each in made[:4]),
             f"{figures['qps_per_second']:.0f} queue pairs a second, of all ranks here together; "
             + ", ".join(f"{step} {figures[f'{step}_s'] * 1e3:.1f} ms" for step in slowest.seconds)]  # fmt: skip
    for each in made:
        each.close()
    return {"ok": right, "figures": figures, "config": config, "lines": lines, "device": ", ".join(names)}


def _share(names: list[str], rank: int, ranks: int) -> list[str]:
    """A rank's devices when all ranks are here: its own part, one at least; `emu` gives each a host of one world."""
    if names == ["emu"]:
        return [f"emu:world=bench-mesh,hosts={ranks},host={rank}"]
    each = max(1, len(names) // ranks)
    first = rank * each % len(names)
    return names[first : first + each]


def _threads(ranks: int, timeout_s: float, join: Any) -> list[Any]:
    import tempfile

    found: list[Any] = [None] * ranks
    with tempfile.TemporaryDirectory(prefix="rdmakit-mesh-") as folder:

        def run(rank: int) -> None:
            try:
                found[rank] = join(rank, f"file:{folder}/meeting")
            except RdmakitError as error:
                found[rank] = error

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * timeout_s + 10)
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


# ---- the commands
def main_hosts(args: argparse.Namespace) -> int:
    """Entry of `bench hosts`."""
    result = hosts(args)
    options = [f"--meet={args.meet}", f"--seed={args.seed}", f"--rounds={args.rounds}"]
    return finish(args, "bench hosts", options, result, lambda: result["lines"])


def main_mesh(args: argparse.Namespace) -> int:
    """Entry of `bench mesh`."""
    result = mesh(args)
    return finish(args, "bench mesh", [f"--qps={args.qps}"], result, lambda: result["lines"])


def add_parsers(which: Any) -> None:
    """Register `rdmakit bench hosts` and `rdmakit bench mesh`."""
    for name, what, main in (
        ("hosts", "dispatch and combine between hosts over real devices, checked; each process is a host", main_hosts),
        ("mesh", "a full mesh of queue pairs: how many a second", main_mesh),
    ):
        parser = which.add_parser(name, help=what)
        meet_help = "where ranks meet: file:DIRECTORY, or tcp:HOST:PORT of rank 0"
        parser.add_argument("--meet", required=name == "hosts", metavar="PLACE", help=meet_help)
        parser.add_argument("--rank", type=int, help="this process's (default: what torchrun, mpirun, srun say)")
        parser.add_argument("--ranks", type=int, help="how many there are (default: likewise)")
        parser.add_argument("--devices", default="", metavar="A,B", help="this rank's (default: all there are)")
        parser.add_argument("--timeout", type=float, default=60.0, help="seconds of patience (default 60)")
        add_output(parser)
        parser.set_defaults(func=main)
        if name == "mesh":
            parser.add_argument("--qps", type=int, default=16, help="queue pairs of each pair of ranks (default 16)")
            continue
        for option, default, told in (
            ("tokens", 64, "of each rank"), ("hidden", 512, "channels of a row"),
            ("experts", 0, "over all ranks; 0: two of each"), ("topk", 2, "choices of a token"),
            ("channels", 4, "queue pairs to each host"), ("rounds", 2, "of all calls"), ("seed", 1, "of the inputs"),
            ("ring-bytes", 1 << 16, "of each channel's ring"),
        ):  # fmt: skip
            parser.add_argument(f"--{option}", type=int, default=default, help=f"{told} (default {default})")
        parser.add_argument("--policy", choices=("planned", "hash", "fixed", "first-half"), default="planned",
                            help="queue pairs onto ports, as `rdmakit plan` has them (default planned)")  # fmt: skip
        parser.add_argument("--most", type=float, default=MOST, help=f"busiest over idlest port (default {MOST})")
