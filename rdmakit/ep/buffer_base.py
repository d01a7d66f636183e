"""What the normal and the low-latency half of Buffer share: the engine, the streams, and the words for memory.

Leans on ep.engine, ep.crossing, ep.leases, ep.tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from math import prod
from typing import Any, TypeVar, cast

from rdmakit.ep.crossing import Crossing
from rdmakit.ep.engine import Engine, Received
from rdmakit.ep.leases import Leases
from rdmakit.ep.tensors import Device, Dtype, Stream, Tensor
from rdmakit.errors import BadArgument, BadState

__all__ = ["BufferBase", "address_of", "direct"]

BF16_BYTES = 2
TOPK_BYTES = 12  # of a choice: index and weight
BLOCK_EXTRA = 1024  # alignment of a block's parts


_Call = TypeVar("_Call", bound=Callable[..., Any])


def direct(call: _Call) -> _Call:
    """A call of Buffer's that looks at tensors without asking torch's function modes (`Cuda.direct`)."""

    @wraps(call)
    def inner(self: BufferBase, *args: Any, **kwargs: Any) -> Any:
        with self._backend.direct():
            return call(self, *args, **kwargs)

    return cast("_Call", inner)


def address_of(tensor: Tensor | None) -> int:
    """Its first byte on the device; 0 for None."""
    return 0 if tensor is None else int(tensor.data_ptr())


class BufferBase:
    """State that every call uses. See `Buffer`."""

    rank: int
    group_size: int
    num_nvl_bytes: int
    num_rdma_bytes: int
    low_latency_mode: bool
    enable_shrink: bool
    runtime: Any  # an Engine, or an Internode where there are several hosts; None when destroyed
    device: Device
    _backend: Any
    _comm_stream: Stream
    _leases: Leases
    _hosts: int

    def _undestroyed(self) -> Engine:
        """The engine; BadState after `destroy`."""
        if self.runtime is None:
            raise BadState("the Buffer is destroyed", rule="no call after destroy()", remedy="make a new Buffer",
                           rank=self.rank)  # fmt: skip
        return cast("Engine", self.runtime)

    def _engine(self) -> Engine:
        """Likewise, for a call: what earlier ones enqueued may have failed since, and it raises that."""
        engine = self._undestroyed()
        engine.check()
        return engine

    def _empty(self, shape: Sequence[int], kind: Dtype) -> Tensor:
        found: Tensor = self._backend.empty(shape, kind, self.device)
        return found

    def _crossing(self, previous: Any, async_finish: bool, allocate_there: bool) -> Crossing:
        return Crossing(self._backend, self._comm_stream, previous, async_finish, allocate_there)

    def _packed(self, scales: Tensor | None) -> Tensor | None:
        """Scales as the engine takes them; a copy is made, and freed, on the communication stream."""
        if scales is None or scales.is_contiguous():
            return scales
        with self._backend.use(self._comm_stream):
            return scales.contiguous()

    def _hand_out(
        self, crossing: Crossing, received: Received, rows: int, x: Tensor, scales: Tensor | None, topk: int,
        with_source: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
        """Tensors over what a dispatch of `x` receives: x, scales, top-k; and, for a handle, source indices."""
        kinds = self._backend.kinds
        # The next call has to find room, whatever the caller keeps of this one: a dispatch, or a combine of BF16 rows.
        row_bytes = x.shape[1] * x.element_size()
        scale_bytes = 0 if scales is None else scales.shape[1] * scales.element_size()
        row_room = max(row_bytes + scale_bytes, BF16_BYTES * x.shape[1]) + TOPK_BYTES * topk
        scarce = self.runtime.largest_block < rows * row_room + BLOCK_EXTRA
        # All parts share one storage, which keeps the lease.
        lease, whole = self._leases.lease(received), None
        if received.nbytes:
            whole = self._backend.bytes_at(received.address, received.nbytes, self.device, lease)
        stream = self._stream_address(self._comm_stream)

        def result(address: int, shape: tuple[int, ...], kind: Any, copied: bool) -> Tensor:
            nbytes = prod(shape) * kind.itemsize
            if nbytes and not copied:
                inside: Tensor = self._backend.part(whole, address - received.address, shape, kind)
                return inside
            with crossing.results():
                outside = self._empty(shape, kind)
            if nbytes:
                self.runtime.copy(outside.data_ptr(), address, nbytes, stream)
            return outside

        return (
            result(received.x, (rows, x.shape[1]), x.dtype, scarce),
            None if scales is None else result(received.scales, (rows, scales.shape[1]), scales.dtype, scarce),
            result(received.topk, (rows, topk), kinds.int64, scarce) if topk else None,
            result(received.weights, (rows, topk), kinds.float32, scarce) if topk else None,
            # Handles live until the backward pass, and would hold every block.
            result(received.source, (rows,), kinds.int32, True) if with_source else None,
        )

    def _stream_address(self, stream: Stream) -> int:
        return int(self._backend.address(stream))

    def _local_experts(self, num_experts: int) -> int:
        """Experts of this rank; BadArgument where ranks would have different numbers."""
        if isinstance(num_experts, bool) or num_experts < 1 or num_experts % self.group_size:
            raise BadArgument("experts cannot be split evenly over ranks", value=num_experts,
                              rule=f"a positive multiple of {self.group_size} ranks",
                              remedy="pad the experts")  # fmt: skip
        return num_experts // self.group_size
