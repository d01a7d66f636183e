"""Two ranks on this machine's own ports, for the cells "on real hardware": queue pairs on ports by plan, counters that
say what became of it.

Leans on connect, model and `real_pair`. Both ranks are this process's, and every port sends to itself: one machine is
enough, and no second host has to be found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rdmakit.connect import ConnectedMesh, Path, Route, Steer, connect_mesh, open_paths
from rdmakit.connect.paths import register
from rdmakit.connect.values import from_text, to_text
from rdmakit.course.real_pair import active_devices, emulated
from rdmakit.device import QP, Context, RemoteMemory, connected_pair
from rdmakit.errors import BadArgument, NotAvailable, RdmakitError
from rdmakit.model.cluster import steer_by
from rdmakit.model.execute import check_executed, plan_for
from rdmakit.model.plan import Plan
from rdmakit.verbs import sysfs

__all__ = ["InProcess", "RealPorts", "Sent", "as_ranks", "hashed_to", "lag_of", "real_ports", "sent_by", "two_ways"]

_PATIENCE_S = 30.0


class InProcess:
    """A rendezvous of threads: ranks of one process."""

    def __init__(self, rank: int, values: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, len(values)
        self._values, self._barrier = values, barrier

    def all_gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Collective."""
        self._values[self.rank] = to_text(value)
        self._barrier.wait()
        found = [from_text(text) for text in self._values]  # a copy for each, as if they were apart
        self._barrier.wait()  # nobody's next value comes before all have read this one
        return found

    def barrier(self) -> None:
        """Returns when every rank has called it. Collective."""
        self._barrier.wait()


