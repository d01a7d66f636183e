"""Low-latency calls over NVLink that go on without a rank: it has died, or is left out by hand.

What is gone counts as a whole or not at all: who survives has all of its rows or none, its sum for each token or for
none. Leans on scenarios.nvlink.
"""

from __future__ import annotations

from functools import partial
from itertools import chain, combinations
from typing import Any

import numpy as np

from rdmakit.ep import reference
from rdmakit.errors import BadArgument
from rdmakit.explore.scenario import Scene, scenario
from rdmakit.explore.scenarios.nvlink import BF16, HIDDEN, TOPK, Ranks, sums_home

_DEATHS = ("", "dispatch", "combine", "dispatching", "combining", "masked", "ahead", "suspected")
_KERNELS = """
#include <rdmakit/nvl_mask.cuh>
using namespace rdmakit;
RDMAKIT_KERNEL suspect(NvlRank nvl, u32 rank) { store_relaxed<Scope::gpu>(&nvl.masks->masked[rank], 1u); }
RDMAKIT_KERNEL doom(Report* report) { store_relaxed<Scope::sys>(&report->state, 2u); }
RDMAKIT_KERNEL leave(NvlRank nvl, u64 at, u64 value) {
    for (u32 r = block_rank(); r < nvl.ranks; r += block_size()) nvl_at<u64>(nvl, r, at)[nvl.rank] = value;
}
RDMAKIT_KERNEL collect(NvlRank nvl, u64 at, u64* out) {
    for (u32 r = block_rank(); r < nvl.ranks; r += block_size()) out[r] = nvl_at<u64>(nvl, nvl.rank, at)[r];
}
"""


@scenario("nvl-barrier", "what ranks have written is there behind a barrier, also without who has died", tags=("ep",))
def barrier(scene: Scene) -> None:
    """Options: ranks=2, turns=2, shrink=False; dies=False (the last rank, before the last turn)."""
    at = Ranks(scene)
    turns, dies = int(scene.options.get("turns", 2)), bool(scene.options.get("dies", False))
    module = at.world.compile(_KERNELS, name="around_barriers.cu")
    leave, collect = module.get_function("leave"), module.get_function("collect")
    scene.keep(module)
    for turn in range(turns):
        there = range(at.ranks - (dies and turn == turns - 1))
        for rank in there:
            engine = at.engines[rank]
            got = at.out("what was left", (at.ranks,), np.uint64)
            leave(1, 32, (engine.pod[()], engine.pool.begin, 7 + turn), rank=rank)
            engine.barrier()
            collect(1, 32, (engine.pod[()], engine.pool.begin, got), rank=rank)
            engine.barrier()
            left = [7 + turn if r in there else 6 + turn for r in range(at.ranks)]
            scene.expect(got, left, f"turn {turn}, rank {rank}")


@scenario("nvl-shrink", "low-latency calls of ranks that can be masked; one may die", tags=("ep",))
def shrink(scene: Scene) -> None:
    """Options: ranks=2, tokens=2, experts=1 a rank, blocks=1, warps=1, turns=1, halves=False, routing (a seed);
    dies="" (nobody), "dispatch", "combine" (before the last turn's), "dispatching", "combining" (in it, where it first
    has to wait), "masked" (by hand, before the last turn), "ahead" (three turns: two dispatches are sent and not yet
    received, and it dies before it sends the third) or "suspected" (it lives, but at any moment rank 0 begins to leave
    it out), which concerns the last rank; meet=False (a barrier before the last turn, and masks are read); waits=False
    (clocks of waits are added up).
    """
    scene.options = {**scene.options, "shrink": True}
    dies = str(scene.options.get("dies", ""))
    if dies not in _DEATHS:
        raise BadArgument("no such death", value=dies, rule=f"one of {', '.join(_DEATHS[1:])}, or none",
                          remedy="--set dies=combine")  # fmt: skip
    dies_running = dies in ("dispatching", "combining", "suspected")
    last, turns = int(scene.options.get("ranks", 2)) - 1, int(scene.options.get("turns", 1))
    at = Ranks(scene, unwatched=[last] if dies.endswith("ing") else [])
    halves = (1, 2) if scene.options.get("halves", False) else (3,)
    counted = at.ranks if scene.options.get("waits", False) else 0
    clocks = [at.given(np.zeros(at.ranks, np.int64)) for _ in range(counted)]
    local, rows = at.experts // at.ranks, at.ranks * at.tokens
    survivors = range(last if dies and dies != "suspected" else at.ranks)
    for engine in at.engines:
        engine.ll_configure(at.tokens, HIDDEN, at.experts, TOPK)
    if dies == "ahead":
        _ahead(at, scene, survivors, [_Results(at, local, rows) for _ in range(3 * at.ranks)])
        return
    for turn in range(turns):
        ends = turn == turns - 1
        dispatches = range(last) if ends and dies in ("dispatch", "masked") else range(at.ranks)
        combines = survivors if ends and dies != "combining" else range(at.ranks)
        if ends and dies == "dispatching":
            _doom(at, last)
        if turn == 0 and dies == "suspected":
            module = at.world.compile(_KERNELS, name="around_barriers.cu")
            module.get_function("suspect")(1, 32, (at.engines[0].pod[()], last), rank=0, stream=1)
            scene.keep(module)
        if ends and dies == "masked":
            for rank in survivors:
                at.engines[rank].mask_update(last, True)
        if ends and scene.options.get("meet", False):
            for rank in dispatches:
                at.engines[rank].barrier()
        got = [_Results(at, local, rows) for _ in range(at.ranks)]
        for half in halves:
            for rank in dispatches:
                at.engines[rank].ll_dispatch(
                    _at(at.x[rank]), _at(at.idx[rank]), at.tokens, False, False, False,
                    *got[rank].addresses, wait_statistics=_address(clocks, rank), phases=half,
                )  # fmt: skip
        if ends and dies == "combining":
            _doom(at, last)
        for half in halves:
            for rank in combines:
                at.engines[rank].ll_combine(
                    _at(got[rank].rows), _at(at.idx[rank]), _at(at.weights[rank]),
                    _at(got[rank].map), at.tokens, _at(got[rank].home),
                    wait_statistics=_address(clocks, rank), phases=half,
                )  # fmt: skip
        masks = [at.out("masks", (at.ranks,), np.int32) for _ in survivors]
        if ends and scene.options.get("meet", False):
            for rank in survivors:
                at.engines[rank].mask_query(_at(masks[rank]))
                scene.expect(masks[rank], [int(bool(dies) and r == last) for r in range(at.ranks)], f"masks of {rank}")
        if dies == "suspected" or (ends and dies_running):
            scene.check(partial(_whole_or_nothing, at, got, survivors))
            continue
        for rank in survivors:
            silent = ends and dies in ("dispatch", "masked")
            _expect_dispatch(at, scene, rank, got[rank], turn, [last] if silent else [])
            home = sums_home(at, rank, [last] if ends and dies else [])
            scene.expect(got[rank].home, home, f"sums {turn} of rank {rank}")


