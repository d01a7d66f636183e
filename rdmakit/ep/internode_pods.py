"""The PODs that kernels between hosts take: the rank as a call's shape has it, the rings, the plan of a dispatch.

Leans on ep.abi, ep.internode_memory, ep.rail_queues. What a shape needs is made once, and stays.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdmakit.device.handle import LAYOUT_VERSION
from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.internode_memory import HostsShape, Slab
from rdmakit.ep.link import Link
from rdmakit.ep.rail_queues import RailQueues

__all__ = ["Pods", "Route"]

NBYTES = 1 << 20  # for what shapes of calls need
VECTOR = 16


@dataclass(frozen=True)
class Route:
    """Where the tokens of one dispatch go: `plan` is the address of `Internode.plan_words(…)` int32 on the device."""

    plan: int
    tokens: int
    channels: int
    experts: int


class Pods:
    """What kernels of one engine read, in memory of its own."""

    def __init__(self, link: Link, shape: HostsShape, layout: HeapLayout, queue_pairs: RailQueues) -> None:
        self.link, self.shape, self.layout, self.queue_pairs = link, shape, layout, queue_pairs
        self._slab = Slab(link, NBYTES)
        self._found: dict[Hashable, int] = {}
        local, host = shape.local_ranks, queue_pairs.host
        heaps = [heap if r // local == host else 0 for r, heap in enumerate(link.heaps)]
        self._heaps = self._slab.put(np.array(heaps, np.uint64))
        peers = np.zeros(shape.hosts, abi.REMOTE_MEMORY)
        for other in range(shape.hosts):
            if other != host:
                peers[other] = queue_pairs.remote(other * local + queue_pairs.local, 0, 0)
        self._peers = self._slab.put(peers)

    def plan_words(self, tokens: int, channels: int, experts: int) -> int:
        """int32 words of a plan."""
        return sum(self.plan_sizes(tokens, channels, experts).values())

    def plan_part(self, route: Route, name: str) -> tuple[int, int]:
        """First word and words of an array of the plan, by its name in EpPlan."""
        begin = 0
        for each, words in self.plan_sizes(route.tokens, route.channels, route.experts).items():
            if each == name:
                return begin, words
            begin += words
        raise KeyError(name)

    def plan_sizes(self, tokens: int, channels: int, experts: int) -> dict[str, int]:
        return {
            "tokens_per_rank": self.shape.ranks,
            "channel_counts": self.shape.hosts * channels,
            "order": tokens * self.shape.ranks,
            "host_slot": tokens * self.shape.hosts,
            "forward_counts": self.shape.hosts * channels,
            "forward_order": self.shape.hosts * self.shape.max_tokens * self.shape.local_ranks,
            "start": self.shape.local_ranks * (self.shape.ranks + 1),
            "totals": 1 + experts // self.shape.ranks,
        }

    def plan(self, route: Route, tokens_per_expert: int = 0) -> Any:
        """EpPlan over the route's words."""
        pod, at = np.zeros((), abi.EP_PLAN), route.plan
        pod["tokens_per_expert"] = tokens_per_expert  # read by the exchange of counts only
        for name, words in self.plan_sizes(route.tokens, route.channels, route.experts).items():
            pod[name] = at
            at += 4 * words
        return pod[()]

    def rank(
        self, channels: int, *, experts: int, topk: int = 0, hidden: int = 0, stride: int = VECTOR,
        parts: dict[str, int] | None = None,
    ) -> int:  # fmt: skip
        """Address of the EpRank for calls of one shape. `parts`: bytes a row of what lies in the region, by name."""
        key = channels, experts, topk, hidden, stride, tuple((parts or {}).items())
        if key in self._found:
            return self._found[key]
        shape, layout = self.shape, self.layout
        capacity = self.capacity(parts) if parts else np.iinfo(np.int32).max
        pod = np.zeros((), abi.EP_RANK)
        values = {
            "layout_version": LAYOUT_VERSION, "rank": self.link.rank, "ranks": shape.ranks, "hosts": shape.hosts,
            "host": self.queue_pairs.host, "local": self.queue_pairs.local, "local_ranks": shape.local_ranks,
            "channels": channels, "experts": experts, "local_experts": experts // shape.ranks, "topk": topk,
            "hidden": hidden,
            "capacity": capacity, "notify_bytes": shape.notify_bytes, "heaps": self._heaps, "rail_heaps": self._peers,
            "rails": self._rails(channels, stride), "max_tokens": shape.max_tokens, "count_bytes": shape.count_bytes,
        }  # fmt: skip
        for name, value in values.items():
            pod[name] = value
        for name in abi.EP_HEAP.names or ():
            pod["at"][name] = layout.offset.get(name, 0)
        offset = layout.offset["region"]
        for name, each in (parts or {}).items():
            pod["at"][name] = offset
            offset += -(-capacity * each // 128) * 128
        self.queue_pairs.watch(pod["watch"])
        self._found[key] = self._slab.put(pod.reshape(1))
        return self._found[key]

    def _rails(self, channels: int, stride: int) -> int:
        key = "rails", channels, stride
        if key not in self._found:
            self._found[key] = self._slab.put(self.queue_pairs.rails(self.layout, channels, stride))
        return self._found[key]

    def capacity(self, parts: dict[str, int]) -> int:
        """Rows that the region holds, each part aligned."""
        return max(self.shape.region_bytes - 128 * len(parts), 0) // sum(parts.values())
