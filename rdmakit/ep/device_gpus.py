"""The engine of a Buffer on GPUs whose hosts are joined by RDMA devices: who rings, what lies where, and why.

Leans on ep.device_hosts, ep.gpu_queues (who rings), gpu.device_link. Where heaps lie falls to the next way, too: they
lie on the GPU where NICs register that, as a dma-buf or through nvidia-peermem, else in page-locked memory of the host.
Ranks of one host map each other's heaps, wherever they lie.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdmakit.connect import Path, Rendezvous, open_paths
from rdmakit.connect.paths import Registered, register_gpu
from rdmakit.ep.device_engine import asked_devices
from rdmakit.ep.device_hosts import join_hosts, of_host, shape_of
from rdmakit.ep.device_low_latency import LL_KERNELS, DeviceInternode, Register
from rdmakit.ep.gpu_queues import open_for_gpus, reason
from rdmakit.ep.internode import KERNELS as NORMAL_KERNELS
from rdmakit.ep.neighbours import Neighbours, all_of
from rdmakit.ep.process_rank import patience_s
from rdmakit.ep.rendezvous import RANKS_PER_HOST
from rdmakit.errors import NotAvailable, RdmakitError
from rdmakit.gpu.device_link import DeviceLink
from rdmakit.gpu.driver import GPU_PAGE, dmabuf_of
from rdmakit.gpu.probe import GpuMemory, current_gpu

__all__ = ["HeapWay", "agreed", "connect", "heap_way"]

_DMA_BUF, _PEERMEM, _HOST = "dma-buf", "peermem", "host"


# ---- what lies where
@dataclass(frozen=True)
class HeapWay:
    """Where heaps lie: `kind` is "dma-buf" or "peermem" (the GPU, and how NICs are told), or "host"; and why."""

    kind: str
    why: str

    def __str__(self) -> str:
        place = "page-locked memory of the host" if self.kind == _HOST else f"memory of the GPU ({self.kind})"
        return f"heaps are {place}" + (f": {self.why}" if self.why else "")


def _register_as(kind: str, paths: Sequence[Path], address: int, nbytes: int) -> Registered:
    if kind == _PEERMEM:
        return register_gpu(paths, address, nbytes)
    whole = -(-nbytes // GPU_PAGE) * GPU_PAGE
    descriptor = dmabuf_of(address, whole)
    try:
        return register_gpu(paths, address, whole, dmabuf=descriptor)
    finally:
        os.close(descriptor)


def heap_way(paths: Sequence[Path]) -> HeapWay:
    """The first way that every device of `paths` takes, tried with a page of the current GPU's memory."""
    page, refused = GpuMemory(), []
    for kind in (_DMA_BUF, _PEERMEM):
        try:
            _register_as(kind, paths, page.address, page.nbytes).close()
        except RdmakitError as error:
            refused.append(f"{kind}: {reason(error)}")
        else:
            return HeapWay(kind, "; ".join(refused))
    return HeapWay(_HOST, "; ".join(refused))


def _known_by(way: HeapWay, paths: Sequence[Path]) -> Register:
    if way.kind == _HOST:
        return of_host(paths)
    return lambda address, nbytes: _register_as(way.kind, paths, address, nbytes)


def agreed(rendezvous: Rendezvous, way: HeapWay, ranks_per_host: int) -> HeapWay:
    """Where heaps lie: of several ranks a host all in the hosts' memory, where one of them must. Collective.

    NotAvailable where those would be words to which several GPUs add, and the bus has no atomics.
    """
    if ranks_per_host == 1:
        return way
    gpu = current_gpu()
    told = rendezvous.all_gather((way.kind, way.why, gpu.identity, gpu.adds_to_the_host))
    must = {rank: why for rank, (kind, why, _, _) in enumerate(told) if kind == _HOST}
    if must and way.kind != _HOST:  # ranks that share memory meet otherwise than such that map it
        rank, why = next(iter(must.items()))
        way = HeapWay(_HOST, f"those of rank {rank} must: {why}")
    for first in range(0, rendezvous.size, ranks_per_host):
        _check_additions(way, told[first : first + ranks_per_host], first)
    return way


def _check_additions(way: HeapWay, of_host: Sequence[Sequence[Any]], first: int) -> None:
    gpus = {identity for _, _, identity, _ in of_host}
    if way.kind == _HOST and len(gpus) > 1 and not all(adds for _, _, _, adds in of_host):
        raise NotAvailable(
            "several GPUs of one host whose heaps lie in its memory",
            value=f"ranks {first} … {first + len(of_host) - 1} on {len(gpus)} GPUs; {way}",
            rule="ranks add to words of each other's heaps, and additions of several GPUs to the host's memory get "
            "lost where the bus has no atomics (cudaDevAttrHostNativeAtomicSupported is 0)",
            remedy="let NICs register GPU memory (nvidia-peermem, or a driver that exports dma-bufs), or "
            f"{RANKS_PER_HOST}=1",
        )  # fmt: skip


def connect(
    rendezvous: Rendezvous, *, ranks_per_host: int, num_nvl_bytes: int, num_rdma_bytes: int, num_qps_per_rank: int,
    low_latency: bool,
) -> DeviceInternode:  # fmt: skip
    """This rank's engine, on the current CUDA device. Collective. Rank 0 says on stderr who rings, what lies where, and
    why.

    Ranks of a host, `ranks_per_host` in order, are processes that map each other's heaps.
    """
    opened = [open_for_gpus(spec) for spec in asked_devices()]
    paths = open_paths([context for context, _ in opened])
    way = agreed(rendezvous, heap_way(paths), ranks_per_host)
    shape = shape_of(rendezvous.size, ranks_per_host, num_qps_per_rank=num_qps_per_rank, rdma_bytes=num_rdma_bytes,
                     nvl_bytes=num_nvl_bytes)  # fmt: skip
    patience = patience_s()
    first = rendezvous.rank // ranks_per_host * ranks_per_host
    share = way.kind == _HOST and ranks_per_host > 1
    neighbours = Neighbours(rendezvous, first, ranks_per_host, 0) if share else None
    link = all_of(rendezvous, lambda: DeviceLink(
        rendezvous.rank, rendezvous.size, shape.heap_layout().nbytes, in_host_memory=way.kind == _HOST,
        local=range(first, first + ranks_per_host), gather=rendezvous.all_gather, sharing=neighbours,
        patience_s=2 * patience,
    ))  # fmt: skip
    link.load(*NORMAL_KERNELS, *(LL_KERNELS if low_latency else ()))
    engine = join_hosts(rendezvous, link, None, paths, shape, known=_known_by(way, paths), low_latency=low_latency,
                        timeout_ns=int(1e9 * patience))  # fmt: skip
    if neighbours is not None:
        link.look_for(neighbours.lost)
    if rendezvous.rank == 0:
        rings = "; ".join(f"{context.device.name}: {how}" for context, how in opened)
        print(f"rdmakit: kernels on the GPU; {rings}\nrdmakit: {_placed(way, ranks_per_host)}\n"
              f"{engine.device_queues.mesh.table()}", file=sys.stderr, flush=True)  # fmt: skip
    return engine


def _placed(way: HeapWay, ranks_per_host: int) -> str:
    if ranks_per_host == 1:
        return str(way)
    how = "share it" if way.kind == _HOST else "map each other's by CUDA IPC"
    return f"{way}; {ranks_per_host} ranks of a host {how}"
