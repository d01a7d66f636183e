"""One rank's part of `rdmakit bench ports`: ports compared, queue pairs joined, phases measured and checked.

Leans on bench_ports_facts, bench_ports_traffic, bench_ports_run, connect and model. Rank 0 sends, rank 1 receives;
each tells the other what it read, so both know all and print the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np

from rdmakit.cli.bench_ports_facts import PortFacts, facts_of, grown, read_counters
from rdmakit.cli.bench_ports_run import Run, Seen
from rdmakit.cli.bench_ports_traffic import Lane, Load, drive, lanes_of, payload, poison, raw, wrong_slots
from rdmakit.cli.doctor.machine import Machine
from rdmakit.connect import ConnectedMesh, Path, connect_mesh
from rdmakit.connect.paths import register
from rdmakit.device.provider import Refused
from rdmakit.errors import BadState, PeerMismatch, RdmakitError

__all__ = ["Found", "measure"]

SENDER, RECEIVER = 0, 1
_RELAXED_TIMEOUT = 18  # 4.096 µs × 2^18, a second: processors that carry packets answer late
_REST_S = 0.0005
_BLOCKS = 4  # of a send ring for each request that libmlx5 posts: it counts the longest WQE (qp.c, mlx5_calc_sq_size)


@dataclass
class Found:
    """What both ranks know afterwards. `alone[port]`, `both`: GB/s of each round. `wire`: bytes that ports counted for
    each byte of payload, 0 where they count none.
    """

    run: Run
    alone: dict[int, list[float]]
    both: list[float]
    wrong: list[str]
    wire: float
    table: str
    counted: dict[str, dict[str, Any]] = field(default_factory=dict)


def _busy(before: Sequence[int], after: Sequence[int]) -> float:
    spent = [b - a for a, b in zip(before, after, strict=True)]
    whole = sum(spent)
    return 1 - (spent[3] + spent[4]) / whole if len(spent) > 4 and whole else 0.0


def _processor_times() -> list[int]:
    """Of all processors, in ticks: user, nice, system, idle, iowait … (man 5 proc_stat)."""
    try:
        return [int(word) for word in File("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return []


class _Rank:
    """A rank with its queue pairs and memory; every method is collective."""

    def __init__(self, meeting: Any, paths: Sequence[Path], load: Load, qps: int, policy: str, seed: int) -> None:
        self.meeting, self.load, self.seed, self.sends = meeting, load, seed, meeting.rank == SENDER
        machine = Machine.here()
        self.all_facts = self._exchange_facts(facts_of(machine, paths))
        near, far = self.all_facts
        self.usable = [i for i in range(len(paths)) if near[i].up and far[i].up]
        if not self.usable:
            down = next(end for pair in zip(near, far, strict=True) for end in pair if not end.up)
            raise BadState("no port is up at both ends", value=down.name, rule="one port at least, at both ranks",
                           remedy=f"ip link set {down.link or 'NETDEV'} up; rdmakit doctor")  # fmt: skip
        self.paths = [paths[i] for i in self.usable]
        self.software = any(facts.software for facts in (*near, *far))
        self.mesh = self._join(qps, policy, near)
        raw(next(iter(self.mesh.joined.values())))  # refused before anything is measured
        own = [self.mesh.paths.index(joined.path) for _, joined in sorted(self.mesh.joined.items())]
        self.path_of: list[int] = meeting.all_gather(own)[SENDER]  # of each queue pair
        self.memory = np.zeros(len(self.path_of) * load.region, np.uint8)
        self.registered = register(self.paths, self.memory)
        theirs = meeting.all_gather(self.registered.told(self.paths))[1 - meeting.rank]
        self.lanes: list[Lane] = []
        if self.sends:
            self.lanes = lanes_of(self.mesh, RECEIVER, load, self.memory, self.registered.lkey, theirs)
        self.phase = 0
        self.wrong: list[str] = []
        self.failed: dict[int, str] = {}

    def _exchange_facts(self, own: list[PortFacts]) -> tuple[list[PortFacts], list[PortFacts]]:
        told = self.meeting.all_gather({"facts": [asdict(facts) for facts in own], "load": asdict(self.load)})
        if len(told) != 2:
            raise PeerMismatch("bench ports is between two hosts", value=f"{len(told)} ranks",
                               rule="rank 0 sends, rank 1 receives",
                               remedy="--ranks 2, or torchrun --nnodes 2 --nproc-per-node 1")  # fmt: skip
        if told[0]["load"] != told[1]["load"]:
            raise PeerMismatch("the ranks were asked for different loads", value=told[0]["load"], rule=told[1]["load"],
                               remedy="pass both the same options")  # fmt: skip
        near, far = ([PortFacts(**facts) for facts in each["facts"]] for each in told)
        if len(near) != len(far):
            raise PeerMismatch("the ranks have different numbers of ports", value=", ".join(f.name for f in near),
                               rule=", ".join(f.name for f in far), remedy="--devices: as many at each")  # fmt: skip
        return near, far

    def _join(self, qps: int, policy: str, near: list[PortFacts]) -> ConnectedMesh:
        from rdmakit.model.cluster import steer_by
        from rdmakit.model.execute import plan_for

        lag = ("hash" if near[self.usable[0]].hashes else "affinity") if near[self.usable[0]].lag_port else None
        plan = plan_for(self.paths, 2, channels=qps * len(self.paths), policy=policy, lag=lag)
        deep = 1 << (self.load.batch * self.load.depth - 1).bit_length()
        relaxed = {"timeout": _RELAXED_TIMEOUT} if self.software else {}
        return connect_mesh(self.meeting, self.paths, qps=qps * len(self.paths), steer=steer_by(plan),
                            sq_wqebbs=_BLOCKS * max(deep, 16), attributes=relaxed)  # fmt: skip

    def numbers(self, only: int | None) -> list[int]:
        """Queue pairs by number: of path `only`, or of all; those of paths that broke are left out."""
        return [n for n, path in enumerate(self.path_of) if path not in self.failed and only in (None, path)]

    def measure(self, only: int | None) -> dict[str, Any]:
        """One phase: over path `only` (from 0, of those that are up), or over all. What both ranks read of it."""
        self.phase += 1
        numbers = self.numbers(only)
        if self.sends:
            for number in numbers:
                begin = number * self.load.region
                self.memory[begin : begin + self.load.region] = payload(self.load, self.seed, self.phase, number)
        else:
            poison(self.memory)
        facts = [self.all_facts[self.meeting.rank][i] for i in self.usable]
        before, ticks = [read_counters(each) for each in facts], _processor_times()
        self.meeting.barrier()  # both have read before anything moves
        told: dict[str, Any] = {}
        if self.sends:
            lanes = [self.lanes[number] for number in numbers]
            try:
                window = drive(lanes, self.load, len(self.paths), _REST_S if self.software else 0.0)
                told = {"gbs": window.gbs, "empty": window.empty, "posted": window.posted,
                        "failed": [[path, why] for path, why in window.failed.items()]}  # fmt: skip
            except (RdmakitError, Refused) as error:
                told = {"refused": str(error)}
        ended = self.meeting.all_gather(told)[SENDER]
        if "refused" in ended:
            raise BadState("the sender cannot post", value=ended["refused"], rule="rank 0 posts batches of WRITEs",
                           remedy="a smaller --batch or --depth; rdmakit doctor on its host", rank=SENDER)  # fmt: skip
        busy = _busy(ticks, _processor_times())
        counted = [grown(*both) for both in zip(before, map(read_counters, facts), strict=True)]
        self.failed.update({int(path): str(why) for path, why in ended["failed"]})
        whole = [(n, b) for n, b in zip(numbers, ended["posted"], strict=True) if n in self.numbers(None)]
        wrong = []
        if not self.sends:
            wrong = wrong_slots(self.memory, self.load, [b for _, b in whole], self.seed, self.phase,
                                [n for n, _ in whole])  # fmt: skip
        read = self.meeting.all_gather({"wrong": wrong, "busy": busy, "grown": counted})
        self.wrong += read[RECEIVER]["wrong"]
        carried = [self.load.slot * sum(b for n, b in whole if self.path_of[n] == path)
                   for path in range(len(self.paths))]  # fmt: skip
        return {**ended, "carried": carried, "busy": tuple(each["busy"] for each in read),
                "grown": [each["grown"] for each in read]}  # fmt: skip

    def source_ports(self) -> list[list[int]]:
        """Of the sender's queue pairs, by path."""
        own = [sorted({int(j.qp.udp_sport) for j in leaving}) for leaving in self.mesh.by_path()]
        found: list[list[int]] = self.meeting.all_gather(own)[SENDER]
        return found

    def close(self) -> None:
        self.mesh.close()
        self.registered.close()


