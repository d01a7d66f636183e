"""The strategies of the sequence lock as data: in which modes each is right, whether its signal is strong, its cost.

Leans on errors. The same stands in `cuda/rdmakit/lock_strategy.cuh`; a test compares the two. A *strong* signal says
that all earlier puts of that queue pair are visible, a *weak* one only the put that it is attached to.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import product

from rdmakit.errors import BadArgument

__all__ = [
    "ALL_MODES",
    "HEADER_BYTES",
    "LINE_BYTES",
    "LINE_DATA_BYTES",
    "Cost",
    "Mode",
    "Ordering",
    "Reader",
    "Strategy",
    "cost",
    "eager_lines",
    "is_right",
    "is_strong",
    "right_modes",
    "slot_message",
]

HEADER_BYTES = 32  # kLockHeaderBytes
LINE_BYTES, LINE_DATA_BYTES = 128, 120  # kLineBytes, kLineDataBytes


class Strategy(IntEnum):
    """How a sequence lock tells that a transfer is there."""

    AMO = 0  # FETCH_ADD to a tail, behind the data on its QP
    IMM = 1  # WRITE_WITH_IMM, signed off at the receiver's CQ
    EAGER = 2  # the data carries a stamp in each 128-byte line
    WRITE = 3  # an 8-byte flag WRITE behind the data on its QP
    CQE = 4  # the same flag, once the data's completion is there
    SPLIT = 5  # FETCH_ADD on another QP: wrong on purpose

    @classmethod
    def of(cls, name: str | int) -> Strategy:
        """From a name in any case, or a number. BadArgument for others.

        >>> Strategy.of("amo"), Strategy.of(5)
        (<Strategy.AMO: 0>, <Strategy.SPLIT: 5>)
        """
        if isinstance(name, str) and name.upper() in cls.__members__:
            return cls[name.upper()]
        if isinstance(name, int) and name in cls._value2member_map_:
            return cls(name)
        known = ", ".join(member.name.lower() for member in cls)
        remedy = "pass one of these names, or its number"
        raise BadArgument("no such strategy", value=name, rule=f"one of {known}", remedy=remedy)


class Ordering(IntEnum):
    """How the WRITEs of the data may reach memory."""

    STRICT = 0  # RC as IBTA has it
    RELAXED = 1  # the MR has IBV_ACCESS_RELAXED_ORDERING (man ibv_reg_mr)
    OUT_OF_ORDER = 2  # MLX5DV_QP_CREATE_OOO_DP (man mlx5dv_create_qp)


class Reader(IntEnum):
    """Who looks at the memory that the NIC writes."""

    HOST = 0
    GPU = 1


Mode = tuple[Ordering, Reader]
ALL_MODES: frozenset[Mode] = frozenset(product(Ordering, Reader))


def _modes(orderings: tuple[Ordering, ...], readers: tuple[Reader, ...] = tuple(Reader)) -> frozenset[Mode]:
    return frozenset(product(orderings, readers))


_RIGHT: dict[Strategy, frozenset[Mode]] = {
    # Relaxed WRITEs do not pass atomics; out-of-order QPs execute atomics after all messages before them.
    Strategy.AMO: ALL_MODES,
    # A completion says that all data is visible, in every mode (man ibv_reg_mr).
    Strategy.IMM: ALL_MODES,
    # Bytes of an aligned 128-byte line land in order for the host alone, and not in a relaxed MR (man
    # ibv_query_qp_data_in_order, ALIGNED_128_BYTES).
    Strategy.EAGER: _modes((Ordering.STRICT, Ordering.OUT_OF_ORDER), (Reader.HOST,)),
    Strategy.WRITE: _modes((Ordering.STRICT,)),
    # An acknowledgement may come before the data is placed; in a relaxed MR the flag then passes it.
    Strategy.CQE: _modes((Ordering.STRICT, Ordering.OUT_OF_ORDER)),
    Strategy.SPLIT: frozenset(),
}


def right_modes(strategy: Strategy, crc: bool = False) -> frozenset[Mode]:
    """The modes in which no reader ever sees a transfer that is not whole.

    With `crc` a stamp of `eager` covers a checksum of its line, and needs no promise about the line's order.

    >>> sorted(mode[0].name for mode in right_modes(Strategy.WRITE))
    ['STRICT', 'STRICT']
    >>> len(right_modes(Strategy.EAGER)), len(right_modes(Strategy.EAGER, crc=True))
    (2, 6)
    """
    return ALL_MODES if strategy is Strategy.EAGER and crc else _RIGHT[strategy]


def is_right(strategy: Strategy, ordering: Ordering, reader: Reader, crc: bool = False) -> bool:
    """Whether the strategy is right in that mode."""
    return (ordering, reader) in right_modes(strategy, crc)


def is_strong(strategy: Strategy) -> bool:
    """Whether its signal, where it is right, says that all earlier puts of that queue pair are visible."""
    return strategy not in (Strategy.EAGER, Strategy.SPLIT)


# ---- cost
@dataclass(frozen=True)
class Cost:
    """What one transfer costs its sender.

    `extra_round_trips` are those that the sender waits for. `message_bytes`: payload of all its messages, header,
    flags and stamps included. `wire_bytes`: the octets of its request packets, Ethernet header to FCS.
    """

    wqes: int
    doorbells: int
    extra_round_trips: int
    message_bytes: int
    wire_bytes: int


# Octets of a RoCE v2 packet over IPv4 beside its payload: Ethernet 14, IPv4 20, UDP 8, BTH 12, ICRC 4, FCS 4 (IBTA
# annex A17); extended headers of a message's first packet (IBTA vol. 1, 9.2).
_PACKET, _RETH, _IMMEDIATE, _ATOMIC_ETH = 62, 16, 4, 28
_FLAG_BYTES = 8


def eager_lines(length: int) -> int:
    """Lines of 128 bytes that header and `length` bytes of payload take."""
    return -(-(HEADER_BYTES + length) // LINE_DATA_BYTES)


def slot_message(strategy: Strategy, length: int) -> int:
    """Bytes that a transfer takes in its slot."""
    return eager_lines(length) * LINE_BYTES if strategy is Strategy.EAGER else HEADER_BYTES + length


def _message(payload: int, headers: int, mtu: int) -> int:
    packets = max(1, -(-payload // mtu))
    return packets * _PACKET + headers + -(-payload // 4) * 4


def cost(strategy: Strategy, length: int, mtu: int = 4096) -> Cost:
    """What a transfer of `length` payload bytes costs, over a path of `mtu` bytes.

    >>> cost(Strategy.AMO, 0)
    Cost(wqes=2, doorbells=1, extra_round_trips=0, message_bytes=40, wire_bytes=200)
    """
    data = slot_message(strategy, length)
    headers = _RETH + (_IMMEDIATE if strategy is Strategy.IMM else 0)
    wire = _message(data, headers, mtu)
    if strategy in (Strategy.IMM, Strategy.EAGER):
        return Cost(1, 1, 0, data, wire)
    atomic = strategy in (Strategy.AMO, Strategy.SPLIT)
    signal = _message(0, _ATOMIC_ETH, mtu) if atomic else _message(_FLAG_BYTES, _RETH, mtu)
    doorbells = 2 if strategy in (Strategy.CQE, Strategy.SPLIT) else 1
    return Cost(2, doorbells, int(strategy is Strategy.CQE), data + _FLAG_BYTES, wire + signal)
