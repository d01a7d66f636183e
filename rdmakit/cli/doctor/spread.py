"""Checks of several ports: how a bond chooses one, whether queue pairs can be steered, how even a plan would be.

Leans on check, machine, model (the planner). Sources: Linux Documentation/networking/bonding.rst; mlx5's
lag/debugfs.c (port_sel_mode) and lag/port_sel.c (the hash is the bond's xmit_hash_policy); MLNX_OFED's
compat/devlink/lag_port_select_mode; `man mlx5dv_modify_qp_lag_port`, `man mlx5dv_modify_qp_udp_sport`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned, worst
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.ports import counted
from rdmakit.errors import BadArgument, RdmakitError
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import Nic

__all__ = ["LAYER4", "SPREADING", "Bond", "cluster_like", "lag", "plan", "read_bond", "steering"]

SPREADING = ("balance-xor", "802.3ad")  # modes in which each flow takes one of several links
LAYER4 = ("layer3+4", "encap3+4")  # policies that look at the UDP source port
_CHANNELS = 10
_MOST_PORTS = 4  # of a rank, that the planner knows
_EVEN = 1.15  # as `rdmakit plan` judges


@dataclass(frozen=True)
class Bond:
    """A bonding device under an RDMA device; `name` is "" where it cannot be seen.

    `select`: "hash", "queue_affinity", or "" where nobody tells.
    """

    name: str
    device: str
    mode: str
    policy: str
    slaves: tuple[str, ...]
    down: tuple[str, ...]
    select: str


def read_bond(machine: Machine, nic: Nic) -> Bond | None:
    """What /sys says of it; None for a device that is not bonded."""
    name = next((port.bond for port in nic.ports if port.bond), "")
    if not name:
        # mlx5_ib names a bonded device so; in a container its netdevs may be in another network namespace.
        hidden = nic.name.startswith("mlx5_bond_")
        return Bond("", nic.name, "", "", (), (), _select(machine, nic, ())) if hidden else None
    at = machine.sys / "class/net" / name / "bonding"
    slaves = tuple(sysfs.read(at / "slaves").split())
    states = {slave: sysfs.read(machine.sys / "class/net" / slave / "bonding_slave/mii_status") for slave in slaves}
    return Bond(
        name=name,
        device=nic.name,
        mode=sysfs.read(at / "mode").split(" ")[0],
        policy=sysfs.read(at / "xmit_hash_policy").split(" ")[0],
        slaves=slaves,
        down=tuple(slave for slave, state in states.items() if state and state != "up"),
        select=_select(machine, nic, slaves),
    )


def _select(machine: Machine, nic: Nic, slaves: tuple[str, ...]) -> str:
    places = [machine.sys / "class/net" / slave / "compat/devlink/lag_port_select_mode" for slave in slaves]
    places.append(machine.sys / "kernel/debug/mlx5" / nic.address / "lag/port_sel_mode")
    return next((said for said in map(sysfs.read, places) if said), "")


def _bonds(machine: Machine) -> list[Bond]:
    return [bond for bond in (read_bond(machine, nic) for nic in machine.nics) if bond is not None]


def _judge(bond: Bond) -> Answer:
    if not bond.name:
        return skipped(f"{bond.device} is bonded, and its bond is in another network namespace: look on the host")
    named = f"{bond.device} on {bond.name} ({bond.mode or '?'})"
    facts = {bond.device: {"bond": bond.name, "mode": bond.mode, "policy": bond.policy, "select": bond.select,
                           "slaves": list(bond.slaves), "down": list(bond.down)}}  # fmt: skip
    if bond.mode and bond.mode not in SPREADING:
        return warned(f"{named}: one port carries everything", f"mode 802.3ad, on the switch as well, or no bond: "
                      f"ip link set {bond.name} type bond mode 802.3ad", **facts)  # fmt: skip
    if bond.down:
        return warned(f"{named}: {', '.join(bond.down)} down, the rest carries everything",
                      f"ip link set {bond.down[0]} up; cable, module, the switch's port", **facts)  # fmt: skip
    if bond.select == "queue_affinity":
        return passed(f"{named}: each queue pair has a LAG port", **facts)
    if bond.policy and bond.policy not in LAYER4:
        return warned(f"{named} hashes {bond.policy}: all queue pairs of two hosts take one port",
                      f"ip link set {bond.name} type bond xmit_hash_policy layer3+4", **facts)  # fmt: skip
    mode = "hash" if bond.select == "hash" else "hash or queue affinity (debugfs tells root)"
    return passed(f"{named}: {mode}, UDP source ports steer", **facts)


def lag(machine: Machine) -> Answer:
    """Of each bonded device: can both ports carry at once, and what decides which?"""
    if not machine.nics:
        return skipped(machine.no_rdma())
    bonds = _bonds(machine)
    if not bonds:
        return skipped("no RDMA device is bonded")
    return worst(map(_judge, bonds))


def _mechanism(machine: Machine) -> tuple[int, str]:
    """Ports that a rank's traffic may take, and the preset's word for how they are chosen."""
    bonds = [bond for bond in _bonds(machine) if bond.mode in SPREADING or not bond.name]
    if bonds:
        return len(bonds[0].slaves) or 2, "affinity" if bonds[0].select == "queue_affinity" else "hash"
    share = len(machine.active) // max(1, len(machine.topology.gpus))
    return max(1, min(share, _MOST_PORTS)), "none"


def cluster_like(machine: Machine, *, hosts: int = 2, gpus: int = 1) -> Any:
    """A preset of `hosts` such machines: link layer, ports that a GPU may use, their rate, and how a bond spreads.

    Each has `gpus` GPUs; where it has fewer NICs than GPUs, several of the latter share one. What files do not tell
    (latencies, the fabric) is that of the shipped preset of its link layer. BadArgument for a machine without an active
    port, or one that makes no cluster.
    """
    from rdmakit.model import load

    if not machine.active:
        raise BadArgument("no ports to plan for", value=machine.no_rdma() or "no active port", rule="an RDMA device "
                          "with an active port", remedy="rdmakit doctor says what is amiss; --preset plans for a "
                          "described cluster")  # fmt: skip
    base = load("ib" if machine.active[0][1].link_layer == "InfiniBand" else "roce")
    ports, lag_mode = _mechanism(machine)
    rates = [float(port.rate.split()[0]) for _, port in machine.active if port.rate[:1].isdigit()]
    rate = {"port_rate": f"{min(rates):g} Gb/s"} if rates else {}  # of a bond the kernel tells one port's
    nics_per_gpu = min(1.0, len({nic.name for nic, _ in machine.active}) / gpus)
    return base.changed(
        hosts=hosts, hosts_per_leaf=hosts, gpus_per_host=gpus, nics_per_gpu=nics_per_gpu, ports=ports,
        device_ports=max(ports, base.count("device_ports")), lag=lag_mode, **rate,
    )  # fmt: skip


def plan(machine: Machine) -> Answer:
    """The planner's answer for this many ports, chosen as this device can: how even would queue pairs be?"""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    stuck = worst([passed(""), *map(_judge, _bonds(machine))])
    if stuck.verdict == "WARN":
        return warned("none can be carried out as the bond is now (lag, above)", stuck.remedy)
    ports, lag_mode = _mechanism(machine)
    if ports < 2:
        return skipped("one active port a GPU: nothing to spread")
    from rdmakit.model.plan import make_plan, mechanism_of

    try:
        preset = cluster_like(machine)
        planned, alone = (make_plan(preset, channels=_CHANNELS, policy=policy) for policy in ("planned", "hash"))
    except RdmakitError as error:
        return failed(f"no plan for {ports} ports ({lag_mode}): {error.what}", error.remedy or "")
    how = {"lag_port": "by LAG port", "udp_source_port": "by UDP source port", "port_num": "by port number"}
    mechanism = mechanism_of(preset)
    figures = {"ports": ports, "mechanism": mechanism, "max_over_min": planned.port_max_over_min}
    even = f"busiest / idlest {planned.port_max_over_min:.2f}"
    said = f"{_CHANNELS} queue pairs a peer on {counted(ports, 'port')} {how[mechanism]}: {even}"
    findings = planned.audit(_EVEN)
    if findings:
        even_count = -(-_CHANNELS // ports) * ports
        divide = f"{even_count} queue pairs a peer divide evenly" if _CHANNELS % ports else findings[0]
        return warned(said, divide, **figures)
    left = f"{alone.port_max_over_min:.2f}" if alone.port_max_over_min != float("inf") else "one port idle"
    return passed(f"{said}; unplanned {left} (modelled)", **figures)


def _steer(context: Any, port: int) -> Answer:
    """On a connected queue pair: is a LAG port accepted, is a UDP source port?"""
    from rdmakit.cli.doctor.doorbell import why
    from rdmakit.device import connected_pair

    near, _far = connected_pair(context, context, port=port, cq_entries=16)
    refused: dict[str, str] = {}
    for name, value in (("lag_port", 1), ("udp_sport", 0xC123)):
        try:
            setattr(near, name, value)
        except RdmakitError as error:
            refused[name] = why(error)
    accepted = [name for name in ("lag_port", "udp_sport") if name not in refused]
    facts = {"accepted": accepted, "refused": refused}
    device = context.device.name
    if accepted:
        words = {"lag_port": "LAG ports", "udp_sport": "UDP source ports"}
        return passed(f"{device} accepts {' and '.join(words[name] for name in accepted)}", **facts)
    return passed(f"{device} takes flow labels only: the source port is made of them when connecting", **facts)


def steering(machine: Machine) -> Answer:
    """A queue pair is connected and asked to take a LAG port and a UDP source port."""
    from rdmakit.cli.doctor.doorbell import why

    roce = [(nic, port) for nic, port in machine.active if port.link_layer == "Ethernet"]
    if not roce:
        return skipped(machine.no_rdma() or "no active RoCE port")
    nic, port = roce[0]
    try:
        with machine.ask.open(nic.name) as context:
            return _steer(context, port.number)
    except RdmakitError as error:
        return failed(f"{nic.name}: {why(error)}", error.remedy or "")
