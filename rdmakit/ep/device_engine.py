"""The engine that a Buffer has where its hosts are joined by real devices: which devices, which way to ring, and why.

Leans on ep.device_hosts, ep.process_rank, verbs (names of devices). Kernels run on the CPU runner, a process a rank
(RDMAKIT_KERNELS=cpu).
"""

from __future__ import annotations

import sys

from rdmakit.connect import Rendezvous, open_paths
from rdmakit.ep import rendezvous as rendezvous_of
from rdmakit.ep.device_hosts import doorbells_of, join_hosts, shape_of
from rdmakit.ep.device_low_latency import DeviceInternode
from rdmakit.ep.process_rank import ProcessLink, patience_s
from rdmakit.errors import NotAvailable

__all__ = ["asked_devices", "connect"]


def asked_devices() -> list[str]:
    """What the environment names, or all that libibverbs knows. NotAvailable where there is none."""
    named = rendezvous_of.asked_devices()
    if named:
        return named
    from rdmakit.verbs.backend import device_names

    known, why = device_names()
    if not known:
        raise NotAvailable("no RDMA device joins this host to others", value=why or "libibverbs lists none",
                           rule="hosts are joined by RDMA devices",
                           remedy="rdmakit info shows what is there; rdmakit lab and rdmakit connectx need no hardware",
                           )  # fmt: skip
    return sorted(known, key=lambda name: (len(name), name))


def connect(
    rendezvous: Rendezvous, *, ranks_per_host: int, num_nvl_bytes: int, num_rdma_bytes: int, num_qps_per_rank: int,
    low_latency: bool,
) -> DeviceInternode:  # fmt: skip
    """This rank's engine. Collective. Rank 0 says on stderr by what kernels ring, and why.

    Ranks of a host, `ranks_per_host` in order, are processes that share their heaps.
    """
    paths = open_paths(asked_devices())
    shape = shape_of(rendezvous.size, ranks_per_host, num_qps_per_rank=num_qps_per_rank, rdma_bytes=num_rdma_bytes,
                     nvl_bytes=num_nvl_bytes)  # fmt: skip
    first = rendezvous.rank // ranks_per_host * ranks_per_host
    nbytes = shape.heap_layout().nbytes
    link = ProcessLink(rendezvous, first, ranks_per_host, nbytes, patience_s=patience_s())
    engine = join_hosts(rendezvous, link, link.heap_owner, paths, shape, low_latency=low_latency)
    if rendezvous.rank == 0:
        table = engine.device_queues.mesh.table()
        print(f"rdmakit: kernels on the CPU; {doorbells_of(paths)}\n{table}", file=sys.stderr, flush=True)
    return engine
