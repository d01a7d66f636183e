"""Buffer's tensors where kernels run on the CPU runner: CPU tensors, and calls that have ended when they return.

Leans on ep.tensors. So there is nothing for streams and events to order: a stream is a name, an event a word. It is for
hosts without a GPU, whose NICs are real: what crosses the wire is what would cross it from GPUs.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rdmakit.ep.tensors import Cuda, Device, Event, Kinds, Stream, Tensor, torch

__all__ = ["CpuTensors"]

_STREAMS = {"caller": 1, "communication": 2}


class CpuTensors(Cuda):
    """torch on the CPU."""

    def __init__(self) -> None:
        self.kinds = Kinds()
        self._here = threading.local()

    def direct(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def device(self) -> Device:
        return torch().device("cpu")

    def capability(self) -> tuple[int, int]:
        """That of a Hopper: kernels have FP8."""
        return 9, 0

    def reaches(self, other: int) -> bool:
        return other == 0

    def synchronize(self) -> None:
        """Nothing is under way."""

    # ---- streams and events
    def current_stream(self, where: Device | None = None) -> Stream:
        found: Any = getattr(self._here, "stream", "caller")
        return found

    def new_stream(self) -> Stream:
        found: Any = "communication"
        return found

    def address(self, stream: Stream) -> int:
        return _STREAMS[str(stream)]

    @contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self._here.stream = self.current_stream(), stream
        try:
            yield
        finally:
            self._here.stream = before

    def record(self, stream: Stream | None = None) -> Event:
        found: Any = f"event of {self.current_stream() if stream is None else stream}"
        return found

    def wait_event(self, stream: Stream, event: Event) -> None:
        """It has happened."""

    def wait_stream(self, stream: Stream, other: Stream) -> None:
        """It is idle."""

    def keep(self, tensor: Tensor, stream: Stream) -> None:
        """Nobody uses it any more."""

    def capturing(self) -> bool:
        return False

    # ---- memory
    def bytes_at(self, address: int, nbytes: int, where: Device, owner: object) -> Tensor:
        memory: Any = (ctypes.c_uint8 * nbytes).from_address(address)
        memory.owner = owner
        return torch().frombuffer(memory, dtype=self.kinds.uint8)
