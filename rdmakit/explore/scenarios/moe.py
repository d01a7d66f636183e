"""MoE dispatch and combine at the smallest real shapes: a few tokens of 128 elements, one channel, rings of two slots.

The kernels are those that users run, on fewer warps. Rows, sources, counts and sums must equal the NumPy truth, bit for
bit. Leans on ep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.ep import reference, routing
from rdmakit.ep.low_latency import LowLatencyBuffer
from rdmakit.ep.normal import NormalBuffer, NormalHandle
from rdmakit.explore.scenario import Scene, scenario

HIDDEN = 128
BF16 = ml_dtypes.bfloat16


class _Normal(NormalBuffer):
    """On `warps` warps a block; what hosts read between two launches is known beforehand here."""

    def __init__(self, world: Any, warps: int, **sizes: Any) -> None:
        super().__init__(world, **sizes)
        self.warps = warps
        self.launched: list[Any] = []  # arguments are needed in every schedule

    def _exchange(self, chosen: Any) -> list[NormalHandle]:
        handles = super()._exchange(chosen)
        for handle in handles:
            handle.received = len(reference.make_handle(chosen, handle.rank, self.experts).src_token)
        return handles

    def _launch(self, kernel: str, blocks: int, args: list[Any], rank: int) -> None:
        self.launched.append(args)
        self.world.stock_kernel(kernel)((blocks,), (self.warps * 32,), tuple(args), rank=rank)


class _LowLatency(LowLatencyBuffer):
    """On so many blocks of so many warps."""

    def __init__(self, world: Any, blocks: int, warps: int, **sizes: Any) -> None:
        super().__init__(world, **sizes)
        self.blocks, self.warps = blocks, warps
        self.launched: list[Any] = []

    def _launch(self, kernel: str, args: list[Any], rank: int) -> None:
        self.launched.append(args)
        self.world.stock_kernel(kernel)((self.blocks,), (self.warps * 32,), tuple(args), rank=rank)


def _world(scene: Scene) -> tuple[Any, int]:
    gpus = int(scene.options.get("gpus", 1))
    bonded = {"ports": 2, "lag": str(scene.options["lag"])} if "lag" in scene.options else {"ports": 1}
    return scene.world(hosts=2, gpus_per_host=gpus, **bonded), 2 * gpus


def _inputs(scene: Scene, world: Any, ranks: int, turn: int = 0) -> tuple[list[Any], list[Any], list[Any], int]:
    """x, topk_idx, topk_weights of each rank, and how many experts there are: one a rank. Another turn has others."""
    tokens, topk = int(scene.options.get("tokens", 2)), int(scene.options.get("topk", 2))
    rng = np.random.default_rng((int(scene.options.get("routing", 1)), turn))
    x, idx, weights = [], [], []
    for rank in range(ranks):
        chosen = routing.uniform(tokens, num_experts=ranks, top_k=topk, seed=7 * rank + 1 + 100 * turn)
        rows = world.array((tokens, HIDDEN), BF16, name=f"tokens of rank {rank}")
        rows[...] = rng.standard_normal(rows.shape, np.float32)
        x.append(rows)
        idx.append(chosen.topk_idx.astype(np.int32))  # as kernels read it: a copy would not outlive the call
        weights.append(chosen.topk_weights)
    return x, idx, weights, ranks


def _rows_like(world: Any, rows: list[Any], number: int) -> list[Any]:
    """Other rows to combine, in arrays of the world's."""
    rng = np.random.default_rng(number)
    fresh = []
    for old in rows:
        new = world.array(old.shape, BF16, name="rows to combine")
        new[...] = rng.standard_normal(old.shape, np.float32)
        fresh.append(new)
    return fresh


def _before(scene: Scene, world: Any, ranks: int, buffer: Any, turn: Callable[..., None]) -> None:
    """So many rounds before all schedules; then the buffer is told to forget so many of their epochs."""
    for number in range(1, 1 + int(scene.options.get("before", 0))):
        with scene.rehearsal():
            turn(*_inputs(scene, world, ranks, number)[:3])
    forgotten = int(scene.options.get("forget", 0))
    buffer.epoch -= forgotten
    buffer.combine_epoch -= forgotten


