"""Filling ports and paths evenly, with what is known: nothing but the pairs, or the bytes of each flow.

Leans on fabric and hashes. Deterministic. Without bytes, ports follow a rule that splits the channels of each pair of
ranks evenly, so that no skew between ranks can tip it. With bytes, flows are moved one by one for as long as that
makes the sum of squares of the ports' shares smaller. Paths are filled greedily, the largest flow first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument
from rdmakit.model.fabric import DIRECT, Network
from rdmakit.model.hashes import FIRST_SOURCE_PORT, LAST_SOURCE_PORT, lag_port
from rdmakit.model.preset import Preset

__all__ = ["even_ports", "spread_paths", "spread_ports"]

_CANDIDATES = 256  # source ports that are tried for a flow
_BLOCK = 4096  # flows whose candidates are hashed at once
_PASSES = 8  # over all flows; a few suffice

_Place = tuple[Any, Any]


def even_ports(flows: NDArray[Any], channels: int, ports: int, local: int) -> NDArray[np.int64]:
    """A port for each flow by its numbers alone: consecutive channels of a pair take consecutive ports, and where
    channels do not divide, pairs begin at different ones. Both directions of a queue pair take one port.
    """
    ends = flows["rank"].astype(np.int64), flows["peer"].astype(np.int64)
    first = channels * sum(end // local + end % local for end in ends)
    return 1 + (flows["channel"] + first) % ports


def spread_ports(
    preset: Preset, flows: NDArray[Any], near: _Place, far: _Place, begin: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A port for each flow by its bytes, sending and receiving alike; `begin` is where the search begins. Both
    directions of a queue pair move together where the device is not bonded, since it has one port then.
    """
    ports, size = preset.count("ports"), flows["bytes"].astype(np.float64)
    ends = [x[0] * preset.nics + x[1] for x in (near, far)]
    nics = preset.count("hosts") * preset.nics
    # A NIC's port as a number; a flow loads one that sends and one that receives, each counted as share of its NIC.
    total = [np.maximum(np.bincount(end, size, nics), 1.0) for end in ends]
    share = [(size / t[end]).tolist() for end, t in zip(ends, total, strict=True)]
    load = [[[0.0] * ports for _ in range(nics)] for _ in range(2)]
    at = [end.tolist() for end in ends]
    port = (begin - 1).tolist()
    for flow, p in enumerate(port):
        for side in (0, 1):
            load[side][at[side][flow]][p] += share[side][flow]
    for _ in range(_PASSES):
        moved = 0
        for group in _groups(preset, flows):
            here = port[group[0]]
            parts = [(load[side][at[side][flow]], share[side][flow]) for flow in group for side in (0, 1)]
            for loads, w in parts:
                loads[here] -= w
            best = min(range(ports), key=lambda p: (sum(loads[p] * w for loads, w in parts), p != here))
            for loads, w in parts:
                loads[best] += w
            if best != here:
                moved += 1
                for flow in group:
                    port[flow] = best
        if not moved:
            break
    return np.array(port, np.int64) + 1


def _groups(preset: Preset, flows: NDArray[Any]) -> list[tuple[int, ...]]:
    """Flows that move together, the largest first."""
    order = np.argsort(-flows["bytes"], kind="stable").tolist()
    if preset.text("lag") != "none":
        return [(flow,) for flow in order]
    keys = list(zip(*(flows[n].tolist() for n in ("rank", "peer", "channel")), strict=True))
    where = {key: i for i, key in enumerate(keys)}
    seen = set[int]()
    found: list[tuple[int, ...]] = []
    for flow in order:
        rank, peer, channel = keys[flow]
        if flow not in seen:
            back = where[peer, rank, channel]
            seen.add(back)
            found.append((flow, back))
    return found


def spread_paths(preset: Preset, flows: NDArray[Any], near: _Place, far: _Place) -> None:
    """A UDP source port for each flow, so that a bond in hash mode sends it by its port and leaves spread it over
    spines.

    Fills in `source_port` and `spine`. BadArgument when no source port leads to a port.
    """
    net, ports, spines = Network(preset), preset.count("ports"), preset.count("spines")
    by_hash, adaptive = preset.text("lag") == "hash", preset.text("routing") == "adaptive"
    up, down = net.leaf(*near, flows["port"]), net.leaf(*far, flows["port"])
    climbs = [[0] * spines for _ in range(net.leaves)]
    falls = [[0] * spines for _ in range(net.leaves)]
    up_, down_, size = up.tolist(), down.tolist(), flows["bytes"].tolist()
    # Who shares a link: of those that are equally full, one that the same hosts and ranks use least, so that none that
    # has more to send or receive than others, which nobody may know yet, fills links by itself. Nor shall the channels
    # of one number that all hosts send to a rank: each takes the same part of a batch, and batches are alike.
    ends = (up, far[0]), (down, near[0]), (flows["rank"],), (flows["peer"],), (flows["peer"], flows["channel"])
    shared = [_spines_of(end, spines) for end in ends]
    order = np.argsort(-flows["bytes"], kind="stable")
    span = LAST_SOURCE_PORT - FIRST_SOURCE_PORT + 1
    for begin in range(0, len(order), _BLOCK):
        block = order[begin : begin + _BLOCK]
        # Flows begin at different source ports: those of one path need not share one. 61 is prime to the span.
        tried = FIRST_SOURCE_PORT + (block[:, None] * 977 + np.arange(_CANDIDATES) * 61) % span
        n, f = (near[0][block, None], near[1][block, None]), (far[0][block, None], far[1][block, None])
        port = flows["port"][block, None].astype(np.int64)
        right = np.ones(tried.shape, bool)
        if by_hash:
            right = lag_port(tried, net.ip(*f, 1), ports) == port
        if not right.any(axis=1).all():
            raise BadArgument(
                "no UDP source port leads to the planned port",
                value=int(port[~right.any(axis=1)][0, 0]),
                rule="the bond's hash uses the source port",
                remedy="lag = affinity",
            )
        # For each flow and spine: the first source port that leads there; -1 if none was tried.
        spine = np.broadcast_to(net.spine(n, f, port, tried), tried.shape)
        fits = [right & (spine == s) for s in range(spines)]
        pick = np.stack([np.where(fit.any(axis=1), fit.argmax(axis=1), -1) for fit in fits], axis=1)
        anywhere = right.argmax(axis=1)
        for i, (flow, picks) in enumerate(zip(block.tolist(), pick.tolist(), strict=True)):
            if up_[flow] == down_[flow] or adaptive:
                flows["source_port"][flow] = tried[i, anywhere[i]]
                flows["spine"][flow] = DIRECT
                continue
            a, b = climbs[up_[flow]], falls[down_[flow]]
            to, by, out, back, alike = (counts[of[flow]] for counts, of in shared)
            best = min(
                (s for s in range(spines) if picks[s] >= 0),
                key=lambda s: (max(a[s], b[s]), a[s] + b[s], to[s] + by[s] + out[s] + back[s] + 2 * alike[s]),
            )
            for loads in (a, b, to, by, out, back, alike):
                loads[best] += size[flow]
            flows["source_port"][flow] = tried[i, picks[best]]
            flows["spine"][flow] = best


def _spines_of(keys: tuple[Any, ...], spines: int) -> tuple[list[list[int]], list[int]]:
    """Bytes by spine for each distinct key, none yet; and which of them each flow has."""
    distinct, of = np.unique(np.stack([np.asarray(key, np.int64) for key in keys]), axis=1, return_inverse=True)
    return [[0] * spines for _ in range(distinct.shape[1])], of.reshape(-1).tolist()
