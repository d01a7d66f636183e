"""Why several ports are not as much faster than one: likely causes from what was measured and read, with remedies.

Leans on bench_ports_facts and bench_ports_run. A pure function: nothing is asked, nothing is changed. Sources: `man
ip-link` (bond), MLNX_OFED's lag_port_select_mode, `man dcb-pfc`, `man numactl`, docs/doctor.md, which explains more.
"""

from __future__ import annotations

from collections.abc import Iterable

from rdmakit.cli.bench_ports_facts import CNPS, LOST, PAUSES, PortFacts
from rdmakit.cli.bench_ports_run import Cause, Run, Seen, max_over_min, ratio
from rdmakit.cli.doctor.spread import LAYER4, SPREADING

__all__ = ["ENOUGH", "causes"]

ENOUGH = 0.95  # of as many times one port as there are ports
_OWN = 0.8  # of the bytes of one port alone left by that port
_UNEVEN = 1.25  # busiest over idlest port from which bytes explain something
_SLOWER = 0.9  # of the fastest port, alone
_MUCH_SLOWER = 0.6  # likewise, where busy processors carry the packets, and rates come and go
_STARVED = 0.5  # of refills that found a queue empty
_BUSY = 0.9  # of all processors
_FEW = 1e-4  # lost of what was sent, by packets of 4 KiB: less is noise
_PACKET = 4096


def causes(run: Run, enough: float = ENOUGH) -> list[Cause]:
    """Likely ones, the surest first; none where all ports together are at least `enough` × ports × one.

    Ports that cannot have carried a share (down, broken, given twice, without a queue pair) are named in any case.
    """
    found = [*_down(run), *_failed(run), *_same_port(run), *_without_queue_pair(run)]
    if ratio(run) >= enough * len(run.ports):
        return found
    found += [*_slower(run), *_one_sided(run), *_source_port(run), *_pcie(run), *_lost(run),
              *_paused(run), *_marked(run), *_processor(run)]  # fmt: skip
    if not found:
        found.append(Cause("unknown", "nothing that these hosts count explains it", (
            "rdmakit doctor, on both hosts",
            "the switches' counters of both ports and of the links between them: a shared uplink carries both",
        )))  # fmt: skip
    return found


def _links(ports: Iterable[PortFacts]) -> str:
    return ", ".join(dict.fromkeys(port.link or port.name for port in ports))


def _down(run: Run) -> list[Cause]:
    found = []
    for port in run.ports:
        if port.up:
            continue
        ends = [(end, whose) for end, whose in ((port.near, "sender"), (port.far, "receiver")) if not end.up]
        end = ends[0][0]
        first = "; ".join(f"ip link set {end.link or 'NETDEV'} up, on the {whose}" for end, whose in ends)
        if end.layer == "InfiniBand":
            first = "ibstat; in state INIT a subnet manager is missing: opensm"
        named = " and ".join(f"{end.name} of the {whose}" for end, whose in ends)
        said = f"port {port.number} ({named}) is down: it was left out"
        found.append(Cause("port down", said, (first, "cable, module and the switch's port")))
    return found


def _failed(run: Run) -> list[Cause]:
    return [
        Cause("port does not carry", f"port {port.number} ({port.near.name} → {port.far.name}) is up, and its queue "
              f"pairs broke: {port.failed}", (
                  f"ping -I {port.near.link or 'NETDEV'} -M do -s 4000 ADDRESS of {port.far.link or port.far.name}: "
                  "VLAN, routes, cabling, MTU",
                  "rdmakit doctor under torchrun or mpirun: which pairs of ports reach each other",
              ))
        for port in run.ports
        if port.failed
    ]  # fmt: skip


def _same_port(run: Run) -> list[Cause]:
    for end in ("near", "far"):
        facts = [getattr(port, end) for port in run.ports]
        places = [one.place for one in facts]
        twice = [one for one in facts if places.count(one.place) > 1]
        if twice:
            whose = "sender" if end == "near" else "receiver"
            return [Cause("same port twice", f"{twice[0].name} of the {whose} was given more than once",
                          ("--devices mlx5_0,mlx5_1: each once", "rdmakit info lists what there is"))]  # fmt: skip
    return []