@scenario("ep-normal", "normal dispatch and combine between two hosts", tags=("ep",))
def normal(scene: Scene) -> None:
    """Options: gpus=1 a host, tokens=2, topk=2, channels=1, slots=2, chunk=1, warps=2, combines=1, cached=False (a
    second dispatch reuses the first one's handles), lag, routing (a seed), before=0 rounds that the buffers have seen,
    forget=0 of their epochs.
    """
    world, ranks = _world(scene)
    x, idx, weights, experts = _inputs(scene, world, ranks)
    buffer = _Normal(
        world,
        int(scene.options.get("warps", 2)),
        hidden=HIDDEN,
        topk=idx[0].shape[1],
        experts=experts,
        max_tokens=len(x[0]),
        channels=int(scene.options.get("channels", 1)),
        slots=int(scene.options.get("slots", 2)),
        chunk=int(scene.options.get("chunk", 1)),
    )

    def turn(x: list[Any], idx: list[Any], weights: list[Any]) -> None:
        got = buffer.dispatch(x, idx, weights)
        rows: list[Any] = [g.recv_x for g in got]
        buffer.combine(rows, [g.handle for g in got])

    _before(scene, world, ranks, buffer, turn)
    got = buffer.dispatch(x, idx, weights)
    if scene.options.get("cached", False):
        scene.keep(x, got)
        x = _inputs(scene, world, ranks, turn=99)[0]
        got = buffer.dispatch(x, idx, weights, [g.handle for g in got])
    wanted = [reference.dispatch(x, idx, weights, rank, experts) for rank in range(ranks)]
    for rank, want in enumerate(wanted):
        heap, n = buffer.mesh.sides[rank].heap, len(want.handle.src_token)
        scene.watch(buffer.mesh.sides[rank].report)
        scene.expect(got[rank].recv_x, want.recv_x, f"rows of rank {rank}")
        scene.expect(got[rank].recv_source, want.handle.src_token, f"sources of rank {rank}")
        scene.expect(heap.view("recv_topk", np.int32, (n, buffer.topk)), want.recv_topk_idx, f"choices of rank {rank}")
        scene.expect(got[rank].recv_topk_weights, want.recv_topk_weights, f"weights of rank {rank}")
        counts = got[rank].handle.arrays["totals"][1:]
        scene.expect(counts, want.num_recv_tokens_per_expert, f"counts of rank {rank}")
    rows: list[Any] = [want.recv_x for want in wanted]  # BF16: no scales beside them
    handles = [want.handle for want in wanted]
    for number in range(int(scene.options.get("combines", 1))):
        given = [g.recv_x for g in got]
        if number:
            given = rows = _rows_like(world, rows, number)
        out, _ = buffer.combine(given, [g.handle for g in got])
        for rank in range(ranks):
            want_out, _ = reference.combine(rows, handles, rank, len(x[rank]), None, buffer.local_ranks)
            scene.expect(out[rank], want_out, f"sums {number} of rank {rank}")
        scene.keep(out, given)
    scene.keep(buffer, x, idx, weights, got)


@scenario("ep-low-latency", "low-latency dispatch and combine between two hosts", tags=("ep",))
def low_latency(scene: Scene) -> None:
    """Options: gpus=1 a host, tokens=2, topk=2, blocks=1, warps=2, combines=1, lag, routing (a seed), one_way=False
    (rank 0 alone has choices of others), before=0 rounds that the buffers have seen, forget=0 of their epochs.
    """
    world, ranks = _world(scene)
    x, idx, weights, experts = _inputs(scene, world, ranks)
    sizes = {"hidden": HIDDEN, "topk": idx[0].shape[1], "experts": experts, "max_tokens": len(x[0]), "qps_per_rank": 1}
    if scene.options.get("one_way", False):
        for rank in range(ranks):
            idx[rank][:, 0], idx[rank][:, 1:] = ranks - 1, -1
            weights[rank][:, 1:] = 0
    buffer = _LowLatency(
        world, int(scene.options.get("blocks", 1)), int(scene.options.get("warps", 2)), **sizes
    )

    def turn(x: list[Any], idx: list[Any], weights: list[Any]) -> None:
        got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
        buffer.combine([g.packed_recv_x for g in got], handles, idx, weights)

    _before(scene, world, ranks, buffer, turn)
    got, handles, _ = buffer.dispatch(x, idx, use_fp8=False)
    wanted = [reference.low_latency_dispatch(x, idx, rank, experts, buffer.max_tokens) for rank in range(ranks)]
    for rank, want in enumerate(wanted):
        scene.watch(buffer.mesh.sides[rank].report)
        scene.expect(got[rank].packed_recv_count, want.packed_recv_count, f"counts of rank {rank}")
        for expert, n in enumerate(want.packed_recv_count):
            for what, mine, truth in (
                ("rows", got[rank].packed_recv_x, want.packed_recv_x),
                ("sources", got[rank].packed_recv_src_info, want.packed_recv_src_info),
            ):
                scene.expect(mine[expert, :n], truth[expert, :n], f"{what} of rank {rank}, expert {expert}")
    rows = [want.packed_recv_x for want in wanted]
    for number in range(int(scene.options.get("combines", 1))):
        given = [g.packed_recv_x for g in got]
        if number:
            given = rows = _rows_like(world, rows, number)
        out, _ = buffer.combine(given, handles, idx, weights)
        for rank in range(ranks):
            truth = reference.low_latency_combine(rows, wanted, idx[rank], weights[rank], rank, experts)
            scene.expect(out[rank], truth, f"sums {number} of rank {rank}")
        scene.keep(out, given)
    scene.keep(buffer, x, idx, weights, got, handles)


for _name, _title, _build in (
    ("ep-normal-again", "normal dispatch and combine in buffers that two rounds have used", normal),
    ("ep-low-latency-again", "low-latency dispatch and combine in buffers that two rounds have used", low_latency),
):

    @scenario(_name, _title, tags=("ep", "deep"))
    def again(scene: Scene, build: Callable[[Scene], None] = _build) -> None:
        """Options as for the protocol without "-again", before=2: slots, counts and signals of older epochs are
        there."""
        scene.options = {"before": 2, **scene.options}
        build(scene)


@scenario("ep-low-latency-forgets-epoch", "buffers that two rounds have used, under an epoch that they have seen",
          holds=False, tags=("wrong", "ep"))
def forgets(scene: Scene) -> None:
    """`ep-low-latency-again` with forget=2: counts of the first round pass for new ones."""
    scene.options = {"before": 2, "forget": 2, **scene.options}
    scene.allow_latent_races()
    low_latency(scene)
