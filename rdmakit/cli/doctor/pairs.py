"""All pairs of ranks at once: which reach each other, through which port, proved by a WRITE that the receiver checks.

Leans on device and meeting. A *rail* is a port by its place in a rank's list; rail k of one rank is connected to rail k
of the other. Every stage ends for all ranks, whatever fails on one: what fails is an answer. What is written fills
packets of the largest MTU, since a path that drops large ones lets small ones pass.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rdmakit.errors import RdmakitError

__all__ = ["Place", "Reach", "Unreached", "reach"]

_PATIENCE_S = 10.0
_WORDS = 1024  # of 8 bytes: two packets of 4096 B
# 4.096 µs × 2^14 a try, four tries: a pair that is cut off is known in a second, and the others are not held up.
_TIMERS = {"timeout": 14, "retry_cnt": 3, "rnr_retry": 0}
_MEANING = {
    "RETRY_EXC_ERR": "no acknowledgement: cabling, VLAN, routes, or MTU between these ports",
    "REM_ACCESS_ERR": "the peer refused the key",
    "WR_FLUSH_ERR": "the queue pair broke before",
}

_BLOCK = 8 * _WORDS
_Offer = dict[int, tuple[str, int, int]]


@dataclass(frozen=True)
class Place:
    """One rail of a rank. `name`: mlx5_0/1 and so on."""

    name: str
    gid: str
    mtu: int
    link_layer: str


@dataclass(frozen=True)
class Unreached:
    """A WRITE of rank `source` to rank `target` by rail `rail` (from 1) that did not arrive, and why."""

    source: int
    target: int
    rail: int
    why: str


@dataclass(frozen=True)
class Reach:
    """The same on all ranks. `places[rank]`: its rails; `refusals[rank]`: why it has none, or ""."""

    places: tuple[tuple[Place, ...], ...]
    refusals: tuple[str, ...]
    unreached: tuple[Unreached, ...]

    def rails(self, a: int, b: int) -> int:
        """How many rails two ranks have in common."""
        return min(len(self.places[a]), len(self.places[b]))

    def reached(self, source: int, target: int) -> list[int]:
        """The rails, from 1, by which a WRITE arrived."""
        failed = {u.rail for u in self.unreached if (u.source, u.target) == (source, target)}
        return [rail for rail in range(1, self.rails(source, target) + 1) if rail not in failed]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        tried = [self.rails(a, b) for a in range(len(self.places)) for b in range(len(self.places)) if a != b]
        return {
            "places": [[asdict(place) for place in places] for places in self.places],
            "refusals": list(self.refusals),
            "tried": sum(tried),
            "unreached": [asdict(each) for each in self.unreached],
        }


def _why(error: RdmakitError) -> str:
    return f"{error.what}: {error.rule}" if error.rule else error.what


def token(source: int, target: int, rail: int) -> int:
    """What is written: different for each, and never what an empty landing slot has.

    >>> token(0, 1, 0) != token(1, 0, 0)
    True
    """
    return 0xD0C7 << 48 | source << 32 | target << 16 | rail + 1


class _End:
    """One rank's side: an opened device for each rail, a queue pair to each peer's like rail."""

    def __init__(self, rank: int, rails: list[tuple[str, int]], asked: Any, keep: ExitStack) -> None:
        self.rank, self.refused = rank, ""
        self.rails: list[tuple[Any, int]] = []
        self.qps: dict[tuple[int, int], Any] = {}
        self.slots: dict[int, Any] = {}  # rail → where peers write, a block each
        self.blocks: dict[int, Any] = {}  # rail → what is written to them
        self.failed: dict[tuple[int, int], str] = {}
        contexts: dict[str, Any] = {}
        try:
            for name, port in rails:
                if name not in contexts:
                    contexts[name] = keep.enter_context(asked.open(name))
                self.rails.append((contexts[name], port))
        except RdmakitError as error:
            self.refused, self.rails = _why(error), []

    def places(self) -> tuple[tuple[Place, ...], str]:
        infos = [(context, context.ib_port(port)) for context, port in self.rails]
        return tuple(
            Place(f"{context.device.name}/{info.ib_port}", info.gid, info.mtu, info.link_layer)
            for context, info in infos
        ), self.refused

    def offer(self, common: list[int]) -> list[_Offer]:
        """For each peer: rail → endpoint, address and rkey of the slot where it writes. `common[peer]`: rails."""
        offers: list[_Offer] = [{} for _ in common]
        for rail, (context, port) in enumerate(self.rails):
            peers = [peer for peer, rails in enumerate(common) if rails > rail and peer != self.rank]
            if not peers:
                continue
            try:
                pd, cq = context.alloc_pd(), context.create_cq(max(16, 2 * len(peers)))
                slots = pd.register(np.zeros((len(common), _WORDS), np.uint64))
                words = [token(self.rank, peer, rail) for peer in range(len(common))]
                self.blocks[rail] = pd.register(np.repeat(np.array(words, np.uint64)[:, None], _WORDS, axis=1))
                for peer in peers:
                    qp = self.qps[peer, rail] = pd.create_qp(cq, sq_wqebbs=4)
                    endpoint = qp.endpoint(port).to_json()
                    offers[peer][rail] = endpoint, slots.address + _BLOCK * peer, slots.rkey
            except RdmakitError as error:
                self.failed.update({(peer, rail): _why(error) for peer in peers})
            else:
                self.slots[rail] = slots
        return offers

    def connect(self, offers: list[_Offer]) -> None:
        """`offers[peer]`: what that peer has for this rank."""
        for (peer, rail), qp in self.qps.items():
            theirs = offers[peer].get(rail)
            if theirs is None:
                self.failed[peer, rail] = "the peer made no queue pair"
                continue
            try:
                qp.connect(theirs[0], port=self.rails[rail][1], **_TIMERS)
            except RdmakitError as error:
                self.failed[peer, rail] = f"not connected: {error.remedy or _why(error)}"

    def write(self, offers: list[_Offer]) -> None:
        """Post to all, then wait for all."""
        pending: dict[Any, dict[int, tuple[int, int]]] = {}
        for (peer, rail), qp in self.qps.items():
            if (peer, rail) in self.failed:
                continue
            _, address, rkey = offers[peer][rail]
            try:
                qp.post_write(self.blocks[rail][_BLOCK * peer : _BLOCK * (peer + 1)], (address, rkey))
            except RdmakitError as error:
                self.failed[peer, rail] = _why(error)
            else:
                pending.setdefault(qp.send_cq, {})[qp.qpn] = (peer, rail)
        deadline = time.monotonic() + _PATIENCE_S
        for cq, waiting in pending.items():
            self._collect(cq, waiting, deadline)

    def _collect(self, cq: Any, waiting: dict[int, tuple[int, int]], deadline: float) -> None:
        while waiting:
            try:
                done = cq.wait(timeout=max(0.01, deadline - time.monotonic()), check=False)
            except RdmakitError:
                self.failed.update(dict.fromkeys(waiting.values(), f"no completion in {_PATIENCE_S:g} s"))
                return
            for completion in done:
                key = waiting.pop(completion.qpn, None)
                if key is not None and completion.syndrome:
                    name = completion.status.name
                    self.failed[key] = f"{name}: {_MEANING.get(name, 'see man ibv_poll_cq')}"

    def received(self, common: list[int]) -> list[tuple[int, int]]:
        """(source, rail) of slots that do not hold what the source wrote."""
        wrong = []
        for rail, slots in self.slots.items():
            found = slots.bytes.view(np.uint64).reshape(-1, _WORDS)
            for source, rails in enumerate(common):
                if source != self.rank and rails > rail and (found[source] != token(source, self.rank, rail)).any():
                    wrong.append((source, rail))
        return wrong


def reach(meeting: Any, rails: list[tuple[str, int]], asked: Any) -> Reach:
    """Connect every pair of ranks by every rail that both have, and write. Collective; `meeting`: a Meeting.

    `rails`: (device, port) of this rank; `asked.open(name)` opens one.
    """
    with ExitStack() as keep:
        end = _End(meeting.rank, rails, asked, keep)
        told = meeting.all_gather(end.places())
        places = tuple(tuple(each[0]) for each in told)
        common = [min(len(places[meeting.rank]), len(theirs)) for theirs in places]
        offers = meeting.exchange(end.offer(common))
        end.connect(offers)
        meeting.barrier()  # nobody writes to a queue pair that is not there yet
        end.write(offers)
        meeting.barrier()  # nobody looks before everybody has written
        answers = meeting.all_gather((end.failed, end.received(common)))
        for qp in end.qps.values():
            qp.close()
    lost = {}
    for target, (_, wrong) in enumerate(answers):
        lost.update({(source, target, rail): "completed, and the bytes are not there" for source, rail in wrong})
    for source, (failed, _) in enumerate(answers):
        lost.update({(source, target, rail): why for (target, rail), why in failed.items()})
    unreached = tuple(Unreached(source, target, rail + 1, lost[source, target, rail])
                      for source, target, rail in sorted(lost))  # fmt: skip
    return Reach(places, tuple(each[1] for each in told), unreached)