def _slower(run: Run) -> list[Cause]:
    up = [port for port in run.ports if port.up and not port.failed and port.qps]
    if len(up) < 2:
        return []
    fastest = max(up, key=lambda port: port.alone_gbs)
    found, less = [], _MUCH_SLOWER if _processor_bound(run) else _SLOWER
    for port in up:
        ends = [(end, other) for end, other in ((port.near, fastest.near), (port.far, fastest.far))
                if end.gbs and other.gbs and end.gbs < _SLOWER * other.gbs]  # fmt: skip
        if ends:
            end, other = ends[0]
            link = end.link or "NETDEV"
            said = f"port {port.number} ({end.name}) has a link of {8 * end.gbs:g} Gb/s, port {fastest.number} of " \
                   f"{8 * other.gbs:g}"  # fmt: skip
            found.append(Cause("slower link", said, (
                f"ethtool {link}: what both ends offer; the same module and speed on all ports",
                f"ethtool -s {link} speed {8000 * other.gbs:.0f} autoneg off, and the switch's port likewise",
            )))  # fmt: skip
        elif port.alone_gbs < less * fastest.alone_gbs:
            link = port.near.link or "NETDEV"
            said = (f"port {port.number} ({port.near.name} → {port.far.name}) alone carries {port.alone_gbs:.3g} GB/s, "
                    f"port {fastest.number} {fastest.alone_gbs:.3g}, and their links say the same speed")  # fmt: skip
            found.append(Cause("slower port", said, (
                f"tc qdisc show dev {link}: is it shaped? tc qdisc del dev {link} root",
                f"ethtool -S {link} | grep -E 'symbol_err|corrected|discard|pause': cable, or a limit at the switch",
                "rdmakit doctor: PCIe link, MTU",
            )))  # fmt: skip
    return found


def _without_queue_pair(run: Run) -> list[Cause]:
    up = [port for port in run.ports if port.up and not port.failed]
    without = [port for port in up if not port.qps and not port.near.hashes]  # which a hash uses, nobody has planned
    if not without:
        return []
    total = sum(port.qps for port in up)
    said = f"port {without[0].number} has no queue pair: {total} in all for {len(run.ports)} ports"
    return [Cause("no queue pair", said, ("--policy planned: as many for each port",))]


