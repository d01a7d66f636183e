"""What the normal and the low-latency half of Buffer share: the engine, the streams, and the words for memory.

Leans on ep.engine, ep.leases, ep.tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdmakit.ep.engine import Engine
from rdmakit.ep.leases import Leases
from rdmakit.ep.tensors import Device, Dtype, Stream, Tensor
from rdmakit.errors import BadArgument, BadState

__all__ = ["BufferBase", "address_of"]


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
    runtime: Engine | None
    device: Device
    _backend: Any
    _comm_stream: Stream
    _leases: Leases

    def _engine(self) -> Engine:
        """The engine; BadState after `destroy`."""
        if self.runtime is None:
            raise BadState("the Buffer is destroyed", rule="no call after destroy()", remedy="make a new Buffer",
                           rank=self.rank)  # fmt: skip
        return self.runtime

    def _empty(self, shape: Sequence[int], kind: Dtype) -> Tensor:
        found: Tensor = self._backend.empty(shape, kind, self.device)
        return found

    def _stream_address(self, stream: Stream) -> int:
        return int(self._backend.address(stream))

    def _local_experts(self, num_experts: int) -> int:
        """Experts of this rank; BadArgument where ranks would have different numbers."""
        if isinstance(num_experts, bool) or num_experts < 1 or num_experts % self.group_size:
            raise BadArgument("experts cannot be split evenly over ranks", value=num_experts,
                              rule=f"a positive multiple of {self.group_size} ranks",
                              remedy="pad the experts")  # fmt: skip
        return num_experts // self.group_size
