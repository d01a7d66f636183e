"""An engine between hosts whose queue pairs are those of real devices: memory registered, ranks joined, told in words.

Leans on connect, ep.device_queues, ep.device_low_latency. Where kernels run is the link's affair: on a GPU, or on the
CPU runner (`RunnerHost`), which needs no GPU and takes the same path through the devices.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.connect import Path, Rendezvous, Steer, connect_mesh
from rdmakit.connect.paths import Registered, register
from rdmakit.emu.outside import OutsideWorld
from rdmakit.ep.device_low_latency import DeviceInternode, Register
from rdmakit.ep.device_queues import DeviceQueues
from rdmakit.ep.internode import CHANNELS, MAX_TOKENS
from rdmakit.ep.internode_memory import HostsShape
from rdmakit.ep.link import HostLink, Link, WorldLink
from rdmakit.ep.process_rank import BLOCKS
from rdmakit.errors import BadArgument

__all__ = ["RunnerHost", "doorbells_of", "join_hosts", "of_host", "shape_of"]

_QUEUES = {
    "mlx5": "kernels ring the registers of the NIC's own queues",
    "devx": "kernels ring the registers of queues made by command",
    "proxied": "a proxy on the CPU posts what kernels write: the device has no queues that we can reach",
}


def doorbells_of(paths: Sequence[Path]) -> str:
    """Who rings, and why, a clause for each device.

    What the device says of itself is what counts: `rdmakit.open` has chosen, or its `queues=` option has.
    """
    found = {}
    for path in paths:
        device = path.context.device
        kind = device.where.partition(" ")[0]
        found[device.name] = _QUEUES.get(kind, f"an emulated NIC ({device.where})")
    return "; ".join(f"{name}: {how}" for name, how in found.items())


def shape_of(ranks: int, ranks_per_host: int, *, num_qps_per_rank: int, rdma_bytes: int, nvl_bytes: int,
             max_tokens: int = MAX_TOKENS) -> HostsShape:  # fmt: skip
    """Sizes of an engine: `rdma_bytes` of rings, `nvl_bytes` of received rows. BadArgument for uneven hosts."""
    if ranks_per_host < 1 or ranks % ranks_per_host:
        raise BadArgument("ranks cannot be split evenly over hosts", value=ranks_per_host,
                          rule=f"a divisor of {ranks} ranks", remedy="another ranks_per_host")  # fmt: skip
    channels = min(num_qps_per_rank, CHANNELS)
    return HostsShape.of(ranks, ranks_per_host, channels, max_tokens, rdma_bytes=rdma_bytes, nvl_bytes=nvl_bytes)


def join_hosts(
    rendezvous: Rendezvous, link: HostLink, heap: np.ndarray[Any, Any] | None, paths: Sequence[Path],
    shape: HostsShape, *, known: Register | None = None, steer: Steer | None = None, timeout_ns: int = 0,
    low_latency: bool = True,
) -> DeviceInternode:  # fmt: skip
    """This rank's engine: its heap registered with every device, queue pairs to other hosts connected. Collective.

    Without `low_latency` only rail peers are joined, which normal calls need. `heap` is the memory at
    `link.heaps[rank]`; where it is None, `known` registers that by its address, as it does what is laid out later.
    Ranks of one host reach each other's by address. The link lets the devices work from now on, and looks for queue
    pairs that are broken.
    """
    for path in paths:
        link.let_work(path.context)
    rank, local = rendezvous.rank, shape.local_ranks
    far = [peer for peer in range(shape.ranks) if peer // local != rank // local]
    peers = far if low_latency else [peer for peer in far if peer % local == rank % local]
    known = of_host(paths) if known is None else known
    registered = (
        known(link.heaps[rank], link.heap_bytes) if heap is None
        else register(paths, heap, name=f"heap of rank {rank}")
    )  # fmt: skip
    mesh = connect_mesh(rendezvous, paths, qps=shape.channels, peers=peers, steer=steer, tell=registered.told(paths))

    def queues(link: Link, shape: HostsShape, timeout_ns: int) -> DeviceQueues:
        return DeviceQueues(link, shape, timeout_ns, mesh, registered)

    engine = DeviceInternode(link, shape, queues, rendezvous, list(paths), known, timeout_ns=timeout_ns)
    link.look_for(mesh.broken)
    rendezvous.barrier()  # nobody's kernels send to a heap that its rank has not laid out
    return engine


def of_host(paths: Sequence[Path]) -> Register:
    """Registers memory that this process addresses."""

    def known(address: int, nbytes: int) -> Registered:
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
        return register(paths, np.frombuffer(memory, np.uint8))

    return known


class RunnerHost:
    """All ranks of one host in this process, kernels on the CPU runner, queue pairs on devices.

    `first`: the host's first rank; `links` its ranks' ends, `heaps` their memory. `patience_s` bounds every wait.
    Kernels run when `world` is run. A rank in a process of its own has a `ProcessLink` instead.
    """

    def __init__(
        self, shape: HostsShape, first: int, *, patience_s: float = 30.0, seed: int = 0,
        world: OutsideWorld | None = None,
    ) -> None:  # fmt: skip
        self.shape, self.first = shape, first
        self.world = OutsideWorld(shape.local_ranks, patience_s=patience_s, seed=seed) if world is None else world
        nbytes, gpu = shape.heap_layout().nbytes, 0 if world is None else first
        self.heaps = [self.world.array((nbytes,), np.uint8) for _ in range(shape.local_ranks)]
        all_heaps: list[np.ndarray[Any, Any] | None] = [None] * shape.ranks
        all_heaps[first : first + shape.local_ranks] = self.heaps
        self.links = [
            WorldLink(self.world, first + local, all_heaps, blocks=BLOCKS, gpu=gpu + local)
            for local in range(shape.local_ranks)
        ]

    def join(self, rendezvous: Rendezvous, paths: Sequence[Path], **options: Any) -> DeviceInternode:
        """The engine of rank `rendezvous.rank`. Collective over all hosts."""
        local = rendezvous.rank - self.first
        return join_hosts(rendezvous, self.links[local], self.heaps[local], paths, self.shape, **options)
