// cuda_builtins.cuh — CUDA's own names for g++, so that a kernel written for nvcc runs on the CPU runner unchanged.
// Layer: beside atom, only under g++; included before such a kernel by the compile step. What is here is the part of the
// CUDA C++ Programming Guide ("C++ Language Extensions") that kernels use most; half types, textures, cooperative
// groups and dynamic parallelism are not. `__shared__` works in plain functions, not in templates (a section cannot hold
// both); `__device__` variables are one for all GPUs; __activemask() says "all", since fibres have no lockstep.
#pragma once
#include <cmath>
#include <cstdio>

#include "warp.cuh"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __managed__ static
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // libstdc++ says __attribute__((__noinline__)): the macro must leave that legal
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// The runner swaps this section's contents when it switches blocks.
#define __shared__ static __attribute__((section("rdmakit_shared")))

extern "C" {
extern char __start_rdmakit_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_rdmakit_shared[] __attribute__((weak, visibility("hidden")));
__attribute__((visibility("default"))) void* rdmakit_shared_section(unsigned long long* bytes) {
    *bytes = static_cast<unsigned long long>(__stop_rdmakit_shared - __start_rdmakit_shared);
    return __start_rdmakit_shared;
}
}

// ---- indices and vector types ------------------------------------------------------------------------------------
#define threadIdx (::rdmakit::cpu::self().thread_index)
#define blockIdx (::rdmakit::cpu::self().block_index)
#define blockDim (::rdmakit::cpu::self().block_size)
#define gridDim (::rdmakit::cpu::self().grid_size)
constexpr int warpSize = 32;
using uint3 = rdmakit::cpu::Dim3;
using dim3 = rdmakit::cpu::Dim3;

#define RDMAKIT_VECTORS(T, name)                                               \
    struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };        \
    struct name##3_ { T x, y, z; };                                            \
    struct __attribute__((aligned(sizeof(T) < 8 ? 4 * sizeof(T) : 16))) name##4 { T x, y, z, w; }; \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                 \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
RDMAKIT_VECTORS(signed char, char)
RDMAKIT_VECTORS(unsigned char, uchar)
RDMAKIT_VECTORS(short, short)
RDMAKIT_VECTORS(unsigned short, ushort)
RDMAKIT_VECTORS(int, int)
RDMAKIT_VECTORS(unsigned int, uint)
RDMAKIT_VECTORS(float, float)
RDMAKIT_VECTORS(double, double)
RDMAKIT_VECTORS(long long, longlong)
RDMAKIT_VECTORS(unsigned long long, ulonglong)
#undef RDMAKIT_VECTORS

// ---- barriers and fences -----------------------------------------------------------------------------------------
inline void __syncthreads(rdmakit::Site site = rdmakit::Site::here()) { rdmakit::block_sync(site); }
inline int __syncthreads_count(int predicate, rdmakit::Site site = rdmakit::Site::here()) {
    RDMAKIT_SHARED(int, votes);
    rdmakit::block_sync(site);
    if (rdmakit::thread_in_block() == 0) votes = 0;
    rdmakit::block_sync(site);
    if (predicate) rdmakit::fetch_add<rdmakit::Scope::cta>(&votes, 1);
    rdmakit::block_sync(site);
    return votes;
}
inline int __syncthreads_or(int predicate, rdmakit::Site site = rdmakit::Site::here()) {
    return __syncthreads_count(predicate, site) != 0;
}
inline int __syncthreads_and(int predicate, rdmakit::Site site = rdmakit::Site::here()) {
    return __syncthreads_count(!predicate, site) == 0;
}
inline void __threadfence_block(rdmakit::Site site = rdmakit::Site::here()) { rdmakit::fence<rdmakit::Scope::cta>(site); }
inline void __threadfence(rdmakit::Site site = rdmakit::Site::here()) { rdmakit::fence<rdmakit::Scope::gpu>(site); }
inline void __threadfence_system(rdmakit::Site site = rdmakit::Site::here()) { rdmakit::fence<rdmakit::Scope::sys>(site); }

