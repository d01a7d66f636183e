"""What both ends of a sequence lock have when the host drives them, each in a process of its own.

Leans on device, signal.ends and signal.reference. `host_sender` and `host_receiver` are the ends. The bytes are those
of `cuda/rdmakit/lock.cuh`: a kernel at one end and the host at the other understand each other. A few thousand
transfers a second, for devices without a GPU beside them, tests and tutorials. What the ends must know of each other
travels as a dict (`offer`), by any means.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rdmakit.device import RemoteMemory
from rdmakit.errors import BadArgument, HangError
from rdmakit.layout import Sge
from rdmakit.signal import reference
from rdmakit.signal.ends import End
from rdmakit.signal.strategies import LINE_BYTES, Strategy, slot_message

__all__ = ["HostEnd", "end_options"]

_MINE = (Strategy.AMO, Strategy.IMM, Strategy.WRITE, Strategy.CQE)
_AGREED = ("strategy", "slots", "slot_bytes", "epoch", "crc")


class HostEnd:
    """What both ends have: an `End`, its place in the protocol, waits that are bounded."""

    def __init__(self, end: End, epoch: int, crc: bool) -> None:
        if end.strategy not in _MINE:
            raise BadArgument(
                "a strategy that kernels alone drive",
                value=end.strategy.name.lower(),
                rule="the host drives " + ", ".join(each.name.lower() for each in _MINE),
                remedy='pass strategy="imm"',
            )
        self.end, self.epoch, self.crc = end, epoch, crc
        self.qp = end.qps[0]
        self.qp.psn = reference.fingerprint(self.qp.qpn, epoch, 0, 0) & 0xFFFFFF

    def _offer(self, ticket: int, **memory: RemoteMemory) -> dict[str, Any]:
        end = self.end
        return {
            "endpoint": self.qp.endpoint().to_json(),
            "ticket": ticket,
            "strategy": end.strategy.name.lower(),
            "slots": end.slots,
            "slot_bytes": end.slot_bytes,
            "epoch": self.epoch,
            "crc": self.crc,
            **{name: where.to_json() for name, where in memory.items()},
        }

    def _agree(self, theirs: dict[str, Any], ticket: int) -> None:
        mine = self._offer(ticket)
        for name in (*_AGREED, "ticket"):
            if theirs.get(name) != mine[name]:
                raise BadArgument(
                    f"the two ends disagree about {name}", value=theirs.get(name), rule=f"this end has {mine[name]}",
                    remedy="make both ends with the same arguments",
                )  # fmt: skip

    def _connect(self, theirs: dict[str, Any], port: int, attributes: dict[str, Any]) -> None:
        self.qp.connect(str(theirs["endpoint"]), port=port, **attributes)

    def _wait(self, until: Callable[[], bool], timeout: float, what: str, ticket: int) -> None:
        """Let the device work until it holds. CompletionError when the queue pair fails meanwhile."""
        deadline = time.monotonic() + timeout
        while not until():
            moved = self.qp.context._provider.progress()
            self.qp.send_cq.poll().raise_for_status()
            if until():
                return
            if not moved or time.monotonic() > deadline:
                reasons = self.qp.context._provider.outcome()
                raise HangError(
                    f"{what} has not come", value=f"ticket {ticket}", rule="; ".join(reasons) or "the peer sends it",
                    remedy="is the peer alive, and connected under the same epoch?", qpn=f"{self.qp.qpn:#x}",
                    state=self.qp.state.name,
                )  # fmt: skip

    def _room(self, blocks: int, timeout: float, ticket: int) -> None:
        queue = self.qp._sends
        self._wait(lambda: self.qp.posted + blocks - self.qp.completed <= queue.size, timeout, "a completion", ticket)

    def _sink(self) -> Sge:
        return Sge(self.end.pd._atomics_sink()[0], 8, self.end.pd._atomics_sink()[1])


def end_options(strategy: str | int, slots: int, max_payload: int, qp_options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `End`. BadArgument for a window that is no power of two."""
    chosen = Strategy.of(strategy)
    if slots < 1 or slots & (slots - 1):
        raise BadArgument("window of impossible size", value=slots, rule="a power of two", remedy="take the nearest")
    slot_bytes = -(-slot_message(chosen, max_payload) // LINE_BYTES) * LINE_BYTES
    common = {"strategy": chosen, "slots": slots, "slot_bytes": slot_bytes, "options": qp_options}
    return {**common, "report": None}
