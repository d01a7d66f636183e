"""Protection domains: where memory is registered and queue pairs are made.

Leans on lifetime, mr and qp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rdmakit.device.access import ALL_ACCESS, AccessLike, access_flags
from rdmakit.device.gpu_mr import GpuMR
from rdmakit.device.lifetime import Resource, typed_refusal
from rdmakit.device.mr import MR
from rdmakit.device.notebook import memory_html, preformatted
from rdmakit.device.qp import QP
from rdmakit.layout import Access

if TYPE_CHECKING:
    from rdmakit.device.context import Context
    from rdmakit.device.cq import CQ

__all__ = ["PD"]


class PD(Resource):
    """A protection domain, made by `Context.alloc_pd`. `handle` is the device's number for it."""

    _kind = "PD"

    def __init__(self, context: Context) -> None:
        self.context = context
        provider = context._provider
        with typed_refusal("allocating a PD"):
            self.handle = provider.alloc_pd()
        handle = self.handle
        sink: list[tuple[int, int, Any]] = []  # address, lkey, memory: no MR, which would hold the PD that holds it
        self._sink = sink

        def release() -> None:
            for _, lkey, _ in sink:
                provider.dereg_mr(lkey)
            provider.dealloc_pd(handle)

        super().__init__(release, context)

    def register(
        self,
        buffer: Any,
        access: AccessLike = ALL_ACCESS,
        *,
        relaxed_ordering: bool = False,
        name: str | None = None,
    ) -> MR:
        """Register the memory of `buffer`, without a copy, and keep it alive.

        `buffer` is a NumPy array (C-contiguous), any object with the buffer protocol, or a DLPack tensor in
        memory that this process addresses. `access` names rights ("local_write|remote_read"; all by default).
        `relaxed_ordering` adds that right by its own name (IBV_ACCESS_RELAXED_ORDERING): writes from the
        network may become visible in any order, though none passes an atomic. `name` shows in reports.
        BadArgument for gaps, emptiness or a read-only buffer that a device may
        write.

        >>> import numpy as np, rdmakit
        >>> mr = rdmakit.open("emu").alloc_pd().register(np.arange(4.0), "remote_read")
        >>> mr.nbytes, mr.lkey == mr.rkey
        (32, True)
        """
        self._require_open()
        flags = access_flags(access) | (Access.RELAXED_ORDERING if relaxed_ordering else Access.NONE)
        return MR(self, buffer, flags, name)

    def register_gpu(
        self, address: int, nbytes: int, access: AccessLike = ALL_ACCESS, *, owner: Any = None,
        dmabuf: int | None = None, name: str | None = None,
    ) -> GpuMR:  # fmt: skip
        """Register memory of a GPU by its device address, and keep `owner` alive.

        `dmabuf`: a descriptor that exports just that range (cuMemGetHandleForAddressRange), which the caller closes;
        without it the kernel has to know such addresses (nvidia-peermem). NotAvailable where the device refuses.
        """
        self._require_open()
        return GpuMR(self, address, nbytes, access, owner, dmabuf, name)

    def create_qp(
        self,
        send_cq: CQ,
        recv_cq: CQ | None = None,
        *,
        sq_wqebbs: int = 128,
        rq_wqes: int = 0,
        max_recv_sge: int = 1,
        max_inline: int = 28,
        sq_sig_all: bool = False,
        scatter_to_cqe: bool = False,
        doorbell: str | None = None,
        out_of_order: bool = False,
        name: str | None = None,
    ) -> QP:
        """A reliable connected queue pair, in RESET; `connect` or `modify` bring it up.

        `sq_wqebbs`: send ring in basic blocks of 64 bytes. `rq_wqes`: receive ring, 0 for none (a QP that is
        only written to needs none). Both are rounded up to powers of two. `sq_sig_all`: every WQE completes
        with a CQE. `scatter_to_cqe`: small results land in the CQE instead of memory, which kernels do not
        expect. `doorbell` overrides the device's mode ("dbrec", "register", "no_dbr"). `out_of_order`
        (MLX5DV_QP_CREATE_OOO_DP, at both ends or without effect): packets may take several paths and WRITEs
        land in any order, READs and atomics after all earlier messages. ForeignObject for a CQ of another
        context.
        """
        self._require_open()
        return QP(
            self,
            send_cq,
            recv_cq,
            sq_wqebbs=sq_wqebbs,
            rq_wqes=rq_wqes,
            max_recv_sge=max_recv_sge,
            max_inline=max_inline,
            sq_sig_all=sq_sig_all,
            scatter_to_cqe=scatter_to_cqe,
            doorbell=doorbell,
            out_of_order=out_of_order,
            name=name,
        )

    @property
    def memory_regions(self) -> list[MR]:
        """The open ones of this process' memory, oldest first."""
        return [user for user in reversed(self._users()) if isinstance(user, MR)]

    @property
    def queue_pairs(self) -> list[QP]:
        """The open ones, oldest first."""
        return [user for user in reversed(self._users()) if isinstance(user, QP)]

    def _atomics_sink(self) -> tuple[int, int]:
        """Address and lkey of 8 bytes where kernels' atomics leave the old value; one for all its QPs."""
        if not self._sink:
            provider = self.context._provider
            memory = provider.memory(8, "sink of atomics")
            address = int(memory.ctypes.data)
            with typed_refusal("registering the sink of atomics"):
                lkey, _ = provider.reg_mr(self.handle, address, 8, Access.LOCAL_WRITE, "sink of atomics")
            self._sink.append((address, lkey, memory))
        return self._sink[0][:2]

    def _name(self) -> str:
        return f"PD {self.handle:#x}"

    def __repr__(self) -> str:
        inside = "closed" if self.closed else f"{len(self.memory_regions)} MRs, {len(self.queue_pairs)} QPs"
        return f"<PD {self.handle:#x} of {self.context.device.name}: {inside}>"

    def _repr_html_(self) -> str:
        regions = self.memory_regions
        return memory_html(regions, repr(self)) if regions else preformatted(repr(self))
