"""Python values as arguments of a kernel on a GPU: each made exactly as long as the driver says that its parameter is.

Leans on device (handles, keys, reports) and NumPy. What a parameter is, its text in the source tells: a `*` is a
pointer, `float` and `double` are themselves, everything else is an integer or a struct by value.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from rdmakit.device import DeviceHandle, RemoteMemory, Report
from rdmakit.errors import BadArgument

__all__ = ["pack"]

_FLOAT = re.compile(r"\b(?:float|double)\b")


def _kind(parameter: str) -> str:
    if "*" in parameter:
        return "pointer"
    return "float" if _FLOAT.search(parameter) else "value"


def _refuse(where: str, what: str, value: Any, rule: str, remedy: str) -> BadArgument:
    shown = f"{type(value).__name__} {value!r}" if np.isscalar(value) else type(value).__name__
    return BadArgument(f"{where} {what}", value=shown, rule=rule, remedy=remedy)


def _contiguous(interface: dict[str, Any]) -> bool:
    strides, step = interface.get("strides"), np.dtype(interface["typestr"]).itemsize
    if strides is None:
        return True
    for extent, stride in zip(reversed(interface["shape"]), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return 0 in interface["shape"]
        step *= extent
    return True


def _pointer(where: str, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= int(value) < 1 << 64:
        return int(value)
    if isinstance(value, Report):
        return value.address
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        raise _refuse(
            where, "must be a pointer of the device's", value, "an array on a GPU, an address as int, or None for null",
            "move NumPy arrays there by cupy.asarray(array)",
        )  # fmt: skip
    if not _contiguous(interface):
        raise BadArgument(
            f"{where} is an array with gaps", value=f"shape {interface['shape']}, strides {interface['strides']}",
            rule="kernels see one range of addresses: C-contiguous", remedy="pass cupy.ascontiguousarray(array)",
        )  # fmt: skip
    return int(interface["data"][0] or 0)


def _float(where: str, value: Any, nbytes: int) -> bytes:
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _refuse(where, "must be a float", value, f"a float of {nbytes} bytes", "float(value)")
    try:
        return struct.pack("<f" if nbytes == 4 else "<d", value)
    except OverflowError:
        raise _refuse(where, "does not fit", value, f"a float of {nbytes} bytes", "a smaller number") from None


def _raw(value: Any) -> bytes | None:
    if isinstance(value, (DeviceHandle, Report)):
        return value.array.tobytes()
    if isinstance(value, RemoteMemory):
        return struct.pack("<QI4x", value.address, value.rkey)
    if isinstance(value, (np.void, np.ndarray)) and value.size == 1 and value.dtype.names is not None:
        return value.tobytes()
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, ctypes.Structure):
        return bytes(memoryview(value).cast("B"))
    return None


def _value(where: str, value: Any, nbytes: int) -> bytes:
    raw = _raw(value)
    if raw is not None:
        if len(raw) != nbytes:
            raise BadArgument(
                f"{where} has another size than the kernel's struct", value=len(raw), rule=f"{nbytes} bytes",
                remedy="compare the dtype's itemsize with sizeof in the header",
            )  # fmt: skip
        return raw
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, int) or nbytes > 8:
        rule = f"an integer of {nbytes} bytes" if nbytes <= 8 else f"a struct of {nbytes} bytes"
        raise _refuse(where, "has the wrong type", value, rule, "an int, a NumPy structured scalar or a device handle")
    bits = 8 * nbytes
    if not -(1 << bits - 1) <= value < 1 << bits:
        rule = f"{nbytes} bytes: −2**{bits - 1} … 2**{bits} − 1"
        raise _refuse(where, "does not fit", value, rule, "a smaller number")
    return (value & (1 << bits) - 1).to_bytes(nbytes, "little")


def pack(kernel: str, parameters: Sequence[str], sizes: Sequence[int], values: Sequence[Any]) -> tuple[np.void, ...]:
    """Each value as bytes that fit its parameter. BadArgument names the one whose number, kind, size or range is wrong.

    >>> [bytes(one).hex() for one in pack("k", ["int n", "float by"], [4, 4], [7, 0.5])]
    ['07000000', '0000003f']
    """
    if isinstance(values, (str, bytes, np.ndarray)) or not isinstance(values, Sequence):
        raise _refuse(
            f"arguments of {kernel}", "are no list", values, "one value a parameter", "pass a tuple or a list"
        )
    if len(values) != len(sizes):
        raise BadArgument(
            f"{kernel} takes {len(sizes)} arguments", value=len(values), rule=", ".join(parameters) or "none",
            remedy="pass one for each parameter of the kernel, in its order",
        )  # fmt: skip
    packed = []
    for number, (parameter, nbytes, value) in enumerate(zip(parameters, sizes, values, strict=True)):
        where, kind = f"argument {number} of {kernel} ({parameter})", _kind(parameter)
        if kind == "pointer":
            raw = _pointer(where, value).to_bytes(8, "little")
        else:
            raw = _float(where, value, nbytes) if kind == "float" else _value(where, value, nbytes)
        packed.append(np.frombuffer(raw, f"V{len(raw)}")[0])
    return tuple(packed)
