"""Everything that rdmakit asks of torch: Dtypes, streams, events, and tensors over memory that torch did not allocate.

The one module that imports torch, and only when it is first asked for something. `backend()` is the seam: what stands
above knows `Cuda`'s methods and nothing else of streams, so that tests put a backend without streams in its place.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

from rdmakit.errors import BadArgument, NotAvailable

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device
    from torch import dtype as Dtype
    from torch.cuda import Event, Stream
else:
    Tensor = Stream = Event = Device = Dtype = Any

__all__ = [
    "KERNELS",
    "Cuda",
    "Device",
    "Dtype",
    "Event",
    "Kinds",
    "Stream",
    "Tensor",
    "backend",
    "kernels_on_cpu",
    "torch",
]

KERNELS = "RDMAKIT_KERNELS"
"""The environment variable that says where kernels run."""

HIGH_PRIORITY = -1  # torch.cuda.Stream: lower numbers go first


@functools.cache
def torch() -> Any:
    """The torch module. NotAvailable where it is not installed."""
    try:
        import torch as found
    except ImportError as error:
        raise NotAvailable("no torch", value=str(error), rule="Buffer takes and returns torch tensors",
                           remedy="pip install torch (a CUDA build); without it, use rdmakit.ep.normal and World",
                           ) from None  # fmt: skip
    return found


class Kinds:
    """The dtypes of dispatch and combine, looked up once: comparing them is comparing objects."""

    def __init__(self) -> None:
        found = torch()
        self.bool: Dtype = found.bool
        self.uint8: Dtype = found.uint8
        self.int32: Dtype = found.int32
        self.int64: Dtype = found.int64
        self.float32: Dtype = found.float32
        self.bfloat16: Dtype = found.bfloat16
        self.float8: Dtype = found.float8_e4m3fn


class _Range:
    """Bytes on a GPU, in the words of the CUDA array interface (version 3). A tensor made of it keeps it, and it keeps
    the owner of the bytes.
    """

    def __init__(self, address: int, nbytes: int, owner: object) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


class Cuda:
    """torch on NVIDIA GPUs: streams, events and memory of the current device."""

    def __init__(self) -> None:
        if not torch().cuda.is_available():
            raise NotAvailable("torch finds no GPU", value=torch().__version__,
                               rule="Buffer moves rows between NVIDIA GPUs",
                               remedy="install a CUDA build of torch and look at nvidia-smi and CUDA_VISIBLE_DEVICES",
                               )  # fmt: skip
        self.kinds = Kinds()
        # Neither name is torch's public word: without them calls are right, and slower.
        self._without_modes: Any = getattr(torch()._C, "DisableTorchFunction", nullcontext)
        self._raw_stream: Any = getattr(torch()._C, "_cuda_getCurrentRawStream", None)
        self._streams: dict[tuple[int, int], Stream] = {}  # by device and cudaStream_t
        self._passed: dict[Stream, Event] = {}  # of each stream that others have waited for

    def direct(self) -> AbstractContextManager[Any]:
        """Within it, torch's function modes are not asked: a program's default device doubles the time of a call."""
        found: AbstractContextManager[Any] = self._without_modes()
        return found

    def device(self) -> Device:
        """The current device, with its index."""
        return torch().device("cuda", torch().cuda.current_device())

    def capability(self) -> tuple[int, int]:
        """Compute capability of the current device."""
        major, minor = torch().cuda.get_device_capability()
        return int(major), int(minor)

    def reaches(self, other: int) -> bool:
        """Whether the current device reads and writes the memory of device `other` (an index of this process)."""
        here = torch().cuda.current_device()
        return here == other or bool(torch().cuda.can_device_access_peer(here, other))

    def synchronize(self) -> None:
        """The host waits for everything on the current device."""
        torch().cuda.synchronize()

    # ---- streams and events
    def current_stream(self, where: Device | None = None) -> Stream:
        """torch's current stream of this thread on a device (default: the current one)."""
        if self._raw_stream is None:
            return torch().cuda.current_stream(where)
        index = torch().cuda.current_device() if where is None else where.index
        here = index, self._raw_stream(index)
        if here not in self._streams:
            self._streams[here] = torch().cuda.current_stream(where)
        return self._streams[here]

    def new_stream(self) -> Stream:
        """A stream that the GPU's scheduler prefers: communication goes before computation."""
        return torch().cuda.Stream(priority=HIGH_PRIORITY)

    def address(self, stream: Stream) -> int:
        """Its cudaStream_t."""
        return int(stream.cuda_stream)

    def use(self, stream: Stream) -> AbstractContextManager[Any]:
        """Makes it the current stream within a `with`: allocations belong to it."""
        found: AbstractContextManager[Any] = torch().cuda.stream(stream)
        return found

    def record(self, stream: Stream | None = None) -> Event:
        """An event behind all that the stream (default: the current one) has been given so far."""
        event = torch().cuda.Event()
        event.record(self.current_stream() if stream is None else stream)
        return event

    def wait_event(self, stream: Stream, event: Event) -> None:
        """What comes next on the stream waits for the event."""
        stream.wait_event(event)

    def wait_stream(self, stream: Stream, other: Stream) -> None:
        """What comes next on `stream` waits for all that `other` has been given so far."""
        if stream == other:
            return
        # One event serves all waits for a stream: a wait is for what was recorded last when it was queued.
        event = self._passed.get(other)
        if event is None:
            event = self._passed[other] = torch().cuda.Event()
        event.record(other)
        stream.wait_event(event)

    def keep(self, tensor: Tensor, stream: Stream) -> None:
        """Its memory is not given out again before what the stream has been given so far is done."""
        tensor.record_stream(stream)

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a CUDA graph."""
        return bool(torch().cuda.is_current_stream_capturing())

    # ---- memory
    def holds(self, tensor: Tensor, where: Device) -> bool:
        """Whether the tensor lies on device `where`."""
        return bool(tensor.device == where)

    def empty(self, shape: Sequence[int], kind: Dtype, where: Device) -> Tensor:
        """Uninitialised memory of torch's allocator; the default dtype and device that a program set do not matter."""
        return torch().empty(tuple(shape), dtype=kind, device=where)

    def zeros(self, shape: Sequence[int], kind: Dtype, where: Device) -> Tensor:
        """Zeroed memory, enqueued on the current stream."""
        return torch().zeros(tuple(shape), dtype=kind, device=where)

    def wrap(self, address: int, shape: Sequence[int], kind: Dtype, where: Device, owner: object) -> Tensor:
        """Memory at a device address as a contiguous tensor. Its storage keeps `owner`, whatever views are made of it.

        It goes through bytes, since the CUDA array interface has no BF16 and no FP8.
        """
        if prod(shape) == 0:
            return self.empty(shape, kind, where)
        return self.part(self.bytes_at(address, prod(shape) * int(kind.itemsize), where, owner), 0, shape, kind)

    def bytes_at(self, address: int, nbytes: int, where: Device, owner: object) -> Tensor:
        """`nbytes` bytes at a device address as uint8 `[nbytes]`. Its storage keeps `owner`."""
        return torch().as_tensor(_Range(address, nbytes, owner), device=where)

    def part(self, flat: Tensor, begin: int, shape: Sequence[int], kind: Dtype) -> Tensor:
        """Elements from byte `begin` of a uint8 tensor on, over the same storage."""
        return flat.narrow(0, begin, prod(shape) * int(kind.itemsize)).view(kind).view(tuple(shape))


def kernels_on_cpu() -> bool:
    """What RDMAKIT_KERNELS says: "cpu", or "gpu" and nothing for GPUs. BadArgument for anything else."""
    asked = os.environ.get(KERNELS, "gpu")
    if asked not in ("cpu", "gpu"):
        raise BadArgument(f"{KERNELS} says neither", value=asked, rule="cpu or gpu", remedy="unset it for GPUs")
    return asked == "cpu"


@functools.cache
def _backend(on_cpu: bool) -> Any:
    return import_module("rdmakit.ep.cpu_tensors").CpuTensors() if on_cpu else Cuda()


def backend() -> Any:
    """What Buffer does its tensors and streams with: `Cuda`, or `CpuTensors` where RDMAKIT_KERNELS=cpu.

    NotAvailable without torch, or without a GPU when one is needed.
    """
    return _backend(kernels_on_cpu())
