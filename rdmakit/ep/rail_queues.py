"""What an engine between hosts asks of its queue pairs, whoever serves them: handles, keys, the rings over them.

Leans on ep.internode_memory, ep.abi, ep.link. `internode_queues` has an HCA of warps behind them, `device_queues` a
NIC.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from rdmakit.device.handle import QP_HANDLE
from rdmakit.emu.cta_layout import HCA_HANDLE
from rdmakit.ep import abi
from rdmakit.ep.heap import HeapLayout
from rdmakit.ep.internode_memory import HostsShape
from rdmakit.ep.link import Link

__all__ = ["RailQueues"]

Array = np.ndarray[Any, Any]

_OF_RING = ("staging_payload", "staging_meta", "head", "ring_payload", "ring_meta", "tail", "sent", "received")
_OF_PEER = {"peer_payload": "ring_payload", "peer_meta": "ring_meta", "peer_tail": "tail", "peer_head": "head"}


class RailQueues(ABC):
    """A rank's queue pairs to its rail peers, `channels` to each.

    `handles[host, channel]` are their `QpHandle` PODs. `hca` is the HcaHandle that operations take, whose `leavers` the
    caller counts, and `left` where they are counted; where `rides` is False, it serves nothing.
    """

    rides: bool
    hca: Array
    left: int

    def __init__(self, link: Link, shape: HostsShape, timeout_ns: int) -> None:
        self.link, self.shape, self.timeout_ns = link, shape, timeout_ns
        self.host, self.local = divmod(link.rank, shape.local_ranks)
        self.others = [host for host in range(shape.hosts) if host != self.host]
        self.handles = np.zeros((shape.hosts, shape.channels), QP_HANDLE)
        self.hca = np.zeros((), HCA_HANDLE)

    @abstractmethod
    def remote(self, rank: int, channel: int, offset: int) -> tuple[int, int]:
        """A `RemoteMemory` in a rank's heap, for what goes there by queue pair `channel`."""

    @abstractmethod
    def lkey(self, rank: int, channel: int) -> int:
        """Of the own heap, likewise."""

    def watch(self, pod: Any) -> None:
        """Fill in a `Watch`."""
        pod["report"], pod["rank"], pod["timeout_ns"] = self.link.report.address, self.link.rank, self.timeout_ns

    def rails(self, layout: HeapLayout, channels: int, stride: int) -> Array:
        """ChannelHandle[hosts][channels], rings in slots of `stride` bytes; those of the own host stay zero."""
        shape = self.shape
        rails = np.zeros((shape.hosts, channels), abi.CHANNEL_HANDLE)
        slots, chunk = shape.slots(stride)
        sizes = {name: layout.size[name] // (shape.hosts * shape.channels) for name in _OF_RING}
        heap = self.link.heaps[self.link.rank]
        for host in self.others:
            peer = host * shape.local_ranks + self.local
            for channel in range(channels):
                rail = rails[host, channel]
                rail["qp"] = rail["credit_qp"] = self.handles[host, channel]
                here, there = (h * shape.channels + channel for h in (host, self.host))
                for name, each in sizes.items():
                    rail[name] = heap + layout.offset[name] + here * each
                for field, name in _OF_PEER.items():
                    rail[field] = self.remote(peer, channel, layout.offset[name] + there * sizes[name])
                rail["staging_lkey"], rail["slots"], rail["chunk"] = self.lkey(peer, channel), slots, chunk
                rail["payload_stride"], rail["meta_stride"] = stride, shape.meta_stride
        return rails
