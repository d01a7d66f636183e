"""Filling ports and paths evenly, with what is known: nothing but the pairs, or the bytes of each flow.

Leans on exchange, fabric and hashes. Deterministic. Without bytes, ports follow a rule that splits the channels of each
pair of ranks evenly, so that no skew between ranks can tip it. With bytes, queue pairs are exchanged between ports for
as long as that evens them out. Paths are filled greedily, the largest flow first, and then evened out likewise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument
from rdmakit.model.exchange import even_out
from rdmakit.model.fabric import DIRECT, Network
from rdmakit.model.hashes import FIRST_SOURCE_PORT, LAST_SOURCE_PORT, lag_port
from rdmakit.model.preset import Preset

__all__ = ["even_ports", "spread_paths", "spread_ports"]

_CANDIDATES = 128  # source ports that are tried for a flow, for each port of its device
_BLOCK = 4096  # flows whose candidates are hashed at once

_Ints = NDArray[np.int64]
_Place = tuple[Any, Any]


def even_ports(flows: NDArray[Any], channels: int, ports: int, local: int) -> NDArray[np.int64]:
    """A port for each flow by its numbers alone: consecutive channels of a pair take consecutive ports, and where
    channels do not divide, those left over begin at another port for each pair. Both directions of a queue pair take
    one port.

    The others take the same ports whoever the peer is. A token that does not go to one host goes to another: what a
    part of a batch sends to all of them varies less than what it sends to each.
    """
    ends = flows["rank"].astype(np.int64), flows["peer"].astype(np.int64)
    left_over = flows["channel"] >= channels - channels % ports
    first = channels * sum(end // local + end % local for end in ends)
    return 1 + (flows["channel"] + left_over * first) % ports


def spread_ports(
    preset: Preset, flows: NDArray[Any], near: _Place, far: _Place, begin: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A port for each flow by its bytes, sending and receiving alike; `begin` is where the search begins. Both
    directions of a queue pair move together where the device is not bonded, since it has one port then.
    """
    nics = preset.count("hosts") * preset.nics
    # Two lines for each NIC: what it sends and what it receives, each flow counted as share of that.
    line = np.stack([end[0] * preset.nics + end[1] + side * nics for side, end in enumerate((near, far))], axis=1)
    size = np.repeat(flows["bytes"].astype(np.float64)[:, None], 2, axis=1)
    share = size / np.maximum(np.bincount(line.ravel(), size.ravel(), 2 * nics), 1.0)[line]
    found: _Ints = begin.copy()
    one = back = np.arange(len(flows))
    if preset.text("lag") == "none":
        back = _back(flows)
        line, share = np.concatenate([line, line[back]], axis=1), np.concatenate([share, share[back]], axis=1)
        one = np.flatnonzero(one < back)
    found[one] = found[back[one]] = 1 + even_out(begin[one] - 1, line[one], share[one], preset.count("ports"))
    return found


def _back(flows: NDArray[Any]) -> _Ints:
    """Of each flow, the index of the same queue pair's other direction; `flows` lie by rank, peer and channel."""
    found = np.empty(len(flows), np.int64)
    found[np.lexsort((flows["channel"], flows["rank"], flows["peer"]))] = np.arange(len(flows))
    return found


