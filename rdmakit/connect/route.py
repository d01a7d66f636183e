"""Where a queue pair leaves: a rank's port, and the UDP source port at which a bond's hash and ECMP look.

Leans on nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Route", "Steer", "by_turns", "label_of_source_port"]


@dataclass(frozen=True)
class Route:
    """Physical port and UDP source port of one queue pair; source port 0 leaves the device's own."""

    port: int
    source_port: int = 0


Steer = Callable[[int, int, int], Route]  # rank, peer, number of the queue pair among those of the two → its route


def by_turns(ports: int) -> Steer:
    """Consecutive queue pairs of two ranks take consecutive ports; the first one differs from pair to pair of ranks,
    alike at both ends, so that odd numbers of queue pairs even out over peers.

    >>> [by_turns(2)(0, 2, i).port for i in range(3)], by_turns(2)(2, 0, 0).port, by_turns(2)(0, 1, 0).port
    ([1, 2, 1], 1, 2)
    """
    return lambda rank, peer, index: Route(1 + (index + rank + peer) % ports)


def label_of_source_port(port: int) -> int:
    """The flow label from which a RoCE device makes that UDP source port (rdma_flow_label_to_udp_sport): not 0, which
    would stand for one made of QP numbers.

    >>> hex(label_of_source_port(0xC123)), hex(label_of_source_port(0xC000))
    ('0x123', '0x4001')
    """
    return (port & 0x3FFF) or (1 << 14 | 1)
