"""`deep_ep.utils` of DeepEP V1: events, and a look at whether GPUs reach each other."""

from __future__ import annotations

from typing import Any

from rdmakit.ep import tensors
from rdmakit.ep.events import EventHandle, EventOverlap
from rdmakit.ep.rendezvous import introduce
from rdmakit.errors import NotAvailable

__all__ = ["EventHandle", "EventOverlap", "check_nvlink_connections"]


def check_nvlink_connections(group: Any) -> None:
    """NotAvailable unless this rank's GPU reads and writes those of all ranks of the group. Collective.

    Processes of one host must number their GPUs alike (the same CUDA_VISIBLE_DEVICES).
    """
    rendezvous, backend = introduce(group), tensors.backend()
    for rank, index in enumerate(rendezvous.all_gather(int(backend.device().index or 0))):
        if not backend.reaches(index):
            raise NotAvailable(
                "two GPUs do not reach each other", rule="peer access between all GPUs of a group (nvidia-smi topo -m)",
                remedy="a group of GPUs that are connected by NVLink", rank=rendezvous.rank, peer=rank, gpu=index,
            )  # fmt: skip