def spread_paths(preset: Preset, flows: NDArray[Any], near: _Place, far: _Place) -> None:
    """A UDP source port for each flow, so that a bond in hash mode sends it by its port and leaves spread it over
    spines.

    Fills in `source_port` and `spine`. BadArgument when no source port leads to a port.
    """
    net, spines = Network(preset), preset.count("spines")
    up, down = net.leaf(*near, flows["port"]), net.leaf(*far, flows["port"])
    flows["source_port"], leading = _source_ports(preset, net, flows, near, far)
    flows["spine"] = DIRECT
    climbing = up != down
    if preset.text("routing") == "adaptive" or not climbing.any():
        return
    climbs = [[0] * spines for _ in range(net.leaves)]
    falls = [[0] * spines for _ in range(net.leaves)]
    up_, down_, size = up.tolist(), down.tolist(), flows["bytes"].tolist()
    # Who shares a link: of those that are equally full, one that the same hosts and ranks use least, so that none that
    # has more to send or receive than others, which nobody may know yet, fills links by itself. Nor shall the channels
    # of one number that all hosts send to a rank: each takes the same part of a batch, and batches are alike.
    ends = (up, far[0]), (down, near[0]), (flows["rank"],), (flows["peer"],), (flows["peer"], flows["channel"])
    shared = [_spines_of(end, spines) for end in ends]
    order = _in_rounds(preset, flows)
    for flow in order[climbing[order]].tolist():
        a, b = climbs[up_[flow]], falls[down_[flow]]
        to, by, out, back, alike = (counts[of[flow]] for counts, of in shared)
        best = min(
            np.flatnonzero(leading[flow]).tolist(),
            key=lambda s: (max(a[s], b[s]), a[s] + b[s], to[s] + by[s] + out[s] + back[s] + 2 * alike[s]),
        )
        for loads in (a, b, to, by, out, back, alike):
            loads[best] += size[flow]
        flows["spine"][flow] = best
    line = np.stack([up, down + net.leaves], axis=1)[climbing]
    weight = np.repeat(flows["bytes"][climbing, None], 2, axis=1)
    spine = even_out(flows["spine"][climbing], line, weight, spines, leading[climbing] > 0)
    flows["spine"][climbing], flows["source_port"][climbing] = spine, leading[climbing, spine]


def _source_ports(
    preset: Preset, net: Network, flows: NDArray[Any], near: _Place, far: _Place
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """For each flow a source port that leads to its port, and `[flows, spines]` one that leads there by each spine; 0
    where none was tried that does."""
    ports, spines = preset.count("ports"), preset.count("spines")
    anywhere, leading = np.zeros(len(flows), np.int32), np.zeros((len(flows), spines), np.int32)
    span = LAST_SOURCE_PORT - FIRST_SOURCE_PORT + 1
    for begin in range(0, len(flows), _BLOCK):
        block = np.arange(begin, min(begin + _BLOCK, len(flows)))
        # Flows begin at different source ports: those of one path need not share one. 61 is prime to the span.
        tried = FIRST_SOURCE_PORT + (block[:, None] * 977 + np.arange(_CANDIDATES * ports) * 61) % span
        n, f = (near[0][block, None], near[1][block, None]), (far[0][block, None], far[1][block, None])
        port = flows["port"][block, None].astype(np.int64)
        right = np.ones(tried.shape, bool)
        if preset.text("lag") == "hash":
            right = lag_port(tried, net.ip(*f, 1), ports) == port
        if not right.any(axis=1).all():
            raise BadArgument(
                "no UDP source port leads to the planned port",
                value=int(port[~right.any(axis=1)][0, 0]),
                rule="the bond's hash uses the source port",
                remedy="lag = affinity",
            )
        rows = np.arange(len(block))
        anywhere[block] = tried[rows, right.argmax(axis=1)]
        spine = np.broadcast_to(net.spine(n, f, port, tried), tried.shape)
        for s in range(spines):
            fits = right & (spine == s)
            leading[block, s] = np.where(fits.any(axis=1), tried[rows, fits.argmax(axis=1)], 0)
    return anywhere, leading


def _in_rounds(preset: Preset, flows: NDArray[Any]) -> NDArray[np.int64]:
    """The order in which flows get their paths: the largest first; of equals those of neighbouring hosts, then those
    of hosts further apart. So all leaves fill alike, and none is left with flows whose other ends are full.
    """
    local, hosts = preset.count("gpus_per_host"), preset.count("hosts")
    rank, peer = flows["rank"].astype(np.int64), flows["peer"].astype(np.int64)
    apart = (peer // local - rank // local) % hosts
    return np.lexsort((rank % local, flows["channel"], rank // local, apart, -flows["bytes"]))


def _spines_of(keys: tuple[Any, ...], spines: int) -> tuple[list[list[int]], list[int]]:
    """Bytes by spine for each distinct key, none yet; and which of them each flow has."""
    distinct, of = np.unique(np.stack([np.asarray(key, np.int64) for key in keys]), axis=1, return_inverse=True)
    return [[0] * spines for _ in range(distinct.shape[1])], of.reshape(-1).tolist()
