"""A rank's queue pairs on real devices, as an engine between hosts takes them. Leans on connect and ep.rail_queues.

Kernels ring the registers that `QP.device_handle` names: those of the NIC itself, or ours where a proxy posts.
"""

from __future__ import annotations

import numpy as np

from rdmakit.connect import ConnectedMesh
from rdmakit.connect.paths import Registered
from rdmakit.device.handle import LAYOUT_VERSION, DeviceHandle
from rdmakit.ep.internode_memory import HostsShape, Slab
from rdmakit.ep.link import Link
from rdmakit.ep.rail_queues import RailQueues

__all__ = ["DeviceQueues"]


class DeviceQueues(RailQueues):
    """Queue pair `channel` to a rail peer is number `channel` of the mesh's; every rank told where its heap is."""

    rides = False

    def __init__(self, link: Link, shape: HostsShape, timeout_ns: int, mesh: ConnectedMesh, heap: Registered) -> None:
        super().__init__(link, shape, timeout_ns)
        self.mesh, self.heap = mesh, heap
        self.posted: dict[tuple[int, int], DeviceHandle] = {
            place: joined.qp.device_handle(
                peer=joined.peer, channel=joined.index, rank=link.rank, report=link.report, timeout_ns=timeout_ns
            )
            for place, joined in mesh.joined.items()
        }
        for host in self.others:
            for channel in range(shape.channels):
                peer = host * shape.local_ranks + self.local
                self.handles[host, channel] = self.posted[peer, channel].array[0]
        self._slab = Slab(link, 256)
        _, self.left = self._slab.take(1, np.uint32)
        self.hca["layout_version"], self.hca["left"] = LAYOUT_VERSION, self.left
        self.watch(self.hca["watch"])

    def close(self) -> None:
        """Give the queue pairs and the memory regions back."""
        self.posted.clear()
        self.mesh.close()
        self.heap.close()

    def remote(self, rank: int, channel: int, offset: int) -> tuple[int, int]:
        told, joined = self.mesh.told[rank], self.mesh.joined[rank, channel]
        return told["address"] + offset, told["rkeys"][joined.peer_path]

    def lkey(self, rank: int, channel: int) -> int:
        return self.heap.lkey(self.mesh.joined[rank, channel].path)
