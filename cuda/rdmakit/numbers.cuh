// rdmakit/numbers.cuh — the number formats of tokens: BF16, FP8 E4M3 with a scale per 128 channels, sums in float.
// Layer: ep (leans on atom). Rounded as NumPy and ml_dtypes round, so that results can be compared bit for bit.
#pragma once
#include "atom.cuh"

namespace rdmakit {

RDMAKIT_DEVICE u32 float_bits(float v) {
#if RDMAKIT_GPU
    return __float_as_uint(v);
#else
    u32 word;
    std::memcpy(&word, &v, 4);
    return word;
#endif
}
RDMAKIT_DEVICE float bits_float(u32 bits) {
#if RDMAKIT_GPU
    return __uint_as_float(bits);
#else
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
#endif
}

// ---- BF16 --------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE float bf16_to_float(u32 bits) { return bits_float(bits << 16); }
// Round to nearest even; a NaN stays a NaN.
RDMAKIT_DEVICE u32 float_to_bf16(float value) {
    const u32 word = float_bits(value);
    if ((word & 0x7fffffffu) > 0x7f800000u) return (word >> 16) | 0x40;
    return (word + 0x7fff + ((word >> 16) & 1)) >> 16;
}
// Two in one word, `low` first in memory.
RDMAKIT_DEVICE u32 pack_bf16(float low, float high) {
#if RDMAKIT_CONVERTS
    return convert_bf16x2(low, high);
#else
    return float_to_bf16(low) | (float_to_bf16(high) << 16);
#endif
}
struct Sum8 {
    float v[8];
};
RDMAKIT_DEVICE void add_bf16(Sum8& sum, const Vec16& x) {
    for (int i = 0; i < 4; ++i) {
        sum.v[2 * i] += bits_float(x.w[i] << 16);
        sum.v[2 * i + 1] += bits_float(x.w[i] & 0xffff0000u);
    }
}
RDMAKIT_DEVICE Vec16 to_bf16(const Sum8& sum) {
    Vec16 x;
    for (int i = 0; i < 4; ++i) x.w[i] = pack_bf16(sum.v[2 * i], sum.v[2 * i + 1]);
    return x;
}

// ---- FP8 E4M3 with a scale per 128 channels -----------------------------------------------------------------------
constexpr float kFp8Max = 448.0f;
constexpr float kFp8MinAmax = 1e-4f;

RDMAKIT_DEVICE float power_of_two_above(float v) {  // the least that is not below v, which is normal and positive
    const u32 bits = float_bits(v);
    return bits_float((bits & 0x7f800000u) + ((bits & 0x7fffffu) != 0 ? 0x800000u : 0u));
}

// Round to nearest even, saturating at ±448; values are finite here (scaled by their own maximum).
RDMAKIT_DEVICE u32 float_to_e4m3(float value) {
    const u32 bits = float_bits(value);
    const u32 sign = (bits >> 24) & 0x80;
    const u32 magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000u) return sign | 0x7f;                  // NaN
    if (magnitude >= 0x43e80000u) return sign | 0x7e;                 // at least 464, the middle above 448
    if (magnitude < 0x3c800000u) {                                    // below 2^-6: subnormal, units of 2^-9
        const float units = (magnitude == 0 ? 0.0f : (value < 0 ? -value : value)) * 512.0f;
        u32 whole = static_cast<u32>(units);
        const float rest = units - static_cast<float>(whole);
        if (rest > 0.5f || (rest == 0.5f && (whole & 1) != 0)) ++whole;
        return sign | whole;                                          // 8 is the smallest normal, by its encoding
    }
    const u32 rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1);
    return sign | smaller(((rounded >> 20) - ((127 - 7) << 3)), 0x7eu);
}
RDMAKIT_DEVICE u32 pack_e4m3(float low, float high) {
#if RDMAKIT_CONVERTS
    return convert_e4m3x2(low, high);
#else
    return float_to_e4m3(low) | (float_to_e4m3(high) << 8);
#endif
}

// Rounded by itself: compilers for GPUs would fuse it with the addition behind it, and sums would not be those of NumPy.
RDMAKIT_DEVICE float product(float a, float b) {
#if RDMAKIT_GPU
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}
// To a sum, x times w.
RDMAKIT_DEVICE void add_scaled_bf16(Sum8& sum, const Vec16& x, float w) {
    for (int i = 0; i < 4; ++i) {
        sum.v[2 * i] += product(w, bf16_to_float(x.w[i] & 0xffff));
        sum.v[2 * i + 1] += product(w, bf16_to_float(x.w[i] >> 16));
    }
}

}  // namespace rdmakit
