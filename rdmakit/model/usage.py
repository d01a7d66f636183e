"""Where the time goes: what each resource of a world has done between two moments, and for how much of the time.

Leans on emu. Resources: ports sending and receiving, the NIC's WQE engine, PCIe in each direction, its atomic unit,
the host's proxy thread, links between switches, NVLink.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Reading", "Usage", "read", "usage"]

PORT = {"port send": "xmit_busy_ps", "port receive": "rcv_busy_ps", "port paused": "paused_ps"}
NIC = {
    "NIC WQE engine": "wqe_busy_ps",
    "PCIe read": "pcie_read_busy_ps",
    "PCIe write": "pcie_write_busy_ps",
    "NIC atomics": "atomic_busy_ps",
    "CPU proxy": "proxy_busy_ps",
}


@dataclass(frozen=True)
class Reading:
    """All counters at one moment: busy ps by resource and unit; payload and octets by (host, nic, port)."""

    now_ps: int
    busy: Mapping[str, Any]
    payload: Any
    octets: Any
    received: Any
    doorbells: int
    wqes: int
    link_octets: Any


def read(world: Any) -> Reading:
    """The world's counters now. It must be idle."""
    t, core = world.topology, world._core
    shape = (t.hosts, t.nics, t.ports)
    ports = [[core.port_counters(h, p + 1) for p in range(t.ports)] for h in range(t.hosts * t.nics)]
    nics = [core.hca_counters(h) for h in range(t.hosts * t.nics)]
    busy = {name: np.array([[c[key] for c in nic] for nic in ports]) for name, key in PORT.items()}
    busy |= {name: np.array([c[key] for c in nics]) for name, key in NIC.items()}
    links = world.links
    busy["link leaf-spine"] = np.array([link[4] for link in links] or [0])
    busy["NVLink"] = np.array([use[1] for use in world.nvlink_use] or [0])

    def each(key: str) -> Any:
        return np.array([[c[key] for c in nic] for nic in ports]).reshape(shape)

    return Reading(
        now_ps=world.now_ns * 1000,
        busy=busy,
        payload=each("xmit_payload"),
        octets=each("xmit_bytes"),
        received=each("rcv_bytes"),
        doorbells=sum(c["doorbells"] for c in nics),
        wqes=sum(c["wqes"] for c in nics),
        link_octets=np.array([link[3] for link in links] or [0]),
    )


@dataclass(frozen=True)
class Usage:
    """`busiest` and `mean`: share of the time that a resource works, of its busiest unit and over all that worked at
    all."""

    busiest: Mapping[str, float]
    mean: Mapping[str, float]

    def above(self, share: float) -> list[str]:
        """Resources whose busiest unit works for more than that share of the time."""
        return [name for name, value in self.busiest.items() if value > share]


def usage(before: Reading, after: Reading, length_ps: float) -> Usage:
    """Between two readings, of which `length_ps` counts as the time."""
    busiest, mean = {}, {}
    for name, now in after.busy.items():
        worked = (now - before.busy[name]) / max(length_ps, 1)
        busiest[name] = float(worked.max())
        mean[name] = float(worked[worked > 0].mean()) if (worked > 0).any() else 0.0
    return Usage(busiest, mean)
