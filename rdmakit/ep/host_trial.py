"""One rank's dispatch and combine between hosts, on fresh inputs that all ranks know, compared bit for bit with NumPy.

Leans on ep.device_low_latency, ep.reference, ep.routing. Every rank computes everybody's inputs from one seed, so the
truth of what it receives needs no exchange. Outputs are poisoned before each call.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from rdmakit.ep import reference, routing
from rdmakit.ep.device_low_latency import DeviceInternode
from rdmakit.ep.internode_pods import Route
from rdmakit.errors import BadArgument

__all__ = ["HostTrial", "Workload"]

Array = np.ndarray[Any, Any]
BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
POISON = 0xEE


@dataclass(frozen=True)
class Workload:
    """Sizes of a trial: tokens of each rank, channels of a row, experts over all ranks, choices of a token.

    BadArgument for what kernels do not take.
    """

    tokens: int = 64
    hidden: int = 512
    experts: int = 8
    topk: int = 4

    def __post_init__(self) -> None:
        if not (self.tokens > 0 and self.hidden > 0 and self.hidden % 128 == 0 and 0 < self.topk <= self.experts):
            raise BadArgument("sizes that make no trial", value=self,
                              rule="tokens > 0, hidden a multiple of 128, 0 < topk <= experts",
                              remedy="64 tokens, hidden 512, 8 experts, top-4, say")  # fmt: skip

    def inputs(self, ranks: int, seed: int) -> tuple[list[Array], list[Array], list[Array]]:
        """x, topk_idx, topk_weights of each rank; one choice in ten is masked."""
        chosen = [
            routing.uniform(self.tokens, num_experts=self.experts, top_k=self.topk, seed=seed + 7 * rank).masked(
                0.1, seed=seed + rank
            )
            for rank in range(ranks)
        ]
        rng = np.random.default_rng(seed)
        x = [rng.standard_normal((self.tokens, self.hidden), np.float32).astype(BF16) for _ in range(ranks)]
        return x, [c.topk_idx for c in chosen], [c.topk_weights for c in chosen]

    def answers(self, rows: int, rank: int, seed: int) -> Array:
        """What a rank's experts make of its rows: anything, known to all."""
        rng = np.random.default_rng((seed, rank))
        found: Array = rng.standard_normal((rows, self.hidden), np.float32).astype(BF16)
        return found


