"""A region of a GPU's memory: what a NIC needs to reach it, and no bytes, which this process does not address.

Leans on lifetime, mr and access.
"""

from __future__ import annotations

import builtins
import errno
from typing import TYPE_CHECKING, Any

from rdmakit.device.access import AccessLike, access_flags, access_names
from rdmakit.device.lifetime import typed_refusal
from rdmakit.device.mr import Region, RemoteMemory
from rdmakit.device.provider import Refused
from rdmakit.errors import BadArgument, NotAvailable
from rdmakit.layout import Sge

if TYPE_CHECKING:
    from rdmakit.device.pd import PD

__all__ = ["GpuMR"]


class GpuMR(Region):
    """A memory region of a GPU, made by `PD.register_gpu`. `way` is how the NIC was told: "dma-buf" or "peermem"."""

    def __init__(
        self, pd: PD, address: int, nbytes: int, access: AccessLike, owner: Any, dmabuf: int | None, name: str | None
    ) -> None:
        if address <= 0 or nbytes <= 0:
            raise BadArgument("no memory of a GPU", value=f"{nbytes} bytes at {address:#x}", rule="one byte at least",
                              remedy="its address on the device, and its size")  # fmt: skip
        flags = access_flags(access)
        self.pd, self.address, self.nbytes, self.access, self.owner = pd, address, nbytes, flags, owner
        self.way = "peermem" if dmabuf is None else "dma-buf"
        self.name = name or f"MR of {nbytes} B of a GPU"
        provider = pd.context._provider
        with typed_refusal(f"registering GPU memory ({self.way})", nbytes=nbytes, access=access_names(flags)):
            if dmabuf is None:
                keys = self._by_peermem(int(flags))
            else:
                keys = provider.reg_dmabuf_mr(pd.handle, address, nbytes, dmabuf, int(flags), self.name)
        self.lkey, self.rkey = keys
        lkey = self.lkey
        super().__init__(lambda: provider.dereg_mr(lkey), pd)

    def _by_peermem(self, flags: int) -> tuple[int, int]:
        """A kernel without peermem takes the address for one of this process, where there is no such memory."""
        try:
            return self.pd.context._provider.reg_mr(self.pd.handle, self.address, self.nbytes, flags, self.name)
        except Refused as refused:
            if refused.code != errno.EFAULT:
                raise
            raise NotAvailable("registering GPU memory (peermem) was refused with EFAULT", value=hex(self.address),
                               rule=refused.message, remedy="modprobe nvidia-peermem, or pass dmabuf=, what "
                               "cuMemGetHandleForAddressRange exports") from None  # fmt: skip

    def sge(self, offset: int = 0, length: int | None = None) -> Sge:
        """(address, length, lkey) as `rdmakit.layout.encode` takes it."""
        there = self.remote().slice(offset, length)
        return Sge(there.address, there.nbytes, self.lkey)

    def __getitem__(self, where: builtins.slice) -> RemoteMemory:
        return self.remote().slice(*self._range(where))

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return (
            f"<GpuMR {self.name!r} lkey {self.lkey:#x} rkey {self.rkey:#x} at {self.address:#x} + {self.nbytes} B, "
            f"{self.way}{state}>"
        )
