"""`Buffer`: DeepEP V1's object, over rdmakit's engine.

Leans on ep.buffer_normal and ep.buffer_low_latency (the calls), ep.rendezvous, ep.engine, ep.tensors. Importing it
imports no torch; making one does.

>>> from rdmakit.ep import Buffer
>>> buffer = Buffer(torch.distributed.group.WORLD, num_nvl_bytes=1 << 30)  # doctest: +SKIP
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any

from rdmakit.ep import engine as engines
from rdmakit.ep import events, tensors
from rdmakit.ep.buffer_low_latency import LowLatencyCalls
from rdmakit.ep.buffer_normal import NormalCalls
from rdmakit.ep.config import Config, get_low_latency_rdma_size_hint
from rdmakit.ep.events import EventOverlap
from rdmakit.ep.leases import Leases
from rdmakit.ep.rendezvous import introduce
from rdmakit.ep.tensor_checks import check_even_sms, check_positive
from rdmakit.ep.tensors import Dtype, Stream, Tensor
from rdmakit.errors import BadArgument, NotAvailable

__all__ = ["Buffer"]

SM90 = 9  # compute capability of Hopper


class Buffer(NormalCalls, LowLatencyCalls):
    """Memory of a group's GPUs, and the calls that move tokens between them.

    `group`: a torch process group; or None, and `comm` an mpi4py communicator. Collective. `num_nvl_bytes`: for
    dispatch and combine (0: not used); `num_rdma_bytes`: for the low-latency calls, with `low_latency_mode`; see the
    size hints. `num_qps_per_rank` counts queue pairs to other hosts and changes nothing on one. `enable_shrink`:
    low-latency calls go on without ranks that are masked, and mask who does not answer. `explicitly_destroy`: only
    `destroy()` gives the memory back. `allow_mnnvl` allows what one host has no need of. NotAvailable for `use_fabric`,
    for `allow_nvlink_for_low_latency_mode=False` in the low-latency mode where a host has several ranks, and for hosts
    that no RDMA device joins.

    Ranks of several machines are joined by RDMA devices (docs/hosts.md), in both kinds of calls, which need
    `num_rdma_bytes`; rank 0 says on stderr who rings their doorbells, where heaps lie, and why. With
    RDMAKIT_KERNELS=cpu in the environment every process is a rank without a GPU, tensors are the CPU's, and ranks of
    one host share memory. `comm` may be a rendezvous of `rdmakit.connect.meet`.

    `ranks_per_host` (default: what RDMAKIT_RANKS_PER_HOST says, else all of a machine's) makes hosts of so many ranks
    each, in order, out of one machine's: what DeepEP decides by num_ranks / 8. They are joined by the devices that
    RDMAKIT_DEVICES names, of kernels on the CPU by all that there are; among GPUs without it calls go through queue
    pairs whose HCA is made of warps (docs/internode.md), and there is no low-latency mode.

    Attributes: rank, group_size, group, num_nvl_bytes, num_rdma_bytes, low_latency_mode, runtime (the engine; None when
    destroyed), and of the class num_sms, what dispatch and combine use without a Config.

    The last result of a normal call is its event: with `async_finish` a stream has to wait for it before it uses
    results; without, the current stream has waited. `previous_event`: what the call waits for, instead of all that the
    current stream has. `allocate_on_comm_stream`: results are memory of the communication stream.

    Calls enqueue kernels and return. What goes wrong in these ends all that were enqueued after them, whose results are
    then worth nothing, and is raised by the next call, or by `destroy`.
    """

    num_sms: int = 20

    def __init__(
        self, group: Any, num_nvl_bytes: int = 0, num_rdma_bytes: int = 0, low_latency_mode: bool = False,
        num_qps_per_rank: int = 24, allow_nvlink_for_low_latency_mode: bool = True, allow_mnnvl: bool = False,
        use_fabric: bool = False, explicitly_destroy: bool = False, enable_shrink: bool = False, comm: Any = None,
        ranks_per_host: int | None = None,
    ) -> None:  # fmt: skip
        self.runtime = None
        self.explicitly_destroy = explicitly_destroy
        if use_fabric:
            raise NotAvailable("use_fabric is not supported", value=use_fabric,
                               rule="a Buffer serves the GPUs of one host, by CUDA's inter-process handles",
                               remedy="leave use_fabric out")  # fmt: skip
        check_positive(num_qps_per_rank=num_qps_per_rank)
        for name, value in {"num_nvl_bytes": num_nvl_bytes, "num_rdma_bytes": num_rdma_bytes}.items():
            if value < 0:
                raise BadArgument(f"{name} is negative", value=value, rule="bytes, 0 for none",
                                  remedy="see the size hints of Buffer and Config")  # fmt: skip
        rendezvous = introduce(group, comm)
        self._rendezvous = rendezvous
        self.rank, self.group_size = rendezvous.rank, rendezvous.size
        self.group = comm if group is None else group
        self.num_nvl_bytes, self.num_rdma_bytes = num_nvl_bytes, num_rdma_bytes
        self.low_latency_mode, self.enable_shrink = low_latency_mode, enable_shrink
        backend = tensors.backend()
        self._backend = backend
        self.device = backend.device()
        self._comm_stream = backend.new_stream()
        self._leases = Leases(backend, self.device)
        self._low_latency_sizes = None
        self._to_fill, self._next_to_fill = [None, None], 0
        self._channel_starts = backend.zeros((self.group_size, 1), backend.kinds.int32, self.device)
        self.runtime, self._hosts = engines.open_engine(
            rendezvous, num_nvl_bytes=num_nvl_bytes, num_rdma_bytes=num_rdma_bytes, enable_shrink=enable_shrink,
            low_latency=low_latency_mode, num_qps_per_rank=num_qps_per_rank, ranks_per_host=ranks_per_host,
            low_latency_over_nvlink=allow_nvlink_for_low_latency_mode,
        )  # fmt: skip

    def destroy(self) -> None:
        """Give the memory back. Collective; the GPU is synchronised. BadState when that has been done. What went
        wrong in the last calls is raised, unless a call has, and the memory is given back nevertheless.
        """
        engine = self._undestroyed()
        self._backend.synchronize()
        try:
            engine.check(unless_told=True)
        finally:
            self._rendezvous.barrier()  # no rank gives back what another still reads
            self._leases.forget()
            self._to_fill = [None, None]
            self.runtime = None
            engine.close()

    def __del__(self) -> None:
        engine = getattr(self, "runtime", None)
        if engine is None:
            return
        if self.explicitly_destroy:
            warnings.warn("a Buffer made with explicitly_destroy=True was dropped without destroy()", ResourceWarning,
                          stacklevel=1, source=self)  # fmt: skip
            return
        with suppress(Exception):  # at interpreter exit there may be no CUDA left
            self._backend.synchronize()
            self._leases.forget()
            engine.close()

    # ---- what DeepEP offers on the class
    @staticmethod
    def is_sm90_compiled() -> bool:
        """Whether the current GPU is a Hopper or later (DeepEP: whether it was compiled for one, and so has FP8)."""
        return bool(tensors.backend().capability()[0] >= SM90)

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """SMs of each dispatch and combine from now on that has no Config: an even number."""
        check_even_sms(new_num_sms)
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event on the current stream, to give as `previous_event`."""
        return events.capture()

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """The least `num_rdma_bytes` for low-latency calls of these sizes."""
        return get_low_latency_rdma_size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """A Config for dispatch in a group of that size: rdmakit's is the same for all."""
        check_positive(num_ranks=num_ranks)
        return Config(Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """A Config for combine in a group of that size: rdmakit's is the same for all."""
        return Buffer.get_dispatch_config(num_ranks)

    # ---- streams and memory
    def get_comm_stream(self) -> Stream:
        """The stream on which this Buffer communicates, a `torch.cuda.Stream` of high priority."""
        return self._comm_stream

    def get_local_buffer_tensor(
        self, dtype: Dtype, size: Any = None, offset: int = 0, use_rdma_buffer: bool = False
    ) -> Tensor:
        """This rank's own memory as a tensor, from element `offset` on: flat and to its end, or as `size`.

        Normal and low-latency calls share one heap; `use_rdma_buffer` is for DeepEP's programs and changes nothing.
        """
        engine = self._engine()
        there = engine.heap_bytes // dtype.itemsize - offset
        shape = (there,) if size is None else tuple(size)
        wanted = 1
        for extent in shape:
            wanted *= extent
        if offset < 0 or wanted > there or there < 0:
            raise BadArgument("that is beyond the Buffer's memory", value=f"offset {offset}, {wanted} elements",
                              rule=f"{engine.heap_bytes // dtype.itemsize} elements of {dtype}",
                              remedy="take a smaller size or offset, or make a larger Buffer")  # fmt: skip
        address = engine.heap_address + offset * dtype.itemsize
        found: Tensor = self._backend.wrap(address, shape, dtype, self.device, engine.heap_owner)
        return found
