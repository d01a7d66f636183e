"""Dispatch and combine over NVLink at the smallest real shapes: two ranks, a few tokens of 128 elements, few blocks.

The kernels are those that users run. Rows, choices, counts and sums must equal the NumPy truth, bit for bit. Leans on
ep.nvlink, ep.link.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.ep import nvl_memory, reference, routing
from rdmakit.ep.link import WorldLink
from rdmakit.ep.nvlink import Nvlink
from rdmakit.explore.scenario import Scene, scenario

HIDDEN, TOPK = 128, 2
BF16 = ml_dtypes.bfloat16
# What stands between two calls of ours: experts that read rows and leave others in their place, a host that waits.
KERNELS = """
#include <rdmakit/nvl.cuh>
RDMAKIT_KERNEL negate(unsigned* words, int count) {
    for (int i = rdmakit::block_rank(); i < count; i += rdmakit::block_size()) words[i] ^= 0x80008000u;
}
RDMAKIT_KERNEL await_counts(const unsigned long long* words, int* copy, int count, rdmakit::Watch watch) {
    using namespace rdmakit;
    const Subject who{"the counts of a dispatch", 1, 0, 0, 0};
    for (int i = block_rank(); i < count; i += block_size()) {
        unsigned long long seen = 0;
        if (wait_until<Scope::sys>(words + i, [](u64 v) { return v != 0; }, watch, who, &seen) != Status::ok) return;
        copy[i] = static_cast<int>(seen);
    }
}
"""


class Ranks:
    """Engines of all ranks on few warps, their inputs, and arrays that start out poisoned. Reports fail a schedule, but
    for those of `unwatched` ranks.
    """

    def __init__(self, scene: Scene, *, unwatched: Collection[int] = ()) -> None:
        self.scene = scene
        self.ranks, self.tokens = int(scene.options.get("ranks", 2)), int(scene.options.get("tokens", 2))
        self.experts = self.ranks * int(scene.options.get("experts", 1))
        self.blocks = int(scene.options.get("blocks", 1))
        warps = int(scene.options.get("warps", 1))
        self.world = scene.world(hosts=1, gpus_per_host=self.ranks, ports=1)
        low_latency = nvl_memory.low_latency_bytes(self.ranks, self.tokens, HIDDEN)
        nbytes = nvl_memory.Control(self.ranks, 64).nbytes + low_latency + (16 << 10)
        self.heaps = heaps = [
            self.world.array((nbytes,), np.uint8, name=f"heap of rank {r}") for r in range(self.ranks)
        ]
        self.engines = []
        for rank in range(self.ranks):
            link = WorldLink(self.world, rank, heaps, blocks=self.blocks, warps=warps, most_threads=64)
            link.pace_gbs = float(scene.options.get("pace", 0))
            shrink = bool(scene.options.get("shrink", False))
            self.engines.append(
                Nvlink(link, low_latency_bytes=low_latency, max_experts=64, enable_shrink=shrink)
            )
            if rank not in unwatched:
                scene.watch(link.report)
        scene.keep(self)
        self.module = self.world.compile(KERNELS, name="around_nvlink.cu")
        self.x, self.idx, self.weights = [], [], []
        for rank in range(self.ranks):
            rng = np.random.default_rng((int(scene.options.get("routing", 1)), rank))
            chosen = routing.uniform(self.tokens, num_experts=self.experts, top_k=TOPK, seed=7 * rank + 1)
            self.x.append(self.given(rng.standard_normal((self.tokens, HIDDEN), np.float32).astype(BF16)))
            self.idx.append(self.given(chosen.topk_idx.astype(np.int64)))
            self.weights.append(self.given(chosen.topk_weights))

    def given(self, array: Any) -> Any:
        """A copy in the world's memory."""
        made = self.world.array(array.shape, array.dtype, name="tokens" if array.dtype == BF16 else "choices")
        made[...] = array
        self.scene.keep(made)
        return made

    def negate(self, rank: int, where: int, nbytes: int) -> None:
        """Experts of this rank: rows there are read, and their negatives written."""
        if nbytes:
            self.module.get_function("negate")(1, 32, (where, nbytes // 4), rank=rank)

    def out(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Poisoned memory for results."""
        made = self.world.array(shape, np.dtype(dtype), name=name)
        made.view(np.uint8)[...] = 0xEE
        self.scene.keep(made)
        return made


def _at(array: Any) -> int:
    return int(array.ctypes.data)


@scenario("nvl-normal", "normal dispatch and combine between two GPUs over NVLink", tags=("ep",))
def normal(scene: Scene) -> None:
    """Options: ranks=2, tokens=2, experts=1 a rank, blocks=1, warps=1 that move rows, turns=1, changed=False (experts
    change the rows, before and after they are combined), host=False (a host waits for the counts), routing (a seed),
    pace=0 (GB/s of a link for which blocks are too few: rows that stay are stored in bulk).
    """
    at = Ranks(scene)
    shape = at.tokens, at.ranks
    wanted: list[Any] = [reference.dispatch(at.x, at.idx, at.weights, rank, at.experts) for rank in range(at.ranks)]
    for turn in range(int(scene.options.get("turns", 1))):
        places, blocks = [], []
        for rank, engine in enumerate(at.engines):
            per_rank, per_expert = (
                at.out("tokens a rank", (at.ranks,), np.int32),
                at.out("tokens an expert", (at.experts,), np.int32),
            )
            goes, positions = at.out("who goes where", shape, np.bool_), at.out("positions", shape, np.int32)
            prefix = at.out("prefix", (at.ranks, at.ranks), np.int32)
            engine.layout(_at(at.idx[rank]), at.tokens, TOPK, at.experts, _at(per_rank), _at(per_expert), _at(goes))
            sums = _at(per_rank), _at(per_expert)
            engine.notify(_at(goes), at.tokens, *sums, at.experts, 1, _at(positions), _at(prefix))
            places.append((positions, prefix))
            if scene.options.get("host", False):
                want = wanted[rank]
                told = [len(want.handle.src_token), *want.num_recv_tokens_per_expert]
                copy = at.out("counts that the host reads", (len(told),), np.int32)
                watch = np.array(engine.pod["watch"])[()]
                host = at.module.get_function("await_counts")
                host(
                    1, 32, (engine._counts[: len(told)], copy, len(told), watch), rank=(rank + 1) % at.ranks, stream=1
                )
                scene.expect(copy, np.array(told, np.int32), f"counts of rank {rank}")
        for rank, engine in enumerate(at.engines):
            rows = len(wanted[rank].handle.src_token)
            block = engine.receive_block(rows, 2 * HIDDEN, 0, TOPK)
            blocks.append(block)
            engine.dispatch(
                _at(at.x[rank]),
                2 * HIDDEN,
                0,
                0,
                _at(at.idx[rank]),
                _at(at.weights[rank]),
                TOPK,
                at.experts,
                at.tokens,
                _at(places[rank][0]),
                _at(places[rank][1]),
                block,
                rows,
                at.blocks,
            )
        changed = bool(scene.options.get("changed", False))
        for rank in range(at.ranks):
            if changed:
                at.negate(rank, blocks[rank].x, wanted[rank].recv_x.nbytes)
        for rank, engine in enumerate(at.engines):
            want, block = wanted[rank], blocks[rank]
            rows = len(want.handle.src_token)
            for name, where, truth in (
                ("rows", block.x, want.recv_x),
                ("choices", block.topk, want.recv_topk_idx),
                ("weights", block.weights, want.recv_topk_weights),
                ("sources", block.source, want.handle.src_token),
            ):
                scene.expect(_view(at, rank, where, truth), truth, f"{name} {turn} of rank {rank}")
            out, sums = (
                at.out("sums", (at.tokens, HIDDEN), BF16),
                at.out("sums of weights", (at.tokens, TOPK), np.float32),
            )
            kept = engine.combine(
                block.x,
                rows,
                HIDDEN,
                block.weights,
                TOPK,
                _at(places[rank][0]),
                _at(places[rank][1]),
                at.tokens,
                _at(out),
                _at(sums),
                0,
                0,
                at.blocks,
            )
            scene.keep(kept, block)
            sign = -1 if changed else 1
            truth, truths = reference.combine(
                [sign * w.recv_x for w in wanted],
                [w.handle for w in wanted],
                rank,
                at.tokens,
                [w.recv_topk_weights for w in wanted],
            )
            scene.expect(out, truth, f"sums {turn} of rank {rank}")
            scene.expect(sums, truths, f"sums of weights {turn} of rank {rank}")
        for rank in range(at.ranks):  # whose rows are its own again
            if changed:
                at.negate(rank, blocks[rank].x, wanted[rank].recv_x.nbytes)


def _view(at: Ranks, rank: int, where: int, like: Any) -> Any:
    """Part of a rank's heap, as an array like another."""
    heap = at.heaps[rank]
    begin = where - _at(heap)
    return heap[begin : begin + like.nbytes].view(like.dtype).reshape(like.shape)


@scenario("nvl-low-latency", "low-latency dispatch and combine between two GPUs over NVLink", tags=("ep",))
def low_latency(scene: Scene) -> None:
    """Options: ranks=2, tokens=2, experts=1 a rank, blocks=1, warps=1, turns=1 (from the third on slots are filled
    anew), halves=False (each in a launch of its own), ahead=False (three turns, of which two are sent and not yet
    received), routing (a seed).
    """
    at = Ranks(scene)
    local, rows = at.experts // at.ranks, at.ranks * at.tokens
    wanted = [reference.low_latency_dispatch(at.x, at.idx, rank, at.experts, at.tokens) for rank in range(at.ranks)]
    ahead, turns = bool(scene.options.get("ahead", False)), int(scene.options.get("turns", 1))
    halves = (1, 2) if scene.options.get("halves", False) else (3,)
    orders = [[(turn, half) for half in halves] for turn in range(turns)]
    if ahead:
        turns, orders = 3, [[(0, 1), (1, 1), (0, 2), (2, 1), (1, 2), (2, 2)]]
    made: list[list[dict[str, Any]]] = []
    for _ in range(turns):
        made.append([])
        for engine in at.engines:
            engine.ll_configure(at.tokens, HIDDEN, at.experts, TOPK)
            made[-1].append(
                {
                    "rows": at.out("rows", (local, rows, HIDDEN), BF16),
                    "count": at.out("counts", (local,), np.int32),
                    "source": at.out("sources", (local, rows), np.int32),
                    "ranges": at.out("ranges", (local, at.ranks), np.int64),
                    "map": at.out("row map", (at.ranks, at.tokens, TOPK), np.int32),
                    "home": at.out("sums", (at.tokens, HIDDEN), BF16),
                }
            )
    for order in orders:
        for turn, half in order:
            for rank, engine in enumerate(at.engines):
                got = made[turn][rank]
                engine.ll_dispatch(
                    _at(at.x[rank]), _at(at.idx[rank]), at.tokens, False, False, False, _at(got["rows"]), 0,
                    _at(got["count"]), _at(got["source"]), _at(got["ranges"]), _at(got["map"]), phases=half,
                )  # fmt: skip
        for turn, half in order:
            for rank, engine in enumerate(at.engines):
                got = made[turn][rank]
                engine.ll_combine(
                    _at(got["rows"]), _at(at.idx[rank]), _at(at.weights[rank]), _at(got["map"]), at.tokens,
                    _at(got["home"]), phases=half,
                )  # fmt: skip
    for turn in range(turns):
        for rank, want in enumerate(wanted):
            got = made[turn][rank]
            scene.expect(got["count"], want.packed_recv_count, f"counts {turn} of rank {rank}")
            scene.expect(got["ranges"], want.packed_recv_layout_range, f"ranges {turn} of rank {rank}")
            for e, n in enumerate(want.packed_recv_count):
                scene.expect(got["rows"][e, :n], want.packed_recv_x[e, :n], f"rows {turn} of rank {rank}, expert {e}")
            scene.expect(got["home"], sums_home(at, rank), f"sums {turn} of rank {rank}")


@scenario("nvl-layout", "counts of a routing, by several blocks", tags=("ep",))
def layout(scene: Scene) -> None:
    """Options: tokens=65, blocks=2, turns=1 (the sums start from zero again), experts=1 a rank."""
    scene.options = {"tokens": 65, "blocks": 2, **scene.options}
    at = Ranks(scene)
    for turn in range(int(scene.options.get("turns", 1))):
        for rank, engine in enumerate(at.engines[:1]):
            per_rank = at.out("tokens a rank", (at.ranks,), np.int32)
            per_expert = at.out("tokens an expert", (at.experts,), np.int32)
            goes = at.out("who goes where", (at.tokens, at.ranks), np.bool_)
            engine.layout(_at(at.idx[rank]), at.tokens, TOPK, at.experts, _at(per_rank), _at(per_expert), _at(goes))
            local = at.idx[rank] // (at.experts // at.ranks)
            truth = np.stack([(local == d).any(1) for d in range(at.ranks)], 1)
            scene.expect(goes, truth, f"who goes where {turn}")
            scene.expect(per_rank, truth.sum(0).astype(np.int32), f"tokens a rank {turn}")
            counts = np.bincount(at.idx[rank].ravel(), minlength=at.experts).astype(np.int32)
            scene.expect(per_expert, counts, f"tokens an expert {turn}")


def sums_home(at: Ranks, rank: int, gone: Collection[int] = ()) -> Any:
    """As the two roundings of low-latency combine have it: a rank's rows by ascending choice, then ranks; but for those
    that are gone.
    """
    total = np.zeros((at.tokens, HIDDEN), np.float32)
    local = at.experts // at.ranks
    for owner in set(range(at.ranks)) - set(gone):
        part = np.zeros_like(total)
        for t in range(at.tokens):
            for k in range(TOPK):
                if int(at.idx[rank][t, k]) // local == owner:
                    part[t] += at.weights[rank][t, k] * at.x[rank][t].astype(np.float32)
        total += part.astype(BF16).astype(np.float32)
    return total.astype(BF16)
