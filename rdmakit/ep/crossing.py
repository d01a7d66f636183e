"""One call's way from the caller's stream to the communication stream and back, by DeepEP's rules.

The communication stream waits for `previous_event`, or for all that the current stream has; behind the call the current
stream waits for it, or gets an event (`async_finish`). Leans on ep.events and ep.tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rdmakit.ep.events import EventHandle, EventOverlap
from rdmakit.ep.tensors import Stream, Tensor
from rdmakit.errors import BadArgument

__all__ = ["Crossing"]


class Crossing:
    """Made after the arguments are checked: from then on the communication stream waits for the caller's."""

    def __init__(
        self, backend: Any, comm_stream: Stream, previous_event: EventOverlap | None, async_finish: bool,
        allocate_on_comm_stream: bool,
    ) -> None:  # fmt: skip
        handle = getattr(previous_event, "event", None)
        if allocate_on_comm_stream and (handle is None or not async_finish):
            given = f"previous_event {handle is not None}, async_finish {async_finish}"
            raise BadArgument(
                "allocate_on_comm_stream alone", value=given,
                rule="it goes with previous_event and async_finish=True, as in DeepEP",
                remedy="pass previous_event=Buffer.capture(), async_finish=True",
            )  # fmt: skip
        self._backend = backend
        self._comm = comm_stream
        self._caller = backend.current_stream()
        self._async = async_finish
        self._allocate_there = allocate_on_comm_stream
        if handle is not None:
            backend.wait_event(comm_stream, handle.event)
        else:
            backend.wait_stream(comm_stream, self._caller)

    def results(self) -> AbstractContextManager[Any]:
        """Within it, memory for results is allocated: on the caller's stream, or on the communication stream."""
        return self._backend.use(self._comm) if self._allocate_there else nullcontext()

    def finish(self, tensors: Iterable[Tensor | None]) -> EventOverlap:
        """The way back. `tensors`: all that the call reads or writes, results too."""
        if not self._async:
            self._backend.wait_stream(self._caller, self._comm)
            return EventOverlap()
        event = EventHandle(self._comm)
        for tensor in tensors:
            if tensor is not None:
                self._backend.keep(tensor, self._comm)
                if self._allocate_there:
                    self._backend.keep(tensor, self._caller)
        return EventOverlap(event)
