// rdmakit/cost.cuh — what each primitive costs in the Timed policy, in picoseconds of virtual time.
// Layer: beside atom, only under g++. H100 SXM figures; [assumed] ones wait for a measurement on a GPU. They are defaults: a
// world may have other ones (World(costs=…), the presets of rdmakit/model).
#pragma once
#include "config.cuh"

namespace rdmakit::cost {

constexpr u64 kNanosecond = 1000;

enum Kind : u32 {
    kLoad, kStore, kAtomic, kFenceCta, kFenceGpu, kFenceSys, kMmio, kCollective, kBarrier, kPoll, kCopyByte, kKinds
};
constexpr u64 kDefault[kKinds] = {
    300 * kNanosecond,  // load: [published] L2 hit of about 270 cycles at 1.7 GHz, plus issue
    5 * kNanosecond,    // store: [assumed] posted
    400 * kNanosecond,  // atomic: [assumed] round trip to L2
    10 * kNanosecond,   // fence of CTA scope [assumed]
    400 * kNanosecond,  // of GPU scope: [assumed] waits for L2 to answer
    800 * kNanosecond,  // of system scope: [assumed] waits for outstanding NVLink and PCIe writes too
    20 * kNanosecond,   // MMIO: [assumed] posted write into the NIC's register page
    15 * kNanosecond,   // collective: [assumed] shuffle, vote
    30 * kNanosecond,   // barrier: [assumed] __syncthreads
    100 * kNanosecond,  // poll: [assumed] from a write to the spinning warp that notices it
    // Copy, a byte: a warp copies with 16-byte vectors. 16 warps of a SM together reach 49 GB/s, counted once a byte moved
    // [measured on H100 with TMA copies]; a lone warp gets about a quarter of that [assumed].
    80,
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
constexpr u64 kBulkLatency = 600 * kNanosecond;  // [assumed] from the engine to L2 or HBM and back, or there and its answer
constexpr u64 kBulkPicosecondsPerByte = 20;      // [measured on H100 with TMA copies] 49 GB/s a SM
constexpr u64 kProxyFence = 20 * kNanosecond;    // [assumed]

}  // namespace rdmakit::cost
