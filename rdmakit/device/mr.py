"""Memory regions: bytes that a NIC may touch, the keys that say so, and slices of them.

Leans on lifetime, buffer and access.
"""

from __future__ import annotations

import builtins
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rdmakit.device.access import AccessLike, access_flags, access_names
from rdmakit.device.buffer import byte_view
from rdmakit.device.lifetime import Resource, typed_refusal
from rdmakit.device.notebook import memory_html
from rdmakit.errors import BadArgument
from rdmakit.layout import Access, Sge

if TYPE_CHECKING:
    from rdmakit.device.pd import PD

__all__ = ["MR", "MemorySlice", "RemoteMemory"]

_DEVICE_WRITES = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC


def _checked_range(offset: int, length: int | None, nbytes: int, what: str) -> int:
    count = nbytes - offset if length is None else length
    if offset < 0 or count <= 0 or offset + count > nbytes:
        raise BadArgument(
            f"slice outside {what}",
            value=f"offset {offset}, length {count}",
            rule=f"0 ≤ offset, 1 ≤ length, offset + length ≤ {nbytes}",
            remedy="cut the slice shorter, or register more memory",
        )
    return count


@dataclass(frozen=True)
class RemoteMemory:
    """What a peer must know to reach memory: address, rkey, length in bytes. Travels as JSON.

    >>> RemoteMemory.from_json(RemoteMemory(0x1000, 7, 64).to_json()).slice(16, 8)
    RemoteMemory(address=4112, rkey=7, nbytes=8)
    """

    address: int
    rkey: int
    nbytes: int

    def slice(self, offset: int, length: int | None = None) -> RemoteMemory:
        """`length` bytes from `offset`; up to the end without it. BadArgument outside."""
        count = _checked_range(offset, length, self.nbytes, "the remote memory")
        return RemoteMemory(self.address + offset, self.rkey, count)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RemoteMemory:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class MemorySlice:
    """A range of a memory region: usable wherever the region is."""

    mr: MR
    offset: int
    nbytes: int

    @property
    def address(self) -> int:
        """Of the first byte."""
        return self.mr.address + self.offset

    @property
    def lkey(self) -> int:
        """The region's."""
        return self.mr.lkey

    @property
    def rkey(self) -> int:
        """The region's."""
        return self.mr.rkey

    @property
    def bytes(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes themselves, not a copy."""
        return self.mr.bytes[self.offset : self.offset + self.nbytes]

    def slice(self, offset: int, length: int | None = None) -> MemorySlice:
        """`length` bytes from `offset` of this slice. BadArgument outside."""
        count = _checked_range(offset, length, self.nbytes, "the slice")
        return MemorySlice(self.mr, self.offset + offset, count)

    def sge(self) -> Sge:
        """(address, length, lkey) as `rdmakit.layout.encode` takes it."""
        return Sge(self.address, self.nbytes, self.lkey)

    def remote(self) -> RemoteMemory:
        """What a peer must know to reach it."""
        return RemoteMemory(self.address, self.rkey, self.nbytes)

    def __repr__(self) -> str:
        return f"{self.mr!r}[{self.offset}:{self.offset + self.nbytes}]"


class Region(Resource):
    """What a NIC may reach, of the host's memory (MR) or of a GPU's (GpuMR): where it lies, and its keys."""

    _kind = "MR"
    name: str
    address: int
    nbytes: int
    lkey: int
    rkey: int

    def remote(self) -> RemoteMemory:
        """What a peer must know to reach it; needs remote access rights to be of use."""
        return RemoteMemory(self.address, self.rkey, self.nbytes)

    def _range(self, where: builtins.slice) -> tuple[int, int]:
        """Offset and length of `region[where]`."""
        if not isinstance(where, builtins.slice) or where.step not in (None, 1):
            raise BadArgument("a region is cut by bytes", value=where, rule="mr[start:stop]",
                              remedy="give two byte offsets and no step")
        start, stop, _ = where.indices(self.nbytes)
        return start, stop - start

    def _name(self) -> str:
        return f"{self.name} (lkey {self.lkey:#x})"


class MR(Region):
    """A memory region, made by `PD.register`: `bytes` is a uint8 view of the buffer, which the region keeps
    alive.

    `lkey`, `rkey`, `address` and `nbytes` are what WQEs need. `mr[16:32]` is `mr.slice(16, 16)`.
    """

    def __init__(self, pd: PD, buffer: Any, access: AccessLike, name: str | None) -> None:
        flags = access_flags(access)
        self.pd = pd
        self.buffer = buffer
        self.access = flags
        self.bytes = byte_view(buffer, writeable=bool(flags & _DEVICE_WRITES))
        self.address = int(self.bytes.ctypes.data)
        self.nbytes = int(self.bytes.nbytes)
        self.name = name or f"MR of {self.nbytes} B"
        provider = pd.context._provider
        with typed_refusal("registering memory", nbytes=self.nbytes, access=access_names(flags)):
            self.lkey, self.rkey = provider.reg_mr(pd.handle, self.address, self.nbytes, int(flags), self.name)
        lkey = self.lkey
        super().__init__(lambda: provider.dereg_mr(lkey), pd)

    def slice(self, offset: int, length: int | None = None) -> MemorySlice:
        """`length` bytes from `offset`; up to the end without it. BadArgument outside."""
        return MemorySlice(self, offset, _checked_range(offset, length, self.nbytes, self._name()))

    def __getitem__(self, where: builtins.slice) -> MemorySlice:
        return self.slice(*self._range(where))

    def sge(self) -> Sge:
        """(address, length, lkey) as `rdmakit.layout.encode` takes it."""
        return Sge(self.address, self.nbytes, self.lkey)

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return (
            f"<MR {self.name!r} lkey {self.lkey:#x} rkey {self.rkey:#x} "
            f"at {self.address:#x} + {self.nbytes} B, {access_names(self.access)}{state}>"
        )

    def _repr_html_(self) -> str:
        return memory_html([self], repr(self))
