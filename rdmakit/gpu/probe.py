"""Small questions to CUDA, each answered by trying: versions, peer access, a register mapped for kernels, dma-buf.

Leans on cuda. What is mapped or exported here is given back at once: it says whether it can be done. Source: CUDA
Driver API, cuMemHostRegister, cuMemGetHandleForAddressRange, cuDeviceGetAttribute.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from rdmakit.errors import NotAvailable
from rdmakit.gpu.cuda import cupy

__all__ = ["GpuMemory", "Versions", "dmabuf_fd", "map_for_kernels", "peer_access", "versions"]

_LIBRARY = "libcuda.so.1"
_PORTABLE, _DEVICEMAP, _IOMEMORY = 1, 2, 4  # CU_MEMHOSTREGISTER_*
_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED
_DMA_BUF_FD = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
_GPU_PAGE = 1 << 16  # what the driver pins of a GPU's memory at once (GPUDirect RDMA guide)


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


def _driver(call: str, *arguments: Any) -> None:
    cp = cupy()
    cp.cuda.runtime.free(0)  # makes the current device's context
    library = ctypes.CDLL(_LIBRARY)
    code = getattr(library, call)(*arguments)
    if code:
        name = ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(name))
        said = name.value.decode() if name.value else f"CUresult {code}"
        raise NotAvailable(f"{call} was refused", value=said, rule="see the CUDA driver's log (dmesg, Xid)",
                           remedy="docs/doctor.md says what each refusal means")  # fmt: skip


def map_for_kernels(address: int, nbytes: int, *, io: bool) -> int:
    """Register `nbytes` at `address` with the current GPU and ask at which address its kernels reach them.

    `io`: they are registers of another device, a UAR page say, and no memory. NotAvailable with CUDA's own word when it
    is refused. The registration is taken back before this returns.
    """
    at = ctypes.c_void_p(address)
    flags = _PORTABLE | _DEVICEMAP | (_IOMEMORY if io else 0)
    _driver("cuMemHostRegister_v2", at, ctypes.c_size_t(nbytes), ctypes.c_uint(flags))
    try:
        mapped = ctypes.c_uint64()
        _driver("cuMemHostGetDevicePointer_v2", ctypes.byref(mapped), at, ctypes.c_uint(0))
        return int(mapped.value)
    finally:
        _driver("cuMemHostUnregister", at)


class GpuMemory:
    """One page of the current GPU's memory, as a NIC is to reach it: `address`, `nbytes`. Freed when dropped."""

    def __init__(self) -> None:
        self._owner = cupy().cuda.alloc(2 * _GPU_PAGE)
        self.address = -(-int(self._owner.ptr) // _GPU_PAGE) * _GPU_PAGE
        self.nbytes = _GPU_PAGE


def dmabuf_fd(memory: GpuMemory) -> int:
    """A descriptor of that memory as a dma-buf, which the caller closes. NotAvailable where the driver has none."""
    value = ctypes.c_int()
    _driver("cuDeviceGetAttribute", ctypes.byref(value), _DMA_BUF_SUPPORTED, int(cupy().cuda.Device().id))
    if not value.value:
        raise NotAvailable("the driver exports no dma-buf", value=0, rule="CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED",
                           remedy="NVIDIA's open kernel modules on Linux 5.12 or newer; or nvidia-peermem")  # fmt: skip
    descriptor = ctypes.c_int(-1)
    _driver(
        "cuMemGetHandleForAddressRange", ctypes.byref(descriptor), ctypes.c_uint64(memory.address),
        ctypes.c_size_t(memory.nbytes), ctypes.c_int(_DMA_BUF_FD), ctypes.c_uint64(0),
    )  # fmt: skip
    return int(descriptor.value)
