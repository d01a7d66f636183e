"""The way to a peer as a queue pair holds it: the fields of struct ibv_ah_attr, static rates, path migration.

Leans on errors and endpoint. Sources: rdma-core `libibverbs/verbs.h` (ibv_ah_attr, enum ibv_rate, enum ibv_mig_state),
`man ibv_modify_qp`, InfiniBand Architecture Specification vol. 1, 17.2.8 (automatic path migration).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np

from rdmakit.device.endpoint import gid_bytes
from rdmakit.errors import BadArgument

__all__ = ["ADDRESS_WIDTHS", "ALTERNATE", "MigrationState", "StaticRate", "migration_state", "plain_address",
           "plain_alternate", "static_rate", "within"]  # fmt: skip

# Bits of each number of an address vector; of a queue pair's own one port_num is called ah_port_num.
ADDRESS_WIDTHS = {
    "dlid": 16, "flow_label": 20, "sgid_index": 8, "hop_limit": 8, "traffic_class": 8, "sl": 4, "src_path_bits": 7,
    "is_global": 1,
}  # fmt: skip
_ALTERNATE_WIDTHS = {"alt_pkey_index": 16, "alt_port_num": 8, "alt_timeout": 5}
ALTERNATE = ("alt_ah_attr", *_ALTERNATE_WIDTHS)  # one bit of the mask brings all of them
_OF_ALTERNATE = ("dgid", *ADDRESS_WIDTHS, "static_rate", "port_num")


class StaticRate(IntEnum):
    """enum ibv_rate, by its names without IBV_: what a queue pair sends at most, in Gb/s. Its numbers are no speeds."""

    RATE_MAX = 0
    RATE_2_5_GBPS = 2
    RATE_10_GBPS = 3
    RATE_30_GBPS = 4
    RATE_5_GBPS = 5
    RATE_20_GBPS = 6
    RATE_40_GBPS = 7
    RATE_60_GBPS = 8
    RATE_80_GBPS = 9
    RATE_120_GBPS = 10
    RATE_14_GBPS = 11
    RATE_56_GBPS = 12
    RATE_112_GBPS = 13
    RATE_168_GBPS = 14
    RATE_25_GBPS = 15
    RATE_100_GBPS = 16
    RATE_200_GBPS = 17
    RATE_300_GBPS = 18
    RATE_28_GBPS = 19
    RATE_50_GBPS = 20
    RATE_400_GBPS = 21
    RATE_600_GBPS = 22
    RATE_800_GBPS = 23
    RATE_1200_GBPS = 24


class MigrationState(IntEnum):
    """enum ibv_mig_state. Software asks for MIGRATED or REARM; a device that both ends have told REARM says ARMED."""

    MIGRATED = 0
    REARM = 1
    ARMED = 2


def within(name: str, value: Any, bits: int) -> None:
    """BadArgument for what a field of so many bits cannot hold."""
    if not isinstance(value, (int, np.integer)) or not 0 <= value < 1 << bits:
        raise BadArgument("not a value of that QP attribute", value=f"{name}={value!r}", rule=f"{bits} bits",
                          remedy=f"a number of 0 … {(1 << bits) - 1}")  # fmt: skip


def static_rate(value: str | int, name: str = "static_rate") -> StaticRate:
    """A rate from its name ("100_GBPS", "IBV_RATE_100_GBPS", any case) or from its number. BadArgument for others.

    >>> static_rate("100_gbps"), static_rate(0)
    (<StaticRate.RATE_100_GBPS: 16>, <StaticRate.RATE_MAX: 0>)
    """
    if isinstance(value, str):
        key = "RATE_" + value.strip().upper().removeprefix("IBV_").removeprefix("RATE_")
        if key in StaticRate.__members__:
            return StaticRate[key]
    elif isinstance(value, (int, np.integer)) and int(value) in StaticRate._value2member_map_:
        return StaticRate(int(value))
    raise BadArgument("no such static rate", value=f"{name}={value!r}",
                      rule="enum ibv_rate: " + ", ".join(f"{rate.name[5:]} ({rate:d})" for rate in StaticRate),
                      remedy="a name; its numbers are no speeds: 16 is 100 Gb/s")  # fmt: skip


def migration_state(value: str | int) -> MigrationState:
    """A state from its name (any case) or number. BadArgument for others.

    >>> migration_state("rearm")
    <MigrationState.REARM: 1>
    """
    if isinstance(value, str) and value.upper().removeprefix("IBV_MIG_") in MigrationState.__members__:
        return MigrationState[value.upper().removeprefix("IBV_MIG_")]
    if isinstance(value, (int, np.integer)) and int(value) in MigrationState._value2member_map_:
        return MigrationState(int(value))
    raise BadArgument("not a value of that QP attribute", value=f"path_mig_state={value!r}",
                      rule="enum ibv_mig_state: " + ", ".join(f"{one.name} ({one:d})" for one in MigrationState),
                      remedy="a MigrationState, its name or number")  # fmt: skip


def plain_address(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Those of `values` that an address vector has, as numbers and 16 bytes; `prefix` is for messages."""
    plain: dict[str, Any] = {}
    for name in ADDRESS_WIDTHS.keys() & values.keys():
        within(prefix + name, values[name], ADDRESS_WIDTHS[name])
        plain[name] = int(values[name])
    if "static_rate" in values:
        plain["static_rate"] = int(static_rate(values["static_rate"], f"{prefix}static_rate"))
    if "dgid" in values:
        gid = values["dgid"]
        plain["dgid"] = gid_bytes(gid) if isinstance(gid, str) else bytes(gid)
        if len(plain["dgid"]) != 16:
            raise BadArgument("not a GID", value=f"{prefix}dgid={gid!r}", rule="16 bytes",
                              remedy="IPv6 notation, as text")  # fmt: skip
    return plain


