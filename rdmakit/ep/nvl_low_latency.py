"""The low-latency half of the NVLink engine: dispatch and combine without counts first, and masks of ranks.

Leans on ep.nvl_rank, ep.nvl_memory. The device code is cuda/kernels/nvl_ll_*.cu and nvl_mask.cu.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.ep import nvl_abi as abi
from rdmakit.ep.engine import RECEIVE, SEND
from rdmakit.ep.nvl_memory import LowLatencyRegion
from rdmakit.ep.nvl_rank import NvlinkRank
from rdmakit.errors import BadArgument, BadState

__all__ = ["LowLatencyRank", "shared_bytes"]


def shared_bytes(local_experts: int, ranks: int, blocks: int, hidden: int) -> int:
    """Dynamic shared memory of low-latency dispatch: nvl_ll_shared_bytes of cuda/kernels/nvl_ll_dispatch.cu.

    >>> shared_bytes(36, 8, 264, 7168)
    18096
    """
    words = -(-(local_experts + -(-local_experts // -(-blocks // 2)) * ranks) // 4) * 4
    return 4 * words + 2 * hidden + hidden // 8 * 4


class LowLatencyRank(NvlinkRank):
    """Low-latency calls, in `ll_region` of the heap, and masks."""

    ll_region: LowLatencyRegion
    _ll: np.ndarray[Any, Any] | None = None

    def ll_configure(self, max_tokens: int, hidden: int, experts: int, topk: int, stream: int = 0) -> None:
        """Lay the low-latency region out; another shape than before is a collective, and cleans it."""
        self._check_experts(experts)
        self._check_topk(topk)
        if experts >= abi.NO_EXPERT:
            raise BadArgument("too many experts for low latency", value=experts, rule=f"fewer than {abi.NO_EXPERT}",
                              remedy="fewer experts")  # fmt: skip
        shape = max_tokens, hidden, experts, topk
        if (
            self._ll is not None
            and tuple(int(self._ll[name]) for name in ("max_tokens", "hidden", "experts", "topk")) == shape
        ):
            return
        offsets = self.ll_region.offsets(max_tokens, hidden)
        another = self._ll is not None
        self._ll = np.zeros((), abi.LL)
        self._ll["nvl"] = self.pod
        for name in abi.LL_HEAP.names or ():
            self._ll["ll"][name] = offsets[name]
        self._ll["max_tokens"], self._ll["hidden"], self._ll["experts"], self._ll["topk"] = shape
        if another:
            self.ll_clean(stream)

    def ll_clean(self, stream: int = 0) -> None:
        """Zero the low-latency region's words on every rank: a collective, of those that are not masked."""
        region = self.ll_region
        self.barrier(stream)
        self.link.clear(self.link.heaps[self.rank] + region.begin, region.nbytes, stream)
        self.barrier(stream)

    def ll_dispatch(
        self, x: int, topk_idx: int, tokens: int, use_fp8: bool, round_scale: bool, use_ue8m0: bool, out_x: int,
        out_scales: int, out_count: int, src_info: int, layout_range: int, row_map: int, statistics: int = 0,
        wait_statistics: int = 0, phases: int = SEND | RECEIVE, stream: int = 0,
    ) -> None:  # fmt: skip
        """Low-latency dispatch, as cuda/kernels/nvl_ll_dispatch.cu says; `phases`: 1 sends, 2 receives."""
        ll = self._configured()
        pod = np.zeros((), abi.LL_DISPATCH_INPUT)
        pod[()] = (x, topk_idx, out_x, out_scales, out_count, src_info, layout_range, row_map, statistics,
                   wait_statistics, tokens, int(use_fp8), int(round_scale), int(use_ue8m0), phases, 0)  # fmt: skip
        blocks = self.link.blocks * self.link.sharing
        shared = shared_bytes(int(ll["experts"]) // self.ranks, self.ranks, blocks, int(ll["hidden"]))
        self.link.launch(
            "dispatch_nvl_ll", blocks, self.link.threads, (ll[()], pod[()]), shared_mem=shared, stream=stream
        )

    def ll_combine(
        self, x: int, topk_idx: int, topk_weights: int, row_map: int, tokens: int, out: int,
        wait_statistics: int = 0, phases: int = SEND | RECEIVE, stream: int = 0,
    ) -> None:  # fmt: skip
        """Low-latency combine, as cuda/kernels/nvl_ll_combine.cu says."""
        ll = self._configured()
        pod = np.zeros((), abi.LL_COMBINE_INPUT)
        pod[()] = (x, row_map, topk_idx, topk_weights, out, wait_statistics, tokens, phases)
        blocks = self.link.blocks * self.link.sharing
        self.link.launch("combine_nvl_ll", blocks, self.link.threads, (ll[()], pod[()]), stream=stream)

    # ---- masks
    def mask_update(self, rank: int, masked: bool, stream: int = 0) -> None:
        """Leave a rank out of low-latency calls and barriers, or take it in again; in order with the stream.

        One that is taken in must have made every call meanwhile, or its epochs are others than ours.
        """
        if not 0 <= rank < self.ranks:
            raise BadArgument("no such rank", value=rank, rule=f"0 … {self.ranks - 1}", remedy="pass one of the ranks")
        self._mask((0, rank, int(masked)), stream)

    def mask_query(self, out: int, stream: int = 0) -> None:
        """`out` int32 [ranks]: 1 where masked."""
        self._mask((out, 0, 0), stream)

    def mask_clean(self, stream: int = 0) -> None:
        """No rank is masked."""
        self._mask((0, self.ranks, 0), stream)

    def _mask(self, asked: tuple[int, int, int], stream: int) -> None:
        if not self.enable_shrink:
            raise BadState("ranks cannot be masked", value=False, rule="enable_shrink=True",
                           remedy="make the engine with enable_shrink=True")  # fmt: skip
        pod = np.zeros((), abi.MASK_INPUT)
        pod[()] = asked
        self.link.launch("nvl_mask", 1, 32, (self.pod[()], pod[()]), stream=stream)

    def _configured(self) -> np.ndarray[Any, Any]:
        if self._ll is None:
            raise BadState("no low-latency region", value="ll_configure was not called", rule="it lays it out",
                           remedy="call ll_configure first")  # fmt: skip
        return self._ll
