"""A rank's queue pairs to ranks of other hosts, and the HCA of warps behind them: nobody else needs to reach them.

Leans on ep.rail_queues, ep.internode_memory, emu.cta_layout. The wire of this HCA (hca_engine.cuh) is the mapping of
heaps: a peer's is a memory region whose key leads to where this rank reaches it. Of a peer's queue pair it knows a
stand-in that is always ready: there are no receive queues here, and pointers of another process mean nothing in this
one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE, SQ_STATE
from rdmakit.emu.cta_layout import HCA_CQ, HCA_GROUP, HCA_QP, KEY_ENTRY
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.internode_memory import ALIGNMENT, WORD, HostsShape, Slab
from rdmakit.ep.link import Link
from rdmakit.ep.rail_queues import RailQueues
from rdmakit.layout import CQE_INITIAL_OP_OWN

__all__ = ["QueuePairs"]

Array = np.ndarray[Any, Any]

LOG_SQ = 7  # basic blocks of a send queue: several chunks' WRITEs, one a slot
FIRST_QPN = 0x100
_LOCAL_KEY, _REMOTE_KEYS = 1, 2  # indices: the own heap, then each rank's
_PD, _ALL_ACCESS, _RTS, _NO_DBR = 1, 0xF, 3, 3  # kKey*, HcaQpState, HcaDoorbell
_DEFAULT_TIMEOUT_NS = 10_000_000_000  # kDefaultTimeoutNs, report.cuh


class QueuePairs(RailQueues):
    """A rank's queue pairs to its rail peers, `channels` to each, and the HCA that serves them."""

    rides = True

    def __init__(self, link: Link, shape: HostsShape, layout: HeapLayout, timeout_ns: int) -> None:
        super().__init__(link, shape, timeout_ns)
        count = len(self.others) * shape.channels
        padded = -(-count // HCA_GROUP) * HCA_GROUP
        each = (64 << LOG_SQ) + QP_HANDLE.itemsize + SQ_STATE.itemsize + 2 * HCA_QP.itemsize + HCA_CQ.itemsize
        tables = KEY_ENTRY.itemsize * (shape.ranks + _REMOTE_KEYS) + 24 * padded
        self._slab = Slab(link, count * (each + 8 * ALIGNMENT) + tables + 16 * ALIGNMENT)
        keys = self._keys(layout)
        _, registers = self._slab.take(padded, np.uint64)
        _, heard = self._slab.take(padded, np.uint64)
        _, attend = self._slab.take(padded, np.uint32)
        pods, pods_at = self._slab.take(2 * count, HCA_QP)  # the queue pairs, then their peers' stand-ins
        cqs, cqs_at = self._slab.take(count, HCA_CQ)
        sinks = link.heaps[link.rank] + layout.offset["sink"]
        places = [(host, channel) for host in self.others for channel in range(shape.channels)]
        for index, (host, channel) in enumerate(places):
            handle, cq = self.handles[host, channel], cqs[index]
            mine, theirs = pods[index], pods[count + index]
            self._queue(handle, FIRST_QPN + index, host, channel, registers + 8 * index)
            handle["sink_address"], handle["sink_lkey"] = sinks + WORD * index, _LOCAL_KEY << 8
            cq["entries"], cq["dbrec"] = handle["cq"]["entries"], handle["cq"]["dbrec"]
            cq["log_stride"], cq["collapsed"], cq["cqn"] = 6, 1, index
            own_at = pods_at + index * HCA_QP.itemsize
            for pod, peer in ((mine, own_at + count * HCA_QP.itemsize), (theirs, own_at)):
                pod["layout_version"], pod["state"], pod["pd"], pod["access"] = LAYOUT_VERSION, _RTS, _PD, _ALL_ACCESS
                pod["peer"], pod["keys"], pod["peer_keys"] = peer, keys, keys
                pod["max_rd_atomic"] = pod["max_dest_rd_atomic"] = 16
                pod["send_cq"] = pod["recv_cq"] = cqs_at + index * HCA_CQ.itemsize
                pod["attend"] = attend + 4 * index
            mine["qpn"], mine["sq"], mine["log_sq"] = handle["qpn"], handle["sq"], LOG_SQ
            mine["dbrec"], mine["doorbell"], mine["rnr_retry"] = int(handle["dbrec"]) - 4, _NO_DBR, 7
        link.upload(cqs_at, cqs)
        link.upload(pods_at, pods)
        _, self.left = self._slab.take(1, np.uint32)
        self.hca["layout_version"], self.hca["count"], self.hca["qps"] = LAYOUT_VERSION, count, pods_at
        self.hca["registers"], self.hca["heard"], self.hca["attend"] = registers, heard, attend
        self.hca["left"] = self.left
        self.watch(self.hca["watch"])
        # Who serves gives up after those who ring: theirs is the report that says what was late.
        self.hca["watch"]["timeout_ns"] = 2 * (timeout_ns or _DEFAULT_TIMEOUT_NS)

    def _keys(self, layout: HeapLayout) -> tuple[int, int]:
        """The table of keys: address and length."""
        count = _REMOTE_KEYS + self.shape.ranks
        keys = np.zeros(count, KEY_ENTRY)
        heaps = {_LOCAL_KEY: self.link.heaps[self.link.rank]}
        heaps |= {_REMOTE_KEYS + rank: heap for rank, heap in enumerate(self.link.heaps)}
        for index, heap in heaps.items():
            keys[index] = (heap, layout.nbytes, heap, index << 8, _ALL_ACCESS, _PD, 1)
        return self._slab.put(keys), count

    def _queue(self, handle: Any, qpn: int, host: int, channel: int, register: int) -> None:
        """The poster's side of a queue pair: ring, record, counters, a completion queue of one entry."""
        _, sq = self._slab.take(64 << LOG_SQ, np.uint8)
        _, dbrec = self._slab.take(2, np.uint32)
        _, state = self._slab.take(1, SQ_STATE)
        entry = np.zeros(64, np.uint8)
        entry[63] = CQE_INITIAL_OP_OWN
        cqe = self._slab.put(entry)
        _, cq_dbrec = self._slab.take(2, np.uint32)
        handle["layout_version"], handle["qpn"], handle["sq"] = LAYOUT_VERSION, qpn, sq
        handle["dbrec"], handle["doorbell"], handle["state"], handle["log_sq"] = dbrec + 4, register, state, LOG_SQ
        handle["peer"], handle["channel"] = host * self.shape.local_ranks + self.local, channel
        cq = handle["cq"]
        cq["layout_version"], cq["entries"], cq["dbrec"] = LAYOUT_VERSION, cqe, cq_dbrec
        cq["log_stride"], cq["collapsed"] = 6, 1
        self.watch(handle["watch"])

    def remote(self, rank: int, channel: int, offset: int) -> tuple[int, int]:
        return self.link.heaps[rank] + offset, (_REMOTE_KEYS + rank) << 8

    def lkey(self, rank: int, channel: int) -> int:
        return _LOCAL_KEY << 8
