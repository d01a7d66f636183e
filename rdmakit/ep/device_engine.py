"""The engine that a Buffer has where its hosts are joined by real devices: which devices, which way to ring, and why.

Leans on ep.device_hosts, verbs (names of devices). Kernels run on the CPU runner, a process a host
(RDMAKIT_KERNELS=cpu).
"""

from __future__ import annotations

import os
import sys

from rdmakit.connect import Rendezvous, open_paths
from rdmakit.ep import rendezvous as rendezvous_of
from rdmakit.ep.device_hosts import RunnerHost, doorbells_of, shape_of
from rdmakit.ep.device_low_latency import DeviceInternode
from rdmakit.ep.tensors import KERNELS
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["asked_devices", "connect", "patience_s"]

PATIENCE = "RDMAKIT_PATIENCE"
"""The environment variable that bounds every wait, in seconds; 60 without it."""


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


def patience_s() -> float:
    """What bounds every wait, by the environment, in seconds. BadArgument for what is no time."""
    text = os.environ.get(PATIENCE, "60")
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise BadArgument(f"{PATIENCE} is no time", value=text, rule="seconds, more than 0", remedy="unset it for 60")
    return found


def connect(
    rendezvous: Rendezvous, *, ranks_per_host: int, num_nvl_bytes: int, num_rdma_bytes: int, num_qps_per_rank: int,
    low_latency: bool,
) -> DeviceInternode:  # fmt: skip
    """This rank's engine. Collective. Rank 0 says on stderr by what kernels ring, and why."""
    if ranks_per_host != 1:
        raise NotAvailable(
            "several ranks of one host on the CPU runner", value=ranks_per_host,
            rule="a process is a host: kernels of one process alone add to the words of its heap",
            remedy=f"one rank a host; or GPUs ({KERNELS} unset) on one machine", rank=rendezvous.rank,
        )  # fmt: skip
    paths = open_paths(asked_devices())
    shape = shape_of(rendezvous.size, 1, num_qps_per_rank=num_qps_per_rank, rdma_bytes=num_rdma_bytes,
                     nvl_bytes=num_nvl_bytes)  # fmt: skip
    host = RunnerHost(shape, rendezvous.rank, patience_s=patience_s(), at_once=True)
    engine = host.join(rendezvous, paths, low_latency=low_latency)
    if rendezvous.rank == 0:
        table = engine.device_queues.mesh.table()
        print(f"rdmakit: kernels on the CPU; {doorbells_of(paths)}\n{table}", file=sys.stderr, flush=True)
    return engine
