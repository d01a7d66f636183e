"""MoE dispatch and combine among ranks of several hosts, through an HCA made of warps: one rank's engine, on any `Link`.

Leans on ep.link, ep.inter_memory, ep.pool, ep.nvl_memory (blocks); the device code is cuda/kernels/ep_*.cu. Queue pairs join ranks
of the same place on different hosts; some blocks of each operation's grid are their HCA, and the mapping of all heaps by all
ranks is its wire. So it runs where GPUs map each other's memory, and nowhere else yet. Everything is queued on a stream and
nothing is synchronised, but for `counts()`; operations are collective and come in one order on every rank.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION
from rdmakit.ep import abi
from rdmakit.ep.inter_memory import MAX_EXPERTS, MAX_TOPK, HostsShape, QueuePairs, Slab
from rdmakit.ep.link import Link
from rdmakit.ep.nvl_memory import Block
from rdmakit.ep.pool import Pool
from rdmakit.ep.rendezvous import Rendezvous
from rdmakit.errors import BadArgument

__all__ = ["Internode", "Route", "connect"]

Array = np.ndarray[Any, Any]

MAX_TOKENS = 16384  # of one rank in one call
CHANNELS = 10  # queue pairs to each rail peer, at most
RIDERS = 4  # blocks of a grid that are the HCA, at most
LEAST_SMS = 4  # two blocks of one channel, one of the HCA; an even number
VECTOR = 16  # bytes: warps move rows in these
POD_BYTES = 1 << 20  # for what shapes of calls need
LEAVERS_END = 1 << 31  # the count of blocks that have left starts again long before it overflows

KERNELS = (
    "ep_count", "ep_route", "ep_notify_riding", "ep_tell", "ep_reopen", "ep_settle", "ep_dispatch_riding", "ep_collect",
    "ep_combine_riding",
)  # fmt: skip


@dataclass(frozen=True)
class Route:
    """Where the tokens of one dispatch go: `plan` is the address of `Internode.plan_words(…)` int32 on the device."""

    plan: int
    tokens: int
    channels: int
    experts: int


class Internode:
    """One rank's side. `ranks_per_host`: ranks are numbered host by host.

    Of the heap, `rdma_bytes` are for rings to and from other hosts, the rest for what dispatches bring: half of it for the one
    that is under way, half for tensors of earlier ones. `channels`: queue pairs to each rail peer.
    """

    def __init__(
        self, link: Link, ranks_per_host: int, *, rdma_bytes: int, channels: int = CHANNELS, max_tokens: int = MAX_TOKENS,
        timeout_ns: int = 0,
    ) -> None:  # fmt: skip
        self.shape = _shape(link.heap_bytes, link.ranks, ranks_per_host, rdma_bytes, channels, max_tokens)
        self.layout_of_heap = self.shape.heap_layout()
        self.link, self.rank, self.ranks, self.hosts = link, link.rank, link.ranks, self.shape.hosts
        self.local_ranks = ranks_per_host
        self.host, self.local = divmod(link.rank, ranks_per_host)
        self.queue_pairs = QueuePairs(link, self.shape, self.layout_of_heap, timeout_ns)
        self.pool = Pool(self.layout_of_heap.offset["pool"], self.shape.pool_bytes)
        self._pods = Slab(link, POD_BYTES)
        self._found: dict[Hashable, int] = {}
        heaps = [heap if r // ranks_per_host == self.host else 0 for r, heap in enumerate(link.heaps)]
        self._heaps = self._pods.put(np.array(heaps, np.uint64))
        peers = np.zeros(self.hosts, abi.REMOTE_MEMORY)
        for host in range(self.hosts):
            peers[host] = self.queue_pairs.remote(host * ranks_per_host + self.local, 0)
        self._peers = self._pods.put(peers)
        self._told = link.host_memory(16 + 4 * MAX_EXPERTS)
        self._scratch = [(0, 0, None)]  # address, bytes, what keeps it alive: an older one may be in use
        self._stride = 0  # of the rings' slots now
        self._local_experts = 0
        # Counted alike on all ranks of a host, since operations are collective.
        self._exchange = self._epoch = self._dispatched = self._arrived = self._offered = self._leavers = 0

    def __repr__(self) -> str:
        return (
            f"<Internode rank {self.rank} of {self.ranks}, host {self.host} of {self.hosts}: {self.shape.channels} queue pairs"
            f" to each rail peer>"
        )

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
    def heap_bytes(self) -> int:
        """Its size."""
        return self.link.heap_bytes

    def channels_for(self, num_sms: int) -> int:
        """Channels of a call that may take so many SMs: two blocks each, besides the HCA's."""
        return min(self.shape.channels, (num_sms - self._riders(num_sms)) // 2)

    def plan_words(self, tokens: int, channels: int, experts: int) -> int:
        """int32 words of a plan."""
        return sum(self._plan_sizes(tokens, channels, experts).values())

    def plan_part(self, route: Route, name: str) -> tuple[int, int]:
        """First word and words of an array of the plan, by its name in EpPlan."""
        begin = 0
        for each, words in self._plan_sizes(route.tokens, route.channels, route.experts).items():
            if each == name:
                return begin, words
            begin += words
        raise KeyError(name)

    # ---- the operations
    def layout(
        self, topk_idx: int, tokens: int, topk: int, experts: int, tokens_per_rank: int, tokens_per_host: int,
        tokens_per_expert: int, is_in_rank: int, stream: int = 0,
    ) -> None:  # fmt: skip
        """Counts of a routing: int64 [tokens, topk] → int32 [ranks], [hosts], [experts], bool [tokens, ranks]. Local."""
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
        """Make the plan from bool [tokens, ranks] and int32 [experts], and exchange counts; `counts()` waits. Collective.

        Out: `rank_prefix` int32 [ranks], rows that come here from ranks up to each; `host_prefix` int32 [hosts], tokens that
        come from hosts up to each to this rank, to be handed out on this host.
        """
        self._check_experts(route.experts)
        if route.tokens > self.shape.max_tokens:
            raise BadArgument("too many tokens for one call between hosts", value=route.tokens,
                              rule=f"at most {self.shape.max_tokens} of a rank",
                              remedy="dispatch them in several calls")  # fmt: skip
        self._exchange += 1
        self._epoch += 1
        self._local_experts = route.experts // self.ranks
        pod = self._pod(route.channels, experts=route.experts)
        plan = self._plan(route, tokens_per_expert)
        blocks = self._blocks_of(self.ranks + self.hosts * route.channels)
        self._launch("ep_route", blocks, [pod, plan, is_in_rank, np.uint32(route.tokens)], stream)
        self._ride("ep_notify_riding", 1, 1, [pod, plan, np.uint64(self._exchange), np.uint64(self._epoch)], stream)
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

        `x` [tokens, row_bytes], a multiple of 16; `scales` [tokens, scale_bytes], of 4; `topk_idx` int64 and `topk_weights`
        float32 [tokens, topk], or `topk` 0. `cached`: the route is an earlier dispatch's, and no counts were exchanged.
        """
        self._check_topk(topk, least=0)
        # FP8 rows leave room for the BF16 ones that will come back: rings need not be divided anew for combine.
        stride = max(2 * row_bytes, row_bytes + scale_bytes) if scale_bytes else row_bytes
        parts = {"recv_x": row_bytes, "recv_scales": scale_bytes, "recv_topk": 4 * topk, "recv_weights": 4 * topk,
                 "recv_source": 4}  # fmt: skip
        self._check_row(row_bytes, rows, parts)
        pod = self._pod(route.channels, experts=route.experts, topk=topk, stride=stride, parts=parts)
        self._settle(stride, stream)
        plan = self._plan(route)
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
        [tokens, hidden] and float32 [tokens, topk]. A host's rows are summed by ascending rank and rounded, those sums by
        ascending host, then biases (BF16 [tokens, hidden], 0 for none), in float32, and rounded.
        """
        self._check_topk(topk, least=0)
        parts = {"combine_x": 2 * hidden, "combine_weights": 4 * topk}
        self._check_row(2 * hidden, rows, parts)
        pod = self._pod(route.channels, experts=route.experts, topk=topk, hidden=hidden, stride=2 * hidden, parts=parts)
        self._settle(2 * hidden, stream)
        blocks = 2 * route.channels
        self._offered += blocks
        given = np.zeros((), abi.COMBINE_INPUT)
        given[()] = (x, topk_weights, out, out_weights, rows, route.tokens, self._offered, (bias_0, bias_1))
        part = -(-(2 * hidden + 4 * topk) // VECTOR) * VECTOR
        scratch = self._scratch_of(route.channels * self.link.warps * part)
        self._ride("ep_combine_riding", blocks, self._riders(num_sms), [pod, self._plan(route), given[()], scratch], stream)
        return []

    def close(self) -> None:
        """Give the heap back; the engine is of no use afterwards."""
        self.link.close()

    # ---- what kernels are told
    def _plan_sizes(self, tokens: int, channels: int, experts: int) -> dict[str, int]:
        return {
            "tokens_per_rank": self.ranks,
            "channel_counts": self.hosts * channels,
            "order": tokens * self.ranks,
            "host_slot": tokens * self.hosts,
            "forward_counts": self.hosts * channels,
            "forward_order": self.hosts * self.shape.max_tokens * self.local_ranks,
            "start": self.local_ranks * (self.ranks + 1),
            "totals": 1 + experts // self.ranks,
        }

    def _plan(self, route: Route, tokens_per_expert: int = 0) -> Any:
        """EpPlan over the route's words."""
        pod, at = np.zeros((), abi.EP_PLAN), route.plan
        pod["tokens_per_expert"] = tokens_per_expert  # read by the exchange of counts only
        for name, words in self._plan_sizes(route.tokens, route.channels, route.experts).items():
            pod[name] = at
            at += 4 * words
        return pod[()]

    def _pod(
        self, channels: int, *, experts: int, topk: int = 0, hidden: int = 0, stride: int = VECTOR,
        parts: dict[str, int] | None = None,
    ) -> int:  # fmt: skip
        """Address of the EpRank for calls of one shape. `parts`: bytes a row of what lies in the region, by name."""
        key = channels, experts, topk, hidden, stride, tuple((parts or {}).items())
        if key in self._found:
            return self._found[key]
        shape, layout = self.shape, self.layout_of_heap
        capacity = self._capacity(parts) if parts else np.iinfo(np.int32).max
        pod = np.zeros((), abi.EP_RANK)
        values = {
            "layout_version": LAYOUT_VERSION, "rank": self.rank, "ranks": self.ranks, "host": self.host,
            "hosts": self.hosts, "local": self.local, "local_ranks": self.local_ranks, "channels": channels,
            "experts": experts, "local_experts": experts // self.ranks, "topk": topk, "hidden": hidden,
            "capacity": capacity, "notify_bytes": shape.notify_bytes, "heaps": self._heaps, "rail_heaps": self._peers,
            "rails": self._rails(channels, stride), "heap_lkey": self.queue_pairs.lkey, "max_tokens": shape.max_tokens,
            "count_bytes": shape.count_bytes,
        }  # fmt: skip
        for name, value in values.items():
            pod[name] = value
        for name in abi.EP_HEAP.names or ():
            pod["at"][name] = layout.offset.get(name, 0)
        offset = layout.offset["region"]
        for name, each in (parts or {}).items():
            pod["at"][name] = offset
            offset += -(-capacity * each // 128) * 128
        self.queue_pairs.watch(pod["watch"])
        self._found[key] = self._pods.put(pod.reshape(1))
        return self._found[key]

    def _rails(self, channels: int, stride: int) -> int:
        key = "rails", channels, stride
        if key not in self._found:
            self._found[key] = self._pods.put(self.queue_pairs.rails(self.layout_of_heap, channels, stride))
        return self._found[key]

    def _capacity(self, parts: dict[str, int]) -> int:
        """Rows that the region holds, each part aligned."""
        return max(self.shape.region_bytes - 128 * len(parts), 0) // sum(parts.values())

    def _scratch_of(self, nbytes: int) -> int:
        """Memory for partial sums."""
        if self._scratch[-1][1] < nbytes:
            address, alive = self.link.memory(nbytes)
            self._scratch.append((address, nbytes, alive))
        return self._scratch[-1][0]

    # ---- launching
    def _riders(self, num_sms: int) -> int:
        return max(1, min(RIDERS, num_sms // 6))

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

    def _settle(self, stride: int, stream: int) -> None:
        """Rings that are divided otherwise than before have to be empty: all, also those that a call does not use."""
        if self._stride not in (0, stride):
            pod = self._pod(self.shape.channels, experts=0, stride=self._stride)
            self._launch("ep_settle", 1, [pod], stream)
        self._stride = stride

    # ---- checks
    def _check_row(self, row_bytes: int, rows: int, parts: dict[str, int]) -> None:
        if row_bytes == 0 or row_bytes % VECTOR:
            raise BadArgument("rows of a size that warps cannot move", value=row_bytes, rule=f"a multiple of {VECTOR} bytes",
                              remedy="pad hidden to a multiple of 128")  # fmt: skip
        if rows > self._capacity(parts):
            raise BadArgument(
                "more rows than the Buffer has room for", value=rows,
                rule=f"at most {self._capacity(parts)} of {sum(parts.values())} bytes",
                remedy="num_nvl_bytes=Config().get_nvl_buffer_size_hint(hidden_bytes, num_ranks), or more",
            )  # fmt: skip

    def _check_experts(self, experts: int) -> None:
        if experts % self.ranks or not 0 < experts <= MAX_EXPERTS:
            raise BadArgument("experts that do not fit", value=experts,
                              rule=f"a multiple of {self.ranks}, at most {MAX_EXPERTS}", remedy="pad the experts")  # fmt: skip

    def _check_topk(self, topk: int, least: int = 1) -> None:
        if not least <= topk <= MAX_TOPK:
            raise BadArgument(
                "too many choices", value=topk, rule=f"{least} … {MAX_TOPK}", remedy="fewer choices a token"
            )


def _shape(
    heap_bytes: int, ranks: int, ranks_per_host: int, rdma_bytes: int, channels: int, max_tokens: int
) -> HostsShape:  # fmt: skip
    """The shape that fills a heap."""
    hosts = ranks // ranks_per_host
    ring = rdma_bytes // (2 * hosts * channels) // 128 * 128
    bare = HostsShape(hosts, ranks_per_host, channels, max_tokens, ring, 0, 0)
    left = (heap_bytes - bare.heap_layout().nbytes) // 2 // 128 * 128
    if left < 0:
        raise BadArgument("the heap is too small", value=heap_bytes, rule=f"{bare.heap_layout().nbytes} bytes at least",
                          remedy="more num_nvl_bytes")  # fmt: skip
    return HostsShape(hosts, ranks_per_host, channels, max_tokens, ring, left, left)


def heap_bytes_for(
    ranks: int, ranks_per_host: int, *, nvl_bytes: int, rdma_bytes: int, channels: int = CHANNELS
) -> int:  # fmt: skip
    """Bytes of a heap with rings of `rdma_bytes`, and twice `nvl_bytes`: for one dispatch, and for tensors of earlier ones."""
    ring = rdma_bytes // (2 * (ranks // ranks_per_host) * channels) // 128 * 128
    each = -(-nvl_bytes // 128) * 128
    return HostsShape(ranks // ranks_per_host, ranks_per_host, channels, MAX_TOKENS, ring, each, each).heap_layout().nbytes


def connect(
    rendezvous: Rendezvous, *, ranks_per_host: int, num_nvl_bytes: int, num_rdma_bytes: int, num_qps_per_rank: int
) -> Internode:  # fmt: skip
    """The engine of this rank, on the current CUDA device. Collective. NotAvailable where GPUs do not reach each other."""
    from rdmakit.gpu.peer import PeerLink

    channels = min(num_qps_per_rank, CHANNELS)
    sizes = {"nvl_bytes": num_nvl_bytes, "rdma_bytes": num_rdma_bytes, "channels": channels}
    nbytes = heap_bytes_for(rendezvous.size, ranks_per_host, **sizes)
    link = PeerLink(rendezvous.rank, rendezvous.size, nbytes, rendezvous.all_gather)
    link.load(*KERNELS)
    engine = Internode(link, ranks_per_host, rdma_bytes=num_rdma_bytes, channels=channels)
    rendezvous.barrier()  # nobody's kernel waits while another rank still compiles
    return engine