class HostTrial:
    """Calls of one rank's engine on the CPU runner. `wrong` collects what differs, a clause each; `seconds` by call."""

    def __init__(self, engine: DeviceInternode, world: Any, work: Workload, *, num_sms: int = 12) -> None:
        self.engine, self.world, self.work, self.num_sms = engine, world, work, num_sms
        self.rank, self.ranks, self.local = engine.rank, engine.ranks, engine.local_ranks
        self.wrong: list[str] = []
        self.seconds: dict[str, list[float]] = {}

    # ---- memory and launches
    def _out(self, shape: Any, dtype: Any) -> Array:
        made: Array = self.world.array(shape, np.dtype(dtype))
        made.view(np.uint8)[...] = POISON
        return made

    def _given(self, array: Array) -> Array:
        made = self._out((max(len(array), 1), *array.shape[1:]), array.dtype)
        made[: len(array)] = array
        return made

    def _view(self, where: int, shape: tuple[int, ...], dtype: Any) -> Array:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory: Any = (ctypes.c_uint8 * max(nbytes, 1)).from_address(where)
        found: Array = np.frombuffer(memory, np.uint8)[:nbytes].view(dtype).reshape(shape)
        return found

    def _run(self, name: str) -> None:
        began = time.perf_counter()
        self.world.run()
        self.engine.link.report.raise_for_status()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)

    def _same(self, what: str, found: Array, wanted: Array) -> None:
        wanted = np.ascontiguousarray(wanted)
        if found.shape != wanted.shape or found.tobytes() != wanted.tobytes():
            self.wrong.append(f"rank {self.rank}: {what} {found.shape} differ from NumPy's {wanted.shape}")

    # ---- normal
    def normal(self, seed: int, *, fp8: bool = False) -> None:
        """Layout, counts, dispatch, combine with weights. Collective."""
        engine, work, rank = self.engine, self.work, self.rank
        x, idx, weights = work.inputs(self.ranks, seed)
        rows_of: list[Any] = [reference.quantize_fp8(each) for each in x] if fp8 else list(x)
        want = reference.dispatch(rows_of, idx, weights, rank, work.experts)
        in_rank, per_rank = self._out((work.tokens, self.ranks), np.bool_), self._out(self.ranks, np.int32)
        per_host, per_expert = self._out(engine.hosts, np.int32), self._out(work.experts, np.int32)
        choices = self._given(idx[rank].astype(np.int64))
        engine.layout(choices.ctypes.data, work.tokens, work.topk, work.experts,
                      *(each.ctypes.data for each in (per_rank, per_host, per_expert, in_rank)))  # fmt: skip
        channels = engine.channels_for(self.num_sms)
        plan = self._out(engine.pods.plan_words(work.tokens, channels, work.experts), np.int32)
        route = Route(plan.ctypes.data, work.tokens, channels, work.experts)
        prefixes = self._out(self.ranks, np.int32), self._out(engine.hosts, np.int32)
        engine.notify(route, in_rank.ctypes.data, per_expert.ctypes.data, 1, *(p.ctypes.data for p in prefixes))
        self._run("notify")
        rows, by_expert = engine.counts()
        if by_expert != [int(n) for n in want.num_recv_tokens_per_expert]:
            self.wrong.append(f"rank {rank}: rows by expert {by_expert}")
        data, scales = rows_of[rank] if fp8 else (rows_of[rank], None)
        row_bytes, scale_bytes = data.shape[1] * data.itemsize, 0 if scales is None else 4 * scales.shape[1]
        block = engine.receive_block(rows, row_bytes, scale_bytes, work.topk)
        self._view(block.x, (block.nbytes,), np.uint8)[:] = POISON
        given = self._given(data), self._given(weights[rank])
        given_scales = None if scales is None else self._given(scales)
        engine.dispatch(
            route, given[0].ctypes.data, row_bytes, 0 if given_scales is None else given_scales.ctypes.data,
            scale_bytes, choices.ctypes.data, given[1].ctypes.data, work.topk, block, rows, self.num_sms,
        )  # fmt: skip
        self._run("dispatch")
        wanted_rows, wanted_scales = want.recv_x if isinstance(want.recv_x, tuple) else (want.recv_x, None)
        self._same("rows", self._view(block.x, (rows, work.hidden), FP8 if fp8 else BF16), wanted_rows)
        if wanted_scales is not None:
            self._same("scales", self._view(block.scales, wanted_scales.shape, np.float32), wanted_scales)
        self._same("choices", self._view(block.topk, (rows, work.topk), np.int64), want.recv_topk_idx.astype(np.int64))
        back = self._view(block.weights, (rows, work.topk), np.float32).copy()
        self._same("weights", back, want.recv_topk_weights)
        self._combine(route, rows, back, idx, weights, rows_of, seed)

    def _combine(
        self, route: Route, rows: int, back: Array, idx: list[Array], weights: list[Array], x: list[Any], seed: int
    ) -> None:
        engine, work, rank = self.engine, self.work, self.rank
        handles = [reference.make_handle(idx, r, work.experts) for r in range(self.ranks)]
        y = [work.answers(len(handle.src_token), r, seed) for r, handle in enumerate(handles)]
        out, out_weights = self._out((work.tokens, work.hidden), BF16), self._out((work.tokens, work.topk), np.float32)
        given = self._given(y[rank]), self._given(back)
        engine.combine(
            route, given[0].ctypes.data, rows, work.hidden, given[1].ctypes.data, work.topk, out.ctypes.data,
            out_weights.ctypes.data, 0, 0, self.num_sms,
        )  # fmt: skip
        self._run("combine")
        came = [reference.dispatch(x, idx, weights, r, work.experts).recv_topk_weights for r in range(self.ranks)]
        sums, summed = reference.combine(y, handles, rank, work.tokens, came, self.local)
        self._same("sums", out, sums)
        if summed is not None:
            self._same("summed weights", out_weights, summed)

    # ---- low latency
    def low_latency(self, seed: int, *, fp8: bool = False) -> None:
        """Dispatch and combine. Collective."""
        engine, work, rank = self.engine, self.work, self.rank
        x, idx, weights = work.inputs(self.ranks, seed)
        local, rows = work.experts // self.ranks, self.ranks * work.tokens
        want = [
            reference.low_latency_dispatch(x, idx, r, work.experts, work.tokens, use_fp8=fp8) for r in range(self.ranks)
        ]
        engine.ll_configure(work.tokens, work.hidden, work.experts, work.topk)
        out = {
            "x": self._out((local, rows, work.hidden), FP8 if fp8 else BF16),
            "scales": self._out((local, work.hidden // 128, rows), np.float32),
            "count": self._out((local,), np.int32), "source": self._out((local, rows), np.int32),
            "ranges": self._out((local, self.ranks), np.int64),
            "map": self._out((self.ranks, work.tokens, work.topk), np.int32),
        }  # fmt: skip
        given = self._given(x[rank]), self._given(idx[rank].astype(np.int64)), self._given(weights[rank])
        choices = given[1].ctypes.data
        engine.ll_dispatch(given[0].ctypes.data, choices, work.tokens, fp8, False, False,
                           *(each.ctypes.data for each in out.values()))  # fmt: skip
        self._run("low-latency dispatch")
        self._same("counts", out["count"], want[rank].packed_recv_count)
        self._same("ranges", out["ranges"], want[rank].packed_recv_layout_range)
        y = [np.zeros(truth.packed_recv_x.shape, BF16) for truth in want]
        for r, truth in enumerate(want):
            for e in range(local):
                n = int(truth.packed_recv_count[e])
                y[r][e, :n] = work.answers(n, r * local + e, seed)
                if r == rank:
                    self._same(f"rows of expert {e}", out["x"][e, :n], truth.packed_recv_x[e, :n])
                    self._same(f"sources of expert {e}", out["source"][e, :n], truth.packed_recv_src_info[e, :n])
                    if fp8 and truth.packed_recv_scales is not None:
                        self._same(f"scales of expert {e}", out["scales"][e, :, :n].T.copy(),
                                   truth.packed_recv_scales[e, :n])  # fmt: skip
        combined, rows_here = self._out((work.tokens, work.hidden), BF16), self._given(y[rank])
        engine.ll_combine(rows_here.ctypes.data, choices, given[2].ctypes.data, out["map"].ctypes.data, work.tokens,
                          combined.ctypes.data)  # fmt: skip
        self._run("low-latency combine")
        truth_sums = reference.low_latency_combine(y, want, idx[rank], weights[rank], rank, work.experts)
        self._same("low-latency sums", combined, truth_sums)
