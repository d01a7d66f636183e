"""Events of queues that commands made: completions of armed CQs, CQs and queue pairs that fail.

Leans on _verbs (EventChannel). The kernel tells them to DevX event channels alone, of which libmlx5 1.11 and later can
make some; without, queues work and nothing is told. Types: kernel include/linux/mlx5/device.h enum mlx5_event.
"""

from __future__ import annotations

from rdmakit.device import AsyncEvent
from rdmakit.device.provider import Refused
from rdmakit.verbs._verbs import Context, DevxObject, EventChannel

__all__ = ["DevxEvents"]

_COMPLETION, _CQ_ERROR = 0x00, 0x04
_OF_QP = {0x05: "qp_fatal", 0x10: "qp_request_error", 0x11: "qp_access_error"}
_NAMES = {_CQ_ERROR: "cq_error", **_OF_QP}


class DevxEvents:
    """Two channels, made when first needed: one for completions, which wait once each, one for errors."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._completions: EventChannel | None = None
        self._errors: EventChannel | None = None
        self._silent = False  # this library, or kernel, has no such channels
        self._armed: dict[int, int] = {}  # cqn → completion events that it has had

    def watch(self, made: DevxObject, number: int, is_cq: bool) -> None:
        """Errors of a CQ or a queue pair are told from now on, where the kernel tells them."""
        if self._silent:
            return
        try:
            if self._errors is None:
                self._errors = EventChannel(self._context)
            self._errors.subscribe(made, (_CQ_ERROR,) if is_cq else tuple(_OF_QP), number)
        except Refused:
            self._silent = True

    def armed(self, made: DevxObject, cqn: int) -> int:
        """How many completion events this CQ has had, of which it tells from now on. Refused where it cannot."""
        if cqn not in self._armed:
            if self._completions is None:
                self._completions = EventChannel(self._context, omit_data=True)
            self._completions.subscribe(made, (_COMPLETION,), cqn)
            self._armed[cqn] = 0
        return self._armed[cqn]

    def forget(self, cqn: int) -> None:
        """That CQ is gone."""
        self._armed.pop(cqn, None)

    def take(self) -> list[AsyncEvent]:
        """Those that have come since the last call: errors, then completions."""
        found = []
        if self._errors is not None:
            for number, kind in self._errors.events():
                found.append(AsyncEvent(_NAMES.get(kind, f"event_{kind:#x}"), number, 0))
        if self._completions is not None:
            for cqn, _ in self._completions.events():
                self._armed[cqn] = self._armed.get(cqn, 0) + 1
                found.append(AsyncEvent("completion", cqn, 0))
        return found

    def close(self) -> None:
        """Nothing is told any more."""
        for channel in (self._completions, self._errors):
            if channel is not None:
                channel.close()
