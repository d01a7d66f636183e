"""Which hosts, GPUs and NICs a world has, and the numbers that they get: names, GIDs, LIDs, ranks.

Leans on device (descriptions) and errors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rdmakit.device import Device, PortInfo
from rdmakit.device.endpoint import gid_bytes
from rdmakit.device.qp_attributes import mtu_code
from rdmakit.emu.clock import Clock
from rdmakit.emu.provider import DOORBELL_MODES
from rdmakit.errors import BadArgument

__all__ = ["LAG_MODES", "POLICIES", "Rank", "Topology"]

LAG_MODES = {"none": 0, "hash": 1, "affinity": 2}  # enum class LagMode, attributes.hpp
POLICIES = {"fast": 0, "timed": 1, "explore": 2}  # RDMAKIT_FAST … of config.cuh
_MOST = 250  # hosts and NICs a host: one octet of a GID each


@dataclass(frozen=True)
class Rank:
    """A GPU of the world: `local` is its number on its host, `nics` the NICs there that are nearest to it."""

    index: int
    host: int
    local: int
    nics: tuple[int, ...]


def _choice(name: str, value: str, table: dict[str, int]) -> None:
    if value not in table:
        raise BadArgument(f"no such {name}", value=value, rule="one of " + ", ".join(table),
                          remedy="leave it out for the default")


def _whole(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or not least <= value <= most:
        raise BadArgument(f"{name} makes no world", value=value, rule=f"{least} … {most}",
                          remedy="choose a number within the rule")


@dataclass(frozen=True)
class Topology:
    """The shape of a world, checked; `build` makes its HCAs."""

    hosts: int
    gpus_per_host: int
    nics_per_gpu: float
    ports: int
    lag: str
    doorbell: str
    policy: str
    roce: bool
    mtu: int
    port_gbps: float

    def __post_init__(self) -> None:
        _whole("hosts", self.hosts, 1, _MOST)
        _whole("gpus_per_host", self.gpus_per_host, 1, 64)
        _whole("ports", self.ports, 1, 4)
        _choice("lag mode", self.lag, LAG_MODES)
        _choice("doorbell mode", self.doorbell, DOORBELL_MODES)
        _choice("policy", self.policy, POLICIES)
        mtu_code(self.mtu)
        if not 0 < self.nics_per_gpu <= 8 or self.nics > _MOST:
            raise BadArgument("nics_per_gpu makes no world", value=self.nics_per_gpu, rule="more than 0, at most 8",
                              remedy="1 is a NIC a GPU; 2 is a pair of devices; 0.5 is a NIC for two GPUs")
        if not self.port_gbps > 0:
            raise BadArgument("port_gbps makes no world", value=self.port_gbps, rule="more than 0",
                              remedy="for example 400")
        if self.lag != "none" and self.ports == 1:
            raise BadArgument("a bond of one port", value=self.ports, rule="lag needs ports=2 or more",
                              remedy="lag='none', or two ports")
        if self.lag == "affinity" and self.ports > 2:
            raise BadArgument("queue affinity of so many ports", value=self.ports,
                              rule="libmlx5 knows LAG ports 1 and 2 only", remedy="lag='hash' and UDP source ports")

    @property
    def nics(self) -> int:
        """A host."""
        return max(1, math.ceil(self.gpus_per_host * self.nics_per_gpu))

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """All GPUs, those of host 0 first."""
        found = []
        for index in range(self.hosts * self.gpus_per_host):
            host, local = divmod(index, self.gpus_per_host)
            if self.nics >= self.gpus_per_host:
                each = self.nics // self.gpus_per_host
                nics = tuple(range(local * each, (local + 1) * each))
            else:
                nics = (local * self.nics // self.gpus_per_host,)
            found.append(Rank(index, host, local, nics))
        return tuple(found)

    def nic_index(self, host: int, nic: int) -> int:
        """Number of an HCA in the world. BadArgument when there is no such host or NIC."""
        if not isinstance(host, int) or not 0 <= host < self.hosts:
            raise BadArgument("no such host", value=host, rule=f"0 … {self.hosts - 1}",
                              remedy="hosts are counted from 0")
        if not isinstance(nic, int) or not 0 <= nic < self.nics:
            raise BadArgument("no such NIC", value=nic, rule=f"0 … {self.nics - 1} on each host",
                              remedy="NICs are counted from 0 on each host")
        return host * self.nics + nic

    def _port_info(self, host: int, nic: int, port: int) -> PortInfo:
        bonded = self.lag != "none"
        named = 1 if bonded else port
        # RoCE v2 shows an IPv4 address as an IPv4-mapped GID; InfiniBand's default GID is link-local.
        gid = f"::ffff:10.{host}.{nic}.{named}" if self.roce else f"fe80::{host + 1:x}:{nic + 1:x}:{named:x}"
        lid = 0 if self.roce else 1 + (self.nic_index(host, nic) * self.ports + named - 1)
        layer = "Ethernet" if self.roce else "InfiniBand"
        return PortInfo(port, named, gid, lid, self.mtu, layer, round(self.port_gbps * 1e9 / 8))

    def device(self, host: int, nic: int) -> Device:
        """Its description."""
        ports = tuple(self._port_info(host, nic, port + 1) for port in range(self.ports))
        spec = f"emu:host={host},nic={nic}"
        return Device("emu", f"mlx5_{nic}", spec, ports, self.lag, self.doorbell, f"host {host}")

    def build(self, core: Any, clock: Clock | None = None) -> list[Device]:
        """Adds the HCAs to the C++ world, in the order of `nic_index`, and the switches between them."""
        devices = [self.device(host, nic) for host in range(self.hosts) for nic in range(self.nics)]
        if clock is not None:
            self._build_clock(core, clock)
        for index, device in enumerate(devices):
            hca = core.add_hca(
                {
                    **(clock.hca if clock is not None else {}),
                    "host": index // self.nics,
                    "nic": index % self.nics,
                    "name": device.name,
                    "ports": self.ports,
                    "lag": LAG_MODES[self.lag],
                    "roce": self.roce,
                    "active_mtu": mtu_code(self.mtu),
                    "doorbell": DOORBELL_MODES[self.doorbell],
                    "port_bytes_per_second": device.ports[0].bytes_per_second,
                }
            )
            for info in device.ports:
                if info.ib_port == info.number:  # the second port of a bond has no address of its own
                    core.add_address(hca, info.ib_port, gid_bytes(info.gid), info.lid)
        return devices

    def _build_clock(self, core: Any, clock: Clock) -> None:
        if clock.network is not None:
            core.set_network(
                {
                    **clock.network,
                    "hosts": self.hosts,
                    "nics": self.nics,
                    "ports": self.ports,
                    "bonded": self.lag != "none",
                    "roce": self.roce,
                }
            )
        if clock.costs is not None:
            core.set_costs(clock.cost_list())
        core.set_nvlink(clock.nvlink_bytes_per_second)

    def hosts_for_map(self, ups: list[list[bool]]) -> list[dict[str, Any]]:
        """What `rdmakit.show.host_map` draws; `ups[nic][port]` says which links are up."""
        rate = f"{self.port_gbps:g}G"
        found = []
        for host in range(self.hosts):
            nics = []
            for nic in range(self.nics):
                states = ups[self.nic_index(host, nic)]
                ports = [
                    {"port": port + 1, "state": "ACTIVE" if up else "DOWN", "rate": rate}
                    for port, up in enumerate(states)
                ]
                nics.append({"name": f"mlx5_{nic}", "ports": ports})
            mine = [rank for rank in self.ranks if rank.host == host]
            links = [(f"GPU {rank.index}", f"mlx5_{nic}", "PIX") for rank in mine for nic in rank.nics]
            found.append(
                {
                    "name": f"host {host}",
                    "gpus": [f"GPU {rank.index}" for rank in mine],
                    "nics": nics,
                    "links": links,
                }
            )
        return found

    def __str__(self) -> str:
        gpus = self.hosts * self.gpus_per_host
        bond = "" if self.lag == "none" else f" bonded ({self.lag})"
        return (
            f"{self.hosts} host{'s' * (self.hosts != 1)}, {gpus} GPU{'s' * (gpus != 1)}, "
            f"{self.hosts * self.nics} HCA{'s' * (self.hosts * self.nics != 1)} of {self.ports} port"
            f"{'s' * (self.ports != 1)}{bond}"
        )
