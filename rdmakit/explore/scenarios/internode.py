"""Dispatch and combine between hosts whose HCA rides in the operations' grids: two ranks, a few tokens of 128 elements.

The kernels are those that Buffer runs. Rows, choices, counts and sums must equal the NumPy truth, bit for bit. Leans on
ep.internode, ep.link.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.ep import reference, routing
from rdmakit.ep.internode import Internode
from rdmakit.ep.internode_memory import HostsShape
from rdmakit.ep.internode_pods import Route
from rdmakit.ep.link import WorldLink
from rdmakit.explore.scenario import Scene, scenario

HIDDEN, TOPK, SMS = 128, 2, 4
BF16 = ml_dtypes.bfloat16
# A host that waits for counts.
KERNELS = """
#include <rdmakit/ep.cuh>
RDMAKIT_KERNEL await_counts(const unsigned long long* told, const int* counts, int* copy, rdmakit::Watch watch) {
    using namespace rdmakit;
    unsigned long long seen = 0;
    const Subject who{"the counts of a dispatch", 1, 0, 0, 0};
    if (wait_until<Scope::sys>(told, [](u64 v) { return v != 0; }, watch, who, &seen) != Status::ok) return;
    copy[0] = counts[0];
    copy[1] = counts[1];
}
"""


class _Ranks:
    """Engines of two hosts of one rank each, on few warps, and arrays that start out poisoned."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.ranks, self.tokens = scene, 2, int(scene.options.get("tokens", 2))
        self.world = scene.world(hosts=1, gpus_per_host=self.ranks, ports=1)
        # Rings of two slots: a put has one, and they go round.
        ring = int(scene.options.get("slots", 4 if scene.options.get("again", False) else 2)) * 2 * HIDDEN
        shape = HostsShape.of(self.ranks, 1, 1, self.tokens, rdma_bytes=4 * ring, nvl_bytes=8192)
        nbytes = shape.heap_layout().nbytes
        heaps = [self.world.array((nbytes,), np.uint8, name=f"heap of rank {r}") for r in range(self.ranks)]
        links = [
            WorldLink(self.world, r, heaps, blocks=SMS, warps=int(scene.options.get("warps", 1)))
            for r in range(self.ranks)
        ]
        self.engines = [Internode(link, shape) for link in links]
        for link in links:
            scene.watch(link.report)
        scene.keep(self)
        self.module = self.world.compile(KERNELS, name="around_internode.cu")

    def given(self, array: Any, name: str) -> Any:
        """A copy in the world's memory."""
        made = self.out(name, array.shape, array.dtype)
        made[...] = array
        return made

    def out(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Poisoned memory for results."""
        made = self.world.array(shape, np.dtype(dtype), name=name)
        made.view(np.uint8)[...] = 0xEE
        self.scene.keep(made)
        return made


def _at(array: Any) -> int:
    return int(array.ctypes.data)


def _view(where: int, like: Any) -> Any:
    """Memory at an address as an array of the shape and dtype of another."""
    raw = (ctypes.c_uint8 * max(like.nbytes, 1)).from_address(where)
    return np.frombuffer(raw, np.uint8)[: like.nbytes].view(like.dtype).reshape(like.shape)


@scenario("internode", "normal dispatch and combine between two hosts, the HCA in their own grids", tags=("ep",))
def internode(scene: Scene) -> None:
    """Options: tokens=2, slots=2 (4) of each ring, warps=1 a block, host=False (a host waits for the counts),
    again=False (a second dispatch by the same route, of rows twice as long: rings are divided anew), routing (a seed).
    """
    at = _Ranks(scene)
    seed = int(scene.options.get("routing", 1))
    chosen = [routing.uniform(at.tokens, at.ranks, TOPK, seed=7 * rank + seed) for rank in range(at.ranks)]
    idx, weights = [c.topk_idx.astype(np.int64) for c in chosen], [c.topk_weights for c in chosen]
    rng = np.random.default_rng(5)
    x = [at.given(rng.standard_normal((at.tokens, HIDDEN), np.float32).astype(BF16), "tokens") for _ in idx]
    wanted: list[Any] = [reference.dispatch(x, idx, weights, rank, at.ranks) for rank in range(at.ranks)]
    choices = [at.given(each, "choices") for each in idx]
    weighed = [at.given(each, "weights") for each in weights]
    routes = [_exchange(at, rank, choices[rank], wanted[rank]) for rank in range(at.ranks)]
    blocks = [_dispatch(at, rank, routes[rank], x[rank], wanted[rank], choices[rank], weighed[rank]) for rank in (0, 1)]
    if scene.options.get("again", False):
        longer = [at.given(np.concatenate([rows, rows], 1), "longer tokens") for rows in x]
        for rank, route in enumerate(routes):
            _dispatch(at, rank, route, longer[rank], reference.dispatch(longer, idx, weights, rank, at.ranks))
    for rank, engine in enumerate(at.engines):
        out, sums = at.out("sums", x[rank].shape, BF16), at.out("sums of weights", weights[rank].shape, np.float32)
        rows, block = len(wanted[rank].recv_x), blocks[rank]
        engine.combine(routes[rank], block.x, rows, HIDDEN, block.weights, TOPK, _at(out), _at(sums), 0, 0, SMS)
        handles, back = [want.handle for want in wanted], [want.recv_topk_weights for want in wanted]
        truth, truths = reference.combine([w.recv_x for w in wanted], handles, rank, at.tokens, back, 1)
        scene.expect(out, truth, f"sums of rank {rank}")
        scene.expect(sums, truths, f"sums of weights of rank {rank}")


def _exchange(at: _Ranks, rank: int, choices: Any, want: Any) -> Route:
    """Layout and counts of one rank; a host that reads them, if asked for."""
    engine = at.engines[rank]
    layout = [at.out(name, (at.ranks,), np.int32) for name in ("tokens a rank", "tokens a host", "tokens an expert")]
    goes = at.out("who goes where", (at.tokens, at.ranks), np.bool_)
    per_rank, per_host, per_expert = layout
    engine.layout(
        _at(choices), at.tokens, TOPK, at.ranks, _at(per_rank), _at(per_host), _at(per_expert), _at(goes)
    )  # fmt: skip
    plan = at.out("plan", (engine.pods.plan_words(at.tokens, 1, at.ranks),), np.int32)
    route = Route(_at(plan), at.tokens, 1, at.ranks)
    sums = [at.out(name, (at.ranks,), np.int32) for name in ("rows up to a rank", "tokens up to a host")]
    engine.notify(route, _at(goes), _at(per_expert), 1, _at(sums[0]), _at(sums[1]))
    at.scene.expect(sums[0], want.handle.source_begin[1:].astype(np.int32), f"rows up to ranks at rank {rank}")
    if at.scene.options.get("host", False):
        copy = at.out("counts that the host reads", (2,), np.int32)
        watch = np.array(engine.queue_pairs.hca["watch"])[()]
        arguments = engine._told[:8], engine._told[8:16], copy, watch
        at.module.get_function("await_counts")(1, 32, arguments, rank=1 - rank, stream=1)
        counts = [len(want.recv_x), int(want.num_recv_tokens_per_expert[0])]
        at.scene.expect(copy, np.array(counts, np.int32), f"counts of rank {rank}")
    return route


def _dispatch(
    at: _Ranks, rank: int, route: Route, x: Any, want: Any, choices: Any = None, weights: Any = None
) -> Any:
    """One rank's; without choices by a route that has been gone before. What it brings."""
    engine, rows = at.engines[rank], len(want.recv_x)
    topk, row_bytes = 0 if choices is None else TOPK, x.shape[1] * x.itemsize
    block = engine.receive_block(rows, row_bytes, 0, topk)
    given = (0, 0) if choices is None else (_at(choices), _at(weights))
    engine.dispatch(route, _at(x), row_bytes, 0, 0, *given, topk, block, rows, SMS, cached=choices is None)
    parts = [("rows", block.x, want.recv_x), ("sources", block.source, want.handle.src_token)]
    if topk:
        chosen = want.recv_topk_idx.astype(np.int64)
        parts += [("choices", block.topk, chosen), ("weights", block.weights, want.recv_topk_weights)]
    for name, where, truth in parts:
        at.scene.expect(_view(where, truth), truth, f"{name} of rank {rank}, {row_bytes} bytes")
    at.scene.keep(block)
    return block
