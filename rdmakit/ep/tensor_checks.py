"""Checks on tensors that a caller hands over: dtype, shape, contiguity and place, never a value.

A look at values would synchronise with the GPU. Leans on errors; tensors are anything with torch's attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdmakit.errors import BadArgument

__all__ = ["check_even_sms", "check_positive", "check_tensor"]


def check_tensor(
    name: str, value: Any, where: Any, kinds: Sequence[Any], shape: Sequence[int | str], *, contiguous: bool = True
) -> None:
    """Raise `BadArgument` unless `value` is a tensor on device `where` with one of the dtypes and the shape.

    `shape` has a number for an extent that must be so and a name for one that is free.
    """
    if not (hasattr(value, "data_ptr") and hasattr(value, "is_contiguous")):
        raise BadArgument(f"{name} is no tensor", value=type(value).__name__, rule="a torch.Tensor",
                          remedy=f"pass a tensor as {name}")  # fmt: skip
    if value.dtype not in kinds:
        rule = " or ".join(str(kind) for kind in kinds)
        raise BadArgument(f"{name} has the wrong dtype", value=value.dtype, rule=rule,
                          remedy=f"{name}.to({kinds[0]})")  # fmt: skip
    sizes = tuple(value.shape)
    if len(sizes) != len(shape) or not _fit(sizes, shape):
        wanted = ", ".join(str(extent) for extent in shape)
        raise BadArgument(f"{name} has the wrong shape", value=sizes, rule=f"[{wanted}]",
                          remedy=f"look at where {name} comes from")  # fmt: skip
    if contiguous and not value.is_contiguous():
        raise BadArgument(f"{name} is not contiguous", value=f"strides {tuple(value.stride())}",
                          rule="rows one behind the other", remedy=f"{name}.contiguous()")  # fmt: skip
    if value.device != where:
        raise BadArgument(f"{name} lies on another device", value=value.device, rule=f"{where}, as the Buffer",
                          remedy=f"{name}.to({str(where)!r})")  # fmt: skip


def _fit(sizes: Sequence[int], shape: Sequence[int | str]) -> bool:
    return all(size == extent or isinstance(extent, str) for size, extent in zip(sizes, shape, strict=True))


def check_positive(**counts: int) -> None:
    """Raise `BadArgument` for a count that is no positive int.

    >>> check_positive(hidden=7168, num_experts=256)
    """
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadArgument(f"{name} is no positive number", value=value, rule="an int >= 1",
                              remedy=f"pass a positive {name}")  # fmt: skip


def check_even_sms(num_sms: int) -> None:
    """Raise `BadArgument` unless `num_sms` is even and not negative: DeepEP's channels take two SMs each.

    >>> check_even_sms(24)
    """
    if isinstance(num_sms, bool) or not isinstance(num_sms, int) or num_sms < 0 or num_sms % 2:
        raise BadArgument("num_sms is no even number", value=num_sms, rule="an even int >= 0, as in DeepEP",
                          remedy="use 24, or what Buffer.num_sms has")  # fmt: skip
