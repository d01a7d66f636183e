"""A preset as a world that runs: the emulator's clock, its switches, queue pairs steered by a plan.

Leans on preset, plan, emu and ep. What a preset says in its own units becomes what C++ counts in.
"""

from __future__ import annotations

from typing import Any

from rdmakit.emu import World
from rdmakit.emu.clock import COSTS, Clock
from rdmakit.ep.wiring import Route, Steer
from rdmakit.errors import BadArgument
from rdmakit.model.cluster_rules import check_one_nic
from rdmakit.model.plan import Plan
from rdmakit.model.preset import Preset

__all__ = ["clock_of", "steer_by", "world_of"]

_PICOSECONDS = 1e12  # a second


def clock_of(preset: Preset, *, proxy: bool = False, fenced: bool = False) -> Clock:
    """What things take on this cluster. `proxy`: threads of the host post for the GPUs. `fenced`: a completion that is
    asked for is a fence, which they keep where `proxy_fence` says so, and not only word that memory is free.
    """
    p = preset
    per = {name: round(_PICOSECONDS / p[name]) for name in ("wqe_rate", "qp_wqe_rate", "warp_copy_rate")}
    hca = {
        "doorbell_to_fetch_ps": round(p["doorbell_to_fetch"]),
        "wqe_gap_ps": per["wqe_rate"],
        "qp_wqe_gap_ps": per["qp_wqe_rate"],
        "payload_fetch_ps": round(p["payload_fetch"]),
        "wire_bytes_per_packet": p.count("packet_gap"),
        "wire_latency_ps": round(p["nic_latency"] + p["hop_latency"]),
        "placement_ps": round(p["placement"]),
        "completion_ps": round(p["completion"]),
        "qp_bytes_per_second": round(p["qp_rate"]),
        "qp_window_bytes": round(p["qp_window"]),
        "pcie_bytes_per_second": round(p["pcie_rate"]),
        "atomic_gap_ps": round(p["atomic_gap"]),
        "proxy_threads": p.count("proxy_threads") if proxy else 0,
        "proxy_poll_ps": round(p["proxy_poll"]),
        "proxy_post_ps": round(p["proxy_post"]),
        "proxy_doorbell_ps": round(p["proxy_doorbell"]),
        "proxy_fences": int(proxy and fenced and p.text("proxy_fence") == "thread"),
    }
    network = {
        "planes": p.count("planes"),
        "hosts_per_leaf": p.count("hosts_per_leaf"),
        "spines": p.count("spines"),
        "hash_seed": p.count("hash_seed"),
        "rails": int(p.text("rails") == "yes"),
        "adaptive": int(p.text("routing") == "adaptive"),
        "uplink_bytes_per_second": round(p["uplink_rate"]),
        "hop_latency_ps": round(p["hop_latency"]),
        "pause_threshold_bytes": round(p["pfc_threshold"]),
    }
    costs = {
        name: round(p[f"gpu_{name}" if not name.startswith("fence") else name])
        for name in COSTS
        if name != "copy_byte"
    }
    costs["copy_byte"] = per["warp_copy_rate"]
    return Clock(hca, network, costs, round(p["nvlink_rate"]))


def world_of(
    preset: Preset, *, proxy: bool = False, fenced: bool = False, seed: int = 0, copy_payload: bool = False
) -> World:
    """A timed world of this cluster; `proxy` and `fenced` as for `clock_of`. Payload is counted and timed but not
    copied, unless asked for.

    >>> from rdmakit.model import load
    >>> world_of(load("ib")).topology.hosts
    4
    """
    check_one_nic(preset)
    world = World(
        hosts=preset.count("hosts"),
        gpus_per_host=preset.count("gpus_per_host"),
        nics_per_gpu=preset["nics_per_gpu"],
        ports=preset.count("ports"),
        lag=preset.text("lag"),
        policy="timed",
        seed=seed,
        roce=preset.text("link_layer") == "roce",
        mtu=preset.count("mtu"),
        port_gbps=preset["port_rate"] * 8 / 1e9,
        faults="adaptive_routing" if preset.text("multipath") == "yes" else "",
        clock=clock_of(preset, proxy=proxy, fenced=fenced),
        name=preset.name,
    )
    world.copy_payload = copy_payload
    return world


def steer_by(plan: Plan) -> Steer:
    """What a mesh asks for each queue pair: its row of the plan."""
    rows: dict[tuple[int, int, int], Any] = {}
    names = ("rank", "peer", "channel", "port", "source_port")
    for rank, peer, channel, port, source_port in zip(*(plan.flows[n].tolist() for n in names), strict=True):
        rows[rank, peer, channel] = Route(port, source_port)

    def steer(rank: int, peer: int, number: int) -> Route:
        route: Route | None = rows.get((rank, peer, number))
        if route is None:
            raise BadArgument(
                "the plan has no such queue pair",
                value=(rank, peer, number),
                rule=f"{plan.channels} between two ranks that the {plan.kernel} kernel joins",
                remedy="plan as many channels as the wiring has queue pairs",
            )
        return route

    return steer
