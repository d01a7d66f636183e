"""Dispatch and combine between hosts, by DeepEP V1's names and shapes: what Buffer's calls become where it has several.

Leans on ep.buffer_base, ep.normal_arguments and ep.internode_arguments (checks). ep.internode moves the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rdmakit.ep.buffer_base import BufferBase, address_of, direct
from rdmakit.ep.config import Config
from rdmakit.ep.crossing import Crossing
from rdmakit.ep.events import EventOverlap
from rdmakit.ep.internode import LEAST_SMS, Internode
from rdmakit.ep.internode_arguments import HostsHandle, check_between_hosts, unpack_hosts_handle
from rdmakit.ep.internode_pods import Route
from rdmakit.ep.normal_arguments import Rows, check_layout, check_rows, check_topk, number_of_sms, unpack_bias
from rdmakit.ep.tensor_checks import check_positive, check_tensor
from rdmakit.ep.tensors import Tensor
from rdmakit.errors import BadArgument

__all__ = ["InternodeCalls"]


@dataclass(frozen=True)
class Sums:
    """A combine that has begun: `bias` may hold None, `out` and `out_weights` are for its results."""

    hidden: int
    topk: int
    bias: tuple[Tensor | None, Tensor | None]
    crossing: Crossing
    out: Tensor
    out_weights: Tensor | None


class InternodeCalls(BufferBase):
    """Collective: every rank makes the same calls in the same order."""

    num_sms: int
    _channel_starts: Tensor

    @direct
    def internode_dispatch(
        self, x: Rows, handle: Any = None, num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None, is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None, topk_idx: Tensor | None = None, topk_weights: Tensor | None = None,
        expert_alignment: int = 1, config: Config | None = None, previous_event: EventOverlap | None = None,
        async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Rows, Tensor | None, Tensor | None, list[int] | None, HostsHandle | None, EventOverlap]:  # fmt: skip
        """`dispatch` where there are several hosts: its arguments and results, and a `HostsHandle`.

        A token crosses once to each host that has an expert of its choice, and is handed out there. The host waits for
        counts, but not with a handle. At least 4 SMs: two of each channel, and the HCA's. BadState on one host.
        """
        engine = check_between_hosts(self, "internode_dispatch")
        rows_x, scales = x if isinstance(x, tuple) else (x, None)
        num_sms = number_of_sms(self, config, self.num_sms, LEAST_SMS)
        kinds = self._backend.kinds
        topk, per_expert = 0, None
        if handle is None:
            check_rows(self, rows_x, scales)
            check_layout(self, rows_x.shape[0], num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert)
            hosts = (self._hosts,)
            check_tensor("num_tokens_per_rdma_rank", num_tokens_per_rdma_rank, self.device, (kinds.int32,), hosts)
            topk = check_topk(self, rows_x.shape[0], topk_idx, topk_weights, 0)
            check_positive(expert_alignment=expert_alignment)
        else:
            if topk_idx is not None or topk_weights is not None:
                given = "topk_weights" if topk_idx is None else "topk_idx"
                raise BadArgument("a cached dispatch with top-k", value=given,
                                  rule="either handle, or topk_idx and topk_weights",
                                  remedy="leave topk_idx and topk_weights out")  # fmt: skip
            handle = unpack_hosts_handle(self, handle)
            check_rows(self, rows_x, scales, handle.route.tokens)
        crossing = self._crossing(previous_event, async_finish, allocate_on_comm_stream)
        # Before counts are exchanged, which lets peers write: what the Buffer takes back is theirs to write again.
        self._leases.collect(self._comm_stream)
        stream = self._stream_address(self._comm_stream)
        sums: tuple[Tensor, ...] = ()
        if handle is None:
            assert is_token_in_rank is not None and num_tokens_per_expert is not None  # check_layout
            tokens, experts = rows_x.shape[0], num_tokens_per_expert.shape[0]
            channels = engine.channels_for(num_sms)
            with crossing.results():
                plan = self._empty((engine.pods.plan_words(tokens, channels, experts),), kinds.int32)
                sums = self._empty((self._hosts,), kinds.int32), self._empty((self.group_size,), kinds.int32)
            route = Route(plan.data_ptr(), tokens, channels, experts)
            engine.notify(route, is_token_in_rank.data_ptr(), num_tokens_per_expert.data_ptr(), expert_alignment,
                          sums[1].data_ptr(), sums[0].data_ptr(), stream)  # fmt: skip
            rows, per_expert = engine.counts()
        else:
            plan, route, rows = handle.plan, handle.route, handle.rows
        packed = self._packed(scales)
        row_bytes = rows_x.shape[1] * rows_x.element_size()
        scale_bytes = 0 if packed is None else packed.shape[1] * packed.element_size()
        received = engine.receive_block(rows, row_bytes, scale_bytes, topk, stream)
        engine.dispatch(
            route, rows_x.data_ptr(), row_bytes, address_of(packed), scale_bytes, address_of(topk_idx),
            address_of(topk_weights), topk, received, rows, num_sms, cached=handle is not None, stream=stream,
        )  # fmt: skip
        results = self._hand_out(crossing, received, rows, rows_x, scales, topk, with_source=handle is None)
        recv_x, recv_scales, recv_idx, recv_weights, source = results
        event = crossing.finish((
            rows_x, scales, topk_idx, topk_weights, is_token_in_rank, num_tokens_per_expert, plan, *sums, *results,
        ))  # fmt: skip
        result = recv_x if recv_scales is None else (recv_x, recv_scales)
        if source is None:
            return result, None, None, None, None, event
        made = self._hosts_handle(
            engine, route, plan, rows, source, sums, is_token_in_rank, num_tokens_per_rdma_rank, num_tokens_per_rank
        )
        return result, recv_idx, recv_weights, per_expert, made, event

    @direct
    def internode_combine(
        self, x: Tensor, handle: Any, topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None, config: Config | None = None,
        previous_event: EventOverlap | None = None, async_finish: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:  # fmt: skip
        """`combine` where there are several hosts: a host's rows of a token are added up there, and cross once.

        The sum of each host is rounded to BF16. The channels are those of the handle's dispatch; `config` counts for
        the HCA's SMs. BadState on one host.
        """
        engine = check_between_hosts(self, "internode_combine")
        num_sms = number_of_sms(self, config, self.num_sms, LEAST_SMS)
        found = unpack_hosts_handle(self, handle)
        sums = self._begin_sums(
            x, found.rows, found.route.tokens, topk_weights, bias, previous_event, async_finish,
            allocate_on_comm_stream,
        )  # fmt: skip
        bias_0, bias_1 = sums.bias
        engine.combine(
            found.route, x.data_ptr(), found.rows, sums.hidden, address_of(topk_weights), sums.topk,
            sums.out.data_ptr(), address_of(sums.out_weights), address_of(bias_0), address_of(bias_1), num_sms,
            self._stream_address(self._comm_stream),
        )  # fmt: skip
        event = sums.crossing.finish((x, topk_weights, bias_0, bias_1, found.plan, sums.out, sums.out_weights))
        return sums.out, sums.out_weights, event

    def _begin_sums(
        self, x: Tensor, rows: int, tokens: int, topk_weights: Tensor | None, bias: Any, previous_event: Any,
        async_finish: bool, allocate_on_comm_stream: bool,
    ) -> Sums:  # fmt: skip
        """What a combine begins with, its handle being known: checks, the way to the other stream, room for sums."""
        kinds, topk = self._backend.kinds, 0
        check_tensor("x", x, self.device, (kinds.bfloat16,), (rows, "hidden"))
        check_rows(self, x, None)
        hidden = int(x.shape[1])
        if topk_weights is not None:
            check_tensor("topk_weights", topk_weights, self.device, (kinds.float32,), (rows, "num_topk"))
            topk = int(topk_weights.shape[1])
        biases = unpack_bias(self, bias, tokens, hidden)
        crossing = self._crossing(previous_event, async_finish, allocate_on_comm_stream)
        self._leases.collect(self._comm_stream)
        with crossing.results():
            out = self._empty((tokens, hidden), kinds.bfloat16)
            out_weights = None if topk_weights is None else self._empty((tokens, topk), kinds.float32)
        return Sums(hidden, topk, biases, crossing, out, out_weights)

    def _between_hosts(self) -> Internode:
        found: Internode = self.runtime
        return found

    def _hosts_handle(
        self, engine: Internode, route: Route, plan: Tensor, rows: int, source: Tensor, sums: tuple[Tensor, ...],
        in_rank: Any, per_host: Any, per_rank: Any,
    ) -> HostsHandle:  # fmt: skip
        def part(name: str, width: int) -> Tensor:
            begin, words = engine.pods.plan_part(route, name)
            return plan[begin : begin + words].view(-1, width)

        parts = (
            in_rank, per_host.view(-1, 1), per_rank.view(-1, 1), self._channel_starts[: self._hosts], sums[0],
            self._channel_starts, sums[1], source.view(self._backend.kinds.uint8).view(rows, 4),
            part("host_slot", self._hosts), part("forward_order", engine.local_ranks),
        )  # fmt: skip
        return HostsHandle.of(parts, plan, route, rows)
