"""Memory of the engine's that tensors hold, and how it goes back: not before every stream that used it.

torch's allocator knows on which stream a tensor was made and reuses its memory there. Memory of the engine's is
written by other GPUs, so it goes back only when the communication stream waits for the stream on which the last tensor
was dropped. Leans on ep.tensors.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from rdmakit.ep.tensors import Device, Event, Stream

__all__ = ["Lease", "Leases"]


class Lease:
    """What a tensor over the engine's memory keeps. When the last tensor goes, it says so to `Leases`."""

    __slots__ = ("_leases", "owner")

    def __init__(self, owner: object, leases: Leases) -> None:
        self.owner = owner
        self._leases = leases

    def __del__(self) -> None:
        with suppress(Exception):  # at interpreter exit there may be no CUDA to record an event with
            self._leases.dropped(self.owner)


class Leases:
    """The blocks that tensors of one Buffer hold or have held."""

    def __init__(self, backend: Any, where: Device) -> None:
        self._backend = backend
        self._where = where
        self._dropped: list[tuple[object, Event | None]] = []
        self._of_graphs: list[object] = []
        self._ended = False

    def lease(self, owner: object) -> Lease:
        """A lease on a block. One that a CUDA graph uses on every replay is never given back."""
        if self._backend.capturing():
            self._of_graphs.append(owner)
        return Lease(owner, self)

    def dropped(self, owner: object) -> None:
        """No tensor holds the block any more; what the current stream has been given may still use it."""
        if self._ended:  # nobody will ask for it again, and giving memory back to CUDA waits for whoever uses it
            return
        # An event of a captured stream means nothing outside its graph: None waits for the whole stream, later.
        # The thread may be any, with another current device.
        here = self._backend.current_stream(self._where)
        event = None if self._backend.capturing() else self._backend.record(here)
        self._dropped.append((owner, event))

    def collect(self, comm_stream: Stream) -> None:
        """Make the communication stream wait for those who used dropped blocks, and give them back."""
        if not self._dropped or self._backend.capturing():
            return
        dropped, self._dropped = self._dropped, []
        for _, event in dropped:
            if event is None:
                self._backend.wait_stream(comm_stream, self._backend.current_stream())
            else:
                self._backend.wait_event(comm_stream, event)

    def forget(self) -> None:
        """Give everything back, now and from now on; the GPU is idle."""
        self._ended = True
        self._dropped.clear()
        self._of_graphs.clear()
