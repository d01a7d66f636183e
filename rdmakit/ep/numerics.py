"""The number formats of dispatch and combine: FP8 with block scales, and how far rounding may lead astray.

BF16 and float8_e4m3fn come from ml_dtypes; sums are float32, as on the device. Leans on NumPy and
`ep.layout`.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep.layout import FP8_BLOCK
from rdmakit.errors import BadArgument

__all__ = ["calc_diff", "dequantize_fp8", "quantize_fp8", "rounding_bound"]

Array = NDArray[Any]

FLOAT32_ROUNDOFF = 2.0**-24
BFLOAT16_ROUNDOFF = 2.0**-8
BFLOAT16_TINY = 2.0**-133  # its smallest subnormal: what rounding near zero may cost
E4M3_MAX = 448.0
AMAX_MIN = 1e-4  # DeepEP's clamp: a block of zeros gets a scale that can be divided by
# Ten times as fast as ml_dtypes' element-wise cast.
E4M3_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def quantize_fp8(x: Array) -> tuple[Array, NDArray[np.float32]]:
    """Cast BF16 or float32 `[..., hidden]` to float8_e4m3fn and float32 scales `[..., hidden/128]`.

    As DeepEP's `per_token_cast_to_fp8`: per 128 channels `amax = max(|x|, 1e-4)`, `scale = amax / 448`, and
    q is `x * (448 / amax)` in float32, rounded to nearest even. A NaN or infinity poisons its own block
    only. Raises `BadArgument` if hidden is no multiple of 128.

    >>> q, scales = quantize_fp8(np.full((1, 128), 3.5, np.float32))
    >>> float(q[0, 0]), dequantize_fp8(q, scales)[0, 0].item()
    (448.0, 3.5)
    """
    if x.ndim < 1 or x.shape[-1] % FP8_BLOCK or x.shape[-1] == 0:
        raise BadArgument("hidden is no multiple of the FP8 block", value=x.shape,
                          rule=f"hidden % {FP8_BLOCK} == 0",
                          remedy=f"pad the last axis to a multiple of {FP8_BLOCK}")
    blocks = x.astype(np.float32).reshape(*x.shape[:-1], x.shape[-1] // FP8_BLOCK, FP8_BLOCK)
    amax = np.maximum(np.abs(blocks).max(-1), np.float32(AMAX_MIN))
    q = blocks * (np.float32(E4M3_MAX) / amax)[..., None]
    return q.astype(ml_dtypes.float8_e4m3fn).reshape(x.shape), amax / np.float32(E4M3_MAX)


def dequantize_fp8(q: Array, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply float8_e4m3fn `[..., hidden]` by its scales `[..., hidden/128]`, in float32.

    The round trip errs by at most `|x| * 2**-4 + scale * 2**-10` (3 mantissa bits; subnormals of 2**-9).

    >>> dequantize_fp8(np.ones((1, 128), ml_dtypes.float8_e4m3fn), np.float32([[2]])).sum().item()
    256.0
    """
    blocks = E4M3_VALUES[q.view(np.uint8)].reshape(*scales.shape, FP8_BLOCK)
    product: NDArray[np.float32] = (blocks * scales[..., None]).reshape(q.shape)
    return product


def calc_diff(x: Array, y: Array) -> float:
    """DeepEP's distance `1 - 2 sum((x+1)(y+1)) / sum((x+1)^2 + (y+1)^2)`, in float64.

    Its tests demand < 5e-6 of combine, < 1e-5 (BF16) and < 9e-4 (FP8) of low latency.

    >>> calc_diff(np.ones((2, 2)), np.ones((2, 2)))
    0.0
    """
    cross = squares = 0.0
    for begin in range(0, len(x), 1024):
        a, b = (array[begin : begin + 1024].astype(np.float64) + 1 for array in (x, y))
        cross += float((a * b).sum())
        squares += float((a * a + b * b).sum())
    return 1 - 2 * cross / squares if squares else 0.0


def rounding_bound(total: Array, absolute: Array, max_terms: int, stages: int = 1) -> NDArray[np.float32]:
    """How far a float32 sum of `max_terms` terms, rounded to BF16 once a stage, may be from the exact one.

    `total` and `absolute` are the float32 sums of the terms and of their magnitudes; any order of additions
    is covered: `(n-1) u32 S` for them and `u16 |s|` for the last rounding (N. Higham, Accuracy and
    Stability, section 4.2). Two stages round partial sums as well: `u16 S` more. Same shape as `total`,
    float32.

    >>> rounding_bound(np.ones(1, np.float32), np.ones(1, np.float32), max_terms=1).item() == 2.0**-8
    True
    """
    # Twice the first-order cost of the additions: `total` and `absolute` are float32 sums themselves.
    adding = 2 * stages * (max_terms - 1) * FLOAT32_ROUNDOFF * absolute
    rounding = BFLOAT16_ROUNDOFF * (np.abs(total) + (stages - 1) * absolute)
    second_order = 1 + (stages - 1) * BFLOAT16_ROUNDOFF
    bound: Array = (adding + rounding) * second_order + stages * BFLOAT16_TINY
    return bound.astype(np.float32)
