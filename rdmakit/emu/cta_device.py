"""What an HCA that is made of warps is told of its queue pairs: the PODs that `hca_serve` reads, for one device.

Leans on cta_layout and on the world that memory comes from. Everything here is written while no kernel runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device import QPState, Refused
from rdmakit.device.handle import LAYOUT_VERSION
from rdmakit.device.report import REPORT, Report
from rdmakit.emu.cta_layout import HCA_CQ, HCA_HANDLE, HCA_QP, KEY_ENTRY

if TYPE_CHECKING:
    from rdmakit.emu.world import World

__all__ = ["CtaDevice", "CtaQueuePair"]

_REGISTERS = 4096  # queue pairs of a device: they know where their registers lie, which therefore never move
_ENOMEM = 12
_SENDING = ("doorbells", "ignored", "send_wqes", "send_bbs", "atomics", "cqes", "errors", "flushed", "sent_bytes",
            "fetched_bytes")  # fmt: skip
_RECEIVING = ("receive_wqes", "receive_cqes", "receive_errors", "receive_flushed", "not_ready")
COUNTS = _SENDING + _RECEIVING
# What a reset forgets: everything that is changed while serving, but for the counts.
_PROGRESS = ("turn", "state", "producer", "completed", "events", "respond", "receive_events", "rq_consumed")


@dataclass
class CtaQueuePair:
    """One queue pair's place in the arrays, and what the POD cannot say by itself."""

    index: int
    send_cqn: int
    recv_cqn: int
    memory: tuple[Any, ...]
    remote: tuple[int, int] | None = None  # device and number of the queue pair that it is connected to
    attributes: dict[str, Any] = field(default_factory=dict)  # as last set by modify


