"""FP8 with block scales keeps its promised error, and calc_diff is DeepEP's distance."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdmakit.ep import numerics
from rdmakit.errors import BadArgument

BF16 = ml_dtypes.bfloat16


@settings(deadline=None, max_examples=100, print_blob=True)
@given(st.integers(0, 2**32), st.floats(-30, 30), st.booleans())
def test_fp8_round_trip_keeps_its_promise(seed: int, log2_size: float, as_bf16: bool) -> None:
    x = (np.random.default_rng(seed).normal(0, 1, (3, 256)) * 2**log2_size).astype(np.float32)
    x = x.astype(BF16).astype(np.float32) if as_bf16 else x
    q, scales = numerics.quantize_fp8(x.astype(BF16) if as_bf16 else x)
    assert (q.dtype, q.shape) == (ml_dtypes.float8_e4m3fn, (3, 256))
    assert (scales.dtype, scales.shape) == (np.float32, (3, 2))
    amax = np.maximum(np.abs(x.reshape(3, 2, 128)).max(2), np.float32(1e-4))
    assert (scales == amax / np.float32(448)).all()
    back = numerics.dequantize_fp8(q, scales)
    promise = np.abs(x) * 2**-4 * (1 + 1e-6) + np.repeat(scales, 128, axis=1) * 2**-10
    assert (np.abs(back - x) <= promise).all()
    if np.abs(x).max() > 1e-3:
        largest = np.unravel_index(np.abs(x).argmax(), x.shape)
        assert np.abs(q[largest].astype(np.float32)) == 448


def test_fp8_of_special_values() -> None:
    x = np.zeros((1, 384), np.float32)
    x[0, 130] = np.nan
    x[0, 300] = 7
    q, scales = numerics.quantize_fp8(x)
    back = numerics.dequantize_fp8(q, scales)
    assert (back[0, :128] == 0).all()
    assert scales[0, 0] == np.float32(1e-4) / np.float32(448)
    assert np.isnan(back[0, 128:256]).all()
    assert back[0, 300] == 7
    assert (numerics.dequantize_fp8(*numerics.quantize_fp8(-x))[0, 300]) == -7
    with pytest.raises(BadArgument, match="multiple of the FP8 block"):
        numerics.quantize_fp8(np.zeros((2, 100), np.float32))


def test_every_fp8_code_survives_dequantisation() -> None:
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).reshape(2, 128)
    back = numerics.dequantize_fp8(codes, np.ones((2, 1), np.float32))
    assert np.array_equal(back, codes.astype(np.float32), equal_nan=True)


def test_calc_diff_is_deepeps() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (2100, 128)).astype(np.float32)
    noisy = x + rng.normal(0, 0.1, x.shape).astype(np.float32)
    a, b = x.astype(np.float64) + 1, noisy.astype(np.float64) + 1
    want = 1 - 2 * (a * b).sum() / (a * a + b * b).sum()
    assert numerics.calc_diff(x, noisy) == pytest.approx(want, rel=1e-9)
    assert numerics.calc_diff(x, x.astype(BF16)) < 5e-6 < numerics.calc_diff(x, noisy)
    assert numerics.calc_diff(x[:0], x[:0]) == 0
