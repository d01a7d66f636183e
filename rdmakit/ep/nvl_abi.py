"""The PODs that the NVLink kernels take, as NumPy dtypes: offsets as C lays them out.

Leans on NumPy and device.handle. Sources: cuda/rdmakit/nvl*.cuh and cuda/kernels/nvl_*.cu; tests compare every offset
with what g++ says. Pointers and heap offsets are u64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device.handle import WATCH

__all__ = [
    "COMBINE_INPUT",
    "DISPATCH_INPUT",
    "HEAP",
    "KINDS",
    "LAYOUT_INPUT",
    "LL",
    "LL_COMBINE_INPUT",
    "LL_DISPATCH_INPUT",
    "LL_HEAP",
    "MASKS",
    "MASK_INPUT",
    "MAX_HEAP",
    "MAX_RANKS",
    "MAX_TOPK",
    "MAX_WARPS",
    "NOTIFY_INPUT",
    "NO_EXPERT",
    "OFFER",
    "PROGRESS",
    "RANK",
    "VERDICTS",
    "WARP_BYTES",
]

MAX_RANKS = 8  # kMaxNvlRanks, nvl.cuh
MAX_TOPK = 32  # kMaxTopk
NO_EXPERT = 0xFFFF  # kNvlNoExpert
MAX_WARPS = 16  # kNvlWarps
MAX_HEAP = 4 << 32  # bytes: an offer is 32 bits of 4 bytes each
WARP_BYTES = 1088  # kNvlWarpBytes
KINDS = 9  # NvlKind::count
VERDICTS = 3  # NvlVerdict::count


def _pod(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    return np.dtype(list(fields), align=True)


def _u32(*names: str) -> list[tuple[str, Any]]:
    return [(name, "<u4") for name in names]


def _u64(*names: str) -> list[tuple[str, Any]]:
    return [(name, "<u8") for name in names]


PROGRESS = _pod(*_u64("epoch"), *_u32("finished", "unused"))
OFFER = _pod(*_u64("x", "scales", "topk", "weights", "source"))
HEAP = _pod(*_u64("barrier", "counts", "dispatch_offer", "arrived", "combine_offer", "taken", "count_bytes"))
RANK = _pod(
    *_u32("layout_version", "rank", "ranks", "unused"),
    ("heaps", "<u8", (MAX_RANKS,)),
    ("at", HEAP),
    *_u64("progress", "masks"),
    ("watch", WATCH),
)
MASKS = _pod(("masked", "<u4", (MAX_RANKS,)), ("sent", "<u4", (2,)), ("verdicts", "<u8", (VERDICTS, MAX_RANKS)))
MASK_INPUT = _pod(*_u64("out"), *_u32("rank", "masked"))
LAYOUT_INPUT = _pod(
    *_u64("topk", "tokens_per_rank", "tokens_per_expert", "is_in_rank", "sums"),
    *_u32("tokens", "topk_count", "experts", "ranks"),
)
NOTIFY_INPUT = _pod(
    *_u64("is_in_rank", "tokens_per_rank", "tokens_per_expert", "positions", "prefix", "counts"),
    *_u32("tokens", "experts", "alignment", "ticket"),
)
DISPATCH_INPUT = _pod(
    ("here", OFFER),
    *_u64("x", "scales", "topk", "weights", "positions", "prefix"),
    *_u32("tokens", "row_bytes", "scale_words", "topk_count", "experts", "rows", "chunk_bytes", "row_warps"),
    *_u32("pace_ns", "by_bulk"),
)
COMBINE_INPUT = _pod(
    ("here", OFFER),
    *_u64("positions", "prefix"),
    ("bias", "<u8", (2,)),
    *_u64("out", "out_weights"),
    *_u32("tokens", "hidden", "topk_count", "chunk_bytes", "row_warps", "unused"),
)
LL_HEAP = _pod(
    *_u64("choices", "chosen", "messages", "sent", "received", "weights", "weighed", "sums", "summed", "combined"),
    *_u64("complete"),
)
LL = _pod(("nvl", RANK), ("ll", LL_HEAP), *_u32("max_tokens", "hidden", "experts", "topk"))
LL_DISPATCH_INPUT = _pod(
    *_u64("x", "topk", "out_x", "out_scales", "out_count", "source", "ranges", "row_map", "statistics", "waits"),
    *_u32("tokens", "fp8", "round_scale", "ue8m0", "halves", "unused"),
)
LL_COMBINE_INPUT = _pod(*_u64("x", "row_map", "topk", "weights", "out", "waits"), *_u32("tokens", "halves"))
