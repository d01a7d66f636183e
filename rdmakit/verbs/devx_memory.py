"""Where queues that commands create lie: rings, completions and doorbell records, in memory that the caller chooses.

Leans on _verbs (Memory). Host memory is here. Memory of a GPU is another `QueueMemory`: it gives regions whose `bytes`
lie at the address that kernels use and whose `dmabuf` the NIC registers; nothing else of a provider depends on where.
Making, connecting and destroying queues reads and writes none of it but by `write`; posting, polling and a RESET by the
host do, so where the CPU does not reach the memory those are for kernels alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from rdmakit.device.provider import Bytes
from rdmakit.errors import BadArgument
from rdmakit.verbs._verbs import Context, Memory, Umem

__all__ = ["HostQueueMemory", "Placed", "QueueMemory", "QueuePlacement", "QueueRegion"]

PAGE = 4096  # rings begin on pages of the adapter (log_page_size 0)
_LINE = 64


class QueueRegion(Protocol):
    """Zeroed memory for queues, until nobody names it: a provider keeps it as long as the device may use it."""

    bytes: Bytes
    """uint8 at the address that kernels use, page aligned; holding it (or a slice) keeps the memory."""

    dmabuf: tuple[int, int] | None
    """(descriptor, offset in it): register it so. The descriptor is needed until the region is registered. None: by
    address; memory of a GPU then needs nvidia-peermem."""

    def write(self, offset: int, data: Bytes) -> None:
        """Copy bytes of this process there, before the device uses the region."""


class QueueMemory(Protocol):
    """Gives regions. `name` says in a word or two where they lie; `allocate` raises Refused or an rdmakit error."""

    name: str

    def allocate(self, nbytes: int, label: str) -> QueueRegion:
        """A region of at least `nbytes`; `label` says for what."""


class HostRegion:
    """Pages of this process. `memory` is what the umem keeps."""

    dmabuf: tuple[int, int] | None = None

    def __init__(self, nbytes: int) -> None:
        self.memory = Memory(nbytes)
        view: Any = self.memory
        self.bytes: Bytes = np.frombuffer(view, np.uint8)

    def write(self, offset: int, data: Bytes) -> None:
        self.bytes[offset : offset + data.nbytes] = data


class HostQueueMemory:
    """Whole pages, so that CUDA can register each queue by itself."""

    name = "host memory"

    def allocate(self, nbytes: int, label: str) -> HostRegion:
        del label
        return HostRegion(nbytes)


@dataclass(frozen=True)
class QueuePlacement:
    """Where each part lies: `rings` of WQEs, `completions`, doorbell `records`. All in host memory by default.

    `completions` None: where rings lie; `records` None: with the queue that each counts, in one region and one umem.
    """

    rings: QueueMemory = field(default_factory=HostQueueMemory)
    completions: QueueMemory | None = None
    records: QueueMemory | None = None

    def __str__(self) -> str:
        parts = {"rings": self.rings, "completions": self.completions, "records": self.records}
        said: dict[str, list[str]] = {}
        for part, memory in parts.items():
            said.setdefault((memory or self.rings).name, []).append(part)
        if len(said) == 1:
            return next(iter(said))
        return "; ".join(f"{', '.join(names)} in {where}" for where, names in said.items())


class Placed:
    """A ring and its doorbell record in registered memory: views, and how a command names each (umem id, offset)."""

    def __init__(
        self, context: Context, memory: QueueMemory, records: QueueMemory | None, nbytes: int, label: str,
        initial: Bytes | None = None,
    ) -> None:  # fmt: skip
        shared = records is None or records is memory
        at = -(-nbytes // _LINE) * _LINE
        region = _enough(memory, at + _LINE if shared else at, label)
        apart = region if shared or records is None else _enough(records, _LINE, f"record of {label}")
        if initial is not None:
            region.write(0, initial)
        self.regions: list[QueueRegion] = [region] if shared else [region, apart]
        self.umems: list[Umem] = []
        for each in self.regions:
            try:
                self.umems.append(_register(context, each))
            except Exception:
                self.close()
                raise
        self.ring: Bytes = region.bytes[:nbytes]
        offset = at if shared else 0
        self.dbrec: Bytes = apart.bytes[offset : offset + 8]
        self.ring_umem = self.umems[0].umem_id
        self.record_umem, self.record_offset = self.umems[-1].umem_id, offset

    def close(self) -> None:
        """Deregister, when no object names the umems any more; views of the memory stay valid."""
        while self.umems:
            self.umems.pop().close()


def _enough(memory: QueueMemory, nbytes: int, label: str) -> QueueRegion:
    region = memory.allocate(nbytes, label)
    if region.bytes.nbytes < nbytes or region.bytes.ctypes.data % PAGE:
        raise BadArgument(
            f"{memory.name} gave less than was asked of it, or not whole pages, for {label}", value=region.bytes.nbytes,
            rule=f"{nbytes} bytes, {PAGE}-byte aligned", remedy="mend the QueueMemory",
        )  # fmt: skip
    return region


def _register(context: Context, region: QueueRegion) -> Umem:
    nbytes = region.bytes.nbytes
    if region.dmabuf is not None:
        fd, offset = region.dmabuf
        return Umem(context, nbytes, dmabuf_fd=fd, offset=offset)
    memory = getattr(region, "memory", None)
    if isinstance(memory, Memory):
        return Umem(context, nbytes, memory=memory)
    return Umem(context, nbytes, address=region.bytes.ctypes.data)
