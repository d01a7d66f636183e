"""The memory of dispatch and combine between hosts: what lies in a rank's heap, and pieces of memory that kernels read.

Leans on ep.heap, ep.abi, ep.link. Sizes follow from the Buffer, not from the call: rows, choices and experts may change
from one call to the next, and words that ranks exchange stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout, sixteens
from rdmakit.ep.link import Link
from rdmakit.errors import BadArgument

__all__ = ["MAX_EXPERTS", "MAX_TOPK", "WORD", "HostsShape", "Slab"]

Array = np.ndarray[Any, Any]

MAX_EXPERTS = 4096  # over all ranks
MAX_TOPK = 32
MAX_SLOTS, MAX_CHUNK = 64, 8  # of a ring, and of one put
WORD = 128  # words of a ring that different GPUs write: a cache line each
ALIGNMENT = 128


def _lines(nbytes: int) -> int:
    return nbytes // ALIGNMENT * ALIGNMENT


@dataclass(frozen=True)
class HostsShape:
    """Sizes that are a Buffer's. `ring_bytes`: payload of each ring, by (host, channel); `region_bytes`: what a
    dispatch brings here; `pool_bytes`: what earlier ones have brought. BadArgument for hosts that cannot be.
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

    @classmethod
    def of(
        cls, ranks: int, ranks_per_host: int, channels: int, max_tokens: int, *, rdma_bytes: int, nvl_bytes: int
    ) -> HostsShape:
        """Rings that take `rdma_bytes`; `nvl_bytes` for the dispatch that is under way, and as many for tensors of
        earlier ones.
        """
        hosts = ranks // ranks_per_host
        ring = _lines(rdma_bytes // (2 * hosts * channels))
        return cls(hosts, ranks_per_host, channels, max_tokens, ring, _lines(nvl_bytes), _lines(nvl_bytes))

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.hosts * self.local_ranks

    @property
    def meta_stride(self) -> int:
        """Bytes of a slot's metadata, whatever the top-k (token_meta_bytes, ep.cuh)."""
        return sixteens(4 * (1 + self.local_ranks + 2 * MAX_TOPK))

    @property
    def notify_bytes(self) -> int:
        """Bytes of a message of counts, whatever the experts (NotifyMessage, ep.cuh)."""
        return sixteens(4 * (self.local_ranks * (1 + MAX_EXPERTS // self.ranks) + self.channels))

    @property
    def count_bytes(self) -> int:
        """Bytes of a row of counts, whatever the experts (count_row_bytes, ep.cuh)."""
        return sixteens(16 + 4 * (MAX_EXPERTS // self.ranks))

    def slots(self, stride: int) -> tuple[int, int]:
        """Slots of a ring whose payloads take `stride` bytes, and slots a put. BadArgument for less than two."""
        slots = min(MAX_SLOTS, 1 << (self.ring_bytes // stride).bit_length() >> 1)
        if slots < 2:
            raise BadArgument(
                "rows too long for the rings between hosts", value=f"{stride} bytes",
                rule=f"at most {self.ring_bytes // 2} bytes",
                remedy="num_rdma_bytes=Config().get_rdma_buffer_size_hint(hidden_bytes, num_ranks), or more",
            )  # fmt: skip
        return slots, min(MAX_CHUNK, slots // 2)

    def heap_layout(self) -> HeapLayout:
        """Regions of a heap: those of EpHeap by their names there, but that `recv_*` and `combine_*` share `region`."""
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
