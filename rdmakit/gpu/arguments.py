"""Python values as arguments of a kernel on a GPU: which pointers it can reach, each value as long as its parameter is.

Leans on device.arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.device import Report
from rdmakit.device.arguments import kind_of, pack, refuse
from rdmakit.errors import BadArgument

__all__ = ["device_pointer", "pack_for"]


def _contiguous(interface: dict[str, Any]) -> bool:
    strides, step = interface.get("strides"), np.dtype(interface["typestr"]).itemsize
    if strides is None:
        return True
    for extent, stride in zip(reversed(interface["shape"]), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return 0 in interface["shape"]
        step *= extent
    return True


def device_pointer(where: str, value: Any) -> tuple[int, Any]:
    """Memory that GPUs reach: what has `__cuda_array_interface__`, a pinned `Report`, an address, None for null."""
    if value is None:
        return 0, None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) < 1 << 64:
        return int(value), None
    if isinstance(value, Report):
        return value.address, value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        raise refuse(
            f"{where} must be a pointer of the device's",
            value,
            "an array on a GPU, an address as int, or None for null",
            "move NumPy arrays there by cupy.asarray(array)",
        )
    if not _contiguous(interface):
        raise BadArgument(
            f"{where} is an array with gaps",
            value=f"shape {interface['shape']}, strides {interface['strides']}",
            rule="kernels see one range of addresses: C-contiguous",
            remedy="pass cupy.ascontiguousarray(array)",
        )
    return int(interface["data"][0] or 0), value


def pack_for(
    kernel: str, parameters: Sequence[str], sizes: Sequence[int], values: Sequence[Any], pointer: Any = device_pointer
) -> tuple[tuple[np.void, ...], list[Any]]:
    """What CuPy launches with: bytes that it passes on as they are. And what to keep alive until the launch has run.

    `parameters`: their texts in the source; `sizes`: in bytes, by the driver. BadArgument names what does not fit.

    >>> [bytes(one).hex() for one in pack_for("k", ["int n", "float by"], [4, 4], [7, 0.5])[0]]
    ['07000000', '0000003f']
    """
    types = [(kind_of(text), nbytes) for text, nbytes in zip(parameters, sizes, strict=True)]
    packed, keep = pack(kernel, types, values, pointer, parameters)
    return tuple(np.frombuffer(one, f"V{len(one)}")[0] for one in packed), keep
