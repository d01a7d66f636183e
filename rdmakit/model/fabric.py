"""The network of a preset: which leaf a port hangs on, which links a flow crosses.

Leans on preset and hashes. Two tiers: leaf switches, and above them spines, each leaf with one uplink to each spine
of its plane. Port p of every NIC hangs on leaves of its own (as the two switches of a bond do); planes share no spines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rdmakit.model.hashes import spine_by_place, spine_by_tuple
from rdmakit.model.preset import Preset

__all__ = ["DIRECT", "Network"]

DIRECT = -1  # instead of a spine: both ends hang on one leaf

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """Geometry of a preset's fabric. Hosts, NICs and spines count from 0, ports from 1; arrays of equal shape work
    everywhere.

    >>> from rdmakit.model import load
    >>> net = Network(load("roce"))
    >>> net.leaves, net.spines, net.leaf(3, 0, 2)
    (4, 16, 3)
    """

    preset: Preset

    @cached_property
    def _shape(self) -> tuple[int, int, int, int]:
        p = self.preset
        hosts, each = p.count("hosts"), p.count("hosts_per_leaf")
        pods = -(-hosts // each)
        rails = p.nics if p.text("rails") == "yes" else 1
        return pods, rails, p.count("ports"), each

    @property
    def leaves(self) -> int:
        pods, rails, ports, _ = self._shape
        return pods * rails * ports

    @property
    def spines(self) -> int:
        """Of one plane."""
        return self.preset.count("spines")

    def leaf(self, host: Any, nic: Any, port: Any) -> Any:
        """The leaf switch that a port hangs on."""
        _, rails, ports, each = self._shape
        rail = nic % rails if rails > 1 else 0
        return ((host // each) * rails + rail) * ports + port - 1

    def plane(self, port: Any) -> Any:
        return (port - 1) % self.preset.count("planes")

    def ip(self, host: Any, nic: Any, port: Any) -> Any:
        """IPv4 address as a number; the ports of a bond share port 1's (rdmakit/emu/topology.py)."""
        named = 1 if self.preset.text("lag") != "none" else port
        return (10 << 24) + (host << 16) + (nic << 8) + named

    def _place(self, host: Any, nic: Any) -> Any:
        """Of a NIC's ports among those of its leaf."""
        _, rails, _, each = self._shape
        return host % each if rails > 1 else host % each * self.preset.nics + nic

    def spine(self, near: tuple[Any, Any], far: tuple[Any, Any], port: Any, source_port: Any) -> _Ints:
        """The spine that a flow from `near` (host, nic) to `far` crosses, DIRECT on one leaf. Not for adaptive routing,
        where each message chooses anew.
        """
        here, there = self.leaf(*near, port), self.leaf(*far, port)
        if self.preset.text("link_layer") == "ib":
            found = spine_by_place(self._place(*far), self.spines)
        else:
            found = spine_by_tuple(
                self.preset.count("hash_seed"),
                here,
                self.ip(*near, port),
                self.ip(*far, port),
                source_port,
                self.spines,
            )
        return np.where(here == there, DIRECT, found)

    def link_name(self, leaf: int, spine: int, up: bool) -> str:
        """A link as tables and drawings call it."""
        _, _, ports, _ = self._shape
        plane = self.plane(leaf % ports + 1)
        far = f"spine {spine}" if self.preset.count("planes") == 1 else f"spine {plane}.{spine}"
        return f"leaf {leaf} → {far}" if up else f"{far} → leaf {leaf}"
