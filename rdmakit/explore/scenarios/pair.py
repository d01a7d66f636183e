"""Two hosts, a queue pair between them, words to move: what the scenarios of the send queue share. Registers none.

Leans on device and layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.explore.scenario import Scene
from rdmakit.layout import Opcode

__all__ = ["MEMORY", "Pair", "move_on", "remote"]

MEMORY = np.dtype([("address", "<u8"), ("key", "<u4")], align=True)  # RemoteMemory, LocalMemory


def remote(address: int, key: int) -> Any:
    """The POD that kernels take for a range of registered memory."""
    return np.array([(address, key)], MEMORY)[0]


def move_on(qp: Any, index: int) -> None:
    """Let a connected queue pair execute unsignalled NOPs until its next basic block is `index`.

    What comes next is then where 16 bits start again. The host rings for a ring at a time, and builds no WQE anew.
    """
    sends = qp._sends
    ring = sends.ring.reshape(sends.size, -1)
    ring[:] = 0
    ring[:, 3] = int(Opcode.NOP)
    ring[:, 4:7] = np.frombuffer(qp.qpn.to_bytes(3, "big"), np.uint8)
    ring[:, 7] = 1  # ds
    at, slots = 0, np.arange(sends.size)
    while at < index:
        end = min(at + sends.size, index)
        indices = at + (slots - at) % sends.size
        ring[:, 1:3] = indices.astype(">u2").view(np.uint8).reshape(-1, 2)
        sends._last = ring[(end - 1) % sends.size, :8].tobytes()
        sends.state["reserved"] = sends.state["ready"] = end
        sends.bell()
        qp.context._provider.progress()  # Explore does nothing until the world runs
        at = end
    sends.state["completed"] = index


class Pair:
    """Host 0's queue pair to host 1, `words` words of 8 bytes in each, and a handle to post with."""

    def __init__(self, scene: Scene, words: int, *, wqebbs: int = 4, start: int = 0,
                 sink_access: str = "", watch: bool = True) -> None:
        options = scene.options
        self.scene = scene
        self.world = scene.world(hosts=2, ports=1, doorbell=str(options.get("doorbell", "dbrec")))
        self.words = words
        collapsed = bool(options.get("collapsed", False))
        ends = []
        for host, name in enumerate(("source", "sink")):
            context = self.world.open(host)
            pd = context.alloc_pd()
            array = self.world.array((words,), np.uint64, name=name)
            access = (sink_access,) if host and sink_access else ()
            queue_pair = pd.create_qp(context.create_cq(wqebbs, collapsed=collapsed), sq_wqebbs=wqebbs)
            ends.append((array, pd.register(array, *access), queue_pair))
        (self.source, self.from_mr, self.qp), (self.sink, self.to_mr, self.peer) = ends
        self.source[:] = np.arange(1, 1 + words, dtype=np.uint64) * np.uint64(0x0101_0101_0000_0001)
        self.qp.psn = int(options.get("psn", 0))
        self.qp.connect(self.peer)
        self.peer.connect(self.qp)
        if start:
            move_on(self.qp, start)
        dialect = str(options.get("dialect", "next_index"))
        self.handle = self.qp.device_handle(dialect=dialect, batch=int(options.get("batch", 0)))
        if watch:
            scene.watch(self.handle)
        scene.keep(self)

    @property
    def sink_memory(self) -> Any:
        """What kernels take for the peer's words."""
        return remote(self.to_mr.address, self.to_mr.rkey)

    @property
    def source_memory(self) -> Any:
        """What kernels take for our own words."""
        return remote(self.from_mr.address, self.from_mr.lkey)

    def put_words(self, *, blocks: int = 1, warps: int = 1, batch: int = 1) -> None:
        """Launches put_words.cu: every word a WRITE of its own, by all warps of all blocks."""
        arguments = (self.handle.array, self.sink_memory, self.source_memory, self.words, batch)
        self.world.stock_kernel("put_words")(blocks, 32 * warps, arguments)
