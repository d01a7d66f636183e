"""Python values as kernel arguments: bytes that fit the kernel's own types, whatever runs it.

Leans on mr, handle, report and NumPy. Kinds are those of `rdmakit::cpu::ArgumentType` (cpu.cuh), and `VALUE` where
only the size is known. Which arrays kernels can reach, each backend says (`host_pointer` is the CPU runner's answer).
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rdmakit.device.buffer import byte_view, from_dlpack
from rdmakit.device.handle import DeviceHandle
from rdmakit.device.mr import MR, MemorySlice, RemoteMemory
from rdmakit.device.report import Report
from rdmakit.errors import BadArgument

__all__ = ["FLOAT", "POINTER", "VALUE", "Pointer", "host_pointer", "kind_of", "pack", "refuse"]

POINTER, INTEGER, FLOAT, STRUCT, VALUE = range(5)
_KIND_NAMES = ("a pointer", "an integer", "a float", "a struct", "an integer or a struct")
Pointer = Callable[[str, Any], tuple[int, Any]]  # (what it is called, the value) → its address, what to keep alive


def refuse(what: str, value: Any, rule: str, remedy: str | None = None) -> BadArgument:
    shown = f"{type(value).__name__} {value!r}" if np.isscalar(value) else type(value).__name__
    return BadArgument(what, value=shown, rule=rule, remedy=remedy)


def kind_of(parameter: str) -> int:
    """POINTER, FLOAT or VALUE, by a parameter's text in the source; aliases of floats are taken for VALUE.

    >>> [kind_of(text) for text in ("const float* p", "float by", "u32 n")] == [POINTER, FLOAT, VALUE]
    True
    """
    if "*" in parameter:
        return POINTER
    return FLOAT if re.search(r"\b(?:float|double)\b", parameter) else VALUE


def host_pointer(where: str, value: Any) -> tuple[int, Any]:
    """Memory of this process. BadArgument for what is none, or has gaps."""
    if value is None:
        return 0, None
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if not 0 <= int(value) < 1 << 64:
            raise refuse(f"{where} is no address", value, "0 … 2**64 − 1")
        return int(value), None
    if isinstance(value, (MR, MemorySlice)):
        region = value.mr if isinstance(value, MemorySlice) else value
        region._require_open()
        return value.address, value
    if isinstance(value, (DeviceHandle, Report)):
        return int(value.array.ctypes.data), value
    if isinstance(value, np.ndarray) or hasattr(value, "__dlpack__"):
        array = value if isinstance(value, np.ndarray) else from_dlpack(value)
        if array.nbytes == 0:
            return int(array.ctypes.data), array
        if not array.flags.c_contiguous:
            raise BadArgument(
                f"{where} is an array with gaps",
                value=f"shape {array.shape}, strides {array.strides}",
                rule="kernels see one range of addresses: C-contiguous",
                remedy="pass np.ascontiguousarray(array), or the base array and its strides",
            )
        return int(array.ctypes.data), (value, byte_view(array))
    raise refuse(
        f"{where} must be a pointer",
        value,
        "an array, an MR, a DLPack tensor, an address as int, or None for null",
        "turn lists and scalars into arrays: world.array(…) or np.array(…)",
    )


def _integer(where: str, value: Any, nbytes: int) -> bytes:
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, int):
        raise refuse(f"{where} must be an integer", value, f"an int that fits {nbytes} bytes")
    bits = 8 * nbytes
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise refuse(f"{where} does not fit", value, f"{nbytes} bytes: −2**{bits - 1} … 2**{bits} − 1")
    return (value & (1 << bits) - 1).to_bytes(nbytes, "little")


def _float(where: str, value: Any, nbytes: int) -> bytes:
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise refuse(f"{where} must be a float", value, f"a float of {nbytes} bytes")
    if nbytes not in (4, 8):
        raise refuse(f"{where} has an unsupported width", value, f"{nbytes}-byte floats are not supported")
    try:
        return struct.pack("<f" if nbytes == 4 else "<d", value)
    except OverflowError:
        raise refuse(f"{where} does not fit", value, "a float of 4 bytes") from None


def _struct(where: str, value: Any, nbytes: int) -> tuple[bytes, Any]:
    if isinstance(value, (DeviceHandle, Report)):
        raw = value.array.tobytes()
    elif isinstance(value, RemoteMemory):  # struct RemoteMemory and, below, struct LocalMemory of signal.cuh
        raw = struct.pack("<QI4x", value.address, value.rkey)
    elif isinstance(value, (MR, MemorySlice)):
        raw = struct.pack("<QI4x", value.address, value.lkey)
    elif isinstance(value, (np.void, np.ndarray, np.generic)) and value.size == 1:
        raw = value.tobytes()
    elif isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
    elif isinstance(value, ctypes.Structure):
        raw = bytes(memoryview(value).cast("B"))
    else:
        raise refuse(
            f"{where} must be a struct of {nbytes} bytes",
            value,
            "a NumPy structured scalar, a device handle, an MR or mr.remote(), a ctypes Structure or bytes",
            "np.zeros((), dtype)[()] of a dtype with the struct's fields",
        )
    if len(raw) != nbytes:
        raise BadArgument(
            f"{where} has another size than the kernel's struct",
            value=len(raw),
            rule=f"{nbytes} bytes",
            remedy="compare the dtype's itemsize with sizeof in the header: alignment adds padding",
        )
    return raw, value


_STRUCTS = (DeviceHandle, Report, RemoteMemory, MR, MemorySlice, np.void, bytes, bytearray, ctypes.Structure)


def _is_struct(value: Any) -> bool:
    return isinstance(value, _STRUCTS) or (isinstance(value, np.ndarray) and value.dtype.names is not None)


def pack(
    kernel: str,
    types: Sequence[tuple[int, int]],
    arguments: Sequence[Any],
    pointer: Pointer = host_pointer,
    names: Sequence[str] = (),
) -> tuple[list[bytes], list[Any]]:
    """The bytes of each argument, and the objects to keep alive until the launch has run.

    `types`: (kind, bytes) of each parameter; `names`: what to call them besides their numbers. BadArgument names the
    argument when its number, kind, size or range is wrong.

    >>> pack("k", [(1, 4), (2, 4)], [7, 0.5])[0]
    [b'\\x07\\x00\\x00\\x00', b'\\x00\\x00\\x00?']
    """
    if isinstance(arguments, (str, bytes, np.ndarray)) or not isinstance(arguments, Sequence):
        raise refuse(f"arguments of {kernel}", arguments, "a tuple or list, one value for each parameter")
    if len(arguments) != len(types):
        raise BadArgument(
            f"{kernel} takes {len(types)} arguments",
            value=len(arguments),
            rule=", ".join(f"{_KIND_NAMES[kind]} of {nbytes} B" for kind, nbytes in types) or "none",
            remedy="pass one for each parameter of the kernel, in its order",
        )
    packed: list[bytes] = []
    keep: list[Any] = []
    for number, ((kind, nbytes), value) in enumerate(zip(types, arguments, strict=True)):
        where = f"argument {number} of {kernel}" + (f" ({names[number]})" if names else "")
        if kind == VALUE:
            kind = STRUCT if nbytes not in (1, 2, 4, 8) or _is_struct(value) else INTEGER
        if kind == POINTER:
            address, alive = pointer(where, value)
            packed.append(address.to_bytes(8, "little"))
            keep.append(alive)
        elif kind == INTEGER:
            packed.append(_integer(where, value, nbytes))
        elif kind == FLOAT:
            packed.append(_float(where, value, nbytes))
        else:
            raw, alive = _struct(where, value, nbytes)
            packed.append(raw)
            keep.append(alive)
    return packed, keep