def as_ranks(size: int, work: Callable[[InProcess], Any]) -> list[Any]:
    """`work(rendezvous)` by a thread for each rank, at once: results by rank. The first error of any is raised."""
    values: list[Any] = [None] * size
    found: list[Any] = [None] * size
    failed: list[Exception] = []
    barrier = threading.Barrier(size, timeout=_PATIENCE_S)

    def run(rank: int) -> None:
        try:
            found[rank] = work(InProcess(rank, values, barrier))
        except threading.BrokenBarrierError as error:
            failed.append(error)  # another rank's failure, which comes first, or one that stays away
        except Exception as error:
            failed.insert(0, error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def two_ways(contexts: Sequence[Context]) -> list[Path]:
    """Two ways out, where there are two: ports of one device or of its bond before ports of two devices; those that are
    up."""
    found: list[Path] = []
    for context in contexts:
        paths = [path for path in open_paths([context]) if context.port(path.ib_port).up]
        if len(paths) > 1:
            return paths[:2]
        found += paths
    return found[:2]


def sent_by(paths: Sequence[Path]) -> list[int]:
    """Bytes that the port of each way out has sent so far. A bond's device shows both ports as one: of emulated NICs
    their network devices tell them apart, a kernel's leave RDMA out, and then each has 0."""
    return [_link_bytes(path) if path.lag_port else path.context.port(path.ib_port).counters["xmit_bytes"]
            for path in paths]  # fmt: skip


def _link_bytes(path: Path) -> int:
    root = sysfs.default_root()
    net = root / "class/infiniband" / path.context.device.name / "device/net"
    masters = [sysfs.read(net / name / "master/bonding/slaves").split() for name in sysfs.names(net)]
    links = next(filter(None, masters), [])
    if not emulated() or len(links) < path.lag_port:
        return 0
    return sysfs.read_int(root / "class/net" / links[path.lag_port - 1] / "statistics/tx_bytes", 0)


def lag_of(context: Context) -> str | None:
    """How its bond spreads queue pairs, "affinity" or "hash"; None where it is none."""
    if context.device.lag == "none":
        return None
    near, _ = connected_pair(context, context, cq_entries=16)
    try:
        return "affinity" if near.lag_port else None
    except NotAvailable:
        return "hash"


def hashed_to(paths: Sequence[Path]) -> dict[int, int]:
    """A UDP source port for each port of a bond that hashes, as the model's hash has it: a real NIC's is not known."""
    return {flow.port: flow.source_port for flow in plan_for(paths, 2, channels=8, lag="hash")}


class Sent(NamedTuple):
    """What `RealPorts.send` did: `moved` by port, in `unit`; seconds; how many messages did not arrive as sent."""

    moved: list[int]
    unit: str
    seconds: float
    wrong: int


class RealPorts:
    """Made by `real_ports`: `names` of the ports, `qps` of rank 0 in the order of the channels, `plan` and `meshes`."""

    def __init__(self, paths: list[list[Path]], plan: Plan, steer: Steer) -> None:
        self.plan, self.paths = plan, paths
        self.names = [str(path) for path in paths[0]]
        self._before = sent_by(paths[0])
        self.meshes: list[ConnectedMesh] = as_ranks(
            2, lambda meeting: connect_mesh(meeting, paths[meeting.rank], qps=plan.channels, steer=steer)
        )

    @property
    def qps(self) -> list[QP]:
        """Those that rank 0 sends on."""
        return [self.meshes[0][1, channel] for channel in range(self.plan.channels)]

    def send(self, sizes: Sequence[int], seed: int | None = None) -> Sent:
        """A WRITE of `sizes[i]` fresh random bytes over queue pair i, all under way at once; every byte is compared.

        Bytes are those that ports count: headers and acknowledgements among them. BadArgument for another number of
        sizes than queue pairs.
        """
        given = np.asarray(sizes, np.int64)
        if given.shape != (self.plan.channels,) or (given < 0).any() or not given.any():
            raise BadArgument("sizes for other queue pairs", value=list(sizes), rule=f"{self.plan.channels} numbers of "
                              "bytes, not all 0", remedy="one for each of RealPorts.qps")  # fmt: skip
        begins = np.concatenate([[0], np.cumsum(given)])
        source = np.random.default_rng(seed).integers(0, 256, int(begins[-1]), np.uint8)
        target = ~source  # no byte is right before it arrives
        near, far = register(self.paths[0], source), register(self.paths[1], target)
        keys = far.told(self.paths[1])["rkeys"]
        self.meshes[0].count_from_here()
        self._before = sent_by(self.paths[0])
        began = time.perf_counter()
        for channel, qp in enumerate(self.qps):
            joined, at, size = self.meshes[0].joined[1, channel], int(begins[channel]), int(given[channel])
            to = RemoteMemory(far.address + at, keys[joined.peer_path], size)
            if size:
                qp.post_write(near.mrs[joined.path.pd][at : at + size], to)
        for qp, size in zip(self.qps, given, strict=True):
            if size:
                qp.send_cq.wait(timeout=_PATIENCE_S)
        took = time.perf_counter() - began
        moved, unit = self.moved()
        same = [np.array_equal(target[a:b], source[a:b]) for a, b in pairwise(begins)]
        near.close()
        far.close()
        return Sent(moved, unit, took, same.count(False))

    def moved(self) -> tuple[list[int], str]:
        """By port, since the last `send` began: bytes that left (`sent_by`), or, where no port counts its own, basic
        blocks of WQEs posted to queue pairs that were to leave there."""
        sent = [now - old for now, old in zip(sent_by(self.paths[0]), self._before, strict=True)]
        return (sent, "B") if any(sent) else (self.meshes[0].posted_blocks(), "WQEBBs")

    def complaint(self, most: float = 1.15) -> str:
        """What did not go as planned, by the devices' own word; "" if all did."""
        try:
            check_executed(self.plan, self.meshes[0], most=most)
        except RdmakitError as error:
            return str(error)
        return ""

    def table(self) -> str:
        """How many queue pairs leave by each port, and by what mechanism."""
        return self.meshes[0].table().partition("\n")[2]


def real_ports(
    channels: int = 8, *, policy: str = "planned", on: Sequence[int] | None = None, kind: str = "rdma"
) -> RealPorts:
    """`channels` queue pairs from this machine to itself over its first two ports that are up, by a plan of
    `model.plan.make_plan` with this `policy`; or queue pair i on port `on[i]`, counted from 1.

    Steered as the device lets it: a device or a port named when it is connected, LAG affinity, the UDP source port in a
    bond that hashes. NotAvailable without two ports that are up.
    """
    contexts = active_devices(kind)
    paths = [two_ways(contexts) for _ in range(2)]
    if len(paths[0]) < 2:
        raise NotAvailable("one port only", value=", ".join(map(str, paths[0])), rule="two ports that are up",
                           remedy="rdmakit connectx -- jupyter lab has two")  # fmt: skip
    lag = lag_of(paths[0][0].context)
    plan = plan_for(paths[0], 2, channels=channels, policy=policy, lag=lag)
    if on is None:
        return RealPorts(paths, plan, steer_by(plan))
    ports = [int(port) for port in on]
    if len(ports) != channels or not set(ports) <= {1, 2}:
        raise BadArgument("no such ports", value=ports, rule=f"{channels} of 1 and 2", remedy="one for each channel")
    known = hashed_to(paths[0]) if lag == "hash" else {}
    return RealPorts(paths, plan, lambda rank, peer, index: Route(ports[index], known.get(ports[index], 0)))
