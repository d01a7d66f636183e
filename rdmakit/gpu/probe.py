"""Small questions to CUDA, each answered by trying: versions, peer access, a register mapped for kernels, dma-buf.

Leans on cuda and driver. What is mapped or exported here is given back at once: it says whether it can be done.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdmakit.gpu.cuda import cupy
from rdmakit.gpu.driver import GPU_PAGE, DriverRegistrar, dmabuf_of, uuid_of_gpu

__all__ = ["Gpu", "GpuMemory", "Versions", "current_gpu", "dmabuf_fd", "map_for_kernels", "peer_access", "versions"]


@dataclass(frozen=True)
class Versions:
    """Whole numbers as CUDA counts: 12080 is 12.8. `nvrtc`: (major, minor)."""

    driver: int
    runtime: int
    nvrtc: tuple[int, int]
    cupy: str
    gpus: tuple[str, ...]
    capability: tuple[str, ...]


def versions() -> Versions:
    """Of the driver, of CuPy's runtime and NVRTC, and the GPUs that CUDA shows to this process."""
    cp = cupy()
    runtime = cp.cuda.runtime
    count = int(runtime.getDeviceCount())
    properties = [runtime.getDeviceProperties(index) for index in range(count)]
    major, minor = cp.cuda.nvrtc.getVersion()
    return Versions(
        driver=int(runtime.driverGetVersion()),
        runtime=int(runtime.runtimeGetVersion()),
        nvrtc=(int(major), int(minor)),
        cupy=str(cp.__version__),
        gpus=tuple(p["name"].decode() if isinstance(p["name"], bytes) else str(p["name"]) for p in properties),
        capability=tuple(f"{p['major']}.{p['minor']}" for p in properties),
    )


def peer_access() -> dict[tuple[int, int], bool]:
    """For each pair of GPUs of this process: whether the first may reach the second's memory."""
    runtime = cupy().cuda.runtime
    gpus = range(int(runtime.getDeviceCount()))
    return {(a, b): bool(runtime.deviceCanAccessPeer(a, b)) for a in gpus for b in gpus if a != b}


@dataclass(frozen=True)
class Gpu:
    """`identity`: the same text in all processes of a host for one GPU, or one part of a GPU that is divided (MIG), and
    for no others. `adds_to_the_host`: its additions to words of the host's memory are atomic to everybody.
    """

    identity: str
    adds_to_the_host: bool


def current_gpu() -> Gpu:
    """The GPU that this thread uses."""
    return Gpu(uuid_of_gpu(), bool(cupy().cuda.Device().attributes.get("HostNativeAtomicSupported", 0)))


def map_for_kernels(address: int, nbytes: int, *, io: bool) -> int:
    """Register `nbytes` at `address` with the current GPU and ask at which address its kernels reach them.

    `io`: they are registers of another device, a UAR page say, and no memory. NotAvailable with CUDA's own word when it
    is refused. The registration is taken back before this returns.
    """
    cuda = DriverRegistrar()
    cuda.register(address, nbytes, io)
    try:
        return cuda.pointer(address)
    finally:
        cuda.unregister(address)


class GpuMemory:
    """One page of the current GPU's memory, as a NIC is to reach it: `address`, `nbytes`. Freed when dropped."""

    def __init__(self) -> None:
        self._owner = cupy().cuda.alloc(2 * GPU_PAGE)
        self.address = -(-int(self._owner.ptr) // GPU_PAGE) * GPU_PAGE
        self.nbytes = GPU_PAGE


def dmabuf_fd(memory: GpuMemory) -> int:
    """A descriptor of that memory as a dma-buf, which the caller closes. NotAvailable where the driver has none."""
    return dmabuf_of(memory.address, memory.nbytes)
