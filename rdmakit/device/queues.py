"""The host's side of a QP's two rings: where the next WQE goes, when there is room, how the doorbell is rung.

Leans on handle (SqState), layout and errors. Source: rdma-core `providers/mlx5/qp.c` (mlx5_wq_overflow,
post_send_db, mlx5_post_recv). The send ring's indices live in the `SqState` that kernels use, so host and
kernels can take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.device.handle import SQ_STATE
from rdmakit.device.provider import Provider, QpQueues
from rdmakit.device.queue_record import nearest
from rdmakit.errors import QueueFull
from rdmakit.layout import DS_BYTES, RCV_DBR, SEND_WQE_BB, SND_DBR

__all__ = ["ReceiveQueue", "SendQueue"]


class SendQueue:
    """Send ring of `size` basic blocks of 64 bytes. Indices count basic blocks and never wrap."""

    def __init__(self, queues: QpQueues, provider: Provider, name: str) -> None:
        self.ring = queues.sq
        self.size = self.ring.nbytes // SEND_WQE_BB
        self._queues = queues
        self._dbrec = queues.dbrec.view(">u4")
        self._provider = provider
        self._name = name
        self.state_memory = provider.memory(SQ_STATE.itemsize, f"SqState of {name}")
        self.state = self.state_memory.view(SQ_STATE)[0]
        self._last = b""
        self._wr_ids: dict[int, Any] = {}

    @property
    def posted(self) -> int:
        """Index of the next basic block."""
        return int(self.state["reserved"])

    @property
    def completed(self) -> int:
        """Basic blocks below this index are free again."""
        return int(self.state["completed"])

    def post(self, build: Callable[[int], bytes], wr_id: Any) -> int:
        """Write the WQE that `build(index)` makes; returns its index. QueueFull when it does not fit."""
        index = self.posted
        wqe = build(index)
        blocks = -(-len(wqe) // SEND_WQE_BB)
        if index + blocks - self.completed > self.size:
            raise QueueFull(
                f"send queue of {self._name} is full",
                value=blocks,
                rule=f"posted − completed + new ≤ {self.size} basic blocks",
                remedy="poll its CQ; slots are freed by the completions of signalled WQEs only",
                posted=index,
                completed=self.completed,
            )
        begin = index % self.size * SEND_WQE_BB
        head = min(len(wqe), self.ring.nbytes - begin)
        source = np.frombuffer(wqe, np.uint8)
        self.ring[begin : begin + head] = source[:head]
        self.ring[: len(wqe) - head] = source[head:]
        self._last = wqe[:8]
        if wr_id is not None:
            self._wr_ids[index] = wr_id
        self.state["reserved"] = self.state["ready"] = index + blocks
        return index

    def bell(self) -> None:
        """Record, then register with the last WQE's first 8 bytes, as libmlx5; nothing new: nothing."""
        posted = self.posted
        if posted == int(self.state["rung"]):
            return
        self._provider.order()
        self._dbrec[SND_DBR] = posted & 0xFFFF
        self.state["rung"] = posted
        self.state["doorbells"] += 1
        self._provider.ring(self._queues.doorbell, int.from_bytes(self._last, sys.byteorder))

    def wqe_at(self, index: int) -> bytes:
        """The WQE that starts at `index`, whole basic blocks, as it stands in the ring now."""
        begin = index % self.size * SEND_WQE_BB
        size = max(1, int(self.ring[begin + 7]) & 0x3F) * DS_BYTES
        size = -(-size // SEND_WQE_BB) * SEND_WQE_BB
        head = self.ring[begin : begin + size].tobytes()
        return head + self.ring[: size - len(head)].tobytes()

    def done(self, counter: int) -> tuple[int, bytes, Any]:
        """A CQE names the WQE at `counter` (16 bits): index, bytes, wr_id. It and all before are free."""
        index = nearest(counter, self.completed)
        wqe = self.wqe_at(index)
        self.state["completed"] = max(self.completed, min(index + len(wqe) // SEND_WQE_BB, self.posted))
        wr_id = self._wr_ids.pop(index, None)
        for older in [known for known in self._wr_ids if known < index]:
            del self._wr_ids[older]
        return index, wqe, wr_id

    def reset(self) -> None:
        """Back to index 0, as the device is after RESET; a CQ that kernels consume keeps its place."""
        consumer = int(self.state["consumer"])
        self.state_memory[:] = 0
        self.state["consumer"] = consumer
        self._dbrec[SND_DBR] = 0
        self._wr_ids.clear()


class ReceiveQueue:
    """Receive ring of `size` WQEs of `stride` bytes; indices count WQEs. A QP without one has `size` 0."""

    def __init__(self, queues: QpQueues, provider: Provider, name: str) -> None:
        self.ring = np.zeros(0, np.uint8) if queues.rq is None else queues.rq
        self.stride = queues.rq_stride
        self.size = self.ring.nbytes // self.stride if self.stride else 0
        self._queues = queues
        self._dbrec = queues.dbrec.view(">u4")
        self._provider = provider
        self._name = name
        self._wr_ids: dict[int, Any] = {}
        self.posted = 0
        self.completed = 0
        self._rung = 0

    def post(self, wqe: bytes, wr_id: Any) -> int:
        """Write a receive WQE of `stride` bytes; returns its index. QueueFull when all are outstanding."""
        if self.posted - self.completed >= self.size:
            raise QueueFull(
                f"receive queue of {self._name} is full" if self.size else f"{self._name} has no receive queue",
                value=self.posted - self.completed,
                rule=f"{self.size} receive WQEs",
                remedy="poll the receive CQ" if self.size else "create it with rq_wqes=…",
            )
        begin = self.posted % self.size * self.stride
        self.ring[begin : begin + self.stride] = np.frombuffer(wqe, np.uint8)
        if wr_id is not None:
            self._wr_ids[self.posted] = wr_id
        self.posted += 1
        return self.posted - 1

    def bell(self) -> None:
        """Advance the doorbell record: receive queues have no register."""
        if self.posted == self._rung:
            return
        self._rung = self.posted
        self._provider.order()
        self._dbrec[RCV_DBR] = self.posted & 0xFFFF
        self._provider.receive_posted(self._queues.qpn)

    def done(self, counter: int) -> tuple[int, bytes, Any]:
        """A CQE names the receive WQE at `counter` (16 bits): its index, bytes and wr_id; it is free."""
        index = nearest(counter, self.completed)
        begin = index % self.size * self.stride if self.size else 0
        self.completed = max(self.completed, min(index + 1, self.posted))
        return index, self.ring[begin : begin + self.stride].tobytes(), self._wr_ids.pop(index, None)

    def reset(self) -> None:
        """Back to index 0, as the device is after RESET."""
        self.posted = self.completed = self._rung = 0
        self._dbrec[RCV_DBR] = 0
        self._wr_ids.clear()