def _summed(each: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(found.get(name, 0) for found in each) for name in (each[0] if each else {})}


def _own_share(phases: list[dict[str, Any]], path: int) -> float | None:
    """Of the bytes that all ports sent while `path` was to work alone, those of its own port; None: not counted."""
    ports: list[dict[str, int]] = [port for each in phases for port in each["grown"][SENDER]]
    if not ports or any("xmit_bytes" not in port for port in ports):
        return None
    sent = [[port["xmit_bytes"] for port in each["grown"][SENDER]] for each in phases]
    whole = sum(sum(each) for each in sent)
    return sum(each[path] for each in sent) / whole if whole else None


def measure(
    meeting: Any, paths: Sequence[Path], load: Load, *, qps: int, rounds: int, policy: str = "planned", seed: int = 1
) -> Found:
    """Each port alone and all together, `rounds` times; medians. Collective, of two ranks; both get the same.

    `paths`: this rank's ports, as many as the other's. PeerMismatch, BadState and RankMissing as `connect_mesh`.
    """
    rank = _Rank(meeting, paths, load, qps, policy, seed)
    alone: dict[int, list[dict[str, Any]]] = {i: [] for i in range(len(rank.paths))}
    together: list[dict[str, Any]] = []
    sports, leaving = rank.source_ports(), [len(each) for each in rank.mesh.by_path()]
    for _ in range(rounds):
        for path in alone:
            if rank.numbers(path):
                alone[path].append(rank.measure(path))
        if len(alone) == 1:
            together += alone[0][-1:]  # the others are down: this one alone is all
        elif rank.numbers(None):
            together.append(rank.measure(None))
    table, wrong = rank.mesh.table(), rank.wrong
    rank.close()
    near, far = rank.all_facts
    seen = []
    for i, ends in enumerate(zip(near, far, strict=True)):
        if i not in rank.usable:
            seen.append(Seen(i + 1, *ends, 0.0, 0))
            continue
        path = rank.usable.index(i)
        near_grown, far_grown = (_summed([each["grown"][end][path] for each in together]) for end in (SENDER, RECEIVER))
        seen.append(Seen(i + 1, *ends, statistics.median([each["gbs"] for each in alone[path]] or [0.0]), leaving[path],
                         tuple(sports[path]), near_grown.get("xmit_bytes"), _own_share(alone[path], path), near_grown,
                         far_grown, rank.failed.get(path, ""), sum(each["carried"][path] for each in together)))
    busiest = [max((each["busy"][end] for each in together), default=0.0) for end in (SENDER, RECEIVER)]
    run = Run(
        tuple(seen),
        statistics.median([each["gbs"] for each in together] or [0.0]),
        statistics.median([each["empty"] for each in together] or [0.0]),
        (busiest[SENDER], busiest[RECEIVER]),
    )
    sent = {port.near.place: port.sent for port in seen if port.up}
    posted = sum(port.carried for port in seen)
    wire = sum(filter(None, sent.values())) / posted if posted and None not in sent.values() else 0.0
    rates = {rank.usable[path] + 1: [each["gbs"] for each in phases] for path, phases in alone.items()}
    counted = {f"port_{port.number}": {"sender": port.near_grown, "receiver": port.far_grown, "payload": port.carried}
               for port in seen}  # fmt: skip
    return Found(run, rates, [each["gbs"] for each in together], wrong, wire, table, counted)