// ---- the warp ----------------------------------------------------------------------------------------------------
namespace rdmakit::cuda {
// use(values of all lanes, own lane); where one fibre stands for the warp, there is nobody to exchange with.
template <class T, class Use> T exchange(unsigned mask, T value, Use use, Site site) {
    if constexpr (kLanes == 1) {
        return value;
    } else {
        const int lane = static_cast<int>(cpu::self().lane);
        const int from = use(lane);
        return host::with_lanes(host::to_bits(value), [=](const u64* all) {
            return host::from_bits<T>(all[from & 31]); }, site, mask);
    }
}
template <class T, class Join> T reduce(unsigned mask, T value, Join join, Site site) {
    if constexpr (kLanes == 1) {
        return value;
    } else {
        return host::with_lanes(host::to_bits(value), [=](const u64* all) {
            bool first = true;
            T sum{};
            for (int i = 0; i < 32; ++i) {
                if ((mask >> i & 1u) == 0) continue;
                const T lane = host::from_bits<T>(all[i]);
                sum = first ? lane : join(sum, lane);
                first = false;
            }
            return sum; }, site, mask);
    }
}
inline unsigned vote(unsigned mask, bool value, Site site) {
    if constexpr (kLanes == 1) {
        return value ? 1u : 0u;
    } else {
        return host::with_lanes(value, [=](const u64* all) {
            unsigned votes = 0;
            for (int i = 0; i < 32; ++i) votes |= ((mask >> i & 1u) != 0 && all[i] != 0 ? 1u : 0u) << i;
            return votes; }, site, mask);
    }
}
}  // namespace rdmakit::cuda

#define RDMAKIT_HERE rdmakit::Site site = rdmakit::Site::here()
inline void __syncwarp(unsigned mask = 0xffffffffu, RDMAKIT_HERE) { rdmakit::cuda::vote(mask, true, site); }
inline unsigned __activemask() { return rdmakit::kLanes == 1 ? 1u : 0xffffffffu; }
template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32, RDMAKIT_HERE) {
    return rdmakit::cuda::exchange(mask, v, [=](int lane) { return (lane & ~(width - 1)) | (from & (width - 1)); }, site);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, RDMAKIT_HERE) {
    return rdmakit::cuda::exchange(mask, v, [=](int lane) {
        const int from = lane - static_cast<int>(delta);
        return from < (lane & ~(width - 1)) ? lane : from; }, site);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, RDMAKIT_HERE) {
    return rdmakit::cuda::exchange(mask, v, [=](int lane) {
        const int from = lane + static_cast<int>(delta);
        return from > (lane | (width - 1)) ? lane : from; }, site);
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, RDMAKIT_HERE) {
    return rdmakit::cuda::exchange(mask, v, [=](int lane) {
        const int from = lane ^ bits;
        return from > (lane | (width - 1)) ? lane : from; }, site);
}
inline unsigned __ballot_sync(unsigned mask, int v, RDMAKIT_HERE) { return rdmakit::cuda::vote(mask, v != 0, site); }
inline int __any_sync(unsigned mask, int v, RDMAKIT_HERE) { return rdmakit::cuda::vote(mask, v != 0, site) != 0; }
inline int __all_sync(unsigned mask, int v, RDMAKIT_HERE) { return rdmakit::cuda::vote(mask, v == 0, site) == 0; }
template <class T> T __reduce_add_sync(unsigned mask, T v, RDMAKIT_HERE) {
    return rdmakit::cuda::reduce(mask, v, [](T a, T b) { return static_cast<T>(a + b); }, site);
}
template <class T> T __reduce_min_sync(unsigned mask, T v, RDMAKIT_HERE) {
    return rdmakit::cuda::reduce(mask, v, [](T a, T b) { return b < a ? b : a; }, site);
}
template <class T> T __reduce_max_sync(unsigned mask, T v, RDMAKIT_HERE) {
    return rdmakit::cuda::reduce(mask, v, [](T a, T b) { return a < b ? b : a; }, site);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned v, RDMAKIT_HERE) {
    return rdmakit::cuda::reduce(mask, v, [](unsigned a, unsigned b) { return a | b; }, site);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned v, RDMAKIT_HERE) {
    return rdmakit::cuda::reduce(mask, v, [](unsigned a, unsigned b) { return a & b; }, site);
}
#undef RDMAKIT_HERE

// ---- atomics: relaxed, as CUDA's are -----------------------------------------------------------------------------
namespace rdmakit::cuda {
template <class T> struct Same { using type = T; };
template <class T> using Value = typename Same<T>::type;  // not deduced: atomicAdd(&an_unsigned, 1)
template <class T, class Change> T update(T* p, Change change, Scope scope, Site site) {
    return host::update(p, change, host::access(cpu::Order::relaxed, scope), site);
}
}  // namespace rdmakit::cuda

#define RDMAKIT_ATOMIC_AT(name, scope, expression)                                                                   \
    template <class T> T name(T* p, rdmakit::cuda::Value<T> v, rdmakit::Site site = rdmakit::Site::here()) {        \
        return rdmakit::cuda::update(p, [=](T old) { return expression; }, rdmakit::Scope::scope, site);            \
    }
