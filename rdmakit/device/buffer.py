"""Where the bytes of a buffer lie: NumPy arrays, anything with the buffer protocol, DLPack tensors. No copy
is made.

Leans on NumPy and errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.errors import BadArgument

__all__ = ["byte_view", "from_dlpack"]


# DLPack device types whose memory this process addresses: CPU, CUDA's and ROCm's pinned host memory, CUDA managed.
_HOST_DEVICES = (1, 3, 11, 13)


def from_dlpack(tensor: Any) -> np.ndarray[Any, Any]:
    """The tensor's own memory as an array. BadArgument when it lies on a device."""
    try:
        device = int(tensor.__dlpack_device__()[0])
        if device in _HOST_DEVICES:
            return np.from_dlpack(tensor)
        reason = f"its DLPack device type is {device}"
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error)
    raise BadArgument(
        "DLPack tensor that NumPy cannot see",
        value=type(tensor).__name__,
        rule=f"memory that this process addresses ({reason})",
        remedy="pass a CPU tensor, or register it with the backend of its own device",
    )


def _as_array(buffer: Any) -> np.ndarray[Any, Any]:
    if isinstance(buffer, np.ndarray):
        return buffer
    if hasattr(buffer, "__dlpack__"):
        return from_dlpack(buffer)
    try:
        return np.frombuffer(buffer, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise BadArgument(
            "not a buffer",
            value=type(buffer).__name__,
            rule=f"a NumPy array, a DLPack tensor or an object with the buffer protocol ({error})",
            remedy="wrap the values: np.asarray(values), or bytearray(nbytes) for room to receive",
        ) from None


def byte_view(buffer: Any, *, writeable: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A uint8 view, of shape (nbytes,), of the memory of `buffer`, which it keeps alive.

    BadArgument when the memory has gaps, is empty, holds Python objects, or is read-only and `writeable` is
    asked.

    >>> array = np.zeros(3, np.uint32)
    >>> byte_view(array)[0] = 7
    >>> array
    array([7, 0, 0], dtype=uint32)
    """
    array = _as_array(buffer)
    if array.dtype.hasobject:
        raise BadArgument("array of Python objects", value=str(array.dtype), rule="plain bytes that a NIC can move",
                          remedy="copy the numbers into an array of a fixed dtype: np.asarray(values, np.float32)")
    if array.nbytes == 0:
        raise BadArgument("empty buffer", value=array.shape, rule="at least one byte",
                          remedy="register an array that has elements")
    if not array.flags.c_contiguous:
        raise BadArgument(
            "array with gaps",
            value=f"shape {array.shape}, strides {array.strides}",
            rule="C-contiguous: a memory region is one range of addresses",
            remedy="pass np.ascontiguousarray(array), or register the base array and use mr.slice",
        )
    if writeable and not array.flags.writeable:
        raise BadArgument(
            "read-only buffer",
            value=type(buffer).__name__,
            rule="the access asked for lets a device write into it",
            remedy='pass a writable array, or access=""',
        )
    return array.reshape(-1).view(np.uint8)