def _one_sided(run: Run) -> list[Cause]:
    up = [port for port in run.ports if port.up and not port.failed and (port.qps or port.near.hashes)]
    if len({port.near.place for port in up}) < len(up) or len(up) < 2 or any(port.sent is None for port in up):
        return []
    strayed = next((port for port in up if port.own_share is not None and port.own_share < _OWN), None)
    uneven = max_over_min(port.sent or 0 for port in up) >= _UNEVEN
    ordered = sorted(up, key=lambda port: port.sent or 0)
    busiest, idlest = ordered[-1], ordered[0]
    if strayed is None and (not uneven or _differ_alone(busiest, idlest)):
        return []  # a slow one is named already
    if uneven:
        shares = f"port {busiest.number} sent {busiest.sent} B, port {idlest.number} {idlest.sent} B"
    else:
        assert strayed is not None
        percent = 100 * (strayed.own_share or 0)
        shares = f"of what port {strayed.number} was to send alone, {percent:.0f} % left by it: one port was not one"
    return [_of_bond(busiest.near, shares) if busiest.near.lag_port else Cause(
        "one port carries both", f"{shares}, though each has as many queue pairs", (
            f"ip route get ADDRESS: {_links(port.near for port in up)} in subnets of their own, or the kernel routes "
            "both by one",
            "sysctl net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        ))]  # fmt: skip


def _of_bond(near: PortFacts, shares: str) -> Cause:
    bond = near.bond or "BOND"
    if near.select == "queue_affinity":
        return Cause("affinity not kept", f"{shares}, though each queue pair was given a port", (
            f"cat /proc/net/bonding/{bond}: is a link down?", "rdmakit doctor: lag, steering"))  # fmt: skip
    if near.mode and near.mode not in SPREADING:
        return Cause("bond uses one port", f"{shares}: {bond} is in mode {near.mode}", (
            f"ip link set {bond} down; ip link set {bond} type bond mode 802.3ad xmit_hash_policy layer3+4; "
            f"ip link set {bond} up", "the switch: one LACP group of both ports"))  # fmt: skip
    said = f"{shares}: {bond} hashes" + (f" {near.policy}" if near.policy else "")
    mend = [] if near.policy in LAYER4 else [f"ip link set {bond} type bond xmit_hash_policy layer3+4"]
    return Cause("hash", said, (
        *mend,
        f"echo queue_affinity > /sys/class/net/{near.link or 'NETDEV'}/compat/devlink/lag_port_select_mode",
        "rdmakit plan --lag hash: source ports that spread; --policy planned, more --qps",
    ))  # fmt: skip


def _differ_alone(a: Seen, b: Seen) -> bool:
    return min(a.alone_gbs, b.alone_gbs) < _SLOWER * max(a.alone_gbs, b.alone_gbs)


def _source_port(run: Run) -> list[Cause]:
    up = [port for port in run.ports if port.up and not port.failed]
    total = sum(port.qps for port in up)
    if total and total < len(run.ports):
        return [Cause("one queue pair", f"{total} queue pair for {len(run.ports)} ports: it leaves by one of them",
                      ("--qps 4: as many for each port",))]  # fmt: skip
    ports = {number for port in up for number in port.source_ports}
    roce = all(port.near.layer == "Ethernet" for port in up)
    if total > 1 and roce and len(ports) == 1:
        said = f"all {total} queue pairs have UDP source port {next(iter(ports)):#x}: whoever hashes (a bond, ECMP) " \
               "gives them one link"  # fmt: skip
        return [Cause("one source port", said, ("--policy planned", "rdmakit plan: a source port for each queue pair; "
                      "QP.connect(flow_label=…), or qp.udp_sport = …"))]  # fmt: skip
    return []


def _pcie(run: Run) -> list[Cause]:
    for end, whose in (("near", "sender"), ("far", "receiver")):
        slots: dict[str, list[PortFacts]] = {}
        for port in run.ports:
            facts: PortFacts = getattr(port, end)
            if facts.pcie and facts.pcie_gbs and facts.gbs and port.up:
                slots.setdefault(facts.pcie, []).append(facts)
        for slot, ports in slots.items():
            links = sum(each.gbs for each in ports)
            if len(ports) > 1 and ports[0].pcie_gbs < links:
                named, width = ", ".join(each.name for each in ports), f"{ports[0].pcie_said} = {ports[0].pcie_gbs:.3g}"
                said = f"the {whose}'s {named} share PCIe {slot}, {width} GB/s, for links of {links:.3g} GB/s"
                return [Cause("pcie", said, (
                    f"lspci -vv -s {slot}.0 | grep -E 'LnkCap|LnkSta': a slot with all lanes, no riser at half width",
                    "bifurcation and link speed in the firmware setup; setpci/mlxconfig do not widen a slot",
                    "a NIC for each port, in slots of their own",
                ))]  # fmt: skip
    return []


def _summed(run: Run, names: Iterable[str], end: str) -> dict[str, int]:
    """Growth of these counters at one end, over ports; of one device that counts for both ports of a bond, once."""
    total: dict[str, int] = {}
    told = set()
    for port in run.ports:
        facts: PortFacts = getattr(port, end)
        for name, value in getattr(port, f"{end}_grown").items():
            key = (facts.device, facts.number, name)
            if name in names and value and key not in told:
                total[name] = total.get(name, 0) + value
                told |= {key} if facts.lag_port else set()
    return total


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(counts.items(), key=lambda item: -item[1])[:3])


def _lost(run: Run) -> list[Cause]:
    near, far = (_summed(run, LOST, end) for end in ("near", "far"))
    sent = sum(port.sent or 0 for port in run.ports)
    if sum(near.values()) + sum(far.values()) <= _FEW * sent / _PACKET:
        return []
    said = "; ".join(f"{whose} {_named(counts)}" for whose, counts in (("sender", near), ("receiver", far)) if counts)
    link = _links(port.near for port in run.ports).split(",")[0]
    return [Cause("losses", f"packets were lost or sent twice with all ports at work: {said}", (
        f"dcb pfc set dev {link} prio-pfc 3:on, on all ports and the switches, and RoCE in that priority",
        "rdmakit doctor: flow, mtu; rdmakit ports shows which port still counts",
        f"tc -s qdisc show dev {link}: a queue that is too short",
    ))]  # fmt: skip


def _paused(run: Run) -> list[Cause]:
    near, far = (_summed(run, PAUSES, end) for end in ("near", "far"))
    found = []
    if far.get("tx_pfc"):
        said = f"the receiver told the network to wait ({far['tx_pfc']} pause frames): it takes less than ports bring"
        found.append(Cause("receiver pauses", said, (
            "rdmakit doctor, on the receiver: PCIe link, NUMA node of the memory, IOMMU",
            "numactl --cpunodebind=N --membind=N, N: cat /sys/class/infiniband/DEVICE/device/numa_node",
        )))  # fmt: skip
    elif near.get("rx_pfc"):
        said = f"the network told the sender to wait ({near['rx_pfc']} pause frames): behind the switch it is narrower"
        found.append(Cause("network pauses", said, (
            "the switches' pause and queue counters: which port pauses, and what it feeds",
            "rdmakit plan: paths over spines; UDP source ports that spread them (--policy planned)",
        )))  # fmt: skip
    return found


def _marked(run: Run) -> list[Cause]:
    near, far = (_summed(run, CNPS, end) for end in ("near", "far"))
    handled, sent = near.get("cnp_handled", 0), far.get("cnp_sent", 0)
    if not handled and not sent:
        return []
    said = f"packets were marked (ECN) and the sender slowed down: {sent} CNPs sent, {handled} handled"
    link = next((port.near.link for port in run.ports if port.near.link), "NETDEV")
    return [Cause("congestion", said, (
        "rdmakit plan: do both ports share an uplink? UDP source ports that spread over spines (--policy planned)",
        "the switches' ECN thresholds (WRED) for this link speed",
        f"cat /sys/class/net/{link}/ecn/roce_rp/enable/3, and rdmakit ports, for which port",
    ))]  # fmt: skip


def _processor_bound(run: Run) -> list[PortFacts]:
    """The ports whose packets processors carry, when these have no time left, for packets or for posting."""
    software = [facts for port in run.ports for facts in (port.near, port.far) if facts.software]
    return software if max(run.busy) >= _BUSY or run.empty >= _STARVED else []


def _processor(run: Run) -> list[Cause]:
    found = []
    software = _processor_bound(run)
    if software:
        said = f"{software[0].name} is carried by processors, and they are busy ({100 * max(run.busy):.0f} %): all " \
               "ports together carry what they can"  # fmt: skip
        found.append(Cause("processors", said, (
            "real NICs; or more processors: rdmakit lab --cpus 4",
            *(f"links slower than the processors: tc qdisc replace dev {facts.link} root tbf rate 25mbit burst 500kb "
              "limit 16mb" for facts in software[:1] if facts.link and not facts.pcie),
        )))  # fmt: skip
    if run.empty >= _STARVED:
        said = f"queue pairs ran empty before they were filled again ({100 * run.empty:.0f} % of refills): one " \
               "thread posts too slowly for all ports"  # fmt: skip
        found.append(Cause("posting", said, (
            "larger --size, --batch or --depth",
            "numactl --cpunodebind=N, N: cat /sys/class/infiniband/DEVICE/device/numa_node",
            "doorbells rung by the GPU, or a thread for each port: rdmakit doctor says whether they can be mapped",
        )))  # fmt: skip
    return found
