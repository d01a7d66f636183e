"""Which port and which path a flow takes by itself: the hash functions of bonds and switches, over whole arrays.

Leans on NumPy. Twins of rdmakit/emu/hca/port.cpp (flow labels, bonds) and rdmakit/emu/hca/network.cpp (switches); tests
compare them with queue pairs of the emulator. Real devices document no hash: on hardware port counters are the judge.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FIRST_SOURCE_PORT",
    "LAST_SOURCE_PORT",
    "NVSHMEM_SOURCE_PORT",
    "flow_label_of_qpns",
    "lag_port",
    "source_port_of_label",
    "spine_by_place",
    "spine_by_tuple",
]

FIRST_SOURCE_PORT, LAST_SOURCE_PORT = 0xC000, 0xFFFF  # RoCE v2 uses the dynamic range (ibv_flow_label_to_udp_sport)
NVSHMEM_SOURCE_PORT = 49152  # NVSHMEM's IBGDA gives it to every QP
ROCE_PORT = 4791  # UDP destination port of RoCE v2

_Words = NDArray[np.uint32]


def source_port_of_label(label: Any) -> NDArray[np.int64]:
    """ibv_flow_label_to_udp_sport.

    >>> source_port_of_label([0, 0xFFFFF]).tolist() == [0xC000, 0xFFC0]
    True
    """
    bits = np.asarray(label, np.int64)
    return ((bits & 0x3FFF) ^ ((bits & 0xFC000) >> 14)) | 0xC000


def flow_label_of_qpns(local: Any, remote: Any) -> NDArray[np.int64]:
    """rdma_calc_flow_label: what a QP gets that names no flow label of its own."""
    v = np.asarray(local, np.int64) * np.asarray(remote, np.int64)
    v = v ^ (v >> 20)
    return (v ^ (v >> 40)) & 0xFFFFF


def _fold(h: _Words, word: Any) -> _Words:
    with np.errstate(over="ignore"):
        h = (h ^ np.asarray(word, np.uint32)) * np.uint32(0x9E3779B1)
    folded: _Words = h ^ (h >> np.uint32(15))
    return folded


def lag_port(source_port: Any, to_ip: Any, ports: int) -> NDArray[np.int64]:
    """Port 1 … of a bond in hash mode for a flow to an IPv4 address (as a number), all links being up."""
    h = np.asarray(source_port, np.uint32)
    for word in (0, 0, 0xFFFF, to_ip):  # the words of an IPv4-mapped GID
        h = _fold(h, word)
    return h.astype(np.int64) % ports + 1


def spine_by_tuple(
    seed: int, leaf: Any, from_ip: Any, to_ip: Any, source_port: Any, spines: int
) -> NDArray[np.int64]:
    """The uplink that a leaf switch hashes a RoCE flow to."""
    h = _fold(np.asarray(np.uint32(seed)), leaf)
    for word in (from_ip, to_ip, np.asarray(source_port, np.uint32) << np.uint32(16) | np.uint32(ROCE_PORT)):
        h = _fold(h, word)
    h = _fold(h, 17)  # the protocol: UDP
    return h.astype(np.int64) % spines


def spine_by_place(place: Any, spines: int) -> NDArray[np.int64]:
    """The uplink of a leaf's forwarding table for a destination, which is all that InfiniBand looks at: neighbours on
    a leaf are reached by different spines, as fat-tree routing (d-mod-k) lays tables out.
    """
    return np.asarray(place, np.int64) % spines
