"""Ranks joined by queue pairs: who has which heap, and which QP of whom leads to which peer over which port.

Leans on device (public objects), connect.broken and ep.heap; knows no backend beyond what a world offers: `ranks`,
`array`, `open`. The plan (peer, channel) → QP → port is made here and can be listed: channel c of every pair leaves by
port c modulo the number of ports, so that both ports of a NIC carry half the channels of each peer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdmakit.connect.broken import first_error
from rdmakit.device.handle import DeviceHandle
from rdmakit.device.qp_attributes import QPState
from rdmakit.device.report import REPORT, DeviceStatus, Report
from rdmakit.ep.abi import REMOTE_MEMORY
from rdmakit.ep.heap import Heap, HeapLayout
from rdmakit.ep.wiring import Route, Steer
from rdmakit.errors import BadArgument, CompletionError, HangError, RankDied
from rdmakit.layout import Syndrome, wc_status

__all__ = ["Mesh", "PlannedQp", "Side"]


@dataclass
class Side:
    """One rank: its NIC's context, PD and MR, its heap, its report, its QPs' handles by (peer, channel)."""

    rank: int
    host: int
    local: int
    context: Any
    pd: Any
    heap: Heap
    mr: Any
    report: Report
    qps: dict[tuple[int, int], Any] = field(default_factory=dict)
    handles: dict[tuple[int, int], DeviceHandle] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedQp:
    """One row of the plan: channel `channel` of `rank` to `peer` is QP `qpn`, which leaves by physical port `port`."""

    rank: int
    peer: int
    channel: int
    qpn: int
    port: int


class Mesh:
    """All ranks of a world with a heap each, same-host ranks by pointer, others by QPs as asked for.

    `timeout_ns` bounds every wait of device code; 0 takes the device's default. Where the world's fault plan has
    adaptive routing the QPs ask for it (out of order), and heaps for relaxed ordering where it has that: the kernels'
    signals are atomics, which neither lets pass what they stand behind. `steer` says where each queue pair leaves;
    without it that is its number modulo the ports.
    """

    def __init__(
        self, world: Any, layout: HeapLayout, *, timeout_ns: int = 0, sq_wqebbs: int = 128, steer: Steer | None = None
    ) -> None:
        self.world = world
        self.layout = layout
        self.timeout_ns = timeout_ns
        self.sq_wqebbs = sq_wqebbs
        self.steer = steer
        self.local_ranks = world.topology.gpus_per_host
        self.hosts = world.topology.hosts
        self.ranks = self.hosts * self.local_ranks
        self.sides = [self._open(rank) for rank in range(self.ranks)]
        self._kept: list[Any] = []

    def _open(self, rank: int) -> Side:
        host, local = divmod(rank, self.local_ranks)
        context = self.world.open_rank(rank)
        pd = context.alloc_pd()
        memory = self.world.array((self.layout.nbytes,), np.uint8, name=f"heap of rank {rank}")
        relaxed = self.world.faults.relaxed_ordering
        mr = pd.register(memory, relaxed_ordering=relaxed, name=f"heap of rank {rank}")
        report = Report(self.world.array((REPORT.itemsize,), np.uint8, name=f"report of rank {rank}"))
        return Side(rank, host, local, context, pd, Heap(self.layout, memory), mr, report)

    def connect(self, a: int, b: int, channels: int) -> None:
        """Joins ranks a and b by `channels` pairs of QPs, channel c over port c modulo the number of ports."""
        if a == b:
            raise BadArgument("a rank is not joined to itself", value=a, rule="two different ranks",
                              remedy="a rank reaches its own memory by stores")
        for channel in range(channels):
            ends = [(self.sides[a], b), (self.sides[b], a)]
            pair = []
            for side, peer in ends:
                cq = side.context.create_cq(self.sq_wqebbs)
                qp = side.pd.create_qp(
                    cq, sq_wqebbs=self.sq_wqebbs, out_of_order=self.world.faults.adaptive_routing
                )
                side.qps[peer, channel] = qp
                pair.append(qp)
            if self.steer is None:
                self._bring_up(pair[0], pair[1], channel)
            else:
                self._bring_up_by(pair[0], pair[1], self.steer(a, b, channel), self.steer(b, a, channel))
            for side, peer in ends:
                side.handles[peer, channel] = side.qps[peer, channel].device_handle(
                    peer=peer, channel=channel, rank=side.rank, report=side.report, timeout_ns=self.timeout_ns
                )

    def _bring_up(self, a: Any, b: Any, channel: int) -> None:
        ports = len(a.context.device.ports)
        lag = a.context.device.lag
        if lag == "none":
            port = 1 + channel % ports
            a.connect(b.endpoint(port), port=port)
            b.connect(a.endpoint(port), port=port)
            return
        a.connect(b)
        b.connect(a)
        if (
            lag == "affinity"
        ):  # in hash mode the UDP source port decides, and the QP numbers that make it spread
            a.lag_port = b.lag_port = 1 + channel % ports

    def _bring_up_by(self, a: Any, b: Any, there: Route, back: Route) -> None:
        """Steered by a plan: `there` is the route of what a sends, `back` of what b sends."""
        lag = a.context.device.lag
        if lag == "none":
            a.connect(b.endpoint(back.port), port=there.port)
            b.connect(a.endpoint(there.port), port=back.port)
        else:
            a.connect(b)
            b.connect(a)
        for qp, route in ((a, there), (b, back)):
            if lag == "affinity":
                qp.lag_port = route.port
            if route.source_port:
                qp.udp_sport = route.source_port

    def run(self) -> None:
        """Runs the world and raises what went wrong: a rank's own report or a queue pair's error rather than the hang
        that follows from it.
        """
        try:
            self.world.run()
        except RankDied:
            raise  # the reason for all that follows from it
        except HangError as hang:
            for side in self.sides:  # a rank that stopped for a reason of its own, while the others waited for it
                if side.report and side.report.status is not DeviceStatus.TIMEOUT:
                    side.report.raise_for_status()
            raise self._broken_qp() or hang from None
        for side in self.sides:
            side.report.raise_for_status()

    def _broken_qp(self) -> CompletionError | None:
        """The first QP that failed by itself, with the syndrome that its CQ still shows; else one that was broken;
        None when all are well.

        Kernels look at their CQ only when they need room, and a receiver waits for what a broken sender never sends.
        """
        flushed = None
        for side in self.sides:
            for (peer, channel), qp in sorted(side.qps.items()):
                if flushed is None and qp.state is QPState.ERR:
                    flushed = CompletionError(
                        f"the queue pair of rank {side.rank} to rank {peer} on channel {channel} is in ERR",
                        syndrome=int(Syndrome.WR_FLUSH_ERR),
                        wc_status=wc_status(int(Syndrome.WR_FLUSH_ERR)).name,
                        qpn=qp.qpn,
                        rule="no work request of its own says why: Context.events() may",
                        remedy="make the buffers and their queue pairs anew",
                    )
                error = first_error(qp)
                if error is None:
                    continue
                syndrome, wqe_index = error
                down = [
                    f"{', '.join(str(port.number) for port in end.context.ports if not port.up) or 'none'}"
                    f" at rank {end.rank}"
                    for end in (side, self.sides[peer])
                ]
                return CompletionError(
                    f"rank {side.rank} cannot reach rank {peer} on channel {channel}",
                    syndrome=syndrome,
                    wc_status=wc_status(syndrome).name,
                    qpn=qp.qpn,
                    wqe_index=wqe_index,
                    rule=f"ports down: {' and '.join(down)}",
                    remedy="mend the path, then make the buffers and their queue pairs anew",
                )
        return flushed

    def plan(self) -> list[PlannedQp]:
        """Every QP, by rank, peer and channel, with the physical port that it uses now."""
        return [
            PlannedQp(side.rank, peer, channel, qp.qpn, qp.physical_port)
            for side in self.sides
            for (peer, channel), qp in sorted(side.qps.items())
        ]

    def keep(self, array: Any) -> int:
        """The array's address; the mesh keeps it alive, since PODs hold bare pointers."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def kept(self, dtype: Any) -> list[Any]:
        """The arrays of `dtype` that PODs point at: what a debugger wants to look into."""
        return [array for array in self._kept if array.dtype == dtype]

    def watch(self, pod: Any, rank: int) -> None:
        """Fills in a `Watch`: where device code of `rank` reports, and how long it waits."""
        pod["report"], pod["rank"] = self.sides[rank].report.address, rank
        pod["timeout_ns"] = self.timeout_ns

    def heap_table(self, rank: int) -> int:
        """Address of a `u8*[ranks]`: heaps that `rank` can load from and store to, 0 for other hosts'."""
        host = rank // self.local_ranks
        table = self.world.array((self.ranks,), np.uint64)
        table[:] = [s.heap.base if s.host == host else 0 for s in self.sides]
        return self.keep(table)

    def remote_table(self, peers: list[int]) -> int:
        """Address of a `RemoteMemory[len(peers)]`: the peers' heaps as a NIC names them."""
        table = self.world.array((len(peers),), REMOTE_MEMORY)
        for i, peer in enumerate(peers):
            side = self.sides[peer]
            table[i] = (side.mr.address, side.mr.rkey)
        return self.keep(table)

    def port_bytes(self) -> dict[tuple[int, int], int]:
        """Bytes sent since the start, by (rank, physical port)."""
        return {
            (side.rank, port.number): port.counters["xmit_bytes"]
            for side in self.sides
            for port in side.context.ports
        }
