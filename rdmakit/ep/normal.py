"""Normal (high-throughput) dispatch and combine over all ranks of a world: DeepEP's semantics, this project's kernels.

Leans on ep.normal_memory, ep.mesh, ep.abi, ep.layout; the device code is cuda/kernels/ep_*.cu. Every call is a
collective: it takes one array a rank and returns one result a rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep import abi
from rdmakit.ep.layout import check_capacity, check_fp8, check_hidden, check_topk_idx, check_topk_weights
from rdmakit.ep.mesh import Mesh
from rdmakit.ep.normal_memory import NormalShape, connect_rails, rank_pods
from rdmakit.ep.wiring import Wiring
from rdmakit.errors import BadArgument, RdmakitError

__all__ = ["Dispatched", "NormalBuffer", "NormalHandle"]

Array = NDArray[Any]
BF16 = ml_dtypes.bfloat16
FP8 = ml_dtypes.float8_e4m3fn
WARPS = 16  # a block


def _digest(chosen: Array) -> bytes:
    return hashlib.blake2b(chosen.tobytes(), digest_size=16).digest()


@dataclass
class NormalHandle:
    """What a dispatch leaves behind for combine and for a cached dispatch: the plan's arrays, by their C names.

    It belongs to one rank of one buffer and to one routing; `routing` is the digest of that.
    """

    owner: NormalBuffer
    rank: int
    routing: bytes
    tokens: int
    received: int
    arrays: dict[str, Array]
    plan: Array


@dataclass
class Dispatched:
    """One rank's rows: `recv_x` BF16 [n, hidden], or (FP8 [n, hidden], float32 [n, hidden/128]); `recv_topk_idx` int64
    [n, topk], local experts or -1; `recv_topk_weights` float32 [n, topk]; `num_recv_tokens_per_expert`; and the handle.

    recv_x and its companions are views of the heap: the next dispatch overwrites them.
    """

    recv_x: Any
    recv_topk_idx: NDArray[np.int64]
    recv_topk_weights: NDArray[np.float32]
    num_recv_tokens_per_expert: list[int]
    recv_source: NDArray[np.int32]
    handle: NormalHandle


class NormalBuffer:
    """Heaps, rings and QPs of every rank for normal dispatch and combine.

    `hidden`: elements of a token, a multiple of 128. `experts`: over all ranks. `max_tokens`: of one rank in one call.
    `capacity`: rows that one rank can receive (default: all tokens of all ranks). `channels`: QPs to each rail peer,
    two blocks of 512 threads each. `slots`: of a ring; `chunk`: slots a put (both powers of two). `timeout_ns`: bound
    of every wait of the device code, 0 for its default. `wiring`: how channels share QPs. BadArgument names what does
    not fit.
    """

    def __init__(
        self,
        world: Any,
        *,
        hidden: int,
        topk: int,
        experts: int,
        max_tokens: int,
        capacity: int | None = None,
        channels: int = 10,
        slots: int = 64,
        chunk: int = 8,
        timeout_ns: int = 0,
        wiring: Wiring | None = None,
    ) -> None:
        wiring = wiring or Wiring()
        shape = NormalShape(
            hosts=world.topology.hosts,
            local_ranks=world.topology.gpus_per_host,
            hidden=hidden,
            topk=topk,
            experts=experts,
            max_tokens=max_tokens,
            capacity=max_tokens * world.topology.hosts * world.topology.gpus_per_host
            if capacity is None
            else capacity,
            channels=channels,
            slots=slots,
            chunk=chunk,
        )
        self.world, self.shape = world, shape
        self.ranks, self.local_ranks, self.hosts = shape.ranks, shape.local_ranks, shape.hosts
        self.hidden, self.topk, self.experts = hidden, topk, experts
        self.max_tokens, self.capacity, self.channels = max_tokens, shape.capacity, channels
        self.local_experts = shape.local_experts
        self.layout = shape.heap_layout()
        self.mesh = Mesh(world, self.layout, timeout_ns=timeout_ns, steer=wiring.steer)
        connect_rails(self.mesh, shape, wiring)
        pods = [rank_pods(self.mesh, shape, wiring, r) for r in range(self.ranks)]
        self.rank_pods, self.fp8_pods = ([pair[fp8] for pair in pods] for fp8 in (0, 1))
        self.scratch = [
            world.array((channels * WARPS, shape.scratch_bytes), np.uint8) for _ in range(self.ranks)
        ]
        self.epoch = 0
        self.dispatched = 0  # dispatches that have moved rows: an exchange of counts alone does not
        self.exchange = 0
        self.combine_epoch = 0
        self.arrived = [0] * self.ranks

    def __repr__(self) -> str:
        return (
            f"<NormalBuffer: {self.ranks} ranks on {self.hosts} hosts, up to {self.max_tokens} tokens x {self.hidden}, "
            f"top-{self.topk} of {self.experts}, {self.channels} channels>"
        )

    def _plan(self, tokens: int) -> tuple[dict[str, Array], Array]:
        arrays = {
            name: self.world.array(dims, np.int32) for name, dims in self.shape.plan_shapes(tokens).items()
        }
        plan = np.zeros(1, abi.EP_PLAN)
        for name, array in arrays.items():
            plan[0][name] = array.ctypes.data
        return arrays, plan

    # ---- inputs
    def _split(self, x: Any, rank: int) -> tuple[Array, Array | None]:
        if isinstance(x, tuple):
            check_fp8(*x)
            q, scales = x
        else:
            q, scales = x, None
            check_hidden(q)
        if q.shape[1] != self.hidden or len(q) > self.max_tokens:
            raise BadArgument(
                f"rank {rank}: tokens do not fit this buffer",
                value=q.shape,
                rule=f"[at most {self.max_tokens}, {self.hidden}]",
                remedy="make the NormalBuffer with larger max_tokens",
            )
        return q, scales

    def _each(self, name: str, values: Sequence[Any]) -> None:
        if len(values) != self.ranks:
            raise BadArgument(
                f"{name} has not one entry a rank", value=len(values), rule=f"{self.ranks} entries",
                remedy="one call serves all ranks of the world: pass a list with an entry for each"
            )

    def _own(self, handles: Sequence[NormalHandle]) -> None:
        self._each("handles", handles)
        for r, handle in enumerate(handles):
            if handle.owner is not self or handle.rank != r:
                raise BadArgument(
                    f"rank {r}: the handle is of rank {handle.rank}"
                    + ("" if handle.owner is self else " of another buffer"),
                    value=handle.rank,
                    rule="handles in the order of the ranks, from a dispatch of this buffer",
                    remedy="pass [d.handle for d in buffer.dispatch(…)]",
                )

    # ---- dispatch
    def dispatch(
        self,
        x: Sequence[Any],
        topk_idx: Sequence[Array],
        topk_weights: Sequence[Array],
        handles: Sequence[NormalHandle] | None = None,
        *,
        exchanged: Callable[[], None] | None = None,
    ) -> list[Dispatched]:
        """Sends every token to the ranks of its experts.

        x[r]: BF16 [tokens, hidden], or (FP8, scales). topk_idx[r]: int32 or int64 [tokens, topk], -1 masks;
        topk_weights[r]: float32. `handles` of an earlier dispatch of the same routing skip the exchange of counts (the
        backward pass of combine). `exchanged` is called when counts are known and no row has moved. Raises BadArgument
        for inputs that break a rule, HangError and CompletionError from the device.
        """
        for name, values in (("x", x), ("topk_idx", topk_idx), ("topk_weights", topk_weights)):
            self._each(name, values)
        rows, chosen, weights, reach = [], [], [], self.world.reachable
        for r in range(self.ranks):
            q, scales = self._split(x[r], r)
            rows.append((reach(q), None if scales is None else reach(scales)))
            check_topk_idx(topk_idx[r], self.experts, len(q))
            check_topk_weights(topk_weights[r], topk_idx[r])
            if topk_idx[r].shape[1] != self.topk:
                raise BadArgument(
                    f"rank {r}: another top-k than the buffer's",
                    value=topk_idx[r].shape[1],
                    rule=f"{self.topk}",
                    remedy="make another buffer, or fill the row up with -1",
                )
            chosen.append(reach(np.ascontiguousarray(topk_idx[r], np.int32)))
            weights.append(reach(topk_weights[r]))
        self.epoch += 1
        handles = self._exchange(chosen) if handles is None else self._reuse(handles, chosen)
        if exchanged is not None:
            exchanged()
        self.dispatched += 1
        for r in range(self.ranks):
            q, scales = rows[r]
            self.arrived[r] += handles[r].received
            args = np.zeros(1, abi.DISPATCH_INPUT)
            args[0] = (
                q.ctypes.data,
                scales.ctypes.data if scales is not None else 0,
                chosen[r].ctypes.data,
                weights[r].ctypes.data,
                len(q),
                q.shape[1] * q.itemsize,
                scales.shape[1] if scales is not None else 0,
                1,
                self.epoch,
                self.arrived[r],
            )
            pod = (self.rank_pods if scales is None else self.fp8_pods)[r]
            self._launch("ep_dispatch", 2 * self.channels, [pod, handles[r].plan[0], args[0]], r)
        self.mesh.run()
        return [self._dispatched(r, handles[r], rows[r][1] is not None) for r in range(self.ranks)]

    def _exchange(self, chosen: Sequence[Array]) -> list[NormalHandle]:
        self.exchange += 1
        plans = [self._plan(len(chosen[r])) for r in range(self.ranks)]
        for r, (_, plan) in enumerate(plans):
            self._launch("ep_layout", 1, [self.rank_pods[r], plan[0], chosen[r], len(chosen[r])], r)
            self._launch("ep_notify", 1, [self.rank_pods[r], plan[0], self.exchange, self.epoch], r)
        try:
            self.mesh.run()
        except RdmakitError:
            for r, (arrays, _) in enumerate(plans):  # the device found it; the host knows the buffer's name for it
                if arrays["totals"][0] > self.capacity:
                    self.mesh.sides[r].report.clear()
                    check_capacity(arrays["totals"][:1], self.capacity, rank=r, buffer="NormalBuffer")
            raise
        return [
            NormalHandle(self, r, _digest(chosen[r]), len(chosen[r]), int(arrays["totals"][0]), arrays, plan)
            for r, (arrays, plan) in enumerate(plans)
        ]

    def _reuse(self, handles: Sequence[NormalHandle], chosen: Sequence[Array]) -> list[NormalHandle]:
        self._own(handles)
        for r, handle in enumerate(handles):
            if handle.routing != _digest(chosen[r]) or handle.tokens != len(chosen[r]):
                raise BadArgument(
                    f"rank {r}: the handle is of another dispatch",
                    value=len(chosen[r]),
                    rule=f"{handle.tokens} tokens",
                    remedy="dispatch without a handle",
                )
            self._launch(
                "ep_reopen", 1, [self.rank_pods[r], handle.plan[0], self.epoch, self.dispatched * self.local_ranks], r
            )
        return list(handles)

    def _dispatched(self, r: int, handle: NormalHandle, fp8: bool) -> Dispatched:
        heap, n = self.mesh.sides[r].heap, handle.received
        if fp8:
            recv_x: Any = (
                heap.view("recv_x", FP8, (n, self.hidden)),
                heap.view("recv_scales", np.float32, (n, self.hidden // 128)),
            )
        else:
            recv_x = heap.view("recv_x", BF16, (n, self.hidden))
        return Dispatched(
            recv_x,
            heap.view("recv_topk", np.int32, (n, self.topk)).astype(np.int64),
            heap.view("recv_weights", np.float32, (n, self.topk)),
            [int(v) for v in handle.arrays["totals"][1:]],
            heap.view("recv_source", np.int32, (n,)),
            handle,
        )

    # ---- combine
    def combine_rows(self, rank: int, handle: NormalHandle) -> Array:
        """Where `rank` may leave its rows to combine so that none is copied: BF16 [received, hidden], in the heap."""
        return self.mesh.sides[rank].heap.view("combine_x", BF16, (handle.received, self.hidden))

    def combine(
        self, x: Sequence[Array], handles: Sequence[NormalHandle], topk_weights: Sequence[Array] | None = None
    ) -> tuple[list[Array], list[Array] | None]:
        """Sums each token's rows over the ranks that it went to; x[r]: BF16 [received, hidden], as dispatch ordered.

        Returns BF16 [tokens, hidden] a rank and, if topk_weights (float32 [received, topk]) are given, their sums. A
        host's rows are summed in float32 by ascending rank and rounded to BF16, then those partial sums by
        ascending host.
        """
        self._each("x", x)
        self._own(handles)
        for r in range(self.ranks):
            check_hidden(x[r])
            if x[r].shape != (handles[r].received, self.hidden):
                raise BadArgument(
                    f"rank {r}: rows of another shape than were received",
                    value=x[r].shape,
                    rule=f"({handles[r].received}, {self.hidden})",
                    remedy="one row for each that dispatch gave; buffer.combine_rows(rank, handle) has the shape",
                )
            if topk_weights is not None and (
                topk_weights[r].shape != (handles[r].received, self.topk)
                or topk_weights[r].dtype != np.float32
            ):
                raise BadArgument(
                    f"rank {r}: weights of another shape or dtype",
                    value=topk_weights[r].shape,
                    rule=f"float32 ({handles[r].received}, {self.topk})",
                    remedy="pass the recv_topk_weights of the dispatch, or leave topk_weights out",
                )
        self.combine_epoch += 1
        out, out_weights, kept, reach = [], [], [], self.world.reachable
        for r in range(self.ranks):
            out.append(self.world.array((handles[r].tokens, self.hidden), BF16))
            out_weights.append(self.world.array((handles[r].tokens, self.topk), np.float32))
            rows, w = reach(x[r]), None if topk_weights is None else reach(np.ascontiguousarray(topk_weights[r]))
            args = np.zeros(1, abi.COMBINE_INPUT)
            args[0] = (
                rows.ctypes.data,
                w.ctypes.data if w is not None else 0,
                out[r].ctypes.data,
                out_weights[r].ctypes.data,
                handles[r].received,
                handles[r].tokens,
                self.combine_epoch * 2 * self.channels,
                (0, 0),
            )
            self._launch(
                "ep_combine",
                2 * self.channels,
                [self.rank_pods[r], handles[r].plan[0], args[0], self.scratch[r]],
                r,
            )
            kept.append((rows, w))  # the launch holds their addresses only
        self.mesh.run()
        return out, (out_weights if topk_weights is not None else None)

    # ---- launching
    def _launch(self, kernel: str, blocks: int, args: list[Any], rank: int) -> None:
        self.world.stock_kernel(kernel)((blocks,), (WARPS * 32,), tuple(args), rank=rank)
