"""Low-latency dispatch and combine over all ranks of a world: a message for each (token, expert), no counts first.

Leans on ep.mesh, ep.ll_memory, ep.abi, ep.layout; the device code is cuda/kernels/ll_*.cu. Every call is a collective:
one array a rank in, one result a rank out. Each half can be run alone: `return_hook=True` sends and gives back a
function that receives, for overlap with computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.device.handle import LAYOUT_VERSION, QP_HANDLE
from rdmakit.ep import abi
from rdmakit.ep.layout import check_hidden, check_sizes, check_topk_idx, check_topk_weights, check_topology
from rdmakit.ep.ll_memory import ll_heap_layout
from rdmakit.ep.mesh import Mesh
from rdmakit.ep.reference import LowLatencyDispatched
from rdmakit.ep.wiring import Wiring
from rdmakit.errors import BadArgument, BadState

__all__ = ["LowLatencyBuffer", "LowLatencyHandle"]

Array = NDArray[Any]
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
WARPS = 16  # a block
BLOCKS = 20


@dataclass
class LowLatencyHandle:
    """What a rank needs to send rows back: where each came from and which of its token's choices it was."""

    tokens: int
    source: NDArray[np.int32]
    choice: NDArray[np.int32]
    ranges: NDArray[np.int32]


