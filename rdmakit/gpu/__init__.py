"""The same device code on NVIDIA GPUs: compiled by NVRTC through CuPy, launched on any stream.

Leans on CuPy, which is imported when something is compiled or allocated, not before.

>>> from rdmakit import gpu
>>> gpu.compile_source("RDMAKIT_KERNEL one(int* p) { *p = 1; }")  # doctest: +SKIP
<gpu.Module of one>
"""

from rdmakit.gpu.device_queues import GpuReach, reach
from rdmakit.gpu.headers import headers_of, source_key
from rdmakit.gpu.module import Kernel, Module, compile_source, stock_kernel, stock_module
from rdmakit.gpu.pinned import pinned_report
from rdmakit.gpu.world import World

__all__ = [
    "GpuReach",
    "Kernel",
    "Module",
    "World",
    "compile_source",
    "headers_of",
    "pinned_report",
    "reach",
    "source_key",
    "stock_kernel",
    "stock_module",
]
