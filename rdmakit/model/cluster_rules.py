"""Do the parameters of a preset make one cluster? Rules that tie several of them together.

Leans on errors. preset.py has those of one parameter alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdmakit.errors import BadArgument, CorruptFile

if TYPE_CHECKING:
    from rdmakit.model.preset import Preset

__all__ = ["check_cluster", "check_one_nic"]


def check_cluster(p: Preset) -> None:
    """CorruptFile names the parameters that do not fit together, and the line of the first."""

    def refuse(names: str, what: str, rule: str, remedy: str) -> None:
        first, *others = names.split()
        at = p.settings[first].where
        shown = ", ".join(f"{n} {p.settings[n].shown}" for n in (first, *others))
        raise CorruptFile(f"{at}: {what}", value=shown, rule=rule, remedy=remedy)

    ports, lag = p.count("ports"), p.text("lag")
    if ports > p.count("device_ports"):
        refuse(
            "ports device_ports",
            "more ports than the device has",
            "ports <= device_ports",
            "another device, or fewer ports",
        )
    if lag != "none" and ports < 2:
        refuse("lag ports", "a bond of one port", "a bond has at least two ports", "lag = none")
    if lag == "affinity" and ports != 2:
        refuse(
            "lag ports",
            "no queue affinity with that many ports",
            "libmlx5 knows LAG ports 1 and 2 only (rdma-core providers/mlx5/mlx5.c)",
            "lag = hash, and UDP source ports",
        )
    if lag != "none" and p.text("link_layer") == "ib":
        refuse("lag link_layer", "InfiniBand ports are not bonded", "LAG is RoCE's", "lag = none")
    if ports % p.count("planes"):
        refuse(
            "planes ports",
            "planes that not every NIC reaches alike",
            "planes divide ports",
            "as many planes as ports, or one",
        )
    mtu = p.count("mtu")
    if mtu & (mtu - 1):
        refuse("mtu", "no IB MTU", "256, 512, 1024, 2048 or 4096 B (IBTA enum ibv_mtu)", "4096 B")
    shared = 1 / p["nics_per_gpu"]
    if p["nics_per_gpu"] != int(p["nics_per_gpu"]) and (shared != int(shared) or p.count("gpus_per_host") % shared):
        refuse(
            "nics_per_gpu gpus_per_host",
            "GPUs cannot share NICs evenly",
            "a whole number, or 1/n with n dividing gpus_per_host",
            "for example 1 or 0.5",
        )
    if p.count("hosts") > p.count("hosts_per_leaf") and p.count("hosts") % p.count("hosts_per_leaf"):
        refuse("hosts_per_leaf hosts", "leaves of unequal size", "hosts_per_leaf divides hosts", "fill the last leaf")
    if p.text("routing") == "adaptive" and p.text("link_layer") == "roce" and p.text("multipath") == "no":
        refuse(
            "routing multipath",
            "adaptive routing would disorder QPs that take one path",
            "RoCE QPs see adaptive routing as out-of-order packets: multipath = yes",
            "routing = ecmp",
        )


def check_one_nic(p: Preset) -> None:
    """BadArgument for a cluster that can be described, and whose ranks could not post to all that they have."""
    if p["nics_per_gpu"] > 1:
        raise BadArgument(
            "ranks of a world post to one NIC",
            value=p.settings["nics_per_gpu"].shown,
            rule="nics_per_gpu <= 1",
            remedy="ports = 2 with lag = none is a port for each queue pair",
        )
