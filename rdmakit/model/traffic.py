"""How many payload bytes each queue pair will carry: a routing of tokens, counted as the kernels send it.

Leans on ep.layout and ep.normal_memory for sizes. Arrays are int64 `[rank, peer, channel]`, payload as the port
counters `xmit_payload` count it: rows, their metadata and the exchange of counts; atomics and acknowledgements carry
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.ep.normal_memory import NormalShape
from rdmakit.errors import BadArgument

__all__ = ["low_latency_traffic", "normal_traffic", "remote_tokens"]

_Ints = NDArray[np.int64]


def remote_tokens(topk_idx: NDArray[np.integer], experts: int, hosts: int) -> NDArray[np.bool_]:
    """Bool `[tokens, hosts]`: does a token go to that host?"""
    goes = np.zeros((len(topk_idx), hosts + 1), bool)
    host = np.where(topk_idx >= 0, topk_idx // (experts // hosts), hosts)
    goes[np.arange(len(topk_idx))[:, None], host] = True
    return goes[:, :hosts]


def _check(topk_idx: Sequence[Any], ranks: int) -> None:
    if len(topk_idx) != ranks:
        raise BadArgument(
            "not one routing for each rank",
            value=len(topk_idx),
            rule=f"{ranks} ranks",
            remedy="pass a list of topk_idx arrays",
        )


def normal_traffic(
    topk_idx: Sequence[NDArray[np.integer]],
    shape: NormalShape,
    *,
    combine: bool = False,
    exchange: bool = True,
) -> _Ints:
    """Of one normal dispatch of FP8 rows (or of the combine that answers it, whose BF16 rows go the other way).
    `exchange`: with the counts that a dispatch without a handle sends first.
    """
    ranks, local = shape.ranks, shape.local_ranks
    slot = shape.row_stride(fp8=not combine) + shape.meta_stride
    _check(topk_idx, ranks)
    bytes_ = np.zeros((ranks, ranks, shape.channels), np.int64)
    for rank, chosen in enumerate(topk_idx):
        goes = remote_tokens(np.asarray(chosen), shape.experts, shape.hosts)
        cut = [len(goes) * c // shape.channels for c in range(shape.channels + 1)]  # channel_tokens, ep.cuh
        for host in range(shape.hosts):
            if host == rank // local:
                continue
            peer = host * local + rank % local
            counts = np.array([goes[cut[c] : cut[c + 1], host].sum() for c in range(shape.channels)])
            there, back = (peer, rank) if combine else (rank, peer)
            bytes_[there, back] += counts * slot
            if exchange and not combine:
                bytes_[rank, peer, 0] += shape.notify_bytes
    return bytes_


def low_latency_traffic(
    topk_idx: Sequence[NDArray[np.integer]],
    *,
    experts: int,
    local_ranks: int,
    qps: int,
    message_bytes: int,
    combine: bool = False,
) -> _Ints:
    """Of one low-latency dispatch, a message a (token, expert); or of the combine that answers it."""
    ranks = len(topk_idx)
    _check(topk_idx, ranks)
    each = experts // ranks
    counts = np.zeros((ranks, ranks, qps), np.int64)
    for rank, chosen in enumerate(topk_idx):
        expert = np.asarray(chosen)[np.asarray(chosen) >= 0]
        np.add.at(counts[rank], (expert // each, expert % each % qps), 1)
    host = np.arange(ranks) // local_ranks
    counts[host[:, None] == host[None, :]] = 0
    return (counts.swapaxes(0, 1) if combine else counts) * message_bytes
