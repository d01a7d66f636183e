"""One rank of an NVLink domain, as far as all its operations lean on it: its link, its words, its masks, its barrier.

Leans on ep.link, ep.nvl_abi, ep.nvl_memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION
from rdmakit.ep import nvl_abi as abi
from rdmakit.ep.link import Link
from rdmakit.ep.nvl_memory import Control, HeapRank
from rdmakit.errors import BadArgument

__all__ = ["NvlinkRank"]


class NvlinkRank(HeapRank):
    """`timeout_ns` of each wait (0: the default bound); `enable_shrink`: ranks can be masked."""

    def __init__(self, link: Link, timeout_ns: int, max_experts: int, enable_shrink: bool) -> None:
        if not 1 <= link.ranks <= abi.MAX_RANKS:
            raise BadArgument("too many ranks for one NVLink domain", value=link.ranks, rule=f"1 … {abi.MAX_RANKS}",
                              remedy="use groups of fewer ranks")  # fmt: skip
        self.link, self.rank, self.ranks = link, link.rank, link.ranks
        self.max_experts, self.enable_shrink = max_experts, enable_shrink
        self.control = Control(link.ranks, max_experts)
        self._kept: list[Any] = []
        self.pod = np.zeros((), abi.RANK)
        self.pod["layout_version"], self.pod["rank"], self.pod["ranks"] = LAYOUT_VERSION, link.rank, link.ranks
        self.pod["heaps"][: link.ranks] = link.heaps
        for name in abi.HEAP.names or ():
            self.pod["at"][name] = self.control.offset[name]
        self.pod["progress"] = self._own(abi.KINDS * abi.PROGRESS.itemsize)
        self.pod["masks"] = self._own(abi.MASKS.itemsize) if enable_shrink else 0
        self.pod["watch"]["report"], self.pod["watch"]["rank"] = link.report.address, link.rank
        self.pod["watch"]["timeout_ns"] = timeout_ns

    def _own(self, nbytes: int) -> int:
        address, alive = self.link.memory(nbytes)
        self._kept.append(alive)
        return address

    def barrier(self, stream: int = 0) -> None:
        """All ranks meet on their streams; with `enable_shrink`, those that are not masked."""
        self.link.launch("nvl_barrier", 1, 32, (self.pod[()],), stream=stream)

    def close(self) -> None:
        """Give everything back; blocks whose owner still lives keep the heap. The engine is of no use afterwards."""
        self._kept.clear()
        self.link.close()

    def _check_experts(self, experts: int) -> None:
        if experts % self.ranks or not 0 < experts <= self.max_experts:
            raise BadArgument("experts that do not fit", value=experts,
                              rule=f"a multiple of {self.ranks}, at most {self.max_experts}",
                              remedy="pad the experts, or make the engine with more max_experts")  # fmt: skip

    def _check_topk(self, topk: int) -> None:
        if not 0 < topk <= abi.MAX_TOPK:
            raise BadArgument("too many choices", value=topk, rule=f"1 … {abi.MAX_TOPK}",
                              remedy="fewer choices a token")  # fmt: skip
