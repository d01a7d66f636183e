"""Every rank's engine between hosts, over one emulated world; operations of all ranks together, outputs poisoned."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from moe import make_world

from rdmakit.ep.internode import Internode
from rdmakit.ep.internode_memory import HostsShape
from rdmakit.ep.internode_pods import Route
from rdmakit.ep.link import WorldLink

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


@dataclass
class Sent:
    """One rank's dispatch: its layout, its route, what came."""

    in_rank: np.ndarray
    per_rank: np.ndarray
    per_host: np.ndarray
    per_expert: np.ndarray
    route: Route | None = None
    plan: Any = None
    rank_prefix: Any = None
    host_prefix: Any = None
    rows: int = 0
    experts: Any = None
    x: Any = None
    scales: Any = None
    topk: Any = None
    weights: Any = None
    source: Any = None


def address(array: Any) -> int:
    return 0 if array is None else int(array.ctypes.data)


class Rig:
    """Engines of `hosts` hosts; `array`, `view` and `run` are the world's, so a rig for GPUs differs in these alone."""

    def __init__(
        self, hosts: int = 2, local: int = 1, *, policy: str = "fast", lanes: int = 1, seed: int = 0, channels: int = 2,
        nvl: int = 1 << 20, rdma: int = 1 << 18, max_tokens: int = 64,
    ) -> None:  # fmt: skip
        self.ranks, self.local = hosts * local, local
        self.world = make_world(lanes, hosts=1, gpus_per_host=self.ranks, policy=policy, seed=seed)
        shape = HostsShape.of(self.ranks, local, channels, max_tokens, rdma_bytes=rdma, nvl_bytes=nvl)
        layout = shape.heap_layout()
        heaps = [self.world.array((layout.nbytes,), np.uint8) for _ in range(self.ranks)]
        for heap in heaps:  # but for words that begin at 0, as in a fresh heap
            for name in ("ring_payload", "ring_meta", "staging_payload", "staging_meta", "region", "pool", "notify_in"):
                heap[layout.offset[name] : layout.offset[name] + layout.size[name]] = 0xA5
        self.engines = [Internode(WorldLink(self.world, r, heaps, blocks=12), shape) for r in range(self.ranks)]

    def array(self, shape: Any, dtype: Any) -> np.ndarray:
        made = self.world.array(shape, np.dtype(dtype))
        made.view(np.uint8)[...] = 0xEE
        return made

    def given(self, array: Any) -> Any:
        if array is None:
            return None
        made = self.array((max(len(array), 1), *array.shape[1:]), array.dtype)
        made[: len(array)] = array
        return made

    def run(self) -> None:
        self.world.run()
        for engine in self.engines:
            engine.link.report.raise_for_status()

    def view(self, where: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if nbytes == 0:
            return np.empty(shape, dtype)
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(where), np.uint8).view(dtype).reshape(shape)

    def poison(self, where: int, nbytes: int) -> None:
        self.view(where, (nbytes,), np.uint8)[:] = 0xEE

    def layouts(self, idx: list[np.ndarray], experts: int) -> list[Sent]:
        found = []
        for engine, choices in zip(self.engines, idx, strict=True):
            tokens, topk = choices.shape
            sent = Sent(
                self.array((max(tokens, 1), self.ranks), np.bool_), self.array(self.ranks, np.int32),
                self.array(engine.hosts, np.int32), self.array(experts, np.int32),
            )  # fmt: skip
            kept = self.given(choices.astype(np.int64))
            out = (sent.per_rank, sent.per_host, sent.per_expert, sent.in_rank)
            engine.layout(address(kept), tokens, topk, experts, *map(address, out))
            found.append((sent, kept))
        self.run()
        return [sent for sent, _ in found]

    def notify(self, sents: list[Sent], tokens: list[int], experts: int, alignment: int = 1, num_sms: int = 6) -> None:
        for engine, sent, n in zip(self.engines, sents, tokens, strict=True):
            channels = engine.channels_for(num_sms)
            sent.plan = self.array(engine.pods.plan_words(n, channels, experts), np.int32)
            sent.route = Route(address(sent.plan), n, channels, experts)
            sent.rank_prefix, sent.host_prefix = (self.array(k, np.int32) for k in (self.ranks, engine.hosts))
            engine.notify(sent.route, address(sent.in_rank), address(sent.per_expert), alignment,
                          address(sent.rank_prefix), address(sent.host_prefix))  # fmt: skip
        self.run()
        for engine, sent in zip(self.engines, sents, strict=True):
            sent.rows, sent.experts = engine.counts()

    def dispatch(self, sents: list[Sent], x: list[Any], idx: Any = None, weights: Any = None, *, cached: bool = False,
                 num_sms: int = 6) -> None:  # fmt: skip
        found = []
        for r, (engine, sent) in enumerate(zip(self.engines, sents, strict=True)):
            data, scales = x[r] if isinstance(x[r], tuple) else (x[r], None)
            row_bytes, scale_bytes = data.shape[1] * data.itemsize, 0 if scales is None else scales.shape[1] * 4
            topk = 0 if idx is None else idx[r].shape[1]
            block = engine.receive_block(sent.rows, row_bytes, scale_bytes, topk)
            self.poison(block.x, block.nbytes)
            given = [self.given(a) for a in (data, scales, None if idx is None else idx[r].astype(np.int64),
                                             None if weights is None else weights[r])]  # fmt: skip
            engine.dispatch(sent.route, address(given[0]), row_bytes, address(given[1]), scale_bytes, address(given[2]),
                            address(given[3]), topk, block, sent.rows, num_sms, cached=cached)  # fmt: skip
            found.append((sent, block, data, scales, topk, given))
        self.run()
        for sent, block, data, scales, topk, _ in found:
            sent.x = self.view(block.x, (sent.rows, data.shape[1]), data.dtype).copy()
            width = 0 if scales is None else scales.shape[1]
            sent.scales = self.view(block.scales, (sent.rows, width), np.float32).copy()
            sent.topk = self.view(block.topk, (sent.rows, topk), np.int64).copy()
            sent.weights = self.view(block.weights, (sent.rows, topk), np.float32).copy()
            sent.source = self.view(block.source, (sent.rows,), np.int32).copy()

    def combine(
        self, sents: list[Sent], y: list[np.ndarray], weights: Any = None, bias: Any = (), *, num_sms: int = 6
    ) -> Any:
        out, out_weights, kept = [], [], []
        for r, (engine, sent) in enumerate(zip(self.engines, sents, strict=True)):
            tokens, hidden = sent.route.tokens, y[r].shape[1]
            topk = 0 if weights is None else weights[r].shape[1]
            out.append(self.array((max(tokens, 1), hidden), BF16))
            out_weights.append(self.array((max(tokens, 1), topk), np.float32) if topk else None)
            given = [self.given(a) for a in (y[r], None if weights is None else weights[r], *(b[r] for b in bias))]
            given += [None] * (4 - len(given))
            engine.combine(sent.route, address(given[0]), sent.rows, hidden, address(given[1]), topk, address(out[r]),
                           address(out_weights[r]), address(given[2]), address(given[3]), num_sms)  # fmt: skip
            kept.append(given)
        self.run()
        cut = [sent.route.tokens for sent in sents]
        return [o[:n] for o, n in zip(out, cut, strict=True)], [
            None if w is None else w[:n] for w, n in zip(out_weights, cut, strict=True)
        ]
