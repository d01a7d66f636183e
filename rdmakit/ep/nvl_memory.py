"""Where things lie in an NVLink heap: the words that ranks exchange, the low-latency region, a dispatch's block.

Leans on ep.heap, ep.link, ep.nvl_abi, ep.pool, errors. Offsets are the same on every rank, but for blocks: a rank says
where they are.
"""

from __future__ import annotations

import weakref
from typing import Any

from rdmakit.ep import nvl_abi as abi
from rdmakit.ep.heap import ALIGNMENT, HeapLayout
from rdmakit.ep.link import Link
from rdmakit.ep.pool import Pool
from rdmakit.errors import BadArgument

__all__ = ["Block", "Control", "HeapRank", "LowLatencyRegion", "Staged", "low_latency_bytes"]


class Control:
    """The words at the beginning of a heap (struct NvlHeap of nvl.cuh)."""

    def __init__(self, ranks: int, max_experts: int) -> None:
        layout = HeapLayout()
        row = -(-8 * (ranks + -(-max_experts // ranks)) // ALIGNMENT) * ALIGNMENT
        for name, nbytes in (
            ("barrier", 8 * ranks), ("counts", 2 * ranks * row),
            ("dispatch_offer", abi.OFFER.itemsize * ranks), ("arrived", 8 * ranks),
            ("combine_offer", abi.OFFER.itemsize * ranks), ("taken", 8 * ranks),
        ):  # fmt: skip
            layout.add(name, nbytes)
        self.offset = {**layout.offset, "count_bytes": row}
        self.nbytes = layout.nbytes


def _low_latency(ranks: int, max_tokens: int, hidden: int) -> HeapLayout:
    layout = HeapLayout()
    slots = 2 * ranks * max_tokens
    # Words that are waited for come first, so that another shape of data does not move them into what was data.
    for name, nbytes in (
        ("chosen", 16 * ranks), ("received", 8 * ranks), ("weighed", 16 * ranks), ("combined", 8 * ranks),
        ("complete", 8 * ranks),
        ("sent", 8 * slots), ("summed", 8 * slots),
        ("choices", 4 * slots * abi.MAX_TOPK), ("weights", 4 * slots * abi.MAX_TOPK),
        ("messages", slots * (-(-2 * hidden // 128) * 128)), ("sums", slots * 2 * hidden),
    ):  # fmt: skip
        layout.add(name, nbytes)
    return layout


def low_latency_bytes(ranks: int, max_tokens: int, hidden: int) -> int:
    """Bytes of a heap that low-latency operations of this size need.

    >>> low_latency_bytes(2, 128, 7168) < 16 << 20
    True
    """
    return _low_latency(ranks, max_tokens, hidden).nbytes


class LowLatencyRegion:
    """`nbytes` of a heap from `begin` on (struct NvlLlHeap of nvl_ll.cuh)."""

    def __init__(self, begin: int, nbytes: int, ranks: int) -> None:
        self.begin, self.nbytes, self.ranks = begin, nbytes, ranks

    def offsets(self, max_tokens: int, hidden: int) -> dict[str, int]:
        """Where everything lies for calls of this size. BadArgument when it does not fit."""
        layout = _low_latency(self.ranks, max_tokens, hidden)
        if layout.nbytes > self.nbytes:
            raise BadArgument(
                "low-latency calls of this size do not fit the buffer",
                value=f"{max_tokens} tokens x {hidden} on {self.ranks} ranks: {layout.nbytes} bytes",
                rule=f"at most {self.nbytes} bytes",
                remedy="num_rdma_bytes=Buffer.get_low_latency_rdma_size_hint(…) with these numbers",
            )
        return {name: self.begin + offset for name, offset in layout.offset.items()}


class HeapRank:
    """What every engine says of its rank's heap, and of what it can hand out there."""

    link: Link
    rank: int
    pool: Pool

    @property
    def max_sms(self) -> int:
        """Blocks that are resident together."""
        return self.link.blocks

    @property
    def largest_block(self) -> int:
        """Bytes of the largest block that `receive_block` could hand out now."""
        return self.pool.largest

    @property
    def heap_address(self) -> int:
        """This rank's heap."""
        return self.link.heaps[self.rank]

    @property
    def heap_owner(self) -> Any:
        """What keeps it: it lives until `close`, and as long as somebody has this."""
        return self.link.heap_owner

    @property
    def heap_bytes(self) -> int:
        """Its size."""
        return self.link.heap_bytes

    def check(self, *, unless_told: bool = False) -> None:
        """Raise what has gone wrong so far in what was enqueued; see `Link.check`."""
        self.link.check(unless_told=unless_told)

    def copy(self, to: int, source: int, nbytes: int, stream: int = 0) -> None:
        """Queue a copy within this GPU."""
        self.link.copy(to, source, nbytes, stream)


class _Room:
    """`nbytes` of this rank's heap at `address`: goes back when the object does, and holds the heap until then."""

    def __init__(self, engine: HeapRank, nbytes: int) -> None:
        offset = engine.pool.take(nbytes)
        self.nbytes, self.address = nbytes, engine.heap_address + offset
        self._heap = engine.heap_owner
        self._finalizer = weakref.finalize(self, engine.pool.give, offset)


class Block(_Room):
    """What one dispatch brings, in the rank's heap: addresses of x, scales, topk, weights, source; room for `rows`."""

    def __init__(self, engine: HeapRank, rows: int, row_bytes: int, scale_bytes: int, topk: int) -> None:
        layout = HeapLayout()
        sizes = {"x": row_bytes, "scales": scale_bytes, "topk": 8 * topk, "weights": 4 * topk, "source": 4}
        for name, nbytes in sizes.items():
            layout.add(name, rows * nbytes)
        super().__init__(engine, layout.nbytes)
        self.rows = rows
        self.addresses = tuple(self.address + layout.offset[name] for name in sizes)  # as struct NvlOffer has them
        self.x, self.scales, self.topk, self.weights, self.source = self.addresses

    def __repr__(self) -> str:
        return f"<Block of {self.rows} rows, {self.nbytes} B at {self.x:#x}>"


class Staged(_Room):
    """Room for copies of rows and weights that combine is given from elsewhere (0 bytes: not copied)."""

    def __init__(self, engine: HeapRank, row_bytes: int, weight_bytes: int) -> None:
        layout = HeapLayout()
        layout.add("rows", row_bytes)
        layout.add("weights", weight_bytes)
        try:
            super().__init__(engine, layout.nbytes)
        except BadArgument:
            pool = engine.pool
            raise BadArgument(
                "no room for the copy of what combine is given",
                value=f"{layout.nbytes} bytes: rows {row_bytes}, weights {weight_bytes}",
                rule=f"rows are read in the heap, whose largest free block has {pool.largest} of {pool.nbytes} bytes; "
                f"{pool.used} are out",
                remedy="write them where the dispatch brought them, recv_x and recv_topk_weights, which are read in "
                "place; drop tensors of earlier dispatches; or make the buffer with that many more num_nvl_bytes",
            ) from None
        self.addresses = self.address + layout.offset["rows"], self.address + layout.offset["weights"]