class LowLatencyBuffer:
    """Heaps and QPs of every rank for low-latency dispatch and combine.

    `max_tokens`: of one rank in one call. `qps_per_rank`: QPs to each rank of another host; an expert's traffic takes
    QP (local expert modulo that), so its signal stands behind its data. Of a `wiring` its fence and its ports count.
    """

    def __init__(
        self,
        world: Any,
        *,
        hidden: int,
        topk: int,
        experts: int,
        max_tokens: int,
        qps_per_rank: int = 2,
        timeout_ns: int = 0,
        wiring: Wiring | None = None,
    ) -> None:
        wiring = wiring or Wiring()
        self.ranks, self.local_ranks = (
            world.topology.hosts * world.topology.gpus_per_host,
            world.topology.gpus_per_host,
        )
        check_topology(experts, self.ranks, self.local_ranks)
        check_sizes(hidden, topk=topk, max_tokens=max_tokens, qps_per_rank=qps_per_rank)
        self.world, self.hidden, self.topk, self.experts, self.max_tokens = (
            world,
            hidden,
            topk,
            experts,
            max_tokens,
        )
        self.local_experts = experts // self.ranks
        self.qps_per_rank = min(qps_per_rank, self.local_experts)
        self.rows = self.ranks * max_tokens
        self.layout = ll_heap_layout(max_tokens, hidden, experts, topk, self.ranks)
        self.mesh = Mesh(world, self.layout, timeout_ns=timeout_ns, steer=wiring.steer)
        for a in range(self.ranks):
            for b in range(a + 1, self.ranks):
                if a // self.local_ranks != b // self.local_ranks:
                    self.mesh.connect(a, b, self.qps_per_rank)
        self._fenced = wiring.fenced
        self.rank_pods = [self._rank_pod(r) for r in range(self.ranks)]
        self.epoch = 0
        self.combine_epoch = 0
        self._unreceived = {"dispatch": 0, "combine": 0}

    def __repr__(self) -> str:
        return (
            f"<LowLatencyBuffer: {self.ranks} ranks, up to {self.max_tokens} tokens x {self.hidden}, "
            f"top-{self.topk} of {self.experts}, {self.qps_per_rank} QPs a pair of ranks>"
        )

    def _rank_pod(self, rank: int) -> Array:
        side = self.mesh.sides[rank]
        qps = self.world.array((self.ranks, self.qps_per_rank), QP_HANDLE)
        for (peer, channel), handle in side.handles.items():
            qps[peer, channel] = handle.array[0]
        pod: Array = self.world.array((1,), abi.LL_RANK)
        p = pod[0]
        p["layout_version"] = LAYOUT_VERSION
        p["rank"], p["ranks"], p["host"], p["local_ranks"] = rank, self.ranks, side.host, self.local_ranks
        p["experts"], p["local_experts"], p["topk"], p["hidden"] = (
            self.experts,
            self.local_experts,
            self.topk,
            self.hidden,
        )
        p["max_tokens"], p["qps_per_rank"] = self.max_tokens, self.qps_per_rank
        p["fenced"] = self._fenced
        p["heaps"] = self.mesh.heap_table(rank)
        peers = [peer for peer in range(self.ranks) for _ in range(self.qps_per_rank)]
        p["remote_heaps"] = self.mesh.remote_table(peers)
        lkeys = self.world.array((len(peers),), np.uint32, side.mr.lkey)
        p["heap_lkeys"] = self.mesh.keep(lkeys)
        p["qps"] = self.mesh.keep(qps)
        p["announced"] = self.mesh.keep(self.world.array((2, self.experts), np.uint64))
        for name in abi.LL_HEAP.names or ():
            p["at"][name] = self.layout.offset[name]
        self.mesh.watch(p["watch"], rank)
        return pod

    def _each(self, name: str, values: Sequence[Any]) -> None:
        if len(values) != self.ranks:
            raise BadArgument(
                f"{name} has not one entry a rank", value=len(values), rule=f"{self.ranks} entries",
                remedy="one call serves all ranks of the world: pass a list with an entry for each"
            )

    def _begin(self, what: str, most: int) -> None:
        """One more is under way; the buffers hold `most` (see cuda/rdmakit/ll.cuh)."""
        if self._unreceived[what] >= most:
            raise BadState(
                f"{what} sent {most} times and not received",
                value=self._unreceived[what],
                rule=f"at most {most} {what} may wait for its hook",
                remedy="call the hooks, oldest first",
            )
        self._unreceived[what] += 1

    def _receive_once(self, what: str, receive: Callable[[], None]) -> Callable[[], None]:
        """The hook: does its work when it is called first, and nothing after that."""
        waiting = [True]

        def hook() -> None:
            if waiting:
                waiting.clear()
                receive()
                self._unreceived[what] -= 1

        return hook

    def _choices(self, r: int, topk_idx: Array, tokens: int) -> Array:
        check_topk_idx(topk_idx, self.experts, tokens)
        if topk_idx.shape[1] != self.topk:
            raise BadArgument(
                f"rank {r}: another top-k than the buffer's", value=topk_idx.shape[1], rule=f"{self.topk}",
                remedy="make another buffer, or fill the row up with -1"
            )
        return self._reachable(np.ascontiguousarray(topk_idx, np.int32))

    def _reachable(self, array: Array) -> Array:
        found: Array = self.world.reachable(array)
        return found

    def dispatch(
        self,
        x: Sequence[Array],
        topk_idx: Sequence[Array],
        *,
        use_fp8: bool = True,
        return_hook: bool = False,
    ) -> tuple[list[LowLatencyDispatched], list[LowLatencyHandle], Callable[[], None]]:
        """Sends every token to each of its experts; x[r]: BF16 [tokens, hidden], topk_idx[r]: [tokens, topk], -1 masks.

        Returns results, handles and a hook. Results are those of ep.reference.low_latency_dispatch, in its order; with
        `return_hook` they are filled only when the hook is called; two dispatches and one combine may wait for
        theirs. Raises BadArgument, BadState, HangError, CompletionError.
        """
        self._each("x", x)
        self._each("topk_idx", topk_idx)
        chosen = []
        for r in range(self.ranks):
            check_hidden(x[r])
            if x[r].shape[1] != self.hidden or len(x[r]) > self.max_tokens:
                raise BadArgument(
                    f"rank {r}: tokens do not fit this buffer",
                    value=x[r].shape,
                    rule=f"[at most {self.max_tokens}, {self.hidden}]",
                    remedy="make the LowLatencyBuffer with larger max_tokens",
                )
            chosen.append(self._choices(r, topk_idx[r], len(x[r])))
        self._begin("dispatch", 2)
        self.epoch += 1
        for r in range(self.ranks):
            self._launch(
                "ll_dispatch_send",
                [self.rank_pods[r], self._reachable(x[r]), chosen[r], len(x[r]), self.epoch, int(use_fp8)],
                r,
            )
        results, handles, pods = [], [], []
        for r in range(self.ranks):
            result, handle, pod = self._receiver(len(x[r]), use_fp8)
            results.append(result)
            handles.append(handle)
            pods.append(pod)
        epoch = self.epoch

        def receive() -> None:
            for r in range(self.ranks):
                self._launch("ll_dispatch_receive", [self.rank_pods[r], pods[r][0], epoch, int(use_fp8)], r)
            self.mesh.run()
            for r, result in enumerate(results):
                ranges = handles[r].ranges.astype(np.int64)
                result.packed_recv_layout_range[:] = (ranges[..., 1] << 32) | ranges[..., 0]

        hook = self._receive_once("dispatch", receive)
        if return_hook:
            self.mesh.run()
        else:
            hook()
        return results, handles, hook

    def _receiver(self, tokens: int, use_fp8: bool) -> tuple[LowLatencyDispatched, LowLatencyHandle, Array]:
        experts, array = self.local_experts, self.world.array
        x = array((experts, self.rows, self.hidden), FP8 if use_fp8 else BF16)
        scales = array((experts, self.rows, self.hidden // 128), np.float32) if use_fp8 else None
        counts, choice = array((experts,), np.int32), array((experts, self.rows), np.int32)
        source = array((experts, self.rows), np.int32)
        source.fill(-1)
        ranges = array((experts, self.ranks, 2), np.int32)
        pod = np.zeros(1, abi.LL_RECEIVED)
        pod[0] = (
            x.ctypes.data,
            scales.ctypes.data if scales is not None else 0,
            counts.ctypes.data,
            source.ctypes.data,
            choice.ctypes.data,
            ranges.ctypes.data,
            0,
            0,
            0,
        )
        packed = LowLatencyDispatched(x, scales, counts, source, np.zeros((experts, self.ranks), np.int64))
        return packed, LowLatencyHandle(tokens, source, choice, ranges), pod

    def combine_rows(self, rank: int) -> Array:
        """Where `rank` may leave its rows so that none is copied: BF16 [local experts, ranks * max_tokens, hidden]."""
        rows: Array = self.mesh.sides[rank].heap.view(
            "combine_x", BF16, (self.local_experts, self.rows, self.hidden)
        )
        return rows

    def combine(
        self,
        y: Sequence[Array],
        handles: Sequence[LowLatencyHandle],
        topk_idx: Sequence[Array],
        topk_weights: Sequence[Array],
        *,
        return_hook: bool = False,
    ) -> tuple[list[Array], Callable[[], None]]:
        """Sums weight * row over each token's experts; y[r]: BF16 [local experts, ranks * max_tokens, hidden].

        Returns BF16 [tokens, hidden] a rank, filled at once or by the hook.
        """
        for name, values in (
            ("y", y),
            ("handles", handles),
            ("topk_idx", topk_idx),
            ("topk_weights", topk_weights),
        ):
            self._each(name, values)
        chosen = []
        for r in range(self.ranks):
            rule = (self.local_experts, self.rows, self.hidden)
            if y[r].shape != rule or y[r].dtype != BF16 or not y[r].flags.c_contiguous:
                raise BadArgument(
                    f"rank {r}: rows of another shape, dtype or layout than were received",
                    value=(y[r].shape, str(y[r].dtype)),
                    rule=f"contiguous BF16 {rule}",
                    remedy="fill buffer.combine_rows(rank), or an array like packed_recv_x in BF16",
                )
            chosen.append(self._choices(r, topk_idx[r], handles[r].tokens))
            check_topk_weights(topk_weights[r], topk_idx[r])
        self._begin("combine", 1)
        self.combine_epoch += 1
        epoch = self.combine_epoch
        for r in range(self.ranks):
            h = handles[r]
            rows = self._reachable(y[r])
            self._launch("ll_combine_send", [self.rank_pods[r], rows, h.source, h.choice, h.ranges, epoch], r)
        out = [self.world.array((handles[r].tokens, self.hidden), BF16) for r in range(self.ranks)]
        weights = [self._reachable(topk_weights[r]) for r in range(self.ranks)]

        def receive() -> None:
            for r in range(self.ranks):
                self._launch(
                    "ll_combine_receive",
                    [self.rank_pods[r], out[r], chosen[r], weights[r], handles[r].tokens, epoch, 0, 0],
                    r,
                )
            self.mesh.run()

        hook = self._receive_once("combine", receive)
        if return_hook:
            self.mesh.run()
        else:
            hook()
        return out, hook

    def _launch(self, kernel: str, args: list[Any], rank: int) -> None:
        self.world.stock_kernel(kernel)((BLOCKS,), (WARPS * 32,), tuple(args), rank=rank)
