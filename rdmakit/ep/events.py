"""CUDA events in DeepEP's clothes: `EventHandle`, `EventOverlap`, and `capture` of the current stream.

Leans on ep.tensors. An event says that everything which a stream had been given when it was recorded is done.
"""

from __future__ import annotations

from typing import Any

from rdmakit.ep import tensors
from rdmakit.ep.tensors import Stream, Tensor
from rdmakit.errors import BadState

__all__ = ["EventHandle", "EventOverlap", "capture"]


class EventHandle:
    """An event behind all that a stream (default: the current one) has been given so far."""

    def __init__(self, stream: Stream | None = None) -> None:
        self.event = tensors.backend().record(stream)

    def current_stream_wait(self) -> None:
        """The current stream waits for the event; the host does not."""
        backend = tensors.backend()
        backend.wait_event(backend.current_stream(), self.event)


class EventOverlap:
    """An event to wait for later, and the tensors that must live until then.

    `event`: an EventHandle, or None where the call had `async_finish=False` (the stream has waited already).
    `extra_tensors`: kept as long as this object, so that memory in use on another stream is not given out again; CUDA
    graphs allow that, and not `record_stream`.

    As a context manager it waits at the end of the block: `with event: compute()`.
    """

    def __init__(self, event: EventHandle | None = None, extra_tensors: tuple[Tensor | None, ...] | None = None):
        self.event = event
        self.extra_tensors = extra_tensors

    def current_stream_wait(self) -> None:
        """The current stream waits for the event; the host does not. BadState when there is none."""
        if self.event is None:
            raise BadState("there is no event to wait for", value="event None",
                           rule="a call with async_finish=True returns one",
                           remedy="pass async_finish=True, or do not wait: the stream has")  # fmt: skip
        self.event.current_stream_wait()

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.event is not None:
            self.event.current_stream_wait()


def capture() -> EventOverlap:
    """An event on the current stream, to give as `previous_event`."""
    return EventOverlap(EventHandle())
