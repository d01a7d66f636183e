"""The high-throughput half of Buffer: get_dispatch_layout, dispatch, combine, by DeepEP V1's names and shapes.

Leans on ep.buffer_internode (between hosts), ep.normal_arguments (checks). The engine moves the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from rdmakit.ep.buffer_base import address_of, direct
from rdmakit.ep.buffer_internode import InternodeCalls
from rdmakit.ep.config import Config
from rdmakit.ep.crossing import Crossing
from rdmakit.ep.events import EventOverlap
from rdmakit.ep.internode_arguments import HostsHandle
from rdmakit.ep.normal_arguments import (
    Handle,
    Rows,
    check_layout,
    check_rows,
    check_topk,
    number_of_sms,
    unpack_handle,
)
from rdmakit.ep.tensor_checks import check_positive, check_tensor
from rdmakit.ep.tensors import Tensor
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["NormalCalls"]


@dataclass(frozen=True)
class _Route:
    """Where rows go: `positions` and `prefix` as Engine.notify writes them, and how many rows come here."""

    prefix: Tensor
    positions: Tensor
    in_rank: Tensor
    rows: int


AnyHandle: TypeAlias = Handle | HostsHandle


class NormalCalls(InternodeCalls):
    """Dispatch and combine for training and prefill. Collective: every rank makes the same calls in the same order.
    Where there are several hosts, they are internode_dispatch and internode_combine.
    """

    @direct
    def get_dispatch_layout(
        self, topk_idx: Tensor, num_experts: int, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, EventOverlap]:  # fmt: skip
        """Count where this rank's tokens go, from top-k indices alone. Not collective.

        `topk_idx`: int64 `[num_tokens, num_topk]`, -1 masked. Returns num_tokens_per_rank int32 `[num_ranks]`;
        num_tokens_per_rdma_rank int32 `[num_hosts]`, None on one host; num_tokens_per_expert int32 `[num_experts]`;
        is_token_in_rank bool `[num_tokens, num_ranks]`; the event (see `Buffer`). BadArgument says which argument, rule
        and remedy.
        """
        engine, kinds = self._engine(), self._backend.kinds
        check_tensor("topk_idx", topk_idx, self.device, (kinds.int64,), ("num_tokens", "num_topk"))
        self._local_experts(num_experts)
        tokens, topk = topk_idx.shape
        crossing = self._crossing(previous_event, async_finish, allocate_on_comm_stream)
        with crossing.results():
            per_rank = self._empty((self.group_size,), kinds.int32)
            per_expert = self._empty((num_experts,), kinds.int32)
            in_rank = self._empty((tokens, self.group_size), kinds.bool)
            per_host = None if self._hosts == 1 else self._empty((self._hosts,), kinds.int32)
        stream = self._stream_address(self._comm_stream)
        given = topk_idx.data_ptr(), tokens, topk, num_experts
        if per_host is None:
            engine.layout(*given, per_rank.data_ptr(), per_expert.data_ptr(), in_rank.data_ptr(), stream)
        else:
            counted = per_rank.data_ptr(), per_host.data_ptr(), per_expert.data_ptr(), in_rank.data_ptr()
            self._between_hosts().layout(*given, *counted, stream)
        event = crossing.finish((topk_idx, per_rank, per_host, per_expert, in_rank))
        return per_rank, per_host, per_expert, in_rank, event

    @direct
    def dispatch(
        self, x: Rows, handle: AnyHandle | None = None, num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None, is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None, topk_idx: Tensor | None = None, topk_weights: Tensor | None = None,
        expert_alignment: int = 1, num_worst_tokens: int = 0, config: Config | None = None,
        previous_event: EventOverlap | None = None, async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Rows, Tensor | None, Tensor | None, list[int] | None, AnyHandle | None, EventOverlap]:  # fmt: skip
        """Send each token once to every rank that has an expert of its choice.

        `x`: `[num_tokens, hidden]` (BF16, or anything in rows of a multiple of 16 bytes), or FP8 with its scales:
        float8_e4m3fn `[num_tokens, hidden]` and float32, or int32 of packed UE8M0, `[num_tokens, n]`, of any strides.
        `num_tokens_per_rank`, `is_token_in_rank`, `num_tokens_per_expert`: as get_dispatch_layout returns them.
        `topk_idx` int64 and `topk_weights` float32 `[num_tokens, num_topk]`: both or neither.
        `handle`: an earlier dispatch's; rows go the same way, without counting and without top-k.
        `num_worst_tokens`: rows to make room for; then the host waits for nothing, as CUDA graphs need.

        Returns recv_x like `x`, ordered by source rank and token; recv_topk_idx int64 `[rows, num_topk]` of local
        experts, -1 for those of others and in rows beyond those that came; recv_topk_weights; the number of rows of
        each local expert, a list, rounded up to `expert_alignment` (empty with num_worst_tokens); the handle
        (rank_prefix_matrix, channel_prefix_matrix, recv_channel_prefix_matrix, recv_src_idx, is_token_in_rank,
        send_head), where both channel matrices have one channel; the event. With a handle, Nones between rows and
        event. Rows and their top-k lie in the Buffer's own memory, one block a call, and go back when all are dropped
        (the handle does not hold them); when another call would find no room there, they are copied out.
        """
        if self._hosts > 1:
            if num_worst_tokens:
                raise NotAvailable("num_worst_tokens is not supported between hosts", value=num_worst_tokens,
                                   rule="the host waits for counts there, as in DeepEP",
                                   remedy="leave num_worst_tokens out")  # fmt: skip
            return self.internode_dispatch(
                x, handle, num_tokens_per_rank, num_tokens_per_rdma_rank, is_token_in_rank, num_tokens_per_expert,
                topk_idx, topk_weights, expert_alignment, config, previous_event, async_finish, allocate_on_comm_stream,
            )  # fmt: skip
        rows_x, scales = x if isinstance(x, tuple) else (x, None)
        num_sms = number_of_sms(self, config, self.num_sms)
        topk, experts, per_expert = 0, 0, None
        if handle is None:
            check_rows(self, rows_x, scales)
            check_layout(self, rows_x.shape[0], num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert)
            topk = check_topk(self, rows_x.shape[0], topk_idx, topk_weights, num_worst_tokens)
            check_positive(expert_alignment=expert_alignment)
            experts = 0 if num_tokens_per_expert is None else num_tokens_per_expert.shape[0]
            crossing = self._crossing(previous_event, async_finish, allocate_on_comm_stream)
            route, per_expert = self._new_route(
                crossing, is_token_in_rank, num_tokens_per_rank, num_tokens_per_expert, expert_alignment,
                num_worst_tokens,
            )
        else:
            if topk_idx is not None or topk_weights is not None:
                given = "topk_weights" if topk_idx is None else "topk_idx"
                raise BadArgument("a cached dispatch with top-k", value=given,
                                  rule="either handle, or topk_idx and topk_weights",
                                  remedy="leave topk_idx and topk_weights out")  # fmt: skip
            prefix, src_idx, in_rank, positions = unpack_handle(self, handle)
            route = _Route(prefix, positions, in_rank, src_idx.shape[0])
            check_rows(self, rows_x, scales, positions.shape[0])
            crossing = self._crossing(previous_event, async_finish, allocate_on_comm_stream)
            self._leases.collect(self._comm_stream)
        results = self._send(
            crossing, route, rows_x, scales, topk_idx, topk_weights, topk, experts, num_sms, cached=handle is not None
        )
        recv_x, recv_scales, recv_idx, recv_weights, recv_src_idx = results
        event = crossing.finish((
            rows_x, scales, topk_idx, topk_weights, num_tokens_per_expert, route.in_rank, route.positions, route.prefix,
            *results,
        ))  # fmt: skip
        result = recv_x if recv_scales is None else (recv_x, recv_scales)
        if num_tokens_per_rank is None or recv_src_idx is None:
            return result, None, None, None, None, event
        channel_prefix = num_tokens_per_rank.view(self.group_size, 1)
        made = (route.prefix, channel_prefix, self._channel_starts, recv_src_idx, route.in_rank, route.positions)
        return result, recv_idx, recv_weights, per_expert, made, event

    @direct
    def combine(
        self, x: Tensor, handle: AnyHandle, topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None, config: Config | None = None,
        previous_event: EventOverlap | None = None, async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:  # fmt: skip
        """Bring rows back to where they came from and add up those of one token; weights do not weigh them.

        `x`: BF16 `[rows, hidden]`, in the order of the dispatch whose `handle` this is. `topk_weights`: float32
        `[rows, num_topk]`, added up likewise. `bias`: up to two of BF16 `[num_tokens, hidden]`, added to the result.
        Returns BF16 `[num_tokens, hidden]`; float32 `[num_tokens, num_topk]` or None; the event.
        """
        if self._hosts > 1:
            return self.internode_combine(
                x, handle, topk_weights, bias, config, previous_event, async_finish, allocate_on_comm_stream
            )
        engine = self._engine()
        num_sms = number_of_sms(self, config, self.num_sms)
        prefix, src_idx, _, positions = unpack_handle(self, handle)
        rows, tokens = src_idx.shape[0], positions.shape[0]
        sums = self._begin_sums(
            x, rows, tokens, topk_weights, bias, previous_event, async_finish, allocate_on_comm_stream
        )
        bias_0, bias_1 = sums.bias
        staged = engine.combine(
            x.data_ptr(), rows, sums.hidden, address_of(topk_weights), sums.topk, positions.data_ptr(),
            prefix.data_ptr(), tokens, sums.out.data_ptr(), address_of(sums.out_weights), address_of(bias_0),
            address_of(bias_1), num_sms, self._stream_address(self._comm_stream),
        )  # fmt: skip
        event = sums.crossing.finish((x, topk_weights, bias_0, bias_1, positions, prefix, sums.out, sums.out_weights))
        for owner in staged:
            self._leases.lease(owner)
        return sums.out, sums.out_weights, event

    # ---- the steps of dispatch
    def _new_route(
        self, crossing: Crossing, in_rank: Any, per_rank: Any, per_expert: Any, alignment: int, worst: int
    ) -> tuple[_Route, list[int]]:
        """Exchange counts. The host waits for them, unless it knows the worst case."""
        engine, int32, ranks = self._engine(), self._backend.kinds.int32, self.group_size
        # Before notify, which lets peers write: what the Buffer takes back is theirs to write again.
        self._leases.collect(self._comm_stream)
        with crossing.results():
            positions, prefix = self._empty((in_rank.shape[0], ranks), int32), self._empty((ranks, ranks), int32)
        engine.notify(in_rank.data_ptr(), in_rank.shape[0], per_rank.data_ptr(), per_expert.data_ptr(),
                      per_expert.shape[0], alignment, positions.data_ptr(), prefix.data_ptr(),
                      self._stream_address(self._comm_stream))  # fmt: skip
        rows, received = (worst, []) if worst else engine.counts()
        return _Route(prefix, positions, in_rank, rows), received

    def _send(
        self, crossing: Crossing, route: _Route, x: Tensor, scales: Tensor | None, topk_idx: Tensor | None,
        topk_weights: Tensor | None, topk: int, experts: int, num_sms: int, cached: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Move rows; what is received: x, scales, top-k; and, for a handle, source indices."""
        engine, rows = self._engine(), route.rows
        stream = self._stream_address(self._comm_stream)
        packed = self._packed(scales)
        row_bytes = x.shape[1] * x.element_size()
        scale_bytes = 0 if packed is None else packed.shape[1] * packed.element_size()
        received = engine.receive_block(rows, row_bytes, scale_bytes, topk, stream)
        engine.dispatch(
            x.data_ptr(), row_bytes, address_of(packed), scale_bytes, address_of(topk_idx), address_of(topk_weights),
            topk, experts, x.shape[0], route.positions.data_ptr(), route.prefix.data_ptr(), received, rows, num_sms,
            stream,
        )  # fmt: skip
        return self._hand_out(crossing, received, rows, x, scales, topk, with_source=not cached)
