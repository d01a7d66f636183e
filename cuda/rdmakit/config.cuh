// rdmakit/config.cuh — the compiler switch: one source for NVRTC/nvcc and for g++.
// Layer: config (leans on nothing; under g++ it brings in cpu.cuh, the CPU runner's seam).
#pragma once

#define RDMAKIT_LAYOUT_VERSION 4u

#if defined(__CUDACC__)  // NVRTC and nvcc
#define RDMAKIT_GPU 1
#define RDMAKIT_DEVICE __device__ __forceinline__
#define RDMAKIT_NOINLINE __device__ __noinline__
#define RDMAKIT_KERNEL extern "C" __global__ void
#define RDMAKIT_NAMED_KERNEL __global__ void  // in a namespace, which profilers show before its name
#define RDMAKIT_GRID_CONSTANT const __grid_constant__  // a struct by value whose address is taken: else each thread copies it
#define RDMAKIT_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)  // threads a block, blocks that share an SM
#define RDMAKIT_NO_UNROLL _Pragma("unroll 1")
#define RDMAKIT_UNROLL _Pragma("unroll")  // where an array has to stay in registers
#define RDMAKIT_UNWATCHED
#else
#define RDMAKIT_GPU 0
#define RDMAKIT_DEVICE inline
#define RDMAKIT_NOINLINE __attribute__((noinline)) inline
#define RDMAKIT_KERNEL extern "C" void
#define RDMAKIT_NAMED_KERNEL void
#define RDMAKIT_GRID_CONSTANT const
#define RDMAKIT_LAUNCH_BOUNDS(...)
#define RDMAKIT_NO_UNROLL
#define RDMAKIT_UNROLL
#define RDMAKIT_UNWATCHED __attribute__((no_sanitize("thread")))  // accesses that are no part of any protocol
#endif

// What the CPU runner does at each primitive is chosen when the code is compiled (docs/architecture.md).
#define RDMAKIT_FAST 0
#define RDMAKIT_TIMED 1
#define RDMAKIT_EXPLORE 2
#ifndef RDMAKIT_POLICY
#define RDMAKIT_POLICY RDMAKIT_FAST
#endif

// Lanes that one instruction stream stands for. A GPU warp has 32. On the CPU a warp is one fibre that does the
// work of all its lanes (1), or, for kernels that were not written with our collectives, a fibre a thread (32).
#ifndef RDMAKIT_LANES
#if RDMAKIT_GPU
#define RDMAKIT_LANES 32
#else
#define RDMAKIT_LANES 1
#endif
#endif

namespace rdmakit {

// NVRTC has no <cstdint>.
using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i16 = short;
using i32 = int;
using i64 = long long;
static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8 && sizeof(void*) == 8, "LP64 or LLP64 only");

constexpr int kLanes = RDMAKIT_LANES;
constexpr int kWarpThreads = 32;  // threads of a launch that make up one warp, whatever kLanes is

// Where in the source a primitive stands: default argument of everything that can wait, fence or fail, so that a
// report can name the line. Costs two immediates, and nothing where the callee is inlined and does not look.
struct Site {
    const char* file;
    int line;
    static constexpr RDMAKIT_DEVICE Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return Site{file, line};
    }
};

// Who must be able to see an ordered access: this block, this GPU, or the whole system (NIC, host, peer GPUs).
enum class Scope : int { cta = 0, gpu = 1, sys = 2 };

// A 16-byte vector: the widest plain access, and the unit ("DS") that WQEs are counted in.
struct alignas(16) Vec16 {
    u32 w[4];
};

template <class T> RDMAKIT_DEVICE constexpr T smaller(T a, T b) { return b < a ? b : a; }
template <class T> RDMAKIT_DEVICE constexpr T larger(T a, T b) { return a < b ? b : a; }
template <class T> RDMAKIT_DEVICE constexpr T ceil_div(T a, T b) { return (a + b - 1) / b; }
template <class T> RDMAKIT_DEVICE constexpr T round_up(T a, T b) { return ceil_div(a, b) * b; }

RDMAKIT_DEVICE u32 count_ones(u32 v) {
#if RDMAKIT_GPU
    return static_cast<u32>(__popc(v));
#else
    return static_cast<u32>(__builtin_popcount(v));
#endif
}

RDMAKIT_DEVICE constexpr u16 swap_bytes(u16 v) { return static_cast<u16>((v >> 8) | (v << 8)); }
RDMAKIT_DEVICE u32 swap_bytes(u32 v) {
#if RDMAKIT_GPU
    return __byte_perm(v, 0, 0x0123);
#else
    return __builtin_bswap32(v);
#endif
}
RDMAKIT_DEVICE u64 swap_bytes(u64 v) {
    return (static_cast<u64>(swap_bytes(static_cast<u32>(v))) << 32) | swap_bytes(static_cast<u32>(v >> 32));
}

}  // namespace rdmakit

#if !RDMAKIT_GPU
#include "cpu.cuh"
#endif
