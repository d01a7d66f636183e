"""MoE dispatch and combine among ranks that reach each other's memory: one rank's engine, on any `Link`.

Leans on ep.nvl_low_latency, ep.pool, ep.nvl_abi, ep.nvl_memory; the device code is cuda/kernels/nvl_*.cu. Everything
is queued on a stream and nothing is synchronised, but for `counts()`. Memory is given by address. Operations are
collective and come in one order on every rank. `rdmakit.ep.Buffer` puts tensors on top, by the Protocol of ep.engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.ep import nvl_abi as abi
from rdmakit.ep.link import Link
from rdmakit.ep.nvl_low_latency import LowLatencyRank
from rdmakit.ep.nvl_memory import Block, Control, LowLatencyRegion, Staged
from rdmakit.ep.pool import Pool
from rdmakit.ep.rendezvous import Rendezvous
from rdmakit.errors import BadArgument

__all__ = ["Nvlink", "chunk_of", "connect"]

# Chunks of rows that a dispatch moves, and bytes that all its warps together have under way to other ranks: more only
# queue up at the link, and rows that stay on their rank wait in the same queues (docs/nvlink.md).
DISPATCH_CHUNK, WINDOW = 8192, 700 << 10
SM_GBS = 51  # what one SM moves: with too few of them for the link, they are what rows wait for, not the link
COMBINE_CHUNK = 4096  # bytes: for each of a warp's chunks all ranks' rows lie side by side in shared memory
WORD_WARPS = 4  # of a block, that move choices, weights and scales, or add weights up
SLOTS, STAGES = 4, 2  # kNvlSlots of nvl_dispatch.cu, kNvlStages of nvl_combine.cu
MAX_EXPERTS = 4096
NOTIFY_THREADS = 1024
LAYOUT_THREADS = 256


def chunk_of(row_bytes: int, limit: int = DISPATCH_CHUNK) -> int:
    """The largest part of a row, in whole equal parts, that is a multiple of 16 and at most `limit` bytes.

    >>> chunk_of(14336), chunk_of(4096)
    (7168, 4096)
    """
    units = row_bytes // 16
    if row_bytes % 16 or units == 0:
        raise BadArgument("rows of a size that bulk copies cannot move", value=row_bytes, rule="a multiple of 16 bytes",
                          remedy="pad hidden to a multiple of 128")  # fmt: skip
    parts = -(-row_bytes // limit)
    while units % parts:
        parts += 1
    return row_bytes // parts


@dataclass
class _Grid:
    blocks: int
    row_warps: int
    warps: int
    chunk: int
    shared: int


class Nvlink(LowLatencyRank):
    """One rank's side of dispatch and combine.

    `low_latency_bytes` of the heap are for the low-latency operations, what is left for what dispatches bring.
    `enable_shrink`: barriers and low-latency operations go on without ranks that are masked, and mask who does not
    answer within `timeout_ns` (0: 10 s).
    """

    def __init__(
        self, link: Link, *, low_latency_bytes: int = 0, timeout_ns: int = 0, max_experts: int = MAX_EXPERTS,
        enable_shrink: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(link, timeout_ns, max_experts, enable_shrink)
        begin = self.control.nbytes
        self.ll_region = LowLatencyRegion(begin, low_latency_bytes, link.ranks)
        begin += low_latency_bytes
        if begin > link.heap_bytes:
            raise BadArgument("the heap is too small", value=link.heap_bytes, rule=f"{begin} bytes at least",
                              remedy="more num_nvl_bytes")  # fmt: skip
        if link.heap_bytes > abi.MAX_HEAP:
            raise BadArgument("the heap is too large", value=link.heap_bytes, rule=f"at most {abi.MAX_HEAP} bytes",
                              remedy="fewer num_nvl_bytes")  # fmt: skip
        self.pool = Pool(begin, link.heap_bytes - begin)
        self._counts = link.host_memory(8 + 8 * max_experts).view(np.uint64)
        self._ticket = 0  # of the last notify that was launched or captured
        self._scratch = self._own(4 * (max_experts + link.ranks))
        self._local_experts = 0
        self._grids: dict[tuple[int, ...], _Grid] = {}

    def __repr__(self) -> str:
        return f"<Nvlink rank {self.rank} of {self.ranks}: {self.pool.nbytes} B for dispatches, {self.pool.used} B out>"

    # ---- normal
    def layout(
        self, topk_idx: int, tokens: int, topk: int, experts: int, tokens_per_rank: int, tokens_per_expert: int,
        is_in_rank: int, stream: int = 0,
    ) -> None:  # fmt: skip
        """Counts of a routing: int64 [tokens, topk] → int32 [ranks], int32 [experts], bool [tokens, ranks]."""
        self._check_experts(experts)
        self._check_topk(topk)
        pod = np.zeros((), abi.LAYOUT_INPUT)
        blocks = max(1, min(64, -(-tokens // 64), self.link.blocks))
        pod[()] = (
            topk_idx,
            tokens_per_rank,
            tokens_per_expert,
            is_in_rank,
            self._scratch,
            tokens,
            topk,
            experts,
            self.ranks,
        )
        shared = 4 * (experts + self.ranks)
        threads = min(LAYOUT_THREADS, self.link.most_threads)
        self.link.launch(
            "nvl_dispatch_layout", blocks, threads, (self.pod[()], pod[()]), shared_mem=shared, stream=stream
        )

    def notify(
        self, is_in_rank: int, tokens: int, tokens_per_rank: int, tokens_per_expert: int, experts: int,
        expert_alignment: int, positions: int, prefix: int, stream: int = 0,
    ) -> None:  # fmt: skip
        """Exchange counts: positions int32 [tokens, ranks], prefix int32 [ranks, ranks]; `counts()` waits.

        The report says when `tokens_per_rank` is not what `is_in_rank` comes to.
        """
        self._check_experts(experts)
        self._ticket = (self._ticket + 1) & 0xFFFFFFFF
        pod = np.zeros((), abi.NOTIFY_INPUT)
        pod[()] = (is_in_rank, tokens_per_rank, tokens_per_expert, positions, prefix, int(self._counts.ctypes.data),
                   tokens, experts, expert_alignment, self._ticket)  # fmt: skip
        self._local_experts = experts // self.ranks
        threads = min(NOTIFY_THREADS, self.link.most_threads)
        self.link.launch("nvl_notify_dispatch", 1, threads, (self.pod[()], pod[()]), stream=stream)

    def counts(self) -> tuple[int, list[int]]:
        """Rows that the last notified dispatch brings, and those of each local expert; the host waits for them."""
        words = self._counts[: 1 + self._local_experts]
        ticket = np.uint64(self._ticket)
        self.link.wait(lambda: bool((words >> np.uint64(32) == ticket).all()), "the counts of a dispatch")
        rows, *experts = (words & np.uint64(0xFFFFFFFF)).tolist()
        return rows, experts

    def receive_block(self, rows: int, row_bytes: int, scale_bytes: int, topk: int, stream: int = 0) -> Block:
        """Room for what one dispatch brings. BadArgument when the heap is used up.

        Dropping it gives it back, to whoever asks next: drop it when `stream` is behind those who used it.
        """
        return Block(self, rows, row_bytes, scale_bytes, topk)

    def dispatch(
        self, x: int, row_bytes: int, scales: int, scale_bytes: int, topk_idx: int, topk_weights: int, topk: int,
        experts: int, tokens: int, positions: int, prefix: int, received: Block, rows: int, num_sms: int,
        stream: int = 0,
    ) -> None:  # fmt: skip
        """Send rows of `row_bytes` (and `scale_bytes` of scales) to where the ranks receive; `topk` 0: no choices."""
        others = min(WORD_WARPS, self.link.warps)
        few = min(num_sms, self.link.blocks) * SM_GBS < 2 * self.link.pace_gbs
        grid = self._grid(row_bytes, DISPATCH_CHUNK, SLOTS, others, num_sms, WINDOW)
        heap = self.link.heaps[self.rank]
        here = tuple(address - heap for address in received.addresses)
        pace = int(grid.blocks * grid.row_warps * grid.chunk / self.link.pace_gbs) if self.link.pace_gbs else 0
        pod = np.zeros((), abi.DISPATCH_INPUT)
        pod[()] = (here, x, scales, topk_idx, topk_weights, positions, prefix, tokens, row_bytes, scale_bytes // 4,
                   topk, experts, rows if topk else 0, grid.chunk, grid.row_warps, pace, few)  # fmt: skip
        self._launch_rows("dispatch_nvl", grid, pod, stream)

    def combine(
        self, x: int, rows: int, hidden: int, topk_weights: int, topk: int, positions: int, prefix: int, tokens: int,
        out: int, out_weights: int, bias_0: int, bias_1: int, num_sms: int, stream: int = 0,
    ) -> list[Any]:  # fmt: skip
        """Add up each token's rows, BF16 [rows, hidden] on every rank; what is returned must live until it has run.

        `x` and `topk_weights` may lie anywhere: memory of a `Block` is read where it is, other memory is copied into
        the heap. BadArgument, before anything is queued, when there is no room for the copy.
        """
        others = min(WORD_WARPS, self.link.warps) if out_weights else 0
        grid = self._grid(2 * hidden, COMBINE_CHUNK, STAGES * self.ranks, others, num_sms, 0)
        heap = self.link.heaps[self.rank]
        # Nothing of no rows is read, wherever it is said to lie.
        x, topk_weights = (x, topk_weights) if rows else (0, 0)
        given = [(x, 2 * rows * hidden), (topk_weights, 4 * rows * topk)]
        outside = [0 if at == 0 or self.pool.holds(at - heap, nbytes) else nbytes for at, nbytes in given]
        kept: list[Any] = []
        addresses = [address for address, _ in given]
        if any(outside):
            staged = Staged(self, *outside)
            kept.append(staged)
            for index, nbytes in enumerate(outside):
                if nbytes:
                    self.link.copy(staged.addresses[index], addresses[index], nbytes, stream)
                    addresses[index] = staged.addresses[index]
        offsets = [at - heap if at else 0 for at in addresses]
        here = offsets[0], 0, 0, offsets[1], 0
        pod = np.zeros((), abi.COMBINE_INPUT)
        pod[()] = (here, positions, prefix, (bias_0, bias_1), out, out_weights, tokens, hidden, topk, grid.chunk,
                   grid.row_warps, 0)  # fmt: skip
        self._launch_rows("combine_nvl", grid, pod, stream)
        return kept

    # ---- parts
    def _grid(self, row_bytes: int, chunk_limit: int, slots: int, others: int, num_sms: int, window: int) -> _Grid:
        asked = row_bytes, chunk_limit, slots, others, num_sms, window
        if asked not in self._grids:
            self._grids[asked] = self._new_grid(*asked)
        return self._grids[asked]

    def _new_grid(self, row_bytes: int, chunk_limit: int, slots: int, others: int, num_sms: int, window: int) -> _Grid:
        """`slots` chunks for each warp that moves rows; `others`: warps that do something else; `window`: bytes that
        all warps may have under way, a chunk each, or 0."""
        room = self.link.shared_bytes - others * abi.WARP_BYTES
        limit = chunk_limit
        while limit > 512 and min(self.link.warps, 4) * (slots * chunk_of(row_bytes, limit) + abi.WARP_BYTES) > room:
            limit //= 2
        chunk = chunk_of(row_bytes, limit)
        each = slots * chunk + abi.WARP_BYTES
        warps = min(self.link.warps, abi.MAX_WARPS - others, room // each)
        if warps < 1:
            raise BadArgument("rows too long for shared memory", value=row_bytes, rule=f"{slots} parts in {room} B",
                              remedy="hidden with more factors of two")  # fmt: skip
        blocks = max(1, min(num_sms, self.link.blocks))
        if window:
            warps = min(warps, max(1, window // (blocks * chunk)))
        return _Grid(blocks, warps, warps + others, chunk, warps * each + others * abi.WARP_BYTES)

    def _launch_rows(self, kernel: str, grid: _Grid, pod: Any, stream: int) -> None:
        args = self.pod[()], pod[()]
        self.link.launch(kernel, grid.blocks, 32 * grid.warps, args, shared_mem=grid.shared, stream=stream)


def connect(
    rendezvous: Rendezvous,
    *,
    num_nvl_bytes: int,
    num_rdma_bytes: int,
    enable_shrink: bool,
) -> Nvlink:
    """The engine of this rank, on the current CUDA device, for ranks of one host. Collective.

    The heap has the words that ranks exchange, `num_rdma_bytes` for low latency, and `num_nvl_bytes` for what
    dispatches bring. NotAvailable where GPUs do not reach each other.
    """
    from rdmakit.gpu.peer import PeerLink

    nbytes = Control(rendezvous.size, MAX_EXPERTS).nbytes + num_rdma_bytes + num_nvl_bytes
    link = PeerLink(rendezvous.rank, rendezvous.size, nbytes, rendezvous.all_gather)
    return Nvlink(link, low_latency_bytes=num_rdma_bytes, enable_shrink=enable_shrink)
