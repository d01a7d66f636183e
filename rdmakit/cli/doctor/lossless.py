"""Checks of RoCE's flow and congestion control, and of what has been lost so far, without mlnx_qos.

Leans on check, machine, ports. Sources: `man 8 dcb-pfc`, `man 8 dcb-app` (iproute2); MLNX_OFED's sysfs files ecn/roce_*
and tc/1/traffic_class; Linux Documentation/ABI/testing/configfs-rdma_cm; hw_counters as in `man rdma-statistic`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rdmakit.cli.doctor.check import Answer, passed, skipped, warned, worst
from rdmakit.cli.doctor.machine import Machine
from rdmakit.cli.doctor.ports import port_name
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import Nic, NicPort

__all__ = ["LOSSES", "Qos", "flow_control", "losses", "qos"]

LOSSES = (
    *("packet_seq_err", "out_of_sequence", "local_ack_timeout_err", "rx_icrc_encapsulated", "roce_adp_retrans"),  # mlx5
    *("rcvd_seq_err", "out_of_seq_request", "retry_exceeded_err"),  # soft-RoCE
)


@dataclass(frozen=True)
class Qos:
    """What could be read of one netdev; None where nobody says. `pfc`, `ecn`: priorities with it; `tos`: of RoCE."""

    pfc: tuple[int, ...] | None
    ecn: tuple[int, ...] | None
    tos: int | None
    dscp: dict[int, int]


def _on(words: str) -> tuple[int, ...]:
    """Priorities that `dcb pfc show` calls on.

    >>> _on("pfc-cap 8 macsec-bypass off delay 0 prio-pfc 0:off 1:off 2:off 3:on 4:off")
    (3,)
    """
    at = words.find("prio-pfc")
    return tuple(int(priority) for priority in re.findall(r"\b([0-7]):on\b", words[at:])) if at >= 0 else ()


def _ecn(machine: Machine, netdev: str) -> tuple[int, ...] | None:
    """Priorities whose sender (reaction point) heeds ECN marks, as MLNX_OFED shows it."""
    at = machine.sys / "class/net" / netdev / "ecn/roce_rp/enable"
    known = {name: sysfs.read_int(at / name) for name in sysfs.names(at)}
    return tuple(int(name) for name, value in known.items() if value == 1) if known else None


def _links(machine: Machine, netdev: str) -> list[str]:
    """The network devices that packets really leave by: those of a bond, or the one."""
    if not netdev:
        return []
    return sysfs.read(machine.sys / "class/net" / netdev / "bonding/slaves").split() or [netdev]


def _common(found: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Priorities that all links have it for; None where nobody says.

    >>> _common([(3, 4), None, (3,)]), _common([None]), _common([])
    ((3,), None, None)
    """
    known = [set(each) for each in found if each is not None]
    return tuple(sorted(set.intersection(*known))) if known else None


def qos(machine: Machine, nic: Nic, port: NicPort) -> Qos:
    """By dcb (netlink) where the machine can be asked, else by files."""
    links = _links(machine, port.netdev)
    pfc: tuple[int, ...] | None = None
    dscp: dict[int, int] = {}
    if machine.asked is not None and not machine.emulated:
        told = [machine.ask.command("dcb", "pfc", "show", "dev", link) or "" for link in links]
        pfc = _common([_on(said) if "prio-pfc" in said else None for said in told])
        if links:
            said = machine.ask.command("dcb", "-N", "app", "show", "dev", links[0], "dscp-prio")
            dscp = {int(a): int(b) for a, b in re.findall(r"\b(\d+):([0-7])\b", said or "")}
    tos = next(
        (
            value
            for value in (
                sysfs.read_int(machine.sys / "class/infiniband" / nic.name / f"tc/{port.number}/traffic_class"),
                sysfs.read_int(machine.sys / f"kernel/config/rdma_cm/{nic.name}/ports/{port.number}/default_roce_tos"),
            )
            if value >= 0
        ),
        None,
    )
    return Qos(pfc, _common([_ecn(machine, link) for link in links]), tos, dscp)


def _of_port(machine: Machine, nic: Nic, port: NicPort) -> Answer:
    name, found = port_name(nic, port), qos(machine, nic, port)
    facts = {name: {"pfc": found.pfc, "ecn": found.ecn, "tos": found.tos}}
    if found.pfc is None and found.ecn is None:
        return skipped(
            "neither dcb nor files tell: on the host, dcb pfc show dev NETDEV or mlnx_qos -i NETDEV", **facts
        )
    if not found.pfc and not found.ecn:
        unknown = "ECN" if found.ecn is None else "PFC" if found.pfc is None else ""
        known = {"ECN": "no PFC", "PFC": "no ECN", "": "neither PFC nor ECN"}[unknown]
        link = next(iter(_links(machine, port.netdev)), "NETDEV")
        return warned(
            f"{name}: {known}{f', {unknown} cannot be seen' if unknown else ''}: packets may be dropped under load",
            f"dcb pfc set dev {link} prio-pfc 3:on, on the switch likewise, and RoCE in that priority",
            **facts,
        )  # fmt: skip
    if found.pfc and found.dscp and found.tos is not None:
        priority = found.dscp.get(found.tos >> 2, 0)
        if priority not in found.pfc:
            return warned(
                f"{name}: RoCE is sent with DSCP {found.tos >> 2}, priority {priority}; PFC is on for "
                f"{', '.join(map(str, found.pfc))}",
                f"echo TOS > /sys/class/infiniband/{nic.name}/tc/{port.number}/traffic_class; TOS is 4 × the DSCP",
                **facts,
            )
    said = [f"PFC on priority {', '.join(map(str, found.pfc))}"] if found.pfc else []
    said += [f"ECN on {', '.join(map(str, found.ecn))}"] if found.ecn else []
    return passed(f"{name}: {' and '.join(said)}", **facts)


def flow_control(machine: Machine) -> Answer:
    """PFC or ECN on each active RoCE port, and RoCE traffic in a priority that has it."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    roce = [(nic, port) for nic, port in machine.active if port.link_layer == "Ethernet"]
    if not roce:
        return passed("InfiniBand: links have credits")
    if machine.emulated:
        return skipped("emulated NICs: their fabric loses what it is told to")
    return worst(_of_port(machine, nic, port) for nic, port in roce)


def losses(machine: Machine) -> Answer:
    """What the NICs count as lost, late or repeated since they were started."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    found: dict[str, dict[str, int]] = {}
    counted = False
    for nic, port in machine.active:
        at = machine.sys / "class/infiniband" / nic.name / "ports" / str(port.number) / "hw_counters"
        values = {name: sysfs.read_int(at / name) for name in LOSSES if (at / name).exists()}
        counted = counted or bool(values)
        lost = {name: value for name, value in values.items() if value > 0}
        if lost:
            found[port_name(nic, port)] = lost
    if not counted:
        return skipped("these devices count no losses")
    if not found:
        return passed("nothing lost or sent twice since the driver started", **found)
    name, lost = max(found.items(), key=lambda item: sum(item[1].values()))
    most = ", ".join(f"{what} {value}" for what, value in sorted(lost.items(), key=lambda item: -item[1])[:2])
    others = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return warned(f"{name}{others}: {most} since the driver started", "rdmakit ports shows whether they still grow; if "
                  "so, flow control (above) or a cable", **found)  # fmt: skip
