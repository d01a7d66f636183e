"""How the channels of two ranks share queue pairs, and where those leave: what an optimisation changes about a mesh.

Leans on connect.route and errors. The default is the best known: a queue pair for each channel, signals in it, no
fence.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.connect.route import Route, Steer
from rdmakit.errors import BadArgument

__all__ = ["Route", "Steer", "Wiring"]


@dataclass(frozen=True)
class Wiring:
    """`qps`: queue pairs for data between two ranks, shared by their channels in turn; None is one for each channel.
    `credit_qps`: credits take queue pairs of their own, as many. `fenced`: the sender waits for its data's
    completion, then signals; else the signal stands behind the data in one queue pair. `steer`: which port each queue
    pair takes; None is its number modulo the ports.

    >>> Wiring(qps=2).qp_of(5), Wiring().qp_of(5)
    (1, 5)
    """

    qps: int | None = None
    credit_qps: bool = False
    fenced: bool = False
    steer: Steer | None = None

    def __post_init__(self) -> None:
        if self.qps is not None and (not isinstance(self.qps, int) or self.qps < 1):
            raise BadArgument(
                "queue pairs make no wiring",
                value=self.qps,
                rule="at least 1, or None",
                remedy="None is one for each channel",
            )

    def qp_of(self, channel: int) -> int:
        """The number of the queue pair that a channel's data takes."""
        return channel if self.qps is None else channel % self.qps

    def data_qps(self, channels: int) -> int:
        """How many queue pairs carry data between two ranks."""
        return channels if self.qps is None else min(self.qps, channels)

    def total_qps(self, channels: int) -> int:
        """Those of credits included: they are numbered behind those of data."""
        return self.data_qps(channels) * (2 if self.credit_qps else 1)

    def credit_qp_of(self, channel: int, channels: int) -> int:
        """The number of the queue pair by which a channel's credits go back."""
        return self.qp_of(channel) + (self.data_qps(channels) if self.credit_qps else 0)
