"""Calls of the CUDA driver that CuPy has no names for: the host's pages mapped for kernels, GPU memory as a dma-buf.

Leans on cuda. Source: CUDA Driver API, cuMemHostRegister, cuMemHostGetDevicePointer, cuMemGetHandleForAddressRange,
cuDeviceGetAttribute, cuDeviceGetUuid.
"""

from __future__ import annotations

import ctypes
from typing import Any

from rdmakit.errors import NotAvailable
from rdmakit.gpu.cuda import cupy

__all__ = ["GPU_PAGE", "DriverRegistrar", "dmabuf_of", "uuid_of_gpu"]

GPU_PAGE = 1 << 16
"""Bytes that the driver pins of a GPU's memory at once (GPUDirect RDMA guide)."""

_LIBRARY = "libcuda.so.1"
_PORTABLE, _DEVICEMAP, _IOMEMORY = 1, 2, 4  # CU_MEMHOSTREGISTER_*
_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED
_DMA_BUF_FD = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD


def _call(call: str, *arguments: Any) -> None:
    """NotAvailable, with CUDA's own word as its value, when the call is refused."""
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


class DriverRegistrar:
    """Whole pages of the host, mapped for the kernels of all GPUs and taken back."""

    def register(self, address: int, nbytes: int, io: bool) -> None:
        """`io`: they are registers of another device, a UAR page say, and no memory."""
        flags = _PORTABLE | _DEVICEMAP | (_IOMEMORY if io else 0)
        _call("cuMemHostRegister_v2", ctypes.c_void_p(address), ctypes.c_size_t(nbytes), ctypes.c_uint(flags))

    def pointer(self, address: int) -> int:
        """Where kernels reach what has been registered."""
        found, at = ctypes.c_uint64(), ctypes.c_void_p(address)
        _call("cuMemHostGetDevicePointer_v2", ctypes.byref(found), at, ctypes.c_uint(0))
        return int(found.value)

    def unregister(self, address: int) -> None:
        """Of what `register` was given."""
        _call("cuMemHostUnregister", ctypes.c_void_p(address))


def uuid_of_gpu() -> str:
    """32 hexadecimal digits that name the current GPU, or the part of a GPU that is divided (MIG), in any process."""
    found = (ctypes.c_uint8 * 16)()
    _call("cuDeviceGetUuid_v2", found, ctypes.c_int(int(cupy().cuda.Device().id)))
    return bytes(found).hex()


def dmabuf_of(address: int, nbytes: int) -> int:
    """A descriptor of memory of the current GPU as a dma-buf, which the caller closes; whole pages of GPU_PAGE.

    NotAvailable where the driver has none.
    """
    value = ctypes.c_int()
    _call("cuDeviceGetAttribute", ctypes.byref(value), _DMA_BUF_SUPPORTED, int(cupy().cuda.Device().id))
    if not value.value:
        raise NotAvailable("the driver exports no dma-buf", value=0, rule="CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED",
                           remedy="NVIDIA's open kernel modules on Linux 5.12 or newer; or nvidia-peermem")  # fmt: skip
    descriptor = ctypes.c_int(-1)
    _call(
        "cuMemGetHandleForAddressRange", ctypes.byref(descriptor), ctypes.c_uint64(address),
        ctypes.c_size_t(nbytes), ctypes.c_int(_DMA_BUF_FD), ctypes.c_uint64(0),
    )  # fmt: skip
    return int(descriptor.value)
