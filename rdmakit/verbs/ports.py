"""An opened device's ports as the public objects describe them: number, GID, MTU, link, speed.

Leans on _verbs and sysfs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rdmakit.device.endpoint import gid_text
from rdmakit.device.provider import PortInfo
from rdmakit.errors import BadArgument
from rdmakit.verbs import sysfs

if TYPE_CHECKING:
    from rdmakit.verbs._verbs import Context

__all__ = ["PORT_ACTIVE", "describe_port", "flow_label_for", "flow_label_sport", "link_bytes_per_second"]

PORT_ACTIVE = 4  # IBV_PORT_ACTIVE
_ETHERNET = 2  # IBV_LINK_LAYER_ETHERNET

# Gb/s of a lane, by active_speed (IBTA: SDR, DDR, QDR, FDR10, FDR, EDR, HDR, NDR); lanes, by active_width.
_LANE = {1: 2.5, 2: 5.0, 4: 10.0, 8: 10.0, 16: 14.0625, 32: 25.0, 64: 50.0, 128: 100.0}
_LANES = {1: 1, 2: 4, 4: 8, 8: 12, 16: 2}


def link_bytes_per_second(width: int, speed: int) -> int:
    """Signalling rate of a link from ibv_port_attr's codes; 0 for codes that are not known.

    >>> link_bytes_per_second(2, 64) * 8
    200000000000
    """
    return int(_LANE.get(speed, 0) * _LANES.get(width, 0) * 1e9 / 8)


def flow_label_sport(flow_label: int, qpn: int, peer_qpn: int) -> int:
    """UDP source port that the kernel gives a RoCE v2 queue pair (rdma_get_udp_sport, include/rdma/ib_verbs.h).

    `flow_label` 0 stands for one that is made of both QP numbers.

    >>> hex(flow_label_sport(1, 7, 9)), hex(flow_label_sport(0xFFFFF, 7, 9))
    ('0xc001', '0xffc0')
    """
    label = flow_label
    if not label:
        product = qpn * peer_qpn
        product ^= product >> 20
        product ^= product >> 40
        label = product & 0xFFFFF
    return (label & 0x3FFF) ^ ((label & 0xFC000) >> 14) | 0xC000


def flow_label_for(sport: int) -> int:
    """A flow label, not 0, that gives this UDP source port. BadArgument for one that no label gives.

    >>> [hex(flow_label_sport(flow_label_for(port), 7, 9)) for port in (0xC000, 0xC123, 0xFFFF)]
    ['0xc000', '0xc123', '0xffff']
    """
    if not 0xC000 <= sport <= 0xFFFF:
        raise BadArgument(
            "no flow label gives this UDP source port", value=hex(sport), rule="RoCE v2 uses 0xC000 … 0xFFFF",
            remedy="take one of the dynamic range",
        )  # fmt: skip
    return (sport & 0x3FFF) or 1 << 14 | 1  # 0 would leave it to the kernel


def describe_port(context: Context, number: int, root: Path, gid_index: int | None) -> tuple[PortInfo, int]:
    """A port, and the index of the GID that its queue pairs use: `gid_index`, or what `choose_gid` says.

    BadArgument when `gid_index` names an entry that is not set.
    """
    attributes = context.query_port(number)
    ethernet = attributes["link_layer"] == _ETHERNET
    table = sysfs.gid_table(context.name, number, root)
    if gid_index is not None:
        raw = context.query_gid(number, gid_index)
        if raw is None or not any(raw):
            known = ", ".join(f"{entry.index}: {entry.gid} ({entry.kind})" for entry in table)
            raise BadArgument(
                "no such GID",
                value=gid_index,
                rule=f"port {number} of {context.name} has {known or 'none'}",
                remedy="leave gid_index out, and the best is chosen",
            )
        gid, index = gid_text(raw), gid_index
    else:
        chosen = sysfs.choose_gid(table, ethernet)
        raw = None if chosen or ethernet else context.query_gid(number, 0)
        gid, index = (chosen.gid, chosen.index) if chosen else (gid_text(raw) if raw else "::", 0)
    info = PortInfo(
        number=number,
        ib_port=number,
        gid=gid,
        lid=int(attributes["lid"]),
        mtu=128 << int(attributes["active_mtu"]),
        link_layer="Ethernet" if ethernet else "InfiniBand",
        bytes_per_second=link_bytes_per_second(int(attributes["active_width"]), int(attributes["active_speed"])),
    )
    return info, index
