"""All queue pairs of a rank to its peers, made and connected at once: one exchange for all of them, each step timed.

Leans on paths, route, rendezvous and device. Ranks look at what they were told before they make anything, and stop
together: who finds that something does not fit says so to the others, none of whom waits for what cannot come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rdmakit.connect.broken import first_error
from rdmakit.connect.paths import Path
from rdmakit.connect.rendezvous import Rendezvous
from rdmakit.connect.route import Route, Steer, by_turns, label_of_source_port
from rdmakit.connect.terms import check_terms, terms_of
from rdmakit.device import QP, Endpoint, Port
from rdmakit.errors import BadArgument, BadState, CompletionError, NotAvailable, PeerMismatch, RdmakitError
from rdmakit.layout import wc_status

__all__ = ["ConnectedMesh", "Joined", "connect_mesh"]


@dataclass(frozen=True)
class Joined:
    """One queue pair: number `index` of those to `peer`; it leaves by `path`, which `how` achieved, and arrives on path
    number `peer_path` (from 0) of the peer.
    """

    peer: int
    index: int
    qp: QP
    path: Path
    peer_path: int
    route: Route
    how: str


@dataclass
class ConnectedMesh:
    """What `connect_mesh` has made. `told[rank]` is what that rank had to tell; `seconds` how long each step took."""

    rank: int
    size: int
    paths: list[Path]
    joined: dict[tuple[int, int], Joined] = field(default_factory=dict)
    told: list[Any] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _before: list[dict[str, int]] = field(default_factory=list)
    _posted: list[int] = field(default_factory=list)

    def __getitem__(self, place: tuple[int, int]) -> QP:
        """The queue pair number `index` to `peer`."""
        if place not in self.joined:
            raise BadArgument("no such queue pair", value=place, rule=f"(peer, index) of {len(self.joined)} of rank "
                              f"{self.rank}", remedy="see ConnectedMesh.joined")  # fmt: skip
        return self.joined[place].qp

    def __len__(self) -> int:
        return len(self.joined)

    @property
    def qps_per_second(self) -> float:
        """Queue pairs that this rank made, exchanged and brought to RTS in a second, waiting for others included."""
        taken = sum(self.seconds[step] for step in ("create", "exchange", "connect"))
        return len(self.joined) / taken if taken else 0.0

    def by_path(self) -> list[list[Joined]]:
        """The queue pairs that leave by each path."""
        return [[j for j in self.joined.values() if j.path is path] for path in self.paths]

    def table(self) -> str:
        """The plan as it was executed: a line a path."""
        lines = [f"rank {self.rank}: {len(self)} queue pairs to {len({p for p, _ in self.joined})} peers, "
                 f"{self.qps_per_second:.0f} a second"]  # fmt: skip
        for number, (path, leaving) in enumerate(zip(self.paths, self.by_path(), strict=True), 1):
            how = ", ".join(sorted({j.how for j in leaving}))
            lines.append(f"  port {number} = {path}: {len(leaving)} queue pairs" + (f", by {how}" if how else ""))
        return "\n".join(lines)

    # ---- what the ports count
    def count_from_here(self) -> None:
        """`sent_bytes` and `posted_blocks` begin at 0 now."""
        self._before = [dict(_counters(path)) for path in self.paths]
        self._posted = [sum(j.qp.posted for j in leaving) for leaving in self.by_path()]

    def sent_bytes(self) -> list[int]:
        """Bytes that each path's port has sent since `count_from_here`: all traffic; 0 where no counter is its own.

        So it is with a bond, which shows both ports as one.
        """
        ports = [(path.context, _port(path).number) for path in self.paths]
        own = [ports.count(port) == 1 for port in ports]
        now = [_counters(path)["xmit_bytes"] if alone else 0 for path, alone in zip(self.paths, own, strict=True)]
        before = self._before or [{} for _ in now]
        return [max(each - old.get("xmit_bytes", 0), 0) for each, old in zip(now, before, strict=True)]

    def posted_blocks(self) -> list[int]:
        """Basic blocks of WQEs posted for each path since then, by host or kernels: known where no port counts."""
        now = [sum(j.qp.posted for j in leaving) for leaving in self.by_path()]
        return [each - old for each, old in zip(now, self._posted, strict=True)]

    def moved(self) -> tuple[list[int], str]:
        """What each path has moved since then, and in what: bytes where all ports count, else what was posted."""
        sent = self.sent_bytes()
        return (sent, "bytes sent") if all(sent) else (self.posted_blocks(), "basic blocks posted")

    def check_balance(self, most: float = 1.15) -> list[int]:
        """`moved`; BadState when the busiest path moved more than `most` times what the idlest did, or one nothing."""
        counts, unit = self.moved()
        if len(counts) > 1 and (min(counts) <= 0 or max(counts) > most * min(counts)):
            what = ", ".join(f"{path}: {count}" for path, count in zip(self.paths, counts, strict=True))
            raise BadState("ports are not used alike", value=f"{unit} {what}", rule=f"busiest ≤ {most:g} × idlest",
                           remedy="see table(): which queue pairs leave where; a bond in hash mode needs source ports",
                           rank=self.rank)  # fmt: skip
        return counts

    def broken(self) -> CompletionError | None:
        """The first queue pair that failed by itself, with the way that it takes; None while all are well."""
        for joined in self.joined.values():
            found = first_error(joined.qp)
            if found is not None:
                up = "up" if _port(joined.path).up else "down"
                return CompletionError(
                    f"rank {self.rank} cannot reach rank {joined.peer} by queue pair {joined.index}", syndrome=found[0],
                    wc_status=wc_status(found[0]).name, qpn=joined.qp.qpn, wqe_index=found[1],
                    rule=f"it leaves by {joined.path}, which is {up}",
                    remedy="mend the path or the peer, then join all ranks anew",
                )  # fmt: skip
        return None

    def close(self) -> None:
        """Give all queue pairs back, with their CQs."""
        for joined in self.joined.values():
            cqs = {joined.qp.send_cq, joined.qp.recv_cq}
            joined.qp.close()
            for cq in cqs:
                cq.close()
        self.joined.clear()


def _port(path: Path) -> Port:
    """The one whose counters and link it is: of a bond that shows one port, that."""
    return path.context.port(path.physical if len(path.context.ports) > 1 else path.ib_port)


def _counters(path: Path) -> dict[str, int]:
    return _port(path).counters


def connect_mesh(
    rendezvous: Rendezvous, paths: Sequence[Path], *, qps: int, peers: Collection[int] | None = None,
    steer: Steer | None = None, tell: Any = None, sq_wqebbs: int = 128, rq_wqes: int = 0, mtu: int | None = None,
    attributes: dict[str, Any] | None = None, options: dict[str, Any] | None = None,
) -> ConnectedMesh:  # fmt: skip
    """Join this rank to `peers` (all others by default) by `qps` queue pairs each, in RTS. Collective.

    `paths`: this rank's ways out (`open_paths`), as many as every peer has. `steer(rank, peer, index)`: which of them,
    counted from 1, and which UDP source port; by default ports in turn. `tell`: anything that values may be; every
    rank's is in `told` afterwards. Each queue pair has a CQ of its own, as device handles need. `mtu`: bytes, by
    default the smaller of both ends' ports. `attributes` are those of `QP.connect`, `options` of `PD.create_qp`.

    PeerMismatch for numbers, MTUs, GIDs and link layers that do not fit, at all ranks; BadState where another rank
    failed; RankMissing for one that does not come.
    """
    size, rank = rendezvous.size, rendezvous.rank
    wanted = sorted(set(range(size)) - {rank} if peers is None else set(peers))
    if any(not 0 <= peer < size or peer == rank for peer in wanted) or not isinstance(qps, int) or qps < 1:
        raise BadArgument("no such queue pairs", value=f"{qps} to ranks {wanted}", rule=f"at least 1, to ranks of "
                          f"0 … {size - 1} other than {rank}", remedy="leave peers out for all others")  # fmt: skip
    if not paths:
        raise BadArgument("no way out", value=[], rule="one path at least", remedy="open_paths([…])")
    mesh = ConnectedMesh(rank, size, list(paths))
    steer = by_turns(len(paths)) if steer is None else steer

    with _timed(mesh, "meet"):
        terms = rendezvous.all_gather({**terms_of(paths, qps, wanted, mtu), "tell": tell})
        mesh.told = [each.pop("tell") for each in terms]
        _together(rendezvous, lambda: check_terms(rank, terms, steer))
    made: dict[tuple[int, int], QP] = {}
    places = [(peer, index) for peer in wanted for index in range(qps)]
    routes = {place: steer(rank, *place) for place in places}

    def create() -> None:
        for place in places:
            path = paths[routes[place].port - 1]
            cq = path.context.create_cq(sq_wqebbs)
            recv_cq = path.context.create_cq(rq_wqes) if rq_wqes else None
            made[place] = path.pd.create_qp(cq, recv_cq, sq_wqebbs=sq_wqebbs, rq_wqes=rq_wqes, **(options or {}))

    with _timed(mesh, "create"):
        _together(rendezvous, create)
    with _timed(mesh, "exchange"):
        own = [[*place, made[place].endpoint(paths[routes[place].port - 1].ib_port).to_json()] for place in places]
        theirs = {
            (peer, index): Endpoint.from_json(text)
            for peer, rows in enumerate(rendezvous.all_gather(own))
            for to, index, text in rows
            if to == rank
        }

    def connect() -> None:
        for place in places:
            path, route = paths[routes[place].port - 1], routes[place]
            how = _bring_up(made[place], theirs[place], path, route, len(paths), mtu, attributes or {})
            there = steer(place[0], rank, place[1]).port - 1
            mesh.joined[place] = Joined(*place, made[place], path, there, route, how)

    with _timed(mesh, "connect"):
        _together(rendezvous, connect)  # and nobody sends before all can receive
    mesh.count_from_here()
    return mesh


@contextmanager
def _timed(mesh: ConnectedMesh, step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    mesh.seconds[step] = time.perf_counter() - began


def _together(rendezvous: Rendezvous, work: Callable[[], None]) -> None:
    """Do it; when it fails anywhere, it fails everywhere, and who failed is named."""
    failure: RdmakitError | None = None
    try:
        work()
    except RdmakitError as error:
        failure = error
    told = rendezvous.all_gather(None if failure is None else [type(failure).__name__, str(failure)])
    if failure is not None:
        raise failure
    for rank, said in enumerate(told):
        if said is not None:
            kind = PeerMismatch if said[0] == PeerMismatch.__name__ else BadState
            raise kind(f"rank {rank} cannot connect", value=f"{said[0]}: {said[1]}", rule="all ranks or none",
                       remedy=f"mend rank {rank}, then start all again")  # fmt: skip


def _bring_up(
    qp: QP, remote: Endpoint, path: Path, route: Route, count: int, mtu: int | None, attributes: dict[str, Any]
) -> str:
    """Connect, and let it leave as the route says; how that was done, in words."""
    given = dict(attributes)
    roce = path.context.ib_port(path.ib_port).link_layer != "InfiniBand"
    if route.source_port and roce:
        given["flow_label"] = label_of_source_port(route.source_port)
    qp.connect(remote, port=path.ib_port, mtu=mtu, **given)
    ways = []
    if path.lag_port:
        ways.append(_choose_lag_port(qp, path, route))
    elif count > 1:
        alone = len(path.context.device.ports) == 1
        ways.append("a device for each port" if alone else "the device's port")
    if route.source_port and roce:
        if qp.udp_sport == route.source_port:
            ways.append("flow label")
        else:
            qp.udp_sport = route.source_port
            ways.append("UDP source port")
    return " and ".join(ways)


def _choose_lag_port(qp: QP, path: Path, route: Route) -> str:
    try:
        qp.lag_port = path.lag_port
    except NotAvailable as refused:  # a bond that hashes (providers/mlx5/mlx5.c: EOPNOTSUPP)
        if not route.source_port:
            raise NotAvailable(
                f"{path} cannot be chosen", value=f"QP {qp.qpn:#x}", rule=refused.rule or str(refused),
                remedy="steer by UDP source ports, as `rdmakit plan` lists them, or set the bond's "
                       "lag_port_select_mode to queue_affinity",
            ) from None  # fmt: skip
        return "the bond's hash"
    return "LAG affinity"
