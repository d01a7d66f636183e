"""Who rings for kernels of GPUs, and where their queues lie: tried on the device, told in words.

Leans on gpu (reach, queue_memory) and verbs. Each choice falls to the next way that there is: kernels ring where CUDA
maps the NIC's queues and doorbell, else a proxy on the CPU posts. Queues made by command (`queues=devx`) have their
rings in memory of the GPU where the NIC takes that, as a dma-buf, else in memory of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import rdmakit
from rdmakit.device import QP, Context
from rdmakit.errors import NotAvailable, RdmakitError
from rdmakit.gpu.device_queues import reach
from rdmakit.gpu.queue_memory import GpuQueueMemory
from rdmakit.verbs.backend import open_devx
from rdmakit.verbs.devx_memory import HostQueueMemory, QueuePlacement

__all__ = ["open_for_gpus", "reason"]

_PROXY = "a proxy on the CPU posts what kernels on the GPU write"
_KERNELS = "kernels on the GPU ring the registers of"


def reason(error: RdmakitError) -> str:
    """What went wrong, in a clause."""
    said = f": {error.value}" if error.value is not None else f": {error.rule}" if error.rule else ""
    return f"{error.what}{said}"


@contextmanager
def _queue_pair(context: Context) -> Iterator[QP]:
    with context.create_cq(16) as cq, context.alloc_pd() as pd, pd.create_qp(cq, sq_wqebbs=16) as qp:
        yield qp


def _cannot_make(context: Context) -> str:
    """Why this device makes no queue pair, where its queues are to lie; empty when it does."""
    try:
        with _queue_pair(context):
            return ""
    except RdmakitError as error:
        return reason(error)


def _cannot_ring(context: Context) -> str:
    """Why no kernel can use a queue pair of this device; empty when one can."""
    with _queue_pair(context) as qp:
        try:
            qp.device_handle()
        except NotAvailable as error:
            return reason(error)
    return ""


def _by_command(spec: str) -> tuple[Context, str]:
    """A device whose queues are made by command, and where these lie, with the reason.

    Completions are in host memory: whoever looks for queue pairs that have failed reads them there.
    """
    try:
        memory = GpuQueueMemory()
    except NotAvailable as error:
        refused = reason(error)
    else:
        context = open_devx(spec, QueuePlacement(memory, completions=HostQueueMemory()))
        refused = _cannot_make(context)
        if not refused:
            return context, "rings in memory of the GPU, completions in host memory"
        context.close()
    return open_devx(spec), f"in host memory, for the GPU's was refused: {refused}"


def open_for_gpus(spec: str) -> tuple[Context, str]:
    """A device whose queues kernels of GPUs use, and in words who rings, and why.

    `spec`: as `rdmakit.open` takes it; `queues=proxied` in it asks for the proxy, `queues=devx` for queues by command.
    """
    name, _, options = spec.partition(":")
    parts = [part for part in options.split(",") if part]
    if "queues=devx" in parts:
        context, place = _by_command(spec)
        whose = f"queues made by command, {place}"
    else:
        context, whose = rdmakit.open(spec), "the NIC's own queues"
    way = reach(context)
    if context.device.where.startswith("proxied"):
        asked = "asked for" if "queues=proxied" in parts else "it has no queues that we can reach"
        return context, f"{_PROXY}: {asked}"
    refused = _cannot_ring(context)
    if not refused:
        kind = "" if way.registers == "IoMemory" else f", mapped as {way.registers}"
        return context, f"{_KERNELS} {whose}{kind}"
    context.close()
    kept = [part for part in parts if not part.startswith("queues=")]
    context = rdmakit.open(f"{name}:{','.join([*kept, 'queues=proxied'])}")
    reach(context)
    return context, f"{_PROXY}: {refused}"