#define RDMAKIT_ATOMIC(name, expression)                                                               \
    RDMAKIT_ATOMIC_AT(name, gpu, expression)                                                           \
    RDMAKIT_ATOMIC_AT(name##_block, cta, expression)                                                   \
    RDMAKIT_ATOMIC_AT(name##_system, sys, expression)
RDMAKIT_ATOMIC(atomicAdd, old + v)
RDMAKIT_ATOMIC(atomicSub, old - v)
RDMAKIT_ATOMIC(atomicMax, old < v ? v : old)
RDMAKIT_ATOMIC(atomicMin, v < old ? v : old)
RDMAKIT_ATOMIC(atomicAnd, old & v)
RDMAKIT_ATOMIC(atomicOr, old | v)
RDMAKIT_ATOMIC(atomicXor, old ^ v)
RDMAKIT_ATOMIC(atomicExch, (static_cast<void>(old), v))
RDMAKIT_ATOMIC(atomicInc, old >= v ? T{0} : old + 1)
RDMAKIT_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef RDMAKIT_ATOMIC
#undef RDMAKIT_ATOMIC_AT
template <class T> T atomicCAS(T* p, rdmakit::cuda::Value<T> compare, rdmakit::cuda::Value<T> value,
                               rdmakit::Site site = rdmakit::Site::here()) {
    return rdmakit::cuda::update(p, [=](T old) { return old == compare ? value : old; }, rdmakit::Scope::gpu, site);
}
template <class T> T atomicCAS_system(T* p, rdmakit::cuda::Value<T> compare, rdmakit::cuda::Value<T> value,
                                      rdmakit::Site site = rdmakit::Site::here()) {
    return rdmakit::cuda::update(p, [=](T old) { return old == compare ? value : old; }, rdmakit::Scope::sys, site);
}

// ---- bits, bytes, arithmetic -------------------------------------------------------------------------------------
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(v)); }
inline unsigned __brev(unsigned v) {
    v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
    v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
    v = (v >> 4 & 0x0f0f0f0fu) | (v & 0x0f0f0f0fu) << 4;
    return __builtin_bswap32(v);
}
inline unsigned long long __brevll(unsigned long long v) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(v))) << 32 | __brev(static_cast<unsigned>(v >> 32));
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned pick = selector >> 4 * i & 0xf;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (pick & 7)) & 0xff;
        if ((pick & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
template <class A, class B> constexpr auto min(A a, B b) -> std::common_type_t<A, B> {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B> constexpr auto max(A a, B b) -> std::common_type_t<A, B> {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
inline int __float_as_int(float v) { return static_cast<int>(rdmakit::host::to_bits(v)); }
inline unsigned __float_as_uint(float v) { return static_cast<unsigned>(rdmakit::host::to_bits(v)); }
inline float __int_as_float(int v) { return rdmakit::host::from_bits<float>(static_cast<unsigned>(v)); }
inline float __uint_as_float(unsigned v) { return rdmakit::host::from_bits<float>(v); }
inline long long __double_as_longlong(double v) { return static_cast<long long>(rdmakit::host::to_bits(v)); }
inline double __longlong_as_double(long long v) {
    return rdmakit::host::from_bits<double>(static_cast<unsigned long long>(v));
}
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __powf(float a, float b) { return std::pow(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float v) { return v < 0.0f ? 0.0f : v > 1.0f ? 1.0f : v; }

// ---- memory, time, failure ---------------------------------------------------------------------------------------
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcg(T* p, rdmakit::cuda::Value<T> v) { *p = v; }
template <class T> void __stcs(T* p, rdmakit::cuda::Value<T> v) { *p = v; }
// Cycles at 1.7 GHz [assumed]. Untimed worlds have no clock: there each look at it, and each sleep, moves it on, so that
// loops bounded by time end.
inline long long clock64() {
#if RDMAKIT_POLICY != RDMAKIT_TIMED
    rdmakit::cpu::self().clock_ps += 10 * rdmakit::cost::kNanosecond;
#endif
    rdmakit::cpu::step(0);
    return static_cast<long long>(rdmakit::cpu::self().clock_ps * 17 / 10'000);
}
inline void __nanosleep(unsigned ns) {
#if RDMAKIT_POLICY != RDMAKIT_TIMED
    rdmakit::cpu::self().clock_ps += ns * rdmakit::cost::kNanosecond;
#endif
    rdmakit::sleep_ns(ns);
}
[[noreturn]] inline void __trap(rdmakit::Site site = rdmakit::Site::here()) {
    rdmakit::cpu::Thread& t = rdmakit::cpu::self();
    t.api->trap(&t, "__trap()", site);
    __builtin_unreachable();
}
// libc's would end the Python process.
#undef assert
#define assert(condition)                                                                                       \
    ((condition) ? static_cast<void>(0)                                                                         \
                 : ::rdmakit::cpu::self().api->trap(&::rdmakit::cpu::self(), "assertion failed: " #condition,   \
                                                    ::rdmakit::Site{__FILE__, __LINE__}))
