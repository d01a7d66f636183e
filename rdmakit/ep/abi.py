"""The PODs that the MoE kernels take, as NumPy dtypes: offsets as C lays them out.

Leans on NumPy and device.handle. Sources: cuda/rdmakit/{channel,ep,ll}.cuh and cuda/kernels/ep_*.cu, ll_*.cu; tests
compare every offset with what g++ says. Pointers and heap offsets are u64.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rdmakit.device.handle import QP_HANDLE, WATCH

__all__ = [
    "CHANNEL_HANDLE",
    "COLLECT_OUTPUT",
    "COMBINE_INPUT",
    "COUNT_INPUT",
    "DISPATCH_INPUT",
    "EP_HEAP",
    "EP_PLAN",
    "EP_RANK",
    "LL_BY_COLUMN",
    "LL_FP8",
    "LL_HEAP",
    "LL_RANK",
    "LL_RECEIVED",
    "LL_ROUND_SCALE",
    "LL_UE8M0",
    "LL_WIDE_TOPK",
    "MAX_HOSTS",
    "MAX_LOCAL_RANKS",
    "REMOTE_MEMORY",
    "TELL_OUTPUT",
]

MAX_HOSTS = 256  # kMaxHosts, ep.cuh
MAX_LOCAL_RANKS = 16  # kMaxLocalRanks


def _aligned(fields: Iterable[tuple[str, Any]]) -> np.dtype[Any]:
    return np.dtype(list(fields), align=True)


def _u32(*names: str) -> list[tuple[str, Any]]:
    return [(name, "<u4") for name in names]


def _u64(*names: str) -> list[tuple[str, Any]]:
    return [(name, "<u8") for name in names]


def _as_c(struct: np.dtype[Any]) -> np.dtype[Any]:
    """A nested struct that NumPy aligns as C does: to its 8-byte members."""
    return np.dtype(struct, align=True)


REMOTE_MEMORY = _aligned([*_u64("address"), *_u32("key")])

# Nested PODs whose dtypes are given by offsets know no alignment of their own; each starts on an 8-byte boundary here.
CHANNEL_HANDLE = _aligned(
    [
        ("qp", QP_HANDLE),
        ("credit_qp", QP_HANDLE),
        *_u64("staging_payload", "staging_meta", "head"),
        ("peer_payload", REMOTE_MEMORY),
        ("peer_meta", REMOTE_MEMORY),
        ("peer_tail", REMOTE_MEMORY),
        *_u64("ring_payload", "ring_meta", "tail"),
        ("peer_head", REMOTE_MEMORY),
        *_u64("sent", "received"),
        *_u32("staging_lkey", "slots", "payload_stride", "meta_stride", "chunk", "fenced"),
    ]
)

EP_HEAP = _aligned(
    _u64(
        "notify_out", "notify_in", "notify_tail", "counts", "start", "start_read", "start_epoch", "arrived",
        "recv_x", "recv_scales", "recv_topk", "recv_weights", "recv_source", "combine_x", "combine_weights",
        "combine_epoch", "combine_done",
    )
)  # fmt: skip

EP_RANK = _aligned(
    [
        *_u32("layout_version", "rank", "ranks", "host", "hosts", "local", "local_ranks", "channels", "experts",
              "local_experts", "topk", "hidden", "capacity", "notify_bytes"),
        *_u64("heaps", "rail_heaps", "rails"),
        *_u32("max_tokens", "count_bytes"),
        ("at", EP_HEAP),
        ("watch", WATCH),
    ]
)  # fmt: skip

EP_PLAN = _aligned(
    _u64("tokens_per_rank", "tokens_per_expert", "channel_counts", "order", "host_slot", "forward_counts",
         "forward_order", "start", "totals")
)  # fmt: skip

DISPATCH_INPUT = _aligned(
    [
        *_u64("x", "scales", "topk", "weights"),
        *_u32("tokens", "row_bytes", "scale_count", "topk_words"),
        *_u64("epoch", "arrived"),
    ]
)

COMBINE_INPUT = _aligned(
    [
        *_u64("x", "weights", "out", "out_weights"),
        *_u32("rows", "tokens"),
        *_u64("offered"),
        ("bias", ("<u8", (2,))),
    ]
)

COUNT_INPUT = _aligned(
    [
        *_u64("topk", "tokens_per_rank", "tokens_per_host", "tokens_per_expert", "is_in_rank"),
        *_u32("tokens", "topk_count", "experts", "ranks", "local_ranks", "reserved"),
    ]
)

TELL_OUTPUT = _aligned([*_u64("told", "rank_prefix", "host_prefix", "exchange"), *_u32("alignment", "reserved")])

COLLECT_OUTPUT = _aligned(
    [
        *_u64("x", "scales", "topk", "weights", "source"),
        *_u32("rows", "row_bytes", "scale_count", "reserved"),
    ]
)

LL_HEAP = _aligned(_u64("staging", "staged", "messages", "counts", "combine_x", "partial", "returned"))

LL_RANK = _aligned(
    [
        *_u32("layout_version", "rank", "ranks", "host", "local_ranks", "experts", "local_experts", "topk", "hidden",
              "max_tokens", "qps_per_rank", "fenced"),
        *_u64("heaps", "remote_heaps", "heap_lkeys", "qps", "announced"),
        ("at", LL_HEAP),
        ("watch", WATCH),
    ]
)  # fmt: skip

LL_RECEIVED = _aligned(
    _u64("x", "scales", "counts", "source", "choice", "ranges", "row_map", "statistics", "waits")
)
LL_FP8, LL_ROUND_SCALE, LL_UE8M0, LL_BY_COLUMN, LL_WIDE_TOPK = 1, 2, 4, 8, 16  # LlFormat, ll.cuh