class CtaDevice:
    """Arrays of one device: queue pairs, registers, CQs, keys."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.registers = world.allocate(_REGISTERS, np.uint64)
        self.heard = world.allocate(_REGISTERS, np.uint64)
        self.attend = world.allocate(_REGISTERS, np.uint32)
        self.pods = world.allocate(16, HCA_QP)
        self.keys = world.allocate(64, KEY_ENTRY)
        self.cqs: dict[int, np.ndarray[Any, Any]] = {}
        self.queue_pairs: dict[int, CtaQueuePair] = {}
        self.gone = dict.fromkeys(COUNTS, 0)  # counts of queue pairs that were destroyed
        self.handle = world.allocate(1, HCA_HANDLE)
        self.report = Report(world.allocate(REPORT.itemsize))
        self._used = 0
        self._free: list[int] = []

    def _longer(self, array: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
        found = self.world.allocate(count, array.dtype)
        found[: len(array)] = array
        return found

    # ---- keys
    def set_key(self, key: int, address: int, nbytes: int, access: int, pd: int) -> None:
        """A region that has been registered."""
        index = key >> 8
        if index >= len(self.keys):
            self.keys = self._longer(self.keys, max(2 * len(self.keys), index + 1))
        self.keys[index] = (address, nbytes, address, key, access & 0xF, pd, 1)

    def drop_key(self, key: int) -> None:
        """A region that is registered no longer."""
        self.keys[key >> 8]["state"] = 0

    # ---- completion queues
    def add_cq(
        self, cqn: int, ring: Any, dbrec: Any, log_entries: int, cqe_bytes: int, flags: tuple[bool, bool]
    ) -> None:
        """`flags`: collapsed, overrun_ignore."""
        pod = self.world.allocate(1, HCA_CQ)
        pod["entries"], pod["dbrec"], pod["cqn"] = ring.ctypes.data, dbrec.ctypes.data, cqn
        pod["log_entries"], pod["log_stride"] = log_entries, cqe_bytes.bit_length() - 1
        pod["collapsed"], pod["overrun_ignore"] = flags
        self.cqs[cqn] = pod

    # ---- queue pairs
    def add_qp(self, qpn: int, send_cqn: int, recv_cqn: int, memory: tuple[Any, ...]) -> CtaQueuePair:
        """A place for one; the caller fills in its POD. `memory`: send ring, receive ring or None, doorbell record."""
        if not self._free and self._used == _REGISTERS:
            raise Refused(_ENOMEM, f"all {_REGISTERS} registers of this device are in use")
        if self._free:
            index = self._free.pop()
        else:
            index, self._used = self._used, self._used + 1
            if self._used > len(self.pods):
                self.pods = self._longer(self.pods, 2 * len(self.pods))
        self.pods[index] = np.zeros((), HCA_QP)
        self.registers[index] = self.heard[index] = self.attend[index] = 0
        made = self.queue_pairs[qpn] = CtaQueuePair(index, send_cqn, recv_cqn, memory)
        sq, rq, dbrec = memory
        pod = self.pods[index]
        pod["layout_version"], pod["qpn"] = LAYOUT_VERSION, qpn
        pod["sq"], pod["dbrec"] = sq.ctypes.data, dbrec.ctypes.data
        pod["rq"] = 0 if rq is None else rq.ctypes.data
        for cqn in {send_cqn, recv_cqn}:
            users = [q for q in self.queue_pairs.values() if cqn in (q.send_cqn, q.recv_cqn)]
            # The peer's server completes receives, this one flushes them: both may be at it.
            receives = any(q.recv_cqn == cqn and q.memory[1] is not None for q in users)
            self.cqs[cqn]["shared"] = len(users) > 1 or receives
        return made

    def remove_qp(self, qpn: int) -> None:
        """Its place is free; its counts stay."""
        gone = self.queue_pairs.pop(qpn)
        pod = self.pods[gone.index]
        for name in COUNTS:
            self.gone[name] += int(pod[name])
        pod["state"] = QPState.RESET
        self._free.append(gone.index)

    def pod(self, qpn: int) -> Any:
        """The POD of a queue pair, not a copy."""
        return self.pods[self.queue_pairs[qpn].index]

    def reset_qp(self, qpn: int) -> None:
        """Back to index 0, as after RESET; a doorbell of before is not heard."""
        index = self.queue_pairs[qpn].index
        for name in _PROGRESS:
            self.pods[index][name] = 0
        self.registers[index] = self.heard[index] = self.attend[index] = 0

    def counts(self) -> dict[str, int]:
        """Sums over all queue pairs there are and were."""
        used = self.pods[: self._used]
        live = [q.index for q in self.queue_pairs.values()]
        return {name: self.gone[name] + int(used[name][live].sum()) for name in COUNTS}

    # ---- before a run
    def address_of(self, qpn: int) -> int:
        """Of a queue pair's POD; 0 if there is none of that number."""
        found = self.queue_pairs.get(qpn)
        return 0 if found is None else int(self.pods.ctypes.data) + found.index * HCA_QP.itemsize

    def has_work(self) -> bool:
        """A doorbell that nobody has heard, or a queue pair that wants to be looked at."""
        used = self._used
        return bool((self.registers[:used] != self.heard[:used]).any() or self.attend[:used].any())

    def connect_pods(self, devices: list[CtaDevice], one_gpu: list[bool]) -> None:
        """Addresses that may have moved: keys, CQs, peers. `one_gpu`: with which devices this one shares its GPU."""
        for queue_pair in self.queue_pairs.values():
            pod = self.pods[queue_pair.index]
            pod["attend"] = int(self.attend.ctypes.data) + 4 * queue_pair.index
            pod["send_cq"] = self.cqs[queue_pair.send_cqn].ctypes.data
            pod["recv_cq"] = self.cqs[queue_pair.recv_cqn].ctypes.data
            pod["keys"] = (self.keys.ctypes.data, len(self.keys))
            pod["peer"] = pod["same_gpu"] = 0
            if queue_pair.remote is not None:
                device, qpn = devices[queue_pair.remote[0]], queue_pair.remote[1]
                pod["peer"] = device.address_of(qpn)
                pod["same_gpu"] = one_gpu[queue_pair.remote[0]]
                pod["peer_keys"] = (device.keys.ctypes.data, len(device.keys))

    def describe(self, left: np.ndarray[Any, Any], leavers: int) -> np.ndarray[Any, Any]:
        """The `HcaHandle` for the next launch."""
        handle = self.handle
        handle["layout_version"], handle["count"] = LAYOUT_VERSION, self._used
        handle["qps"], handle["registers"] = self.pods.ctypes.data, self.registers.ctypes.data
        handle["heard"], handle["attend"] = self.heard.ctypes.data, self.attend.ctypes.data
        handle["left"], handle["leavers"] = left.ctypes.data, leavers
        handle["watch"]["report"] = self.report.address
        return handle
