"""The plan: (peer, channel) → queue pair → port, UDP source port, path through the fabric; as data, with its loads.

Leans on preset, fabric, hashes, balance. Who may plan what depends on the device (`mechanism_of`): a bond's queue
affinity, the UDP source port, or the port that a queue pair is made on. `make_plan` chooses; `Plan.audit` says what is
wrong with one, also with one that was made otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.errors import BadArgument
from rdmakit.model.balance import even_ports, spread_paths, spread_ports
from rdmakit.model.cluster_rules import check_one_nic
from rdmakit.model.fabric import Network
from rdmakit.model.hashes import NVSHMEM_SOURCE_PORT, flow_label_of_qpns, lag_port, source_port_of_label
from rdmakit.model.preset import Preset

__all__ = ["FLOW", "POLICIES", "Plan", "PlannedFlow", "connected_pairs", "make_plan", "mechanism_of"]

POLICIES = ("planned", "hash", "fixed", "first-half")
FLOW = np.dtype(
    [
        ("rank", "i4"),
        ("peer", "i4"),
        ("channel", "i4"),
        ("qp", "i4"),
        ("port", "i4"),
        ("source_port", "i4"),
        ("spine", "i4"),
        ("bytes", "i8"),
    ]
)
_QPN_BASE = 0x100

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PlannedFlow:
    """One row: channel `channel` of `rank` to `peer` is the rank's QP number `qp` in the order of creation; it leaves
    by physical port `port`. `source_port` 0: InfiniBand has none. `spine` DIRECT: both on one leaf.
    """

    rank: int
    peer: int
    channel: int
    qp: int
    port: int
    source_port: int
    spine: int
    bytes: int


def mechanism_of(preset: Preset) -> str:
    """How this device lets a queue pair be steered to a port: "lag_port", "udp_source_port", "port_num", or "none".

    >>> from rdmakit.model import load
    >>> mechanism_of(load("roce")), mechanism_of(load("ib")), mechanism_of(load("h800-cx7-roce-affinity"))
    ('udp_source_port', 'none', 'lag_port')
    """
    if preset.count("ports") == 1:
        return "none"
    return {"affinity": "lag_port", "hash": "udp_source_port", "none": "port_num"}[preset.text("lag")]


def connected_pairs(preset: Preset, kernel: str) -> _Ints:
    """`[n, 2]`: ranks that are joined by queue pairs, a < b. "normal": those with one number on different hosts (a
    rail); "ll": all on different hosts.
    """
    local = preset.count("gpus_per_host")
    a, b = np.triu_indices(preset.ranks, 1)
    joined = a // local != b // local
    if kernel == "normal":
        joined &= a % local == b % local
    elif kernel != "ll":
        raise BadArgument("no such kernel", value=kernel, rule="normal, ll", remedy="choose one")
    return np.stack([a[joined], b[joined]], axis=1).astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """All flows of a cluster; `flows` is an array of FLOW, by rank, peer and channel."""

    preset: Preset
    kernel: str
    channels: int
    policy: str
    mechanism: str
    flows: NDArray[Any]
    _index: dict[tuple[int, int, int], int] = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.flows)

    def __iter__(self) -> Iterator[PlannedFlow]:
        for row in self.flows:
            yield PlannedFlow(*(int(value) for value in row))

    def flow(self, rank: int, peer: int, channel: int) -> PlannedFlow:
        """One row. BadArgument when those are not joined."""
        at = self._index.get((rank, peer, channel))
        if at is None:
            raise BadArgument(
                "no such flow",
                value=(rank, peer, channel),
                rule=f"ranks that {self.kernel} kernels join, channels 0 … {self.channels - 1}",
                remedy="see Plan.flows",
            )
        return PlannedFlow(*(int(value) for value in self.flows[at]))

    def carrying(self, traffic: Any) -> Plan:
        """The same plan under another traffic: what becomes of one that was made before the routing was known."""
        flows = self.flows.copy()
        flows["bytes"] = _bytes_of(self.preset, flows, self.channels, self.kernel, traffic)
        return Plan(self.preset, self.kernel, self.channels, self.policy, self.mechanism, flows, self._index)

    # ---- loads
    @cached_property
    def network(self) -> Network:
        return Network(self.preset)

    def _place(self, ranks: Any) -> tuple[Any, Any]:
        local = self.preset.count("gpus_per_host")
        return ranks // local, (ranks % local) * self.preset.nics // local

    @cached_property
    def port_bytes(self) -> _Ints:
        """`[host, nic, port]`: payload that leaves there."""
        f, p = self.flows, self.preset
        host, nic = self._place(f["rank"])
        found = np.zeros((p.count("hosts"), p.nics, p.count("ports")), np.int64)
        np.add.at(found, (host, nic, f["port"] - 1), f["bytes"])
        return found

    @cached_property
    def received_bytes(self) -> _Ints:
        """`[host, nic, port]`: payload that comes in there; a packet arrives on the port that it left by."""
        f, p = self.flows, self.preset
        host, nic = self._place(f["peer"])
        found = np.zeros((p.count("hosts"), p.nics, p.count("ports")), np.int64)
        np.add.at(found, (host, nic, f["port"] - 1), f["bytes"])
        return found

    @cached_property
    def spine_bytes(self) -> NDArray[np.float64]:
        """`[2, leaf, spine]`: payload up from each leaf, and down to it. Adaptive routing spreads it evenly."""
        f, net = self.flows, self.network
        up = net.leaf(*self._place(f["rank"]), f["port"])
        down = net.leaf(*self._place(f["peer"]), f["port"])
        found = np.zeros((2, net.leaves, net.spines))
        far = up != down
        if self.preset.text("routing") == "adaptive":
            for side, leaf in enumerate((up, down)):
                np.add.at(found[side], leaf[far], f["bytes"][far, None] / net.spines)
            return found
        np.add.at(found[0], (up[far], f["spine"][far]), f["bytes"][far])
        np.add.at(found[1], (down[far], f["spine"][far]), f["bytes"][far])
        return found

    @property
    def port_max_over_min(self) -> float:
        """Busiest over idlest port of a NIC, of the NIC where that is worst; 1 with one port, and inf with an idle
        one."""
        loads = self.port_bytes[self.port_bytes.sum(axis=2) > 0]
        if loads.shape[-1] == 1 or not len(loads):
            return 1.0
        with np.errstate(divide="ignore"):
            return float((loads.max(axis=1) / loads.min(axis=1)).max())

    @property
    def spine_max_over_mean(self) -> float:
        """Busiest link between leaves and spines over the mean of all; 1 when nothing crosses spines."""
        loads = self.spine_bytes
        return float(loads.max() / loads.mean()) if loads.any() else 1.0

    @property
    def nics_idle(self) -> int:
        """NICs that carry nothing, while another carries something."""
        each = self.port_bytes.sum(axis=2)
        return int((each == 0).sum()) if each.any() else 0

    def audit(self, most: float = 1.15) -> list[str]:
        """What is wrong with it, a sentence each: half of a pool unused, idle NICs, ports that differ by more than
        `most`."""
        found = []
        loads = self.port_bytes
        for host, nic in np.argwhere(loads.sum(axis=2) > 0):
            mine = loads[host, nic]
            if mine.min() > 0 or len(mine) == 1:
                continue
            idle = ", ".join(str(p + 1) for p in np.flatnonzero(mine == 0))
            found.append(
                f"host {host} NIC {nic}: port {idle} carries nothing; all traffic takes queue pairs of the other "
                f"ports, as when QPs lie [port 1's | port 2's] and kernels index the first half (DeepEP issue 650)"
            )
        if not found and self.port_max_over_min > most:
            ports = loads.shape[2]
            divided = self.channels % ports == 0
            others = "" if divided else f", {-(-self.channels // ports) * ports} channels, which {ports} ports divide"
            found.append(
                f"busiest / idlest port of a NIC is {self.port_max_over_min:.3f}, more than {most:g}: a plan that "
                f"knows the bytes (--know-traffic){others}, or more tokens a call, evens it out"
            )
        if self.nics_idle:
            found.append(f"{self.nics_idle} NICs carry nothing while others do: GPUs share NICs (DeepEP issue 466)")
        return found


def _places(preset: Preset, pairs: _Ints, channels: int) -> NDArray[Any]:
    """Both directions of every pair and channel, by rank, peer and channel, with the ordinal of each QP."""
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    ends = ends[np.lexsort((ends[:, 1], ends[:, 0]))]
    flows = np.zeros(len(ends) * channels, FLOW)
    flows["rank"], flows["peer"] = np.repeat(ends[:, 0], channels), np.repeat(ends[:, 1], channels)
    flows["channel"] = np.tile(np.arange(channels), len(ends))
    first = np.searchsorted(ends[:, 0], np.arange(preset.ranks)) * channels
    flows["qp"] = np.arange(len(flows)) - first[flows["rank"]]
    return flows


def make_plan(
    preset: Preset,
    kernel: str = "normal",
    *,
    channels: int = 10,
    data: int | None = None,
    traffic: Any = None,
    policy: str = "planned",
    seed: int = 0,
) -> Plan:
    """A plan for all queue pairs that `kernel` ("normal", "ll") needs, `channels` for each pair of ranks.

    `data`: so many channels carry payload, the first; those behind carry credits and take the ways of the first in
    turn. Without it, all carry payload.
    `traffic`: payload bytes `[rank, peer, channel]` to balance, see traffic.py; without it all flows count alike.
    `policy`: "planned" (both ports and all paths filled evenly), "hash" (what devices do by themselves: source ports
    of QP numbers, affinity in turn), "fixed" (NVSHMEM: one source port for all), "first-half" (a pool that lies
    by ports, of which kernels index the first part: the trap of DeepEP issue 650). BadArgument for what cannot be.
    """
    if policy not in POLICIES:
        raise BadArgument("no such policy", value=policy, rule="one of " + ", ".join(POLICIES), remedy="planned")
    if not isinstance(channels, int) or not 1 <= channels <= 1024:
        raise BadArgument(
            "channels make no plan", value=channels, rule="1 … 1024", remedy="10 is the kernels' default"
        )
    data = channels if data is None else data
    if not isinstance(data, int) or not 1 <= data <= channels:
        raise BadArgument(
            "channels of payload make no plan", value=data, rule=f"1 … {channels} channels", remedy="leave it out"
        )
    check_one_nic(preset)
    flows = _places(preset, connected_pairs(preset, kernel), channels)
    flows["bytes"] = 1
    if traffic is not None:
        flows["bytes"] = _bytes_of(preset, flows, channels, kernel, traffic)
    if policy == "planned":
        rows = flows.reshape(-1, channels)
        steered = rows[:, :data].reshape(-1)
        _steer(preset, steered, policy, data, seed, traffic is not None)
        for name in ("port", "source_port", "spine"):
            rows[name] = steered[name].reshape(-1, data)[:, np.arange(channels) % data]
    else:
        _steer(preset, flows, policy, channels, seed, traffic is not None)
    index = {
        key: i for i, key in enumerate(zip(*(flows[n].tolist() for n in ("rank", "peer", "channel")), strict=True))
    }
    return Plan(preset, kernel, channels, policy, mechanism_of(preset), flows, index)


def _bytes_of(preset: Preset, flows: NDArray[Any], channels: int, kernel: str, traffic: Any) -> _Ints:
    shape, given = (preset.ranks, preset.ranks, channels), np.asarray(traffic)
    if given.shape != shape or (given < 0).any():
        raise BadArgument(
            "traffic of another shape",
            value=given.shape,
            rule=f"{shape}, bytes of at least 0",
            remedy="normal_traffic or low_latency_traffic makes it",
        )
    found: _Ints = given[flows["rank"], flows["peer"], flows["channel"]].astype(np.int64)
    if given.sum() != found.sum():
        raise BadArgument(
            "traffic between ranks that no queue pair joins",
            value=int(given.sum() - found.sum()),
            rule=f"the pairs of the {kernel} kernel",
            remedy="plan the other kernel, or leave out what crosses NVLink",
        )
    return found


def _steer(preset: Preset, flows: NDArray[Any], policy: str, channels: int, seed: int, known: bool) -> None:
    """Fills in port, source_port and spine."""
    net, ports, mechanism = Network(preset), preset.count("ports"), mechanism_of(preset)
    local = preset.count("gpus_per_host")
    near = flows["rank"] // local, (flows["rank"] % local) * preset.nics // local
    far = flows["peer"] // local, (flows["peer"] % local) * preset.nics // local
    roce = preset.text("link_layer") == "roce"
    by_hash = source_port_of_label(flow_label_of_qpns(*_qpns(flows, preset.ranks, seed))) if roce else 0
    if policy == "fixed" and roce:
        by_hash = np.full(len(flows), NVSHMEM_SOURCE_PORT)
    flows["source_port"] = by_hash
    if policy == "planned":
        flows["port"] = even_ports(flows, channels, ports, local)
        if known and ports > 1:
            flows["port"] = spread_ports(preset, flows, near, far, flows["port"].astype(np.int64))
    elif policy == "first-half":
        flows["port"] = 1  # of a pool [port 1's | port 2's], each as many as the channels that kernels index
    elif mechanism == "udp_source_port":
        flows["port"] = lag_port(by_hash, net.ip(*far, 1), ports)
    elif mechanism == "lag_port":
        flows["port"] = 1 + (flows["qp"] + 1) % ports  # mlx5_ib: a counter of the context, incremented before use
    else:
        flows["port"] = 1
    if policy in ("planned", "first-half") and roce:
        spread_paths(preset, flows, near, far)
    else:
        flows["spine"] = net.spine(near, far, flows["port"], flows["source_port"])


def _qpns(flows: NDArray[Any], ranks: int, seed: int) -> tuple[_Ints, _Ints]:
    """QP numbers as a NIC gives them out: in order, from a place of its own."""
    base = _QPN_BASE + np.random.default_rng(seed).integers(0, 0x8000, ranks)
    local = base[flows["rank"]] + flows["qp"]
    places = zip(*(flows[n].tolist() for n in ("rank", "peer", "channel")), strict=True)
    back = dict(zip(places, local.tolist(), strict=True))
    keys = zip(flows["peer"].tolist(), flows["rank"].tolist(), flows["channel"].tolist(), strict=True)
    return local, np.array([back[key] for key in keys], np.int64)
