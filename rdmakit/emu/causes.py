"""Who is late when a world hangs: what each wait waits for in turn, back to the first in the chain.

Leans on device (what a queue pair says). A wait on a queue pair is for its own NIC as long as something that
was posted is not complete, else for the peer; a wait at a barrier is for those of its block that wait elsewhere. Who
waits for nobody who waits stands at the beginning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rdmakit.device.queue_record import QueueRecord, who_is_late

if TYPE_CHECKING:
    from rdmakit.emu.hang import Wait
    from rdmakit.emu.world import World

__all__ = ["explain"]

_WAITS = "waits"


def explain(waits: list[Wait], world: World) -> list[Wait]:
    """The same waits with port, last WQE and CQE, `late` and `depth`: how many other waits stand before each."""
    return _Causes(waits, world).told()


class _Causes:
    def __init__(self, waits: list[Wait], world: World) -> None:
        self.waits, self.world = waits, world
        self.alike: dict[tuple[Any, ...], list[Wait]] = {}
        for wait in waits:
            self.alike.setdefault(self._key(wait), []).append(wait)
        self._records: dict[tuple[int, int], tuple[QueueRecord | None, QueueRecord | None]] = {}
        self._depths: dict[tuple[Any, ...], int | None] = {}

    @staticmethod
    def _key(wait: Wait) -> tuple[Any, ...]:
        block = None if wait.state == _WAITS else wait.block
        return wait.rank, wait.kernel, wait.state, wait.what, wait.qpn, wait.peer, wait.channel, block

    def told(self) -> list[Wait]:
        told: dict[tuple[Any, ...], dict[str, Any]] = {}
        for key, alike in self.alike.items():
            first = alike[0]
            own, _ = self._queues(first)
            told[key] = {"late": self._late(first), "depth": self._depth(key) or 0}
            if own is not None:
                told[key].update(port=own.port, last_wqe=own.last_wqe, last_cqe=own.last_cqe)
        return [replace(wait, **told[self._key(wait)]) for wait in self.waits]

    def _queues(self, wait: Wait) -> tuple[QueueRecord | None, QueueRecord | None]:
        """This end's queue pair and the other's, as far as they can be found."""
        key = wait.rank, wait.qpn
        if wait.qpn and key not in self._records:
            qp = self.world._queue_pair(*key)
            peer = None if qp is None else self.world._peer_of(qp)
            self._records[key] = (
                None if qp is None else QueueRecord.of(qp),
                None if peer is None else QueueRecord.of(peer),
            )
        return self._records.get(key, (None, None))

    def _late(self, wait: Wait) -> str:
        if wait.state != _WAITS:
            return "" if wait.state == "dead" else f"rank {wait.rank} itself: others of its block, which wait elsewhere"
        if not wait.qpn:
            return ""
        own, theirs = self._queues(wait)
        late = who_is_late(wait.rank, wait.peer, own, theirs)
        if not late.startswith(f"rank {wait.peer}") or wait.peer == wait.rank:
            return late
        there = [w for w in self.waits if w.rank == wait.peer]
        if not there:
            return f"{late}, and no kernel of it runs"
        first = min(there, key=lambda w: w.state != _WAITS)
        return f"{late}; it {first.state} for {first.what}" if first.state == _WAITS else f"{late}; it is {first.state}"

    def _before(self, key: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Waits that have to end before this one can."""
        wait = self.alike[key][0]
        if wait.state != _WAITS:
            return [
                k
                for k, w in self._others(key)
                if w.rank == wait.rank and w.state == _WAITS and any(one.block == wait.block for one in self.alike[k])
            ]
        own, _ = self._queues(wait)
        if own is not None and own.reserved > own.ready:  # one of its own threads has the turn
            return [k for k, w in self._others(key) if w.rank == wait.rank and "turn to publish" not in w.what]
        if not wait.qpn or wait.peer == wait.rank or (own is not None and own.waits_for):
            return []
        there = [(k, w) for k, w in self._others(key) if w.rank == wait.peer]
        toward = [k for k, w in there if w.qpn and (w.peer, w.channel) == (wait.rank, wait.channel)]
        return toward or [k for k, _ in there]

    def _others(self, key: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], Wait]]:
        return [(k, alike[0]) for k, alike in self.alike.items() if k != key]

    def _depth(self, key: tuple[Any, ...]) -> int | None:
        """0 for the first of a chain; None on the way round a circle, in which all are first."""
        if key not in self._depths:
            self._depths[key] = None
            before = [depth for depth in map(self._depth, self._before(key)) if depth is not None]
            self._depths[key] = 1 + min(before) if before else 0
        return self._depths[key]
