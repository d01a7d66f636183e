"""Names, bits and defaults of ibv_modify_qp: states, attributes, which change of state needs which.

Leans on errors, access and address_vector. Sources: `man ibv_modify_qp`, rdma-core `libibverbs/verbs.h` (enum
ibv_qp_attr_mask), InfiniBand Architecture Specification vol. 1, 10.3.1.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from rdmakit.device.access import access_flags
from rdmakit.device.address_vector import (
    ALTERNATE,
    migration_state,
    plain_address,
    plain_alternate,
    within,
)
from rdmakit.errors import BadArgument

__all__ = [
    "CONNECT_DEFAULTS",
    "ROUTE",
    "QPState",
    "attribute_mask",
    "check_connect",
    "mtu_code",
    "plain_attributes",
    "state_of",
    "transition",
]


class QPState(IntEnum):
    """enum ibv_qp_state."""

    RESET = 0
    INIT = 1
    RTR = 2
    RTS = 3
    SQD = 4
    SQE = 5
    ERR = 6


# Attribute → its bit in enum ibv_qp_attr_mask. The address vector's fields share one bit.
_BITS = {
    "cur_qp_state": 1 << 1,
    "en_sqd_async_notify": 1 << 2,
    "qp_access_flags": 1 << 3,
    "pkey_index": 1 << 4,
    "port_num": 1 << 5,
    "qkey": 1 << 6,
    "dgid": 1 << 7,
    "dlid": 1 << 7,
    "flow_label": 1 << 7,
    "sgid_index": 1 << 7,
    "hop_limit": 1 << 7,
    "traffic_class": 1 << 7,
    "sl": 1 << 7,
    "static_rate": 1 << 7,
    "src_path_bits": 1 << 7,
    "is_global": 1 << 7,
    "ah_port_num": 1 << 7,
    "path_mtu": 1 << 8,
    "timeout": 1 << 9,
    "retry_cnt": 1 << 10,
    "rnr_retry": 1 << 11,
    "rq_psn": 1 << 12,
    "max_rd_atomic": 1 << 13,
    **dict.fromkeys(ALTERNATE, 1 << 14),
    "min_rnr_timer": 1 << 15,
    "sq_psn": 1 << 16,
    "max_dest_rd_atomic": 1 << 17,
    "path_mig_state": 1 << 18,
    "dest_qp_num": 1 << 20,
    "rate_limit": 1 << 25,
}
_STATE_BIT = 1 << 0
# How wide each is in the packets and in the device; whoever stores it in less says so.
_WIDTHS = {
    "pkey_index": 16, "port_num": 8, "qkey": 32, "ah_port_num": 8, "timeout": 5, "retry_cnt": 3, "rnr_retry": 3,
    "rq_psn": 24, "max_rd_atomic": 8, "min_rnr_timer": 5, "sq_psn": 24, "max_dest_rd_atomic": 8, "dest_qp_num": 24,
    "rate_limit": 32, "en_sqd_async_notify": 1,
}  # fmt: skip
_MTU_CODES = {256: 1, 512: 2, 1024: 3, 2048: 4, 4096: 5}

# What `QP.connect` sets unless told otherwise: NVSHMEM's and perftest's usual values. rnr_retry 7 is "for
# ever".
CONNECT_DEFAULTS: dict[str, int] = {
    "pkey_index": 0,
    "min_rnr_timer": 12,
    "timeout": 14,
    "retry_cnt": 7,
    "rnr_retry": 7,
    "max_rd_atomic": 16,
    "max_dest_rd_atomic": 16,
}

# What `QP.connect` may be told of the way to the peer; and what it takes by a name of its own.
ROUTE = ("flow_label", "sgid_index", "hop_limit", "traffic_class", "sl", "static_rate", "src_path_bits")
_CONNECT = {*CONNECT_DEFAULTS, *ROUTE, "rq_psn", "sq_psn"}
_CONNECT_CALLS_IT = {"path_mtu": "mtu", "port_num": "port", "qp_access_flags": "access", "dgid": "remote",
                     "dlid": "remote", "dest_qp_num": "remote"}  # fmt: skip

_ALLOWED = {
    QPState.RESET: (QPState.INIT,),
    QPState.INIT: (QPState.INIT, QPState.RTR),
    QPState.RTR: (QPState.RTS,),
    QPState.RTS: (QPState.RTS, QPState.SQD),
    QPState.SQD: (QPState.SQD, QPState.RTS),
    QPState.SQE: (QPState.RTS,),
    QPState.ERR: (),
}


def state_of(state: str | int) -> QPState:
    """A state from its name (any case) or number. BadArgument for others.

    >>> state_of("rtr"), state_of(3)
    (<QPState.RTR: 2>, <QPState.RTS: 3>)
    """
    if isinstance(state, str) and state.upper() in QPState.__members__:
        return QPState[state.upper()]
    if isinstance(state, int) and state in QPState._value2member_map_:
        return QPState(state)
    raise BadArgument("no such QP state", value=state, rule="one of " + ", ".join(QPState.__members__),
                      remedy="pass a QPState or its name")


def transition(source: QPState, target: QPState) -> tuple[bool, str]:
    """Whether software may go from `source` to `target`, and the states that it may go to.

    >>> transition(QPState.RESET, QPState.RTS)
    (False, 'INIT, RESET')
    """
    always = (QPState.RESET,) if source is QPState.RESET else (QPState.RESET, QPState.ERR)
    possible = (*_ALLOWED[source], *always)
    return target in possible, ", ".join(state.name for state in possible)


def mtu_code(mtu: int) -> int:
    """enum ibv_mtu from bytes: 256 … 4096 give 1 … 5. BadArgument for others."""
    if mtu not in _MTU_CODES:
        raise BadArgument("no such MTU", value=mtu, rule="one of " + ", ".join(map(str, _MTU_CODES)) + " bytes",
                          remedy="take the largest that the link carries: context.port(1) shows it")
    return _MTU_CODES[mtu]


def attribute_mask(attributes: dict[str, Any]) -> int:
    """The mask for these attributes and the state. BadArgument for a name that struct ibv_qp_attr lacks.

    >>> hex(attribute_mask({"rq_psn": 0, "dest_qp_num": 7}))
    '0x101001'
    """
    mask = _STATE_BIT
    for name in attributes:
        if name not in _BITS:
            raise BadArgument("unknown QP attribute", value=name, rule="one of " + ", ".join(_BITS),
                              remedy="name it as struct ibv_qp_attr does")
        mask |= _BITS[name]
    return mask


def check_connect(attributes: dict[str, Any]) -> None:
    """BadArgument for what `QP.connect` would not hand on: unknown names, and those of another change of state.

    >>> check_connect({"path_mtu": 1024})
    Traceback (most recent call last):
    rdmakit.errors.BadArgument: connect takes path_mtu by another name (value path_mtu=1024)...
    """
    attribute_mask(attributes)
    for name in set(attributes) - _CONNECT:
        said = f"{name}={attributes[name]}"
        if name in _CONNECT_CALLS_IT:
            raise BadArgument(f"connect takes {name} by another name", value=said, rule=_CONNECT_CALLS_IT[name],
                              remedy=f"connect(remote, {_CONNECT_CALLS_IT[name]}=…)")  # fmt: skip
        raise BadArgument("connect does not set that attribute", value=said, rule=", ".join(sorted(_CONNECT)),
                          remedy="QP.modify sets every attribute, a change of state at a time")  # fmt: skip


def plain_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes as numbers and bytes: access by names, GIDs as text, MTU in bytes, states and rates by name.

    BadArgument for a number that its field cannot hold, and for half an alternate path.
    """
    plain = dict(attributes)
    for name in _WIDTHS.keys() & plain.keys():
        within(name, plain[name], _WIDTHS[name])
    plain.update(plain_address(attributes))
    plain.update(plain_alternate(attributes))
    if "path_mig_state" in plain:
        plain["path_mig_state"] = int(migration_state(plain["path_mig_state"]))
    if "qp_access_flags" in plain:
        plain["qp_access_flags"] = int(access_flags(plain["qp_access_flags"]))
    if "path_mtu" in plain and plain["path_mtu"] not in _MTU_CODES.values():
        plain["path_mtu"] = mtu_code(plain["path_mtu"])
    if "cur_qp_state" in plain:
        plain["cur_qp_state"] = int(state_of(plain["cur_qp_state"]))
    return plain
