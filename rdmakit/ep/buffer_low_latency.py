"""The low-latency half of Buffer: dispatch and combine for decoding, with hooks, zero-copy and masks.

Leans on ep.buffer_base, ep.events, ep.tensor_checks, ep.config. A row goes out for every choice of every token, without
counts first. Each call has two phases, send and receive; with a hook the caller says when to receive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rdmakit.ep.buffer_base import BufferBase, address_of, direct
from rdmakit.ep.config import get_low_latency_rdma_size_hint
from rdmakit.ep.engine import RECEIVE, SEND, Engine
from rdmakit.ep.events import EventHandle, EventOverlap
from rdmakit.ep.layout import FP8_BLOCK
from rdmakit.ep.tensor_checks import check_positive, check_tensor
from rdmakit.ep.tensors import Stream, Tensor
from rdmakit.errors import BadArgument, BadState, NotAvailable

__all__ = ["LowLatencyCalls", "RowsHandle"]

UE8M0_BLOCK = 4 * FP8_BLOCK  # four scales of one byte in an int32

Hook = Callable[[], None]


class RowsHandle(tuple[Tensor, Tensor, int, int, int]):
    """DeepEP's handle: (src_info, layout_range, num_max_dispatch_tokens_per_rank, hidden, num_experts).

    `row_map`, int32 `[ranks, num_max_dispatch_tokens_per_rank, topk]`, is what rdmakit needs besides: the row of each
    choice that came to this rank.
    """

    row_map: Tensor

    @classmethod
    def of(cls, parts: tuple[Tensor, Tensor, int, int, int], row_map: Tensor) -> RowsHandle:
        """The five parts, with the map."""
        found = cls(parts)
        found.row_map = row_map
        return found


class LowLatencyCalls(BufferBase):
    """Low-latency calls. Collective. Results are the caller's; at most two calls may be between send and receive."""

    _low_latency_sizes: tuple[int, int, int, int] | None
    _to_fill: list[Tensor | None]
    _next_to_fill: int

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Put the memory of low-latency calls into its first state. Collective, on the current stream.

        DeepEP needs it after normal calls, which share its memory; here it is allowed, and only needed after a failure.
        """
        engine = self._low_latency_engine()
        self._check_room(num_max_dispatch_tokens_per_rank, hidden, num_experts)
        engine.ll_clean(self._stream_address(self._backend.current_stream()))

    @direct
    def low_latency_dispatch(
        self, x: Tensor, topk_idx: Tensor, num_max_dispatch_tokens_per_rank: int, num_experts: int,
        cumulative_local_expert_recv_stats: Tensor | None = None, dispatch_wait_recv_cost_stats: Tensor | None = None,
        use_fp8: bool = True, round_scale: bool = False, use_ue8m0: bool = False, async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Any, Tensor, RowsHandle, EventOverlap, Hook | None]:  # fmt: skip
        """Send each token to every expert that it chose.

        `x`: BF16 `[num_tokens, hidden]`, hidden a multiple of 128 (512 for UE8M0), at most
        `num_max_dispatch_tokens_per_rank` tokens, which is the same on all ranks. `topk_idx`: int64
        `[num_tokens, num_topk]`, -1 masked. Added to, if given: `cumulative_local_expert_recv_stats` int32
        `[num_local_experts]`, rows received; `dispatch_wait_recv_cost_stats` int64 `[num_ranks]`, clocks of an SM that
        were waited for a source, once for its choices and once for each of its rows.

        Returns, with rows = num_ranks * num_max_dispatch_tokens_per_rank: recv_x BF16
        `[num_local_experts, rows, hidden]`, or with `use_fp8` float8_e4m3fn of that shape and its scales, float32
        `[num_local_experts, rows, hidden / 128]` (with `use_ue8m0`, which needs `round_scale`, int32
        `[…, hidden / 512]`) whose last but one axis is the contiguous one; recv_count int32 `[num_local_experts]`, how
        many rows of each are valid; the handle; the event (of `async_finish`); the hook (of `return_recv_hook`, not
        both), which receives: before it nothing is valid.
        """
        engine, kinds = self._low_latency_engine(), self._backend.kinds
        max_tokens = num_max_dispatch_tokens_per_rank
        _check_flags(use_fp8, round_scale, use_ue8m0, async_finish, return_recv_hook)
        local_experts = self._local_experts(num_experts)
        check_tensor("x", x, self.device, (kinds.bfloat16,), ("num_tokens", "hidden"))
        tokens, hidden = (int(extent) for extent in x.shape)
        self._check_sizes(tokens, max_tokens, hidden, UE8M0_BLOCK if use_fp8 and use_ue8m0 else FP8_BLOCK)
        check_tensor("topk_idx", topk_idx, self.device, (kinds.int64,), (tokens, "num_topk"))
        topk = int(topk_idx.shape[1])
        statistics, wait_statistics = cumulative_local_expert_recv_stats, dispatch_wait_recv_cost_stats
        if statistics is not None:
            check_tensor("cumulative_local_expert_recv_stats", statistics, self.device, (kinds.int32,),
                         (local_experts,))  # fmt: skip
        self._check_waits("dispatch_wait_recv_cost_stats", wait_statistics)
        self._configure(engine, max_tokens, hidden, num_experts, topk)

        stream = self._way_out(return_recv_hook)
        rows = self.group_size * max_tokens
        out = self._empty((local_experts, rows, hidden), kinds.float8 if use_fp8 else kinds.bfloat16)
        scales = None
        if use_fp8:
            block, kind = (UE8M0_BLOCK, kinds.int32) if use_ue8m0 else (FP8_BLOCK, kinds.float32)
            scales = self._empty((local_experts, hidden // block, rows), kind)
        count = self._empty((local_experts,), kinds.int32)
        src_info = self._empty((local_experts, rows), kinds.int32)
        layout_range = self._empty((local_experts, self.group_size), kinds.int64)
        row_map = self._empty((self.group_size, max_tokens, topk), kinds.int32)
        where = self._stream_address(stream)

        def launch(phases: int) -> None:
            engine.ll_dispatch(
                x.data_ptr(), topk_idx.data_ptr(), tokens, use_fp8, round_scale, use_ue8m0,
                out.data_ptr(), address_of(scales), count.data_ptr(), src_info.data_ptr(), layout_range.data_ptr(),
                row_map.data_ptr(), address_of(statistics), address_of(wait_statistics), phases, where,
            )  # fmt: skip

        held = (x, topk_idx, statistics, wait_statistics, out, scales, count, src_info, layout_range, row_map)
        event, hook = self._launched(launch, stream, held, async_finish, return_recv_hook)
        handle = RowsHandle.of((src_info, layout_range, max_tokens, hidden, num_experts), row_map)
        result = out if scales is None else (out, scales.transpose(1, 2))
        return result, count, handle, event, hook

    @direct
    def low_latency_combine(
        self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, handle: RowsHandle, use_logfmt: bool = False,
        zero_copy: bool = False, async_finish: bool = False, return_recv_hook: bool = False, out: Tensor | None = None,
        combine_wait_recv_cost_stats: Tensor | None = None,
    ) -> tuple[Tensor, EventOverlap, Hook | None]:  # fmt: skip
        """Bring the rows of each token home and add them up, weighted.

        `x`: BF16 `[num_local_experts, rows, hidden]` in the rows of the dispatch whose `handle` this is; with
        `zero_copy` they are in `get_next_low_latency_combine_buffer(handle)` already, and `x` gives the shape.
        `topk_idx` int64 and `topk_weights` float32 `[num_tokens, num_topk]` as dispatched. `out`: where the result
        goes, BF16 `[num_tokens, hidden]`; memory of its own otherwise. Added to, if given:
        `combine_wait_recv_cost_stats` int64 `[num_ranks]`, clocks waited for a rank's weights and sums. NotAvailable
        for `use_logfmt`. Returns the result, the event and the hook, as dispatch does.
        """
        if use_logfmt:
            raise NotAvailable("use_logfmt is not supported", value=True, rule="rows come home as BF16",
                               remedy="leave use_logfmt out")  # fmt: skip
        engine, kinds = self._low_latency_engine(), self._backend.kinds
        _check_flags(False, False, False, async_finish, return_recv_hook)
        _, _, max_tokens, hidden, num_experts = self._handle(handle)
        local_experts = self._local_experts(num_experts)
        check_tensor("x", x, self.device, (kinds.bfloat16,), (local_experts, self.group_size * max_tokens, hidden))
        topk = int(handle.row_map.shape[2])
        check_tensor("topk_idx", topk_idx, self.device, (kinds.int64,), ("num_tokens", topk))
        tokens = int(topk_idx.shape[0])
        self._check_sizes(tokens, max_tokens, hidden, FP8_BLOCK)
        check_tensor("topk_weights", topk_weights, self.device, (kinds.float32,), (tokens, topk))
        if out is not None:
            check_tensor("out", out, self.device, (kinds.bfloat16,), (tokens, hidden))
        waits = combine_wait_recv_cost_stats
        self._check_waits("combine_wait_recv_cost_stats", waits)
        if self._low_latency_sizes != (max_tokens, hidden, num_experts, topk):
            raise BadState("the handle is of other sizes than the last dispatch",
                           value=(max_tokens, hidden, num_experts, topk), rule=f"{self._low_latency_sizes}",
                           remedy="combine before a dispatch of other sizes, or use two Buffers")  # fmt: skip

        stream = self._way_out(return_recv_hook)
        combined = self._empty((tokens, hidden), kinds.bfloat16) if out is None else out
        where = self._stream_address(stream)
        rows = self._filled(tuple(x.shape)) if zero_copy else x

        def launch(phases: int) -> None:
            engine.ll_combine(
                rows.data_ptr(), topk_idx.data_ptr(), topk_weights.data_ptr(), handle.row_map.data_ptr(), tokens,
                combined.data_ptr(), address_of(waits), phases, where,
            )  # fmt: skip

        held = (rows, topk_idx, topk_weights, handle.row_map, combined, waits)
        event, hook = self._launched(launch, stream, held, async_finish, return_recv_hook)
        return combined, event, hook

    @direct
    def get_next_low_latency_combine_buffer(self, handle: RowsHandle) -> Tensor:
        """Where the next `low_latency_combine(…, zero_copy=True)` takes rows from, to be filled by the caller.

        BF16 `[num_local_experts, num_ranks * num_max_dispatch_tokens_per_rank, hidden]`, memory of this Buffer: two, in
        turn, so that one may be filled while the other is still read.
        """
        self._low_latency_engine()
        _, _, max_tokens, hidden, num_experts = self._handle(handle)
        shape = (self._local_experts(num_experts), self.group_size * max_tokens, hidden)
        found = self._to_fill[self._next_to_fill]
        if found is None or tuple(found.shape) != shape:
            found = self._empty(shape, self._backend.kinds.bfloat16)
            self._to_fill[self._next_to_fill] = found
        return found

    def _filled(self, shape: tuple[int, ...]) -> Tensor:
        """What get_next_low_latency_combine_buffer gave last; the other one is next."""
        found = self._to_fill[self._next_to_fill]
        if found is None or tuple(found.shape) != shape:
            raise BadState("zero_copy without a filled buffer", value=shape,
                           rule="rows are in get_next_low_latency_combine_buffer(handle) of the same handle",
                           remedy="fill that first, or leave zero_copy out")  # fmt: skip
        self._next_to_fill ^= 1
        return found

    # ---- masks
    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Leave a rank out of low-latency calls (mask=True), nothing sent to it and nothing awaited; or take it in.

        It is this rank's opinion, and holds for calls that follow. Calls are counted: a rank that is taken in again
        must have made as many as this one.
        """
        engine = self._shrinkable()
        if not 0 <= rank_to_mask < self.group_size:
            raise BadArgument("no such rank", value=rank_to_mask, rule=f"0 … {self.group_size - 1}",
                              remedy="pass a rank of this Buffer's group")  # fmt: skip
        self._in_order(lambda stream: engine.mask_update(rank_to_mask, mask, stream))

    def low_latency_query_mask_buffer(self, mask_status: Tensor) -> None:
        """Write who is masked into `mask_status`, int32 `[num_ranks]`: 1 masked.

        Calls and `clean_low_latency_buffer` mask who does not answer within 10 s. Of a masked rank nothing is received,
        and it adds nothing to what is combined: as if it had not been there from the call's beginning.
        """
        engine = self._shrinkable()
        check_tensor("mask_status", mask_status, self.device, (self._backend.kinds.int32,), (self.group_size,))
        self._in_order(lambda stream: engine.mask_query(mask_status.data_ptr(), stream))

    def low_latency_clean_mask_buffer(self) -> None:
        """Take all ranks in again."""
        self._in_order(self._shrinkable().mask_clean)

    # ---- checks and small steps
    def _low_latency_engine(self) -> Engine:
        engine = self._engine()
        if not self.low_latency_mode:
            raise BadState("the Buffer has no low-latency mode", value=False, rule="low_latency_mode=True",
                           remedy="Buffer(group, num_rdma_bytes=Buffer.get_low_latency_rdma_size_hint(…), "
                                  "low_latency_mode=True)")  # fmt: skip
        return engine

    def _shrinkable(self) -> Engine:
        engine = self._low_latency_engine()
        if not self.enable_shrink:
            raise BadState("ranks of this Buffer cannot be masked", value=False, rule="enable_shrink=True",
                           remedy="Buffer(…, low_latency_mode=True, enable_shrink=True)")  # fmt: skip
        return engine

    def _in_order(self, launch: Callable[[int], None]) -> None:
        """Launch behind all calls so far, on either stream, and before all that follow."""
        caller = self._backend.current_stream()
        self._backend.wait_stream(self._comm_stream, caller)
        launch(self._stream_address(self._comm_stream))
        self._backend.wait_stream(caller, self._comm_stream)

    def _check_room(self, max_tokens: int, hidden: int, num_experts: int) -> None:
        needed = get_low_latency_rdma_size_hint(max_tokens, hidden, self.group_size, num_experts)
        if needed > self.num_rdma_bytes:
            raise BadState("the Buffer is too small for low-latency calls of these sizes", value=self.num_rdma_bytes,
                           rule=f"num_rdma_bytes >= {needed}",
                           remedy=f"Buffer.get_low_latency_rdma_size_hint({max_tokens}, {hidden}, {self.group_size}, "
                                  f"{num_experts})")  # fmt: skip

    def _configure(self, engine: Engine, max_tokens: int, hidden: int, num_experts: int, topk: int) -> None:
        sizes = (max_tokens, hidden, num_experts, topk)
        if self._low_latency_sizes != sizes:
            self._check_room(max_tokens, hidden, num_experts)
            engine.ll_configure(*sizes)
            self._low_latency_sizes = sizes

    def _check_sizes(self, tokens: int, max_tokens: int, hidden: int, block: int) -> None:
        check_positive(num_max_dispatch_tokens_per_rank=max_tokens)
        if tokens > max_tokens:
            raise BadArgument("too many tokens", value=tokens, rule=f"at most {max_tokens}, the same on all ranks",
                              remedy="raise num_max_dispatch_tokens_per_rank and num_rdma_bytes")  # fmt: skip
        if hidden == 0 or hidden % block:
            raise BadArgument("hidden does not fit the blocks of scales", value=hidden, rule=f"hidden % {block} == 0",
                              remedy="pad hidden" if block == FP8_BLOCK else "use_ue8m0=False, or pad hidden",
                              )  # fmt: skip

    def _check_waits(self, name: str, waits: Tensor | None) -> None:
        if waits is not None:
            check_tensor(name, waits, self.device, (self._backend.kinds.int64,), (self.group_size,))

    def _handle(self, handle: Any) -> RowsHandle:
        if not isinstance(handle, RowsHandle):
            raise BadArgument("that is no handle of low_latency_dispatch", value=type(handle).__name__,
                              rule="the very object that low_latency_dispatch returned",
                              remedy="pass it on as it is, not its parts")  # fmt: skip
        return handle

    def _way_out(self, hook: bool) -> Stream:
        """The stream of a call: with a hook the caller's, which then needs no waiting."""
        caller: Stream = self._backend.current_stream()
        if hook:
            return caller
        self._backend.wait_stream(self._comm_stream, caller)
        return self._comm_stream

    def _launched(
        self, launch: Callable[[int], None], stream: Stream, held: tuple[Tensor | None, ...], async_finish: bool,
        with_hook: bool,
    ) -> tuple[EventOverlap, Hook | None]:  # fmt: skip
        """Launch a call's phases; `held` lives until the caller's stream has seen them done."""
        if with_hook:
            launch(SEND)
            waiting = [held]

            def hook() -> None:
                """Receive what the call has sent. Once."""
                if not waiting:
                    raise BadState("the hook was called twice", value=2, rule="a call is received once",
                                   remedy="drop the hook after its call")  # fmt: skip
                waiting.clear()
                launch(RECEIVE)

            return EventOverlap(), hook
        launch(SEND | RECEIVE)
        if async_finish:
            return EventOverlap(EventHandle(stream), held), None
        self._backend.wait_stream(self._backend.current_stream(), stream)
        return EventOverlap(), None


def _check_flags(use_fp8: bool, round_scale: bool, use_ue8m0: bool, async_finish: bool, hook: bool) -> None:
    if use_fp8 and use_ue8m0 and not round_scale:
        raise BadArgument("use_ue8m0 without round_scale", value=True, rule="UE8M0 has powers of two only",
                          remedy="pass round_scale=True")  # fmt: skip
    if async_finish and hook:
        raise BadArgument("async_finish and return_recv_hook", value=True,
                          rule="with a hook the call is on the caller's stream and has no event",
                          remedy="pass one of them")  # fmt: skip
