"""What every wire structure needs: a dtype with exact offsets, and the check that a number fits its field.

Leans on errors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rdmakit.errors import BadArgument

__all__ = ["unsigned", "wire_dtype"]


def wire_dtype(itemsize: int, **fields: tuple[int, Any]) -> np.dtype[np.void]:
    """Structured dtype of `itemsize` bytes from name=(offset, format); fields may overlap and leave gaps.

    >>> wire_dtype(8, word=(0, ">u4"), last_byte=(3, "u1")).fields["last_byte"][1]
    3
    """
    return np.dtype(
        {
            "names": list(fields),
            "formats": [form for _, form in fields.values()],
            "offsets": [offset for offset, _ in fields.values()],
            "itemsize": itemsize,
        }
    )


def unsigned(name: str, value: int, bits: int) -> int:
    """`value` itself when it is an unsigned number of `bits` bits, else BadArgument."""
    if not 0 <= value < 1 << bits:
        raise BadArgument(f"{name} does not fit", value=value, rule=f"unsigned, {bits} bits",
                          remedy="pass the number that the object has, such as qp.qpn or mr.rkey")
    return value