def _ahead(at: Ranks, scene: Scene, survivors: range, results: list[_Results]) -> None:
    """Two dispatches under way. The last rank dies before it says that it is through with the first."""
    last = at.ranks - 1
    for step, (turn, half) in enumerate([(0, 1), (1, 1), (0, 2), (2, 1), (1, 2), (2, 2)]):
        for rank in range(at.ranks) if step < 3 else survivors:
            at.engines[rank].ll_dispatch(
                _at(at.x[rank]), _at(at.idx[rank]), at.tokens, False, False, False,
                *results[at.ranks * turn + rank].addresses, phases=half,
            )  # fmt: skip
    for turn in range(3):
        for rank in survivors:
            _expect_dispatch(at, scene, rank, results[at.ranks * turn + rank], turn, [last] if turn else [])


class _Results:
    """Poisoned memory for what one rank's dispatch and combine of a turn come to."""

    def __init__(self, at: Ranks, local: int, rows: int) -> None:
        self.rows = at.out("rows", (local, rows, HIDDEN), BF16)
        self.count = at.out("counts", (local,), np.int32)
        self.source = at.out("sources", (local, rows), np.int32)
        self.ranges = at.out("ranges", (local, at.ranks), np.int64)
        self.map = at.out("row map", (at.ranks, at.tokens, TOPK), np.int32)
        self.home = at.out("sums", (at.tokens, HIDDEN), BF16)

    @property
    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """As ll_dispatch takes them: rows, no scales, and the rest."""
        return _at(self.rows), 0, _at(self.count), _at(self.source), _at(self.ranges), _at(self.map)


def _at(array: Any) -> int:
    return int(array.ctypes.data)


def _address(arrays: list[Any], rank: int) -> int:
    return _at(arrays[rank]) if arrays else 0


def _doom(at: Ranks, rank: int) -> None:
    """Whoever of this rank's waits from now on gives up."""
    module = at.world.compile(_KERNELS, name="around_barriers.cu")
    module.get_function("doom")(1, 32, (at.engines[rank].link.report.address,), rank=rank)
    at.scene.keep(module)


def _truth(at: Ranks, rank: int, silent: list[int]) -> Any:
    idx = [np.full_like(chosen, -1) if r in silent else chosen for r, chosen in enumerate(at.idx)]
    return reference.low_latency_dispatch(at.x, idx, rank, at.experts, at.tokens)


def _expect_dispatch(at: Ranks, scene: Scene, rank: int, got: _Results, turn: int, silent: list[int]) -> None:
    want = _truth(at, rank, silent)
    scene.expect(got.count, want.packed_recv_count, f"counts {turn} of rank {rank}")
    scene.expect(got.ranges, want.packed_recv_layout_range, f"ranges {turn} of rank {rank}")
    for e, n in enumerate(want.packed_recv_count):
        scene.expect(got.rows[e, :n], want.packed_recv_x[e, :n], f"rows {turn} of rank {rank}, expert {e}")
    for source in silent:
        scene.expect(got.map[source], -1, f"rows {turn} of rank {source}, which is gone, at rank {rank}")


def _whole_or_nothing(at: Ranks, got: list[_Results], survivors: range) -> str | bool:
    """Whatever others came to think of a rank, and when: all of it is there, or nothing."""
    for rank in survivors:
        silent = [s for s in range(at.ranks) if not (got[rank].ranges[:, s] & 0xFFFFFFFF).any()]
        want = _truth(at, rank, silent)
        if not np.array_equal(got[rank].ranges, want.packed_recv_layout_range):
            return f"rank {rank}: ranges {got[rank].ranges.tolist()}"
        if not np.array_equal(got[rank].count, want.packed_recv_count):
            return f"rank {rank} counts {got[rank].count.tolist()}"
        for e, n in enumerate(want.packed_recv_count):
            if not np.array_equal(got[rank].rows[e, :n].view(np.uint16), want.packed_recv_x[e, :n].view(np.uint16)):
                return f"rows of expert {e} at rank {rank}, where nothing came from {silent}"
        home = got[rank].home.view(np.uint16)
        others = [r for r in range(at.ranks) if r != rank]
        subsets = chain.from_iterable(combinations(others, n) for n in range(at.ranks))
        if not any(np.array_equal(home, sums_home(at, rank, gone).view(np.uint16)) for gone in subsets):
            return f"sums of rank {rank}: some rank's is there for one token and not for another"
    return True
