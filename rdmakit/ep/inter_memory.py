"""The memory of dispatch and combine between hosts, as one rank has it: its heap, which all ranks map; its queue pairs and the
HCA behind them, which nobody else needs; the PODs that kernels read.

Leans on ep.heap, ep.abi, ep.link, emu.cta_layout. The HCA is one of warps (hca_engine.cuh), and its wire is the mapping: a peer's
heap is a memory region whose key leads to where this rank reaches it. Of a peer's queue pair it knows a stand-in that is
always ready: there are no receive queues here, and pointers of another process mean nothing in this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE, SQ_STATE
from rdmakit.emu.cta_layout import HCA_CQ, HCA_GROUP, HCA_HANDLE, HCA_QP, KEY_ENTRY
from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.link import Link
from rdmakit.errors import BadArgument
from rdmakit.layout import CQE_INITIAL_OP_OWN

__all__ = ["MAX_EXPERTS", "MAX_TOPK", "HostsShape", "QueuePairs", "Slab"]

Array = np.ndarray[Any, Any]

MAX_EXPERTS = 4096  # over all ranks
MAX_TOPK = 32
MAX_SLOTS, MAX_CHUNK = 64, 8  # of a ring, and of one put
WORD = 128  # words of a ring that different GPUs write: a cache line each
LOG_SQ = 7  # basic blocks of a send queue: several chunks' WRITEs, one a slot
ALIGNMENT = 128
_LOCAL_KEY, _REMOTE_KEYS = 1, 2  # indices: the own heap, then each rank's
_PD, _ALL_ACCESS, _RTS, _NO_DBR = 1, 0xF, 3, 3  # kKey*, HcaQpState, HcaDoorbell
FIRST_QPN = 0x100


def _sixteens(nbytes: int) -> int:
    return -(-nbytes // 16) * 16


@dataclass(frozen=True)
class HostsShape:
    """Sizes that are a Buffer's, not a call's. `ring_bytes`: payload of each ring, by (host, channel); `region_bytes`: what
    a dispatch brings here; `pool_bytes`: what earlier ones have brought.
    """

    hosts: int
    local_ranks: int
    channels: int
    max_tokens: int
    ring_bytes: int
    region_bytes: int
    pool_bytes: int

    def __post_init__(self) -> None:
        if not 2 <= self.hosts <= abi.MAX_HOSTS or not 1 <= self.local_ranks <= abi.MAX_LOCAL_RANKS:
            raise BadArgument("no such hosts", value=(self.hosts, self.local_ranks),
                              rule=f"2 … {abi.MAX_HOSTS} hosts of 1 … {abi.MAX_LOCAL_RANKS} ranks",
                              remedy="group the ranks otherwise")  # fmt: skip

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.hosts * self.local_ranks

    @property
    def meta_stride(self) -> int:
        """Bytes of a slot's metadata, whatever the top-k (token_meta_bytes, ep.cuh)."""
        return _sixteens(4 * (1 + self.local_ranks + 2 * MAX_TOPK))

    @property
    def notify_bytes(self) -> int:
        """Bytes of a message of counts, whatever the experts (NotifyMessage, ep.cuh)."""
        return _sixteens(4 * (self.local_ranks * (1 + MAX_EXPERTS // self.ranks) + self.channels))

    @property
    def count_bytes(self) -> int:
        """Bytes of a row of counts, whatever the experts (count_row_bytes, ep.cuh)."""
        return _sixteens(16 + 4 * (MAX_EXPERTS // self.ranks))

    def slots(self, stride: int) -> tuple[int, int]:
        """Slots of a ring whose payloads take `stride` bytes, and slots a put. BadArgument when it holds less than two."""
        slots = min(MAX_SLOTS, 1 << (self.ring_bytes // stride).bit_length() >> 1)
        if slots < 2:
            raise BadArgument(
                "rows too long for the rings between hosts", value=f"{stride} bytes",
                rule=f"at most {self.ring_bytes // 2} bytes",
                remedy="num_rdma_bytes=Config().get_rdma_buffer_size_hint(hidden_bytes, num_ranks), or more",
            )  # fmt: skip
        return slots, min(MAX_CHUNK, slots // 2)

    def heap_layout(self) -> HeapLayout:
        """Regions of a heap: those of EpHeap by their names there but for `recv_*` and `combine_*`, which share `region`."""
        layout, rings = HeapLayout(), self.hosts * self.channels
        for name, nbytes in {
            "notify_out": 2 * self.hosts * self.notify_bytes,
            "notify_in": 2 * self.hosts * self.notify_bytes,
            "notify_tail": 8 * self.hosts,
            "counts": 2 * self.ranks * self.count_bytes,
            "start": 4 * (self.ranks + 1),
            **dict.fromkeys(("start_read", "start_epoch", "arrived", "combine_epoch", "combine_done"), 8),
            **dict.fromkeys(("tail", "head", "sent", "received", "sink"), rings * WORD),
            **dict.fromkeys(("ring_meta", "staging_meta"), rings * MAX_SLOTS * self.meta_stride),
            **dict.fromkeys(("ring_payload", "staging_payload"), rings * self.ring_bytes),
            "region": self.region_bytes,
            "pool": self.pool_bytes,
        }.items():
            layout.add(name, nbytes)
        return layout


class Slab:
    """Memory of a rank's own, handed out piece by piece; the host fills a piece in and sends it over."""

    def __init__(self, link: Link, nbytes: int) -> None:
        self.link, self.nbytes = link, nbytes
        self.address, self._alive = link.memory(nbytes)
        self._used = 0

    def take(self, count: int, dtype: Any) -> tuple[Array, int]:
        """A zeroed array of the host's, and where kernels will find it."""
        kind = np.dtype(dtype)
        begin = -(-self._used // ALIGNMENT) * ALIGNMENT
        if begin + count * kind.itemsize > self.nbytes:
            raise BadArgument("no room for what kernels read", value=count * kind.itemsize,
                              rule=f"{self.nbytes - begin} of {self.nbytes} bytes are left",
                              remedy="call with fewer different shapes of rows")  # fmt: skip
        self._used = begin + count * kind.itemsize
        return np.zeros(count, kind), self.address + begin

    def put(self, array: Array) -> int:
        """A copy of an array; its address."""
        _, address = self.take(array.size, array.dtype)
        self.link.upload(address, array)
        return address


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
        self._slab = Slab(link, count * (each + 8 * ALIGNMENT) + 40 * (shape.ranks + 2) + 24 * padded + (1 << 14))
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
            handle, mine, theirs, cq = self.handles[host, channel], pods[index], pods[count + index], cqs[index]
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
        """ChannelHandle[hosts][channels], rings divided into slots of `stride` bytes; those of the own host stay zero."""
        shape = self.shape
        rails = np.zeros((shape.hosts, channels), abi.CHANNEL_HANDLE)
        slots, chunk = shape.slots(stride)
        sizes = {name: layout.size[name] // (shape.hosts * shape.channels) for name in layout.size if name in _OF_RING}
        theirs = {"peer_payload": "ring_payload", "peer_meta": "ring_meta", "peer_tail": "tail", "peer_head": "head"}
        heap = self.link.heaps[self.link.rank]
        for host in self.others:
            for channel in range(channels):
                rail = rails[host, channel]
                rail["qp"] = self.handles[host, channel]
                here, there = (h * shape.channels + channel for h in (host, self.host))
                for name, each in sizes.items():
                    rail[name] = heap + layout.offset[name] + here * each
                for field, name in theirs.items():
                    offset = layout.offset[name] + there * sizes[name]
                    rail[field] = self.remote(host * shape.local_ranks + self.local, offset)
                rail["staging_lkey"], rail["slots"], rail["chunk"] = self.lkey, slots, chunk
                rail["payload_stride"], rail["meta_stride"] = stride, shape.meta_stride
        return rails


_OF_RING = frozenset(
    ("staging_payload", "staging_meta", "head", "ring_payload", "ring_meta", "tail", "sent", "received")
)
