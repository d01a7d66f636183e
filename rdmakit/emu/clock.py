"""What things take in a world with a clock, where they are not what timing.hpp and cost.cuh say: numbers for C++.

Leans on errors. `rdmakit.model` makes one from a preset; all are of the model's base units (ps, bytes, bytes a second).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rdmakit.errors import BadArgument

__all__ = ["COSTS", "HCA_NUMBERS", "NETWORK_NUMBERS", "Clock"]

# enum cost::Kind, cuda/rdmakit/cost.cuh
COSTS = (
    "load",
    "store",
    "atomic",
    "fence_cta",
    "fence_gpu",
    "fence_sys",
    "mmio",
    "collective",
    "barrier",
    "poll",
    "copy_byte",
)
# struct HcaTiming, rdmakit/emu/hca/timing.hpp
HCA_NUMBERS = (
    "doorbell_to_fetch_ps",
    "wqe_gap_ps",
    "qp_wqe_gap_ps",
    "payload_fetch_ps",
    "wire_bytes_per_packet",
    "wire_latency_ps",
    "placement_ps",
    "completion_ps",
    "qp_bytes_per_second",
    "qp_window_bytes",
    "pcie_bytes_per_second",
    "atomic_gap_ps",
    "proxy_threads",
    "proxy_poll_ps",
    "proxy_post_ps",
    "proxy_doorbell_ps",
    "proxy_fences",
)
# struct NetworkConfig, rdmakit/emu/hca/network.hpp, but for what the topology says
NETWORK_NUMBERS = (
    "planes",
    "hosts_per_leaf",
    "spines",
    "hash_seed",
    "rails",
    "adaptive",
    "uplink_bytes_per_second",
    "hop_latency_ps",
    "pause_threshold_bytes",
)


@dataclass(frozen=True)
class Clock:
    """`hca`: by names of HCA_NUMBERS, of every HCA; what is left out is timing.hpp's. `network`: all NETWORK_NUMBERS,
    or None for one switch that is never the bottleneck. `costs`: all of COSTS in ps, or None for cost.cuh's.
    `nvlink_bytes_per_second`: of one GPU, each way; 0: copies to another GPU take what copies take. BadArgument for
    names and values that are none.
    """

    hca: Mapping[str, int] = field(default_factory=dict)
    network: Mapping[str, int] | None = None
    costs: Mapping[str, int] | None = None
    nvlink_bytes_per_second: int = 0

    def __post_init__(self) -> None:
        for what, given, known, whole in (
            ("hca", self.hca, HCA_NUMBERS, False),
            ("network", self.network, NETWORK_NUMBERS, True),
            ("costs", self.costs, COSTS, True),
        ):
            if given is None:
                continue
            wrong = set(given) - set(known)
            missing = set(known) - set(given) if whole else set()
            if wrong or missing:
                raise BadArgument(
                    f"{what} of a clock: names that do not fit",
                    value=sorted(wrong | missing),
                    rule=("all of " if whole else "of ") + ", ".join(known),
                    remedy="correct the names",
                )
            bad = {name: v for name, v in given.items() if not isinstance(v, int) or not 0 <= v < 1 << 63}
            if bad:
                raise BadArgument(
                    f"{what} of a clock: values that do not fit",
                    value=bad,
                    rule="integers of at least 0",
                    remedy="ps, bytes, bytes a second",
                )
        if not isinstance(self.nvlink_bytes_per_second, int) or self.nvlink_bytes_per_second < 0:
            raise BadArgument(
                "NVLink of a clock: a rate that does not fit",
                value=self.nvlink_bytes_per_second,
                rule="an integer of at least 0",
                remedy="bytes a second; 0 does without",
            )

    def cost_list(self) -> list[int] | None:
        """In the order of cost::Kind."""
        return None if self.costs is None else [self.costs[name] for name in COSTS]
