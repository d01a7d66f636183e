"""WRITEs in batches over some queue pairs for some time: how many bytes arrived a second, and whether they are right.

Leans on connect and verbs.batch. The sender writes each batch with one call from an array of work requests; before a
slot's next batch its messages are stamped anew, so what lies at the receiver afterwards says which batch came last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdmakit.connect import ConnectedMesh, Joined
from rdmakit.device.lifetime import typed_refusal
from rdmakit.errors import BadArgument
from rdmakit.verbs.batch import SEND_WR, WC

__all__ = ["Lane", "Load", "Window", "drive", "lanes_of", "payload", "poison", "wrong_slots"]

_SIGNALLED, _SUCCESS = 2, 0  # IBV_SEND_SIGNALLED, IBV_WC_SUCCESS
_POISON = 0xA5
# enum ibv_wc_status: what may befall a WRITE.
_STATUS = {5: "WR_FLUSH_ERR", 9: "REM_INV_REQ_ERR", 10: "REM_ACCESS_ERR", 11: "REM_OP_ERR", 12: "RETRY_EXC_ERR",
           13: "RNR_RETRY_EXC_ERR"}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """`batch` WRITEs of `size` bytes a post, `depth` posts under way on each queue pair; counted for `seconds` after
    `warm_up` more, or until `most_bytes` are posted. A queue pair that is silent for `patience_s` is given up.
    `qp_bytes`, unless 0: what each queue pair carries in a phase, neither more nor less and however long it takes, all
    of it counted; how many bytes each port has then is the plan's affair alone.
    """

    size: int = 1 << 16
    batch: int = 16
    depth: int = 2
    seconds: float = 1.0
    warm_up: float = 0.3
    most_bytes: int = 1 << 37
    patience_s: float = 30.0
    qp_bytes: int = 0

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 8 or self.size > 1 << 30:
            raise BadArgument("no such message", value=self.size, rule="a multiple of 8, 8 … 2^30 bytes",
                              remedy="--size 65536")  # fmt: skip
        if not 1 <= self.batch <= 64 or not 1 <= self.depth <= 64:
            raise BadArgument("no such batches", value=f"{self.depth} of {self.batch}", rule="1 … 64 of 1 … 64",
                              remedy="--batch 16 --depth 2")  # fmt: skip
        if not 0 < self.seconds <= 600 or not 0 <= self.warm_up <= 60 or self.most_bytes < self.size * self.batch:
            raise BadArgument("no such measurement", value=f"{self.seconds} s after {self.warm_up} s, at most "
                              f"{self.most_bytes} B", rule="0 < seconds ≤ 600, 0 ≤ warm-up ≤ 60, a batch at least",
                              remedy="--seconds 1 --warm-up 0.3")  # fmt: skip
        if self.qp_bytes < 0 or self.qp_bytes % self.slot or self.qp_bytes > self.most_bytes:
            nearest = max(self.slot, min(self.qp_bytes, self.most_bytes) // self.slot * self.slot)
            raise BadArgument("no such amount for a queue pair", value=f"{self.qp_bytes} B",
                              rule=f"whole batches of {self.batch} x {self.size} = {self.slot} B, at most "
                              f"{self.most_bytes} B; 0: by time", remedy=f"--qp-bytes {nearest}")  # fmt: skip

    @property
    def slot(self) -> int:
        """Bytes of a batch."""
        return self.batch * self.size

    @property
    def region(self) -> int:
        """Bytes of memory that a queue pair writes from, and to."""
        return self.depth * self.slot


@dataclass
class Lane:
    """A queue pair at the sender. `posted` counts batches, `done` messages, both since the phase began."""

    path: int
    qp: Any
    cq: Any
    requests: list[np.ndarray[Any, Any]]
    stamps: list[np.ndarray[Any, Any]]
    posted: int = 0
    done: int = 0

    def post(self, batch: int) -> None:
        slot = self.posted % len(self.requests)
        self.stamps[slot][:] = _stamps(self.posted, batch)
        self.qp.post_send(self.requests[slot])
        self.posted += 1


@dataclass
class Window:
    """What a phase did. `arrived[path]`: bytes acknowledged in `seconds`; `posted[lane]`: batches in all.

    `empty`: the share of refills that found a queue pair with nothing under way, which waited for the poster.
    `failed[path]`: why its queue pairs broke.
    """

    arrived: list[int]
    posted: list[int]
    seconds: float = 0.0
    empty: float = 0.0
    failed: dict[int, str] = field(default_factory=dict)

    @property
    def gbs(self) -> float:
        """GB/s of payload, of all paths together."""
        return sum(self.arrived) / self.seconds / 1e9 if self.seconds else 0.0


def _stamps(number: int, batch: int) -> np.ndarray[Any, Any]:
    """The first word of each message of batch `number`; never 0 and never what poison is."""
    return np.arange(1 + number * batch, 1 + (number + 1) * batch, dtype=np.uint64)


def payload(load: Load, seed: int, phase: int, lane: int) -> np.ndarray[Any, Any]:
    """A queue pair's bytes in one phase, before stamps: the receiver makes them, too."""
    words = np.random.default_rng([seed, phase, lane]).integers(0, 1 << 63, load.region // 8, np.uint64)
    return words.view(np.uint8)


def raw(joined: Joined) -> tuple[Any, Any]:
    """What takes batches for a queue pair, and polls its send CQ. BadArgument where nothing does, NotAvailable for
    queues that the CPU does not reach."""
    provider: Any = joined.path.context._provider
    if not hasattr(provider, "batches"):
        raise BadArgument("no device of libibverbs's", value=joined.path.context.device.name,
                          rule="batches are posted by ibv_post_send, or written into rings of an mlx5 device",
                          remedy="rdmakit connectx -- …, rdmakit lab --host each -- …, or a real NIC")  # fmt: skip
    with typed_refusal("posting batches", device=joined.path.context.device.spec):
        qp, cq = provider.batches(joined.qp.qpn, joined.qp.send_cq.cqn)
    return qp, cq


def lanes_of(mesh: ConnectedMesh, peer: int, load: Load, memory: Any, lkey: Any, theirs: dict[str, Any]) -> list[Lane]:
    """All queue pairs to `peer`, each with a region of `memory` and the same one of the peer's.

    `lkey(path)`: this rank's key; `theirs`: what the peer's `Registered.told` was.
    """
    lanes = []
    words = memory.view(np.uint64)
    for number, (_, joined) in enumerate(sorted((place, j) for place, j in mesh.joined.items() if place[0] == peer)):
        qp, cq = raw(joined)
        path, first = mesh.paths.index(joined.path), number * load.region
        requests, stamps = [], []
        for slot in range(load.depth):
            offsets = first + slot * load.slot + load.size * np.arange(load.batch, dtype=np.uint64)
            rows = np.zeros(load.batch, SEND_WR)
            rows["flags"], rows["length"], rows["wr_id"] = _SIGNALLED, load.size, number
            rows["address"], rows["remote_address"] = memory.ctypes.data + offsets, theirs["address"] + offsets
            rows["lkey"], rows["rkey"] = lkey(joined.path), theirs["rkeys"][joined.peer_path]
            requests.append(rows)
            begin = (first + slot * load.slot) // 8
            stamps.append(words[begin : begin + load.slot // 8 : load.size // 8])
        lanes.append(Lane(path, qp, cq, requests, stamps))
    return lanes


def drive(lanes: Sequence[Lane], load: Load, paths: int, pause_s: float = 0.0) -> Window:
    """Keep every lane's queue pair filled for the time, or up to its bytes; then wait for what is under way.

    `pause_s`: rest after each look at all of them, where the same processors carry the packets.
    """
    found = np.zeros(load.batch * load.depth, WC)
    window = Window([0] * paths, [])
    # Batches, of all lanes and of each. What is bounded by bytes is not bounded by time.
    most = math.inf if load.qp_bytes else max(1, load.most_bytes // load.slot)
    each = load.qp_bytes // load.slot if load.qp_bytes else math.inf
    until = math.inf if load.qp_bytes else load.warm_up + load.seconds
    for lane in lanes:
        lane.posted = lane.done = 0
    working, refills, empty, posted = list(lanes), 0, 0, 0
    began = now = heard = time.perf_counter()
    opened, last, end = None, began, began + until
    while working:
        filling = now < end and posted < most
        for lane in working:
            count = lane.cq.poll(found)
            now = time.perf_counter()
            if count:
                heard = now
                bad = found["status"][:count] != _SUCCESS
                if bad.any():
                    window.failed.setdefault(lane.path, _why(int(found["status"][:count][bad][0])))
                    continue
                lane.done += count
                if opened is not None and now <= end:
                    window.arrived[lane.path] += count * load.size
                    last = now
            under_way = lane.posted - lane.done // load.batch
            if filling and lane.posted < each and under_way < load.depth:
                refills += bool(lane.posted)
                empty += bool(lane.posted) and lane.posted * load.batch == lane.done
                while under_way < load.depth and posted < most and lane.posted < each:
                    lane.post(load.batch)
                    under_way, posted = under_way + 1, posted + 1
        if opened is None and not load.qp_bytes and now - began >= load.warm_up:
            opened = last = now
        if now - heard > load.patience_s:
            silent = {lane.path for lane in working if lane.done < lane.posted * load.batch}
            window.failed.update(dict.fromkeys(silent, f"no completion for {load.patience_s:g} s"))
        working = [lane for lane in working if lane.path not in window.failed
                   and ((now < end and posted < most and lane.posted < each)
                        or lane.done < lane.posted * load.batch)]  # fmt: skip
        time.sleep(pause_s)
    # What came before the window opened is not in it, unless all was posted by then: then the whole phase is.
    if opened is None or last <= opened:
        window.arrived = [load.size * sum(lane.done for lane in lanes if lane.path == path) for path in range(paths)]
        opened, last = began, heard
    window.seconds, window.posted = max(last - opened, 1e-9), [lane.posted for lane in lanes]
    window.empty = empty / refills if refills else 0.0
    return window


def _why(status: int) -> str:
    return _STATUS.get(status, f"status {status}")


def poison(memory: np.ndarray[Any, Any]) -> None:
    """What no WRITE has written."""
    memory[:] = _POISON


def wrong_slots(
    memory: np.ndarray[Any, Any], load: Load, posted: Sequence[int], seed: int, phase: int, numbers: Sequence[int]
) -> list[str]:
    """At the receiver: which queue pair's bytes differ from what `posted[i]` batches of queue pair `numbers[i]` leave.

    A slot without a batch has to be as it was poisoned.
    """
    found = []
    for number, batches in zip(numbers, posted, strict=True):
        whole = payload(load, seed, phase, number)
        for slot in range(load.depth):
            begin = slot * load.slot
            expected = whole[begin : begin + load.slot]
            if slot < batches:
                last = slot + load.depth * ((batches - 1 - slot) // load.depth)
                expected.view(np.uint64)[:: load.size // 8] = _stamps(last, load.batch)
            else:
                expected[:] = _POISON
            seen = memory[number * load.region + begin :][: load.slot]
            if not np.array_equal(seen, expected):
                first = int(np.flatnonzero(seen != expected)[0])
                found.append(f"queue pair {number}, slot {slot}: byte {first} is {int(seen[first]):#x}, not "
                             f"{int(expected[first]):#x}")  # fmt: skip
    return found