def plain_alternate(values: Mapping[str, Any]) -> dict[str, Any]:
    """The alternate path among a queue pair's attributes, as numbers and bytes; {} if there is none.

    `alt_ah_attr` is a dict with the names of struct ibv_ah_attr; its `port_num` is `alt_port_num` unless it says so
    itself. BadArgument for half a path: the four attributes have one bit in the mask, and what is not named would be 0.

    >>> plain_alternate({"alt_timeout": 14})
    Traceback (most recent call last):
    rdmakit.errors.BadArgument: an alternate path is named as a whole (value alt_timeout)...
    """
    given = [name for name in ALTERNATE if name in values]
    if not given:
        return {}
    if len(given) < len(ALTERNATE):
        lacks = ", ".join(name for name in ALTERNATE if name not in given)
        raise BadArgument("an alternate path is named as a whole", value=", ".join(given),
                          rule=f"IBV_QP_ALT_PATH sets {', '.join(ALTERNATE)}", remedy=f"name {lacks}, too")  # fmt: skip
    plain: dict[str, Any] = {}
    for name, bits in _ALTERNATE_WIDTHS.items():
        within(name, values[name], bits)
        plain[name] = int(values[name])
    address = values["alt_ah_attr"]
    if not isinstance(address, Mapping):
        raise BadArgument("not an address vector", value=f"alt_ah_attr={address!r}", rule="a dict",
                          remedy="{'dlid': 7, 'sl': 0}, with the names of struct ibv_ah_attr")  # fmt: skip
    for name in address:
        if name not in _OF_ALTERNATE:
            raise BadArgument("unknown field of an address vector", value=f"alt_ah_attr.{name}",
                              rule="one of " + ", ".join(_OF_ALTERNATE),
                              remedy="name it as struct ibv_ah_attr does")  # fmt: skip
    if not {"dgid", "dlid"} & set(address):
        raise BadArgument("an alternate path that leads nowhere", value=f"alt_ah_attr={dict(address)}",
                          rule="dlid on InfiniBand, dgid across subnets",
                          remedy="name the peer's other port")  # fmt: skip
    port = address.get("port_num", plain["alt_port_num"])
    within("alt_ah_attr.port_num", port, 8)
    if port != plain["alt_port_num"]:
        raise BadArgument("an alternate path by two ports", value=f"alt_ah_attr.port_num={port}",
                          rule=f"alt_port_num is {plain['alt_port_num']}", remedy="leave one of them out")  # fmt: skip
    plain["alt_ah_attr"] = {**plain_address(address, "alt_ah_attr."), "port_num": int(port)}
    return plain
