// rdmakit/cost.cuh — what each primitive costs in the Timed policy, in picoseconds of virtual time.
// Layer: beside atom, only under g++. [measured]: on an H200, the named row of benchmarks/results/2026-11-30-h200x2-primitives.json;
// a fence is charged apart from the stores before it, hence the fence behind four stores, less those. They are defaults: a
// world may have other ones (World(costs=…), the presets of rdmakit/model).
#pragma once
#include "config.cuh"

namespace rdmakit::cost {

constexpr u64 kNanosecond = 1000;

enum Kind : u32 {
    kLoad, kStore, kAtomic, kFenceCta, kFenceGpu, kFenceSys, kMmio, kCollective, kBarrier, kPoll, kCopyByte, kKinds
};
constexpr u64 kDefault[kKinds] = {
    125'453,  // load: [measured] load_relaxed_gpu, each waiting for the one before
    2'525,    // store: [measured] store_relaxed_gpu
    132'202,  // atomic: [measured] fetch_add_gpu; compare_swap_gpu takes 186 ns
    4'547,    // fence of CTA scope: [measured] fence_cta_local_stores less 4_stores_local
    218'982,  // of GPU scope: [measured] fence_gpu_local_stores less 4_stores_local
    582'202,  // of system scope: [measured] fence_sys_local_stores less 4_stores_local; behind stores to a peer 906 ns
    1'500,    // MMIO: [measured] mmio, a store into memory: no NIC was there
    15'200,   // collective: [measured] shuffle_shared
    7'100,    // barrier: [measured] barrier_shared, 256 threads that come at once
    375'000,  // poll: [measured] half of flag_round_trip_gpu_scope less the store, fence and load above
    // Copy, a byte: a quarter [assumed] of what 16 warps of a SM reach together, 40.6 GB/s [measured, copy_vector_local_1sm].
    98,
};
// What a primitive costs in this world; nothing where there is no clock.
inline u64 of([[maybe_unused]] Kind kind) {
#if !RDMAKIT_GPU && RDMAKIT_POLICY == RDMAKIT_TIMED
    return cpu::self().costs[kind];
#else
    return 0;
#endif
}

// A bulk copy: its SM's engine takes them one behind the other at the rate above, of which no thread has any trouble.
constexpr u64 kBulkIssue = 20 * kNanosecond;     // [assumed] one instruction, and its descriptor
constexpr u64 kBulkLatency = 224 * kNanosecond;  // [measured] bulk_load, from its issue to its mbarrier; from a peer 961 ns
constexpr u64 kBulkPicosecondsPerByte = 25;      // [measured] copy_bulk_local_1sm, 40.7 GB/s; an H100 reaches 49
constexpr u64 kProxyFence = 76 * kNanosecond;    // [measured] proxy_fence_shared

}  // namespace rdmakit::cost
