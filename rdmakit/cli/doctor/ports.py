"""Checks of devices and ports by their files: what there is, link states, rates, GIDs, MTU, PCIe links.

Leans on check, machine, verbs. Sources: Linux Documentation/ABI/stable/sysfs-class-infiniband, include/rdma/ib_addr.h
(iboe_get_mtu), Documentation/ABI/testing/sysfs-bus-pci.
"""

from __future__ import annotations

import re
from collections import Counter

from rdmakit.cli.doctor.check import Answer, failed, passed, skipped, warned, worst
from rdmakit.cli.doctor.machine import Machine
from rdmakit.verbs import sysfs
from rdmakit.verbs.topology import Nic, NicPort

__all__ = ["devices", "gids", "mtu", "netdev_of", "pcie", "port_name", "port_state"]

_ROCE_HEADERS = 96  # GRH 40, UDP 8, BTH 12, XRC 4, atomic 28, ICRC 4: what the kernel takes from a netdev's MTU
_IB_MTUS = (4096, 2048, 1024, 512, 256)


def port_name(nic: Nic, port: NicPort) -> str:
    """mlx5_0/1 and so on."""
    return f"{nic.name}/{port.number}"


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "port"), counted(2, "port")
    ('1 port', '2 ports')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def _kind(machine: Machine, nic: Nic) -> str:
    if machine.emulated:
        return "emulated"
    return "no driver" if nic.address else "software"


def devices(machine: Machine) -> Answer:
    """Every ConnectX of the PCI bus is an RDMA device, and which others there are."""
    held = {nic.address for nic in machine.nics}
    lost = [address for address in machine.mellanox if address not in held]
    if not machine.nics:
        if lost:
            return failed(
                f"ConnectX at {', '.join(lost)}, and no RDMA device", "modprobe mlx5_ib; dmesg | grep mlx5", lost=lost
            )
        if "rdma" in machine.needed:
            return failed("no RDMA device", "plug one in, or pass it into this container or virtual machine")
        return skipped("no RDMA device: rdmakit connectx -- rdmakit doctor shows emulated ones")
    kinds = Counter(nic.driver or _kind(machine, nic) for nic in machine.nics)
    named = ", ".join(nic.name for nic in machine.nics) if len(machine.nics) <= 4 else f"{len(machine.nics)} devices"
    virtual = [nic.name for nic in machine.nics if nic.virtual_of]
    said = f"{named} ({', '.join(kinds)})" + (f", virtual functions: {', '.join(virtual)}" if virtual else "")
    facts = {"devices": [nic.name for nic in machine.nics], "virtual": virtual, "lost": lost}
    bonded = any(port.bond for nic in machine.nics for port in nic.ports)
    if lost and not bonded:  # a bond makes one RDMA device of several functions
        return warned(
            f"{said}; ConnectX without an RDMA device at {', '.join(lost)}",
            "devlink dev param set pci/ADDRESS name enable_roce value true cmode driverinit, then devlink dev reload",
            **facts,
        )
    return passed(said, **facts)


def netdev_of(port: NicPort) -> str:
    """Its network device as a command names it."""
    return port.netdev or "NETDEV"


def _down_remedy(nic: Nic, port: NicPort) -> str:
    if nic.virtual_of:
        return f"on the host: ip link set PF vf N state enable (PF: the netdev of {nic.virtual_of})"
    if port.link_layer == "InfiniBand":
        return "cable, module and the switch's port; in state INIT a subnet manager is missing (opensm)"
    return f"ip link set {netdev_of(port)} up; cable, module and the switch's port"


def port_state(machine: Machine) -> Answer:
    """At least one port is ACTIVE; those that are not, and those that are slower than the fastest."""
    if not machine.nics:
        return skipped(machine.no_rdma())
    if not machine.ports:
        return failed("the devices show no port", "pass all of /sys/class/infiniband to the container")
    up, all_ports = machine.active, machine.ports
    down = [(nic, port) for nic, port in all_ports if port.state != "ACTIVE"]
    facts = {"active": [port_name(*each) for each in up], "down": [port_name(*each) for each in down]}
    if not up:
        states = ", ".join(f"{port_name(nic, port)} {port.state or '?'}" for nic, port in down[:4])
        return failed(f"no port is ACTIVE ({states})", _down_remedy(*down[0]), **facts)
    rates = Counter(port.rate for _, port in up)
    said = f"{len(up)} ACTIVE, {' and '.join(rate.split(' (')[0] for rate in rates)}"
    if down:
        names = ", ".join(port_name(*each) for each in down[:4]) + (" …" if len(down) > 4 else "")
        return warned(f"{said}; not: {names}", _down_remedy(*down[0]), **facts)
    if len(rates) > 1:
        return warned(f"{said}: ports of unequal rate", "traffic that is spread evenly ends with the slowest: the same "
                      "rate on both ends of every link", **facts)  # fmt: skip
    return passed(said, **facts)


