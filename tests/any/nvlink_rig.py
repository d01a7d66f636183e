"""Every rank's engine over one emulated host, and operations of all ranks together, with poisoned outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from moe import make_world

from rdmakit.ep import nvl_memory
from rdmakit.ep.link import WorldLink
from rdmakit.ep.nvlink import Nvlink

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


@dataclass
class Sent:
    """One rank's dispatch: what it sent, where it went, what came."""

    tokens: int
    is_in_rank: np.ndarray
    tokens_per_rank: np.ndarray
    tokens_per_expert: np.ndarray
    positions: np.ndarray
    prefix: np.ndarray
    rows: int = 0
    experts: list[int] = field(default_factory=list)
    block: Any = None
    x: Any = None
    scales: Any = None
    topk: Any = None
    weights: Any = None
    source: Any = None


def address(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


class Rig:
    """`ranks` engines; `array` and `run` are the world's, so a rig for GPUs differs in these alone."""

    gone: frozenset[int] = frozenset()  # ranks that make no low-latency call any more

    def __init__(
        self,
        ranks: int,
        *,
        policy: str = "fast",
        lanes: int = 1,
        seed: int = 0,
        blocks: int = 4,
        heap: int = 4 << 20,
        ll: tuple[int, int] | None = None,
        shrink: bool = False,
        faults: str | None = None,
    ) -> None:
        self.world = make_world(lanes, hosts=1, gpus_per_host=ranks, policy=policy, seed=seed, faults=faults)
        self.ranks = ranks
        ll_bytes = nvl_memory.low_latency_bytes(ranks, *ll) if ll else 0
        heaps = [self.world.array((heap + ll_bytes,), np.uint8, 0xA5) for _ in range(ranks)]
        for one in heaps:  # words that are waited for begin at 0, as a fresh heap does
            one[: nvl_memory.Control(ranks, 4096).nbytes + ll_bytes] = 0
        self.engines = [
            Nvlink(WorldLink(self.world, r, heaps, blocks=blocks), low_latency_bytes=ll_bytes, enable_shrink=shrink)
            for r in range(ranks)
        ]

    def array(self, shape: Any, dtype: Any, fill: Any = None) -> np.ndarray:
        made = self.world.array(shape, np.dtype(dtype))
        made.view(np.uint8)[...] = 0xEE
        if fill is not None:
            made[...] = fill
        return made

    def run(self) -> None:
        self.world.run()
        for engine in self.engines:
            engine.link.report.raise_for_status()

    def view(self, where: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        import ctypes

        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * nbytes).from_address(where)
        return np.frombuffer(raw, np.uint8).view(dtype).reshape(shape)

    # ---- normal
    def layouts(self, idx: list[np.ndarray], experts: int) -> list[Sent]:
        found = []
        for r, engine in enumerate(self.engines):
            n, k = idx[r].shape
            topk = self.array((max(n, 1), k), np.int64)
            topk[:n] = idx[r]
            sent = Sent(
                n,
                self.array((max(n, 1), self.ranks), np.bool_),
                self.array(self.ranks, np.int32),
                self.array(experts, np.int32),
                self.array((max(n, 1), self.ranks), np.int32),
                self.array((self.ranks, self.ranks), np.int32),
            )
            engine.layout(
                address(topk),
                n,
                k,
                experts,
                address(sent.tokens_per_rank),
                address(sent.tokens_per_expert),
                address(sent.is_in_rank),
            )
            found.append(sent)
        self.run()
        return found

    def notify(self, sents: list[Sent], experts: int, alignment: int = 1) -> None:
        for engine, sent in zip(self.engines, sents, strict=True):
            engine.notify(
                address(sent.is_in_rank),
                sent.tokens,
                address(sent.tokens_per_rank),
                address(sent.tokens_per_expert),
                experts,
                alignment,
                address(sent.positions),
                address(sent.prefix),
            )
        self.run()
        for engine, sent in zip(self.engines, sents, strict=True):
            sent.rows, sent.experts = engine.counts()

    def dispatch(
        self, sents: list[Sent], x: list[Any], idx: Any, weights: Any, experts: int, *, room: int = 0, num_sms: int = 3
    ) -> None:
        """Fills in what came; `room`: rows to make room for, beyond what comes."""
        kept, found = [], []
        for r, (engine, sent) in enumerate(zip(self.engines, sents, strict=True)):
            data, scales = x[r] if isinstance(x[r], tuple) else (x[r], None)
            row_bytes, scale_bytes = data.shape[1] * data.itemsize, 0 if scales is None else scales.shape[1] * 4
            k = 0 if idx is None else idx[r].shape[1]
            rows = max(room, sent.rows)
            sent.block = block = engine.receive_block(max(rows, 1), row_bytes, scale_bytes, k)
            given = [
                self._given(a)
                for a in (
                    data,
                    scales,
                    None if idx is None else idx[r].astype(np.int64),
                    None if weights is None else weights[r],
                )
            ]
            kept.append(given)
            engine.dispatch(
                address(given[0]),
                row_bytes,
                address(given[1]),
                scale_bytes,
                address(given[2]),
                address(given[3]),
                k,
                experts,
                sent.tokens,
                address(sent.positions),
                address(sent.prefix),
                block,
                rows,
                num_sms,
            )
            found.append((sent, rows, data, scales, k))
        self.run()
        for sent, rows, data, scales, k in found:
            block = sent.block
            sent.x = self.view(block.x, (rows, data.shape[1]), data.dtype)
            sent.scales = None if scales is None else self.view(block.scales, (rows, scales.shape[1]), np.float32)
            sent.topk = self.view(block.topk, (rows, k), np.int64)
            sent.weights = self.view(block.weights, (rows, k), np.float32)
            sent.source = self.view(block.source, (rows,), np.int32)

    def combine(
        self, sents: list[Sent], hidden: int, *, y: Any = None, weights: bool = True, bias: Any = None, num_sms: int = 3
    ) -> Any:
        """Of the rows where they came, or of others, which lie elsewhere; with the weights that came."""
        out, out_weights, kept = [], [], []
        for r, (engine, sent) in enumerate(zip(self.engines, sents, strict=True)):
            k = sent.weights.shape[1] if weights else 0
            out.append(self.array((max(sent.tokens, 1), hidden), BF16))
            out_weights.append(self.array((max(sent.tokens, 1), k), np.float32) if k else None)
            given = [None if y is None else self._given(y[r]), *(self._given(b[r]) for b in bias or ())]
            given += [None] * (3 - len(given))
            where = sent.block.x if given[0] is None else address(given[0])
            places = address(sent.positions), address(sent.prefix)
            args = where, sent.rows, hidden, sent.block.weights if k else 0, k, *places
            args += sent.tokens, address(out[r]), address(out_weights[r]), address(given[1]), address(given[2]), num_sms
            kept.append((given, engine.combine(*args)))
        self.run()
        return [o[: s.tokens] for o, s in zip(out, sents, strict=True)], [
            None if w is None else w[: s.tokens] for w, s in zip(out_weights, sents, strict=True)
        ]

    def _given(self, array: Any) -> Any:
        if array is None:
            return None
        made = self.array((max(len(array), 1), *array.shape[1:]), array.dtype)
        made[: len(array)] = array
        return made

    # ---- low latency
    def ll_dispatch(
        self,
        x: list[np.ndarray],
        idx: list[np.ndarray],
        experts: int,
        max_tokens: int,
        *,
        fp8: bool = False,
        round_scale: bool = False,
        ue8m0: bool = False,
        halves: bool = False,
    ) -> list[dict[str, Any]]:
        """Results by name, of each rank; the halves in launches of their own if asked."""
        hidden, k = x[0].shape[1], idx[0].shape[1]
        local, rows = experts // self.ranks, self.ranks * max_tokens
        results, calls = [], []
        for r, engine in enumerate(self.engines):
            engine.ll_configure(max_tokens, hidden, experts, k)
            scale_shape = (local, hidden // 512, rows, 4) if ue8m0 else (local, hidden // 128, rows)
            got = {
                "x": self.array((local, rows, hidden), FP8 if fp8 else BF16),
                "scales": self.array(scale_shape, np.uint8 if ue8m0 else np.float32),
                "count": self.array(local, np.int32),
                "source": self.array((local, rows), np.int32),
                "ranges": self.array((local, self.ranks), np.int64),
                "row_map": self.array((self.ranks, max_tokens, k), np.int32),
                "statistics": self.array(local, np.int32, 7),
                "waits": self.array(self.ranks, np.int64, 5),
            }
            given = self._given(x[r]), self._given(idx[r].astype(np.int64))
            results.append({**got, "given": given})
            names = ("x", "scales", "count", "source", "ranges", "row_map", "statistics", "waits")
            calls.append(
                (
                    engine,
                    (
                        address(given[0]),
                        address(given[1]),
                        len(x[r]),
                        fp8,
                        round_scale,
                        ue8m0,
                        *(address(got[name]) for name in names),
                    ),
                )
            )
        self._halves([(engine.ll_dispatch, args) for engine, args in calls], halves)
        return results

    def ll_combine(
        self, y: list[np.ndarray], got: list[dict[str, Any]], weights: list[np.ndarray], *, halves: bool = False
    ) -> list[Any]:
        out, calls = [], []
        for r, engine in enumerate(self.engines):
            n = len(weights[r])
            out.append(self.array((max(n, 1), y[r].shape[2]), BF16))
            given = self._given(weights[r])
            got[r]["weights"] = given
            args = (
                address(y[r]),
                address(got[r]["given"][1]),
                address(given),
                address(got[r]["row_map"]),
                n,
                address(out[r]),
                address(got[r].setdefault("combine_waits", self.array(self.ranks, np.int64, 5))),
            )
            calls.append((engine.ll_combine, args))
        self._halves(calls, halves)
        return [o[: len(w)] for o, w in zip(out, weights, strict=True)]

    def _halves(self, calls: list[Any], halves: bool) -> None:
        for phases in (1, 2) if halves else (3,):
            for call, args in calls:
                if call.__self__.rank not in self.gone:
                    call(*args, phases)
            self.run()

    def masks(self) -> list[list[int]]:
        """Who is masked, by each rank."""
        out = [self.array(self.ranks, np.int32) for _ in range(self.ranks)]
        for r, engine in enumerate(self.engines):
            engine.mask_query(address(out[r]))
        self.run()
        return [np.flatnonzero(found).tolist() for found in out]
