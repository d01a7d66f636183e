"""What Buffer asks of the engine that moves rows: a `Protocol`, and how one is found.

Addresses are device memory, streams `cudaStream_t`, both as int; 0 is "absent". Every call enqueues on its stream and
returns; only `counts`, `ll_configure`, `close` and the constructor may wait. Everything is contiguous unless it says
otherwise, and alive until the stream has passed the call. Leans on errors, ep.rendezvous and ep.tensors; knows neither
torch nor CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from typing import Any, Protocol

from rdmakit.ep.rendezvous import (
    DEVICES,
    RANKS_PER_HOST,
    Rendezvous,
    asked_devices,
    asked_ranks_per_host,
    host_identity,
    runner_host,
)
from rdmakit.ep.tensors import kernels_on_cpu
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["RECEIVE", "SEND", "Engine", "Received", "open_engine"]

SEND = 1
RECEIVE = 2
"""Phases of the low-latency calls; both are `SEND | RECEIVE`."""


class Received(Protocol):
    """Memory for what one dispatch receives, as addresses. The object holds it: when it goes, the engine has it back.

    Buffer drops it only outside CUDA graphs, after the communication stream has been made to wait for those who used
    the memory; so it may be given out again at once to a call on that stream, without another event. No other rank may
    write there before a `notify` or `dispatch` of this rank that was enqueued later says so.
    """

    @property
    def address(self) -> int:
        """All of it: what follows lies within, each aligned to its elements."""

    @property
    def nbytes(self) -> int:
        """Of all of it."""

    @property
    def x(self) -> int:
        """`[rows, row_bytes]`."""

    @property
    def scales(self) -> int:
        """`[rows, scale_bytes]`."""

    @property
    def topk(self) -> int:
        """int64 `[rows, topk]`, local experts."""

    @property
    def weights(self) -> int:
        """float32 `[rows, topk]`."""

    @property
    def source(self) -> int:
        """int32 `[rows]`: which token of its source a row is."""


class Engine(Protocol):
    """Ranks whose GPUs reach each other's memory. Collective: every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This rank."""

    @property
    def ranks(self) -> int:
        """How many there are."""

    @property
    def max_sms(self) -> int:
        """The most SMs (blocks, all resident at once) that `dispatch` and `combine` take."""

    @property
    def largest_block(self) -> int:
        """Bytes of the largest block that `receive_block` could hand out now."""

    @property
    def heap_address(self) -> int:
        """This rank's symmetric heap."""

    @property
    def heap_owner(self) -> object:
        """What keeps it: it lives until `close`, and as long as somebody has this."""

    @property
    def heap_bytes(self) -> int:
        """Its size."""

    def check(self, *, unless_told: bool = False) -> None:
        """Raise what has gone wrong so far in what was enqueued; it waits for nothing. `unless_told`: not what has been
        raised before.
        """

    def copy(self, to: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy within this GPU."""

    # ---- normal
    def layout(
        self, topk_idx: int, tokens: int, topk: int, experts: int, tokens_per_rank: int, tokens_per_expert: int,
        is_in_rank: int, stream: int,
    ) -> None:  # fmt: skip
        """Count where this rank's tokens go; not collective.

        In: `topk_idx` int64 `[tokens, topk]`, -1 masked. Out: `tokens_per_rank` int32 `[ranks]`, `tokens_per_expert`
        int32 `[experts]`, `is_in_rank` bool (one byte) `[tokens, ranks]`.
        """

    def notify(
        self, is_in_rank: int, tokens: int, tokens_per_rank: int, tokens_per_expert: int, experts: int,
        expert_alignment: int, positions: int, prefix: int, stream: int,
    ) -> None:  # fmt: skip
        """Exchange counts, so that every rank knows the row of each of its tokens. Collective.

        In: `is_in_rank`, `tokens_per_rank`, `tokens_per_expert` as `layout` writes them. Out: `positions` int32
        `[tokens, ranks]`, the place of a token among this rank's tokens to that rank, or -1; `prefix` int32
        `[ranks, ranks]`, inclusive over sources: `prefix[s, d]` tokens of sources <= s go to d. `counts` tells the
        host; the counts of local experts are rounded up to multiples of `expert_alignment`.
        """

    def counts(self) -> tuple[int, list[int]]:
        """Rows that this rank receives, and rows of each local expert, after the last `notify`.

        The host waits until they are there. HangError, with who is missing, when they do not come.
        """

    def receive_block(self, rows: int, row_bytes: int, scale_bytes: int, topk: int, stream: int) -> Received:
        """Memory for `rows` rows (0 is allowed), without a call of CUDA's. BadArgument when the heap is used up."""

    def dispatch(
        self, x: int, row_bytes: int, scales: int, scale_bytes: int, topk_idx: int, topk_weights: int, topk: int,
        experts: int, tokens: int, positions: int, prefix: int, received: Received, rows: int, num_sms: int,
        stream: int,
    ) -> None:  # fmt: skip
        """Send every token to its rows. Collective.

        `x` `[tokens, row_bytes]`, multiples of 16 bytes; `scales` `[tokens, scale_bytes]`, of 4; `topk_idx` int64 and
        `topk_weights` float32 `[tokens, topk]`. Where there is no top-k, `topk` is 0; of a cached dispatch `experts` is
        0 as well. `positions` and `prefix`: `notify`'s, of this call or an earlier one. Received indices are local
        experts or -1, their weights 0 where -1. `rows` is what `received` has room for; when it is more than come,
        `received.topk` of the rest is -1, and their weights 0.
        """

    def combine(
        self, x: int, rows: int, hidden: int, topk_weights: int, topk: int, positions: int, prefix: int, tokens: int,
        out: int, out_weights: int, bias_0: int, bias_1: int, num_sms: int, stream: int,
    ) -> Sequence[object]:  # fmt: skip
        """Add up the rows of each of this rank's tokens. Collective. Returns what must live until it has run.

        `x` BF16 `[rows, hidden]`, in rows as `dispatch` received them (it may lie anywhere); `topk_weights` float32
        `[rows, topk]`; `positions`, `prefix` as given to `dispatch`. Out: `out` BF16
        `[tokens, hidden]`, sums in float32, biases (BF16 `[tokens, hidden]`) added before rounding; `out_weights`
        float32 `[tokens, topk]`. A token that went nowhere is its bias, or 0.
        """

    # ---- low latency
    def ll_configure(self, max_tokens: int, hidden: int, experts: int, topk: int) -> None:
        """Lay out the heap for these sizes. Same on all ranks; called when they change, before the first `ll_dispatch`.
        BadState when they need more than `num_rdma_bytes`. Not while a call is between its phases.
        """

    def ll_clean(self, stream: int) -> None:
        """Put flags and counts of the low-latency heap into their first state. Collective; at any time."""

    def ll_dispatch(
        self, x: int, topk_idx: int, tokens: int, use_fp8: bool, round_scale: bool, use_ue8m0: bool, out_x: int,
        out_scales: int, out_count: int, src_info: int, layout_range: int, row_map: int, statistics: int,
        wait_statistics: int, phases: int, stream: int,
    ) -> None:  # fmt: skip
        """Send a row for every choice; receive them packed by expert. With rows = ranks * max_tokens:

        In: `x` BF16 `[tokens, hidden]`; `topk_idx` int64 `[tokens, topk]`, -1 masked. Out: `out_x` FP8 or BF16
        `[local_experts, rows, hidden]`; `out_scales` float32 `[local_experts, hidden / 128, rows]`, or bytes of UE8M0
        `[local_experts, hidden / 512, rows, 4]`; `out_count` int32 `[local_experts]`; `src_info` int32
        `[local_experts, rows]`, the token of its source; `layout_range` int64 `[local_experts, ranks]`, first row << 32
        | rows; `row_map` int32 `[ranks, max_tokens, topk]`, for `ll_combine`: local expert * rows + row of each choice
        that came here, else -1. Added to: `statistics` int32 `[local_experts]`; `wait_statistics` int64 `[ranks]`,
        clocks. `round_scale`: scales are powers of two. Phases come one after the other with the same arguments.
        """

    def ll_combine(
        self, x: int, topk_idx: int, topk_weights: int, row_map: int, tokens: int, out: int,
        wait_statistics: int, phases: int, stream: int,
    ) -> None:  # fmt: skip
        """Bring the rows home and add them up, weighted.

        `x` BF16 `[local_experts, rows, hidden]`, in any memory of this GPU; `row_map` as `ll_dispatch` wrote it.
        `topk_idx`, `topk_weights` (float32) `[tokens, topk]`: of this rank's tokens. `out` BF16 `[tokens, hidden]`.
        Added to: `wait_statistics` int64 `[ranks]`, clocks.
        """

    # ---- masks: with `enable_shrink`
    def mask_update(self, rank: int, masked: bool, stream: int) -> None:
        """Send nothing to `rank` and wait for nothing from it in low-latency calls and `ll_clean`, or do so again.

        Their kernels mask who does not answer in time. A rank takes part in a call as a whole or not at all.
        """

    def mask_query(self, out: int, stream: int) -> None:
        """`out` int32 `[ranks]`: 1 where masked."""

    def mask_clean(self, stream: int) -> None:
        """No rank is masked."""

    def close(self) -> None:
        """Give everything back; the GPU is idle. Blocks whose owner still lives keep their memory. May be repeated."""


def open_engine(
    rendezvous: Rendezvous, *, num_nvl_bytes: int, num_rdma_bytes: int, enable_shrink: bool, low_latency: bool = False,
    num_qps_per_rank: int = 24, ranks_per_host: int | None = None, low_latency_over_nvlink: bool = True,
) -> tuple[Any, int]:  # fmt: skip
    """The engine for these ranks and the current CUDA device, and the number of hosts that they are on. Collective.

    An `Engine` for one host; for more, an `rdmakit.ep.internode.Internode`. `ranks_per_host`, or else the environment's
    RDMAKIT_RANKS_PER_HOST, lets one machine play several hosts. What joins hosts: RDMA devices where there are several
    machines, where RDMAKIT_DEVICES names some, and with RDMAKIT_KERNELS=cpu, where a rank is a process without a GPU;
    else, on one machine, an HCA made of warps. NotAvailable for what is not there between hosts.
    """
    asked = asked_ranks_per_host() if ranks_per_host is None else ranks_per_host
    on_cpu = kernels_on_cpu()
    told = rendezvous.all_gather((runner_host() if on_cpu else host_identity(), asked, bool(asked_devices())))
    machines = [machine for machine, _, _ in told]
    for name, what, values in (
        ("ranks_per_host", RANKS_PER_HOST, [each for _, each, _ in told]),
        ("whether devices join hosts", DEVICES, [named or on_cpu for _, _, named in told]),
    ):
        if len(set(values)) > 1:
            raise BadArgument(f"ranks do not agree on {name}", value=values, rule="the same on every rank",
                              remedy=f"set {what} for all of them")  # fmt: skip
    each = _ranks_of_a_host(machines, asked)
    hosts = rendezvous.size // each
    over_devices = on_cpu or len(set(machines)) > 1 or bool(asked_devices())
    if hosts > 1:
        _between_hosts(low_latency=low_latency and not over_devices, enable_shrink=enable_shrink)
    if low_latency and not low_latency_over_nvlink and (each > 1 or (hosts == 1 and not on_cpu)):
        raise NotAvailable("allow_nvlink_for_low_latency_mode=False is not supported among ranks of one host",
                           value=f"{rendezvous.size} ranks on {hosts} hosts",
                           rule="they share memory" if on_cpu else "rows go over NVLink between GPUs of one host",
                           remedy=f"leave it True, or {RANKS_PER_HOST}=1 and {DEVICES}=…, so that devices join all",
                           )  # fmt: skip
    sizes = {"num_nvl_bytes": num_nvl_bytes, "num_rdma_bytes": num_rdma_bytes}
    if hosts == 1:
        sizes["num_rdma_bytes"] = num_rdma_bytes if low_latency else 0
        one_host = import_module("rdmakit.ep.process_rank" if on_cpu else "rdmakit.ep.nvlink")
        return one_host.connect(rendezvous, enable_shrink=enable_shrink, **sizes), 1
    sizes["num_qps_per_rank"] = num_qps_per_rank
    if over_devices:
        devices = import_module("rdmakit.ep.device_engine" if on_cpu else "rdmakit.ep.device_gpus")
        return devices.connect(rendezvous, ranks_per_host=each, low_latency=low_latency, **sizes), hosts
    return import_module("rdmakit.ep.internode").connect(rendezvous, ranks_per_host=each, **sizes), hosts


def _between_hosts(*, low_latency: bool, enable_shrink: bool) -> None:
    """NotAvailable for what is not there between hosts."""
    if low_latency:
        raise NotAvailable("low_latency_mode is not supported between hosts", value=low_latency,
                           rule="an HCA made of warps has normal dispatch and combine only",
                           remedy=f"leave low_latency_mode out, or {DEVICES}=…")  # fmt: skip
    if enable_shrink:
        raise NotAvailable("enable_shrink is not supported between hosts", value=enable_shrink,
                           rule="masks are of one host's ranks", remedy="leave enable_shrink out")  # fmt: skip


def _ranks_of_a_host(machines: list[str], asked: Any) -> int:
    """Ranks of each host, from the machine that each rank is on: as many as were asked for, or as there are."""
    ranks = len(machines)
    by_machine = [len(list(alike)) for _, alike in groupby(machines)]
    if asked is None:
        if len(by_machine) > len(set(machines)) or len(set(by_machine)) > 1:
            raise BadArgument(
                "ranks are not spread evenly over hosts, host by host", value=f"{by_machine} ranks in a row on one",
                rule="as many ranks on each host, numbered host by host",
                remedy=f"start them so; or {RANKS_PER_HOST}=1, if each has an RDMA device",
            )  # fmt: skip
        return by_machine[0]
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1 or ranks % asked:
        raise BadArgument("ranks cannot be split evenly over hosts", value=asked, rule=f"a divisor of {ranks} ranks",
                          remedy=f"another ranks_per_host or {RANKS_PER_HOST}")  # fmt: skip
    for first in range(0, ranks, asked):
        if len(set(machines[first : first + asked])) > 1:
            raise BadArgument(
                "ranks of one host are on several machines", value=f"ranks {first} … {first + asked - 1}",
                rule=f"ranks_per_host is {asked}, and those share memory",
                remedy=f"number the ranks host by host, or {RANKS_PER_HOST}={min(by_machine)}",
            )  # fmt: skip
    return asked
