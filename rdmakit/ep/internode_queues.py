"""A rank's queue pairs to ranks of other hosts, and the HCA of warps behind them: nobody else needs to reach them.

Leans on ep.internode_memory, ep.abi, emu.cta_layout. The wire of this HCA (hca_engine.cuh) is the mapping of heaps: a
peer's is a memory region whose key leads to where this rank reaches it. Of a peer's queue pair it knows a stand-in that
is always ready: there are no receive queues here, and pointers of another process mean nothing in this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE, SQ_STATE
from rdmakit.emu.cta_layout import HCA_CQ, HCA_GROUP, HCA_HANDLE, HCA_QP, KEY_ENTRY
from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.internode_memory import ALIGNMENT, WORD, HostsShape, Slab
from rdmakit.ep.link import Link
from rdmakit.layout import CQE_INITIAL_OP_OWN

__all__ = ["QueuePairs"]

Array = np.ndarray[Any, Any]

LOG_SQ = 7  # basic blocks of a send queue: several chunks' WRITEs, one a slot
FIRST_QPN = 0x100
_LOCAL_KEY, _REMOTE_KEYS = 1, 2  # indices: the own heap, then each rank's
_PD, _ALL_ACCESS, _RTS, _NO_DBR = 1, 0xF, 3, 3  # kKey*, HcaQpState, HcaDoorbell
_OF_RING = ("staging_payload", "staging_meta", "head", "ring_payload", "ring_meta", "tail", "sent", "received")


class QueuePairs:
    """A rank's queue pairs to its rail peers, `channels` to each, and the HCA that serves them.

    `handles[host, channel]` are their `QpHandle` PODs; `hca` is the HcaHandle, whose `leavers` the caller counts.
    """

    def __init__(self, link: Link, shape: HostsShape, layout: HeapLayout, timeout_ns: int) -> None:
        self.link, self.shape, self.timeout_ns = link, shape, timeout_ns
        self.host, self.local = divmod(link.rank, shape.local_ranks)
        self.others = [host for host in range(shape.hosts) if host != self.host]
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
        self.handles = np.zeros((shape.hosts, shape.channels), QP_HANDLE)
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
        self.hca = np.zeros((), HCA_HANDLE)
        self.hca["layout_version"], self.hca["count"], self.hca["qps"] = LAYOUT_VERSION, count, pods_at
        self.hca["registers"], self.hca["heard"], self.hca["attend"] = registers, heard, attend
        self.hca["left"] = self.left
        self.watch(self.hca["watch"])

    def watch(self, pod: Any) -> None:
        """Fill in a `Watch`."""
        pod["report"], pod["rank"], pod["timeout_ns"] = self.link.report.address, self.link.rank, self.timeout_ns

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

    def remote(self, rank: int, offset: int) -> tuple[int, int]:
        """A `RemoteMemory` in a rank's heap."""
        return self.link.heaps[rank] + offset, (_REMOTE_KEYS + rank) << 8

    @property
    def lkey(self) -> int:
        """Of the own heap."""
        return _LOCAL_KEY << 8

    def rails(self, layout: HeapLayout, channels: int, stride: int) -> Array:
        """ChannelHandle[hosts][channels], rings in slots of `stride` bytes; those of the own host stay zero."""
        shape = self.shape
        rails = np.zeros((shape.hosts, channels), abi.CHANNEL_HANDLE)
        slots, chunk = shape.slots(stride)
        sizes = {name: layout.size[name] // (shape.hosts * shape.channels) for name in _OF_RING}
        theirs = {"peer_payload": "ring_payload", "peer_meta": "ring_meta", "peer_tail": "tail", "peer_head": "head"}
        heap = self.link.heaps[self.link.rank]
        for host in self.others:
            for channel in range(channels):
                rail = rails[host, channel]
                rail["qp"] = rail["credit_qp"] = self.handles[host, channel]
                here, there = (h * shape.channels + channel for h in (host, self.host))
                for name, each in sizes.items():
                    rail[name] = heap + layout.offset[name] + here * each
                for field, name in theirs.items():
                    offset = layout.offset[name] + there * sizes[name]
                    rail[field] = self.remote(host * shape.local_ranks + self.local, offset)
                rail["staging_lkey"], rail["slots"], rail["chunk"] = self.lkey, slots, chunk
                rail["payload_stride"], rail["meta_stride"] = stride, shape.meta_stride
        return rails
