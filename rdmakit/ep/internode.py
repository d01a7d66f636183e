"""MoE dispatch and combine among ranks of several hosts, through an HCA made of warps: one rank's engine on any `Link`.

Leans on ep.heap, ep.link, ep.internode_memory, ep.internode_queues, ep.internode_pods, ep.pool, ep.nvl_memory (blocks);
the device code is cuda/kernels/ep_*.cu. Queue pairs join ranks of the same place on different hosts; some blocks of
each operation's grid are their HCA, and the mapping of all heaps by all ranks is its wire. So it runs where GPUs map
each other's memory, and nowhere else yet. Everything is queued on a stream and nothing is synchronised, but for
`counts()`; operations are collective and come in one order on every rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rdmakit.ep import abi
from rdmakit.ep.heap import sixteens
from rdmakit.ep.internode_memory import MAX_EXPERTS, MAX_TOPK, HostsShape
from rdmakit.ep.internode_pods import Pods, Route
from rdmakit.ep.internode_queues import QueuePairs
from rdmakit.ep.link import Link
from rdmakit.ep.nvl_memory import Block, HeapRank
from rdmakit.ep.pool import Pool
from rdmakit.ep.rail_queues import RailQueues
from rdmakit.ep.rendezvous import Rendezvous
from rdmakit.errors import BadArgument

__all__ = ["Internode", "connect"]

MAX_TOKENS = 16384  # of one rank in one call
CHANNELS = 10  # queue pairs to each rail peer, at most
RIDERS = 4  # blocks of a grid that are the HCA, at most
LEAST_SMS = 4  # two blocks of one channel, one of the HCA; an even number
VECTOR = 16  # bytes: warps move rows in these
USUAL_ROW = 16384 + 4 * MAX_TOPK  # bytes: hidden up to 8192 in BF16, with weights
LEAVERS_END = 1 << 31  # the count of blocks that have left starts again long before it overflows

KERNELS = (
    "ep_count", "ep_route", "ep_notify_riding", "ep_tell", "ep_reopen", "ep_dispatch_riding", "ep_collect",
    "ep_combine_riding",
)  # fmt: skip


MakeQueues = Callable[[Link, HostsShape, int], RailQueues]


class Internode(HeapRank):
    """One rank's side. `shape` says what the link's heap holds; ranks are numbered host by host. `queues` makes the
    queue pairs, of a real device's (device_queues.py); without it warps are the HCA.
    """

    def __init__(
        self, link: Link, shape: HostsShape, *, timeout_ns: int = 0, queues: MakeQueues | None = None
    ) -> None:
        layout = shape.heap_layout()
        if shape.ranks != link.ranks or layout.nbytes > link.heap_bytes:
            raise BadArgument("the heap does not fit the hosts", value=f"{link.heap_bytes} bytes, {link.ranks} ranks",
                              rule=f"{layout.nbytes} bytes at least, {shape.ranks} ranks",
                              remedy="make the heap for HostsShape.of(…).heap_layout().nbytes")  # fmt: skip
        self.shape, self.link, self.rank, self.ranks = shape, link, link.rank, link.ranks
        self.hosts, self.local_ranks = shape.hosts, shape.local_ranks
        if queues is None:
            self.queue_pairs: RailQueues = QueuePairs(link, shape, layout, timeout_ns)
        else:
            self.queue_pairs = queues(link, shape, timeout_ns)
        self.pods = Pods(link, shape, layout, self.queue_pairs)
        self.pool = Pool(layout.offset["pool"], shape.pool_bytes)
        self._told = link.host_memory(16 + 4 * MAX_EXPERTS)
        self._scratch: list[tuple[int, int, Any]] = []  # address, bytes, owner: older ones may be in use
        # Allocating may wait for the device, where a kernel may wait for another rank: so now, for rows of usual sizes.
        self._scratch_of(shape.channels * link.warps * USUAL_ROW)
        self._local_experts = 0
        # Counted alike on all ranks of a host, since operations are collective.
        self._exchange = self._epoch = self._dispatched = self._arrived = self._offered = self._leavers = 0

    def __repr__(self) -> str:
        return (
            f"<Internode rank {self.rank} of {self.ranks} on {self.hosts} hosts: "
            f"{self.shape.channels} queue pairs to each rail peer>"
        )

    def channels_for(self, num_sms: int) -> int:
        """Channels of a call that may take so many SMs: two blocks each, besides the HCA's."""
        return min(self.shape.channels, (num_sms - self._riders(num_sms)) // 2)

    # ---- the operations
    def layout(
        self, topk_idx: int, tokens: int, topk: int, experts: int, tokens_per_rank: int, tokens_per_host: int,
        tokens_per_expert: int, is_in_rank: int, stream: int = 0,
    ) -> None:  # fmt: skip
        """Count a routing: int64 [tokens, topk] → int32 [ranks], [hosts], [experts], bool [tokens, ranks]. Local."""
        self._check_experts(experts)
        self._check_topk(topk)
        pod = np.zeros((), abi.COUNT_INPUT)
        pod[()] = (topk_idx, tokens_per_rank, tokens_per_host, tokens_per_expert, is_in_rank, tokens, topk, experts,
                   self.ranks, self.local_ranks, 0)  # fmt: skip
        self._launch("ep_count", self._blocks_of(self.ranks + self.hosts + experts), [pod[()]], stream)

    def notify(
        self, route: Route, is_in_rank: int, tokens_per_expert: int, expert_alignment: int, rank_prefix: int,
        host_prefix: int, stream: int = 0,
    ) -> None:  # fmt: skip
        """Make the plan from bool [tokens, ranks] and int32 [experts]; exchange counts. Collective; `counts()` waits.

        Out: `rank_prefix` int32 [ranks], rows that come here from ranks up to each; `host_prefix` int32 [hosts], tokens
        that come from hosts up to each to this rank, to be handed out on this host.
        """
        self._check_experts(route.experts)
        if route.tokens > self.shape.max_tokens:
            raise BadArgument("too many tokens for one call between hosts", value=route.tokens,
                              rule=f"at most {self.shape.max_tokens} of a rank",
                              remedy="dispatch them in several calls")  # fmt: skip
        self._exchange += 1
        self._epoch += 1
        self._local_experts = route.experts // self.ranks
        pod = self.pods.rank(route.channels, experts=route.experts)
        plan = self.pods.plan(route, tokens_per_expert)
        blocks = self._blocks_of(self.ranks + self.hosts * route.channels)
        self._launch("ep_route", blocks, [pod, plan, is_in_rank, np.uint32(route.tokens)], stream)
        numbers = np.uint64(self._exchange), np.uint64(self._epoch)
        self._ride("ep_notify_riding", 1, self._riders(1), [pod, plan, *numbers], stream)
        out = np.zeros((), abi.TELL_OUTPUT)
        out[()] = (self._told.ctypes.data, rank_prefix, host_prefix, self._exchange, expert_alignment, 0)
        self._launch("ep_tell", 1, [pod, plan, out[()]], stream)

    def counts(self) -> tuple[int, list[int]]:
        """Rows that the last notified dispatch brings, and those of each local expert; the host waits for them."""
        exchange = self._told[:8].view(np.uint64)
        self.link.wait(lambda: int(exchange[0]) >= self._exchange, "the counts of a dispatch")
        words = self._told[8:].view(np.int32)
        return int(words[0]), words[1 : 1 + self._local_experts].tolist()

    def receive_block(self, rows: int, row_bytes: int, scale_bytes: int, topk: int, stream: int = 0) -> Block:
        """Room for what one dispatch brings. BadArgument when the heap is used up."""
        return Block(self, rows, row_bytes, scale_bytes, topk)

    def dispatch(
        self, route: Route, x: int, row_bytes: int, scales: int, scale_bytes: int, topk_idx: int, topk_weights: int,
        topk: int, received: Any, rows: int, num_sms: int, *, cached: bool = False, stream: int = 0,
    ) -> None:  # fmt: skip
        """Send every token to its rows, all of them known. Collective.

        `x` [tokens, row_bytes], a multiple of 16; `scales` [tokens, scale_bytes], of 4; `topk_idx` int64 and
        `topk_weights` float32 [tokens, topk], or `topk` 0. `cached`: the route is an earlier dispatch's, and no counts
        were exchanged.
        """
        self._check_topk(topk, least=0)
        stride = sixteens(row_bytes + scale_bytes)
        parts = {"recv_x": row_bytes, "recv_scales": scale_bytes, "recv_topk": 4 * topk, "recv_weights": 4 * topk,
                 "recv_source": 4}  # fmt: skip
        self._check_row(row_bytes, rows, parts)
        pod = self.pods.rank(route.channels, experts=route.experts, topk=topk, stride=stride, parts=parts)
        plan = self.pods.plan(route)
        if cached:
            self._epoch += 1
            reads = np.uint64(self._dispatched * self.local_ranks)
            self._launch("ep_reopen", 1, [pod, plan, np.uint64(self._epoch), reads], stream)
        self._dispatched += 1
        self._arrived += rows
        given = np.zeros((), abi.DISPATCH_INPUT)
        given[()] = (x, scales, topk_idx, topk_weights, route.tokens, row_bytes, scale_bytes // 4, 2, self._epoch,
                     self._arrived)  # fmt: skip
        self._ride("ep_dispatch_riding", 2 * route.channels, self._riders(num_sms), [pod, plan, given[()]], stream)
        out = np.zeros((), abi.COLLECT_OUTPUT)
        out[()] = (received.x, received.scales, received.topk, received.weights, received.source, rows, row_bytes,
                   scale_bytes // 4, 0)  # fmt: skip
        if rows:
            self._launch("ep_collect", min(num_sms, self._blocks_of(rows)), [pod, out[()]], stream)

    def combine(
        self, route: Route, x: int, rows: int, hidden: int, topk_weights: int, topk: int, out: int, out_weights: int,
        bias_0: int, bias_1: int, num_sms: int, stream: int = 0,
    ) -> list[Any]:  # fmt: skip
        """Add up each token's rows. Collective.

        `x` BF16 [rows, hidden] in rows as dispatched, `topk_weights` float32 [rows, topk], both anywhere. Out: BF16
        [tokens, hidden] and float32 [tokens, topk]. A host's rows are summed by ascending rank and rounded, those sums
        by ascending host, then biases (BF16 [tokens, hidden], 0 for none), in float32, and rounded.
        """
        self._check_topk(topk, least=0)
        parts = {"combine_x": 2 * hidden, "combine_weights": 4 * topk}
        self._check_row(2 * hidden, rows, parts)
        sizes = {"experts": route.experts, "topk": topk, "hidden": hidden, "stride": 2 * hidden}
        pod, plan = self.pods.rank(route.channels, parts=parts, **sizes), self.pods.plan(route)
        blocks = 2 * route.channels
        self._offered += blocks
        given = np.zeros((), abi.COMBINE_INPUT)
        given[()] = (x, topk_weights, out, out_weights, rows, route.tokens, self._offered, (bias_0, bias_1))
        part = sixteens(2 * hidden + 4 * topk)
        scratch = self._scratch_of(route.channels * self.link.warps * part)
        self._ride("ep_combine_riding", blocks, self._riders(num_sms), [pod, plan, given[()], scratch], stream)
        return []

    def close(self) -> None:
        """Give the heap back; the engine is of no use afterwards."""
        self.link.close()

    def _scratch_of(self, nbytes: int) -> int:
        """Memory for partial sums."""
        if not self._scratch or self._scratch[-1][1] < nbytes:
            address, alive = self.link.memory(nbytes)
            self._scratch.append((address, nbytes, alive))
        return self._scratch[-1][0]

    # ---- launching
    def _riders(self, num_sms: int) -> int:
        return max(1, min(RIDERS, num_sms // 6)) if self.queue_pairs.rides else 0

    def _blocks_of(self, warps: int) -> int:
        return max(1, min(-(-warps // self.link.warps), self.link.blocks))

    def _launch(self, kernel: str, blocks: int, args: list[Any], stream: int) -> None:
        self.link.launch(kernel, blocks, 32 * self.link.warps, args, stream=stream)

    def _ride(self, kernel: str, workers: int, riders: int, args: list[Any], stream: int) -> None:
        """Launch a kernel whose grid holds its HCA."""
        if self._leavers + workers >= LEAVERS_END:
            self.link.clear(self.queue_pairs.left, 4, stream)
            self._leavers = 0
        self._leavers += workers
        hca = self.queue_pairs.hca
        hca["leavers"] = self._leavers
        self._launch(kernel, workers + riders, [hca[()].copy(), *args], stream)

    # ---- checks
    def _check_row(self, row_bytes: int, rows: int, parts: dict[str, int]) -> None:
        if row_bytes == 0 or row_bytes % VECTOR:
            raise BadArgument("rows of a size that warps cannot move", value=row_bytes,
                              rule=f"a multiple of {VECTOR} bytes",
                              remedy="pad hidden to a multiple of 128")  # fmt: skip
        if rows > self.pods.capacity(parts):
            raise BadArgument(
                "more rows than the Buffer has room for", value=rows,
                rule=f"at most {self.pods.capacity(parts)} of {sum(parts.values())} bytes",
                remedy="num_nvl_bytes=Config().get_nvl_buffer_size_hint(hidden_bytes, num_ranks), or more",
            )  # fmt: skip

    def _check_experts(self, experts: int) -> None:
        if experts % self.ranks or not 0 < experts <= MAX_EXPERTS:
            raise BadArgument("experts that do not fit", value=experts,
                              rule=f"a multiple of {self.ranks}, at most {MAX_EXPERTS}",
                              remedy="pad the experts")  # fmt: skip

    def _check_topk(self, topk: int, least: int = 1) -> None:
        if not least <= topk <= MAX_TOPK:
            raise BadArgument(
                "too many choices", value=topk, rule=f"{least} … {MAX_TOPK}", remedy="fewer choices a token"
            )


def connect(
    rendezvous: Rendezvous, *, ranks_per_host: int, num_nvl_bytes: int, num_rdma_bytes: int, num_qps_per_rank: int
) -> Internode:
    """This rank's engine, on the current CUDA device. Collective. NotAvailable where GPUs do not reach each other."""
    from rdmakit.gpu.peer import PeerLink

    channels = min(num_qps_per_rank, CHANNELS)
    sizes = {"rdma_bytes": num_rdma_bytes, "nvl_bytes": num_nvl_bytes}
    shape = HostsShape.of(rendezvous.size, ranks_per_host, channels, MAX_TOKENS, **sizes)
    link = PeerLink(rendezvous.rank, rendezvous.size, shape.heap_layout().nbytes, rendezvous.all_gather)
    link.load(*KERNELS)
    engine = Internode(link, shape)
    rendezvous.barrier()  # nobody's kernel waits while another rank still compiles
    return engine
