"""Every parameter that a preset may set: its unit, its bounds, what it means, and which part of the model reads it.

Leans on units. A preset says a value, a source and a mark for each (preset.py); nothing here has a value of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CLUSTER", "FABRIC", "GPU", "GROUPS", "NIC", "PARAMETERS", "PROXY", "Parameter"]


@dataclass(frozen=True)
class Parameter:
    """`unit` is the one that values are shown in; any unit of its dimension may be written. `least` and `most` are in
    `unit`. `choices` instead of a unit: one of these words.
    """

    name: str
    meaning: str
    unit: str = ""
    least: float = 0
    most: float = float("inf")
    choices: tuple[str, ...] = ()
    whole: bool = False

    @property
    def rule(self) -> str:
        """What a value has to be, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        kind = "a whole number" if self.whole else "a number"
        if self.most == float("inf"):
            return f"{kind} of at least {self.least:g} {self.unit}"
        return f"{kind} from {self.least:g} to {self.most:g} {self.unit}"


def _count(name: str, least: int, most: int, meaning: str) -> Parameter:
    return Parameter(name, meaning, "count", least, most, whole=True)


def _choice(name: str, choices: tuple[str, ...], meaning: str) -> Parameter:
    return Parameter(name, meaning, choices=choices)


def _time(name: str, meaning: str, unit: str = "ns", most: float = 1e6) -> Parameter:
    return Parameter(name, meaning, unit, 0, most)


_SLOWEST = 0.001  # of a rate: zero would divide, and a link of zero never sends


CLUSTER = (
    _count("hosts", 1, 250, "hosts of the cluster"),
    _count("gpus_per_host", 1, 8, "GPUs, hence ranks, of a host"),
    Parameter("nics_per_gpu", "NICs of a host over its GPUs; 0.5 is one NIC for two GPUs", "count", 0.125, 8),
    _count("device_ports", 1, 4, "physical ports that this NIC has"),
    _count("ports", 1, 4, "of them: ports with a cable"),
    _choice("lag", ("none", "hash", "affinity"), "ports bonded by the UDP source port, by queue, or not"),
    _choice("link_layer", ("roce", "ib"), "RoCE v2 over Ethernet, or InfiniBand"),
    Parameter("mtu", "payload of a packet at most", "B", 256, 4096),
    Parameter("port_rate", "line rate of one port", "Gb/s", _SLOWEST, 3200),
)
FABRIC = (
    _count("planes", 1, 4, "networks that share nothing; port p of each NIC is in plane p modulo this"),
    _count("hosts_per_leaf", 1, 250, "hosts on one leaf switch (of each rail, if rails)"),
    _choice("rails", ("yes", "no"), "yes: NICs with one number on different hosts share a leaf, others do not"),
    _count("spines", 1, 64, "spine switches of a plane, one uplink of each leaf to each"),
    Parameter("uplink_rate", "line rate of a link between leaf and spine", "Gb/s", _SLOWEST, 3200),
    _time("hop_latency", "one switch, cut through, and its cable"),
    _time("nic_latency", "serdes, MAC and transport of both NICs together"),
    _choice(
        "routing",
        ("ecmp", "adaptive"),
        "a leaf's choice of spine: fixed for a flow (RoCE: hash of the 5-tuple; "
        "InfiniBand: its destination), or the idlest for each message",
    ),
    _count("hash_seed", 0, (1 << 31) - 1, "of the switches' hash functions"),
    Parameter("packet_gap", "preamble and gap of a packet, in no counter", "B", 0, 64),
    Parameter("pfc_threshold", "bytes that wait for one egress before senders are paused", "KiB", 0.001, 1 << 20),
)
NIC = (
    _time("doorbell_to_fetch", "from the doorbell's arrival to the first WQE decoded"),
    Parameter("wqe_rate", "WQEs of all QPs that the NIC takes up", "M/s", _SLOWEST, 10_000),
    Parameter("qp_wqe_rate", "WQEs of one QP", "M/s", _SLOWEST, 10_000),
    Parameter("qp_rate", "bytes of one QP that its engine moves", "Gb/s", _SLOWEST, 10_000),
    Parameter("qp_window", "bytes of one QP that may wait for their acknowledgement", "KiB", 1, 1 << 20),
    _time("payload_fetch", "the first bytes of a payload over PCIe, from GPU memory"),
    Parameter("pcie_rate", "PCIe between NIC and GPU, each direction, payload", "GB/s", _SLOWEST, 1000),
    _time("placement", "from a packet's last byte to its payload visible in memory"),
    _time("completion", "from the acknowledgement's arrival to the CQE visible"),
    _time("atomic_gap", "between two atomics that a NIC executes as responder"),
    _choice("multipath", ("no", "yes"), "QPs spray packets over paths: an atomic then waits for all before it"),
)
PROXY = (
    _count("proxy_threads", 1, 64, "threads of the CPU that post for one GPU"),
    _time("proxy_poll", "from the GPU's request to the thread that has read it: PCIe write and polling loop"),
    _time("proxy_post", "of the thread, for each WQE: read the request, write the WQE"),
    _time("proxy_doorbell", "of the thread, for each time it rings"),
    _choice(
        "proxy_fence",
        ("thread", "gpu"),
        "who waits for a fence: the GPU's warp alone, or the thread, which posts no payload there meanwhile",
    ),
)
GPU = (
    _time("gpu_load", "an ordered load that hits L2"),
    _time("gpu_store", "a posted store"),
    _time("gpu_atomic", "an atomic with its round trip to L2"),
    _time("fence_cta", "fence of CTA scope"),
    _time("fence_gpu", "fence of GPU scope"),
    _time("fence_sys", "fence of system scope"),
    _time("gpu_mmio", "a posted write to a register of the NIC"),
    _time("gpu_collective", "a shuffle or vote"),
    _time("gpu_barrier", "__syncthreads"),
    _time("gpu_poll", "from a write to the spinning warp that notices it"),
    Parameter("warp_copy_rate", "what one warp copies", "GB/s", _SLOWEST, 1000),
    Parameter("nvlink_rate", "NVLink of one GPU, each direction, payload", "GB/s", _SLOWEST, 2000),
    _time("kernel_launch", "once an operation: launch, synchronisation of the grid, and what the model leaves out"),
)
GROUPS = {"cluster": CLUSTER, "fabric": FABRIC, "nic": NIC, "proxy": PROXY, "gpu": GPU}
PARAMETERS: dict[str, Parameter] = {p.name: p for group in GROUPS.values() for p in group}