def _gid(machine: Machine, nic: Nic, port: NicPort) -> Answer:
    name, table = port_name(nic, port), sysfs.gid_table(nic.name, port.number, machine.sys)
    chosen = sysfs.choose_gid(table, port.link_layer == "Ethernet")
    if chosen is None:
        kinds = ", ".join(sorted({entry.kind for entry in table if entry.kind})) or "none that can be read"
        return failed(
            f"{name} has no RoCE v2 GID ({kinds})" if port.link_layer == "Ethernet" else f"{name} has no GID",
            f"ip addr add ADDRESS/24 dev {netdev_of(port)}; in a container run in the netdev's own network namespace",
            **{name: None},
        )
    facts = {name: {"index": chosen.index, "gid": chosen.gid, "kind": chosen.kind}}
    if chosen.link_local and port.link_layer == "Ethernet":
        return warned(
            f"{name} has a link-local GID only: no router passes it on",
            f"ip addr add ADDRESS/24 dev {netdev_of(port)}",
            **facts,
        )
    return passed(f"{name} GID {chosen.index} = {chosen.gid}", **facts)


def gids(machine: Machine) -> Answer:
    """Each active port has a GID that rdmakit would choose: RoCE v2, routable, IPv4 before IPv6."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    found = worst(_gid(machine, nic, port) for nic, port in machine.active)
    if found.verdict == "PASS" and len(machine.active) > 2:
        return passed(f"all {len(machine.active)} active ports have one", **found.facts)
    return found


def roce_mtu(netdev_mtu: int) -> int:
    """The RDMA MTU that the kernel gives a RoCE port for its netdev's; 0 when not even 256 fits.

    >>> roce_mtu(1500), roce_mtu(4192), roce_mtu(9000)
    (1024, 4096, 4096)
    """
    return next((mtu for mtu in _IB_MTUS if netdev_mtu - _ROCE_HEADERS >= mtu), 0)


def _mtu(machine: Machine, nic: Nic, port: NicPort) -> int:
    """Bytes, 0 when nobody says: the device where it can be asked, else the netdev."""
    if machine.asked is not None:
        from rdmakit.device.provider import Refused
        from rdmakit.errors import RdmakitError

        try:
            code = int(machine.ask.raw(nic.name).query_port(port.number)["active_mtu"])
            return 128 << code
        except (RdmakitError, Refused):
            pass
    return roce_mtu(sysfs.read_int(machine.sys / "class/net" / port.netdev / "mtu", 0)) if port.netdev else 0


def mtu(machine: Machine) -> Answer:
    """4096 bytes on every active port, and the same on all."""
    if not machine.active:
        return skipped(machine.no_rdma() or "no active port")
    found = {port_name(nic, port): _mtu(machine, nic, port) for nic, port in machine.active}
    netdevs = {port_name(nic, port): netdev_of(port) for nic, port in machine.active}
    known = {name: mtu for name, mtu in found.items() if mtu}
    if not known:
        return skipped("no device tells its MTU, and no netdev shows one")
    small = {name: mtu for name, mtu in known.items() if mtu < _IB_MTUS[0]}
    if small:
        name, least = min(small.items(), key=lambda item: item[1])
        return warned(
            f"{least} B on {name}" + (f" and {len(small) - 1} more" if len(small) > 1 else "")
            + f": {_IB_MTUS[0] // least} times the packets of 4096 B",
            f"ip link set {netdevs[name]} mtu 4200, or 9000; on the switches and all hosts as well",
            **found,
        )  # fmt: skip
    return passed(f"{_IB_MTUS[0]} B on {counted(len(known), 'port')}", **found)


def _link(text: str) -> float:
    found = re.match(r"([\d.]+)", text)
    return float(found.group(1)) if found else 0.0


def pcie(machine: Machine) -> Answer:
    """Each NIC's PCIe link has the width and speed that the NIC could have."""
    slow, seen = [], {}
    for nic in machine.nics:
        at = machine.sys / "bus/pci/devices" / nic.address
        width, most = sysfs.read_int(at / "current_link_width", 0), sysfs.read_int(at / "max_link_width", 0)
        speed, fastest = (_link(sysfs.read(at / f"{which}_link_speed")) for which in ("current", "max"))
        if not nic.address or not all((width, most, speed, fastest)):
            continue
        seen[nic.name] = {"width": width, "gigatransfers": speed}
        if width < most or speed < fastest:
            slow.append(f"{nic.name} x{width} at {speed:g} GT/s of x{most} at {fastest:g}")
    if not seen:
        return skipped(machine.no_rdma() or "no NIC shows its PCIe link (virtual functions do not)")
    if slow:
        return warned("; ".join(slow[:2]) + (f"; {len(slow) - 2} more" if len(slow) > 2 else ""),
                      "another slot, or seat the card anew; look at the slot's bifurcation in the firmware setup",
                      **seen)  # fmt: skip
    return passed(f"full width and speed on {counted(len(seen), 'NIC')}", **seen)
