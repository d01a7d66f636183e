// rdmakit/cost.cuh — what each primitive costs in the Timed policy, in picoseconds of virtual time.
// Layer: beside atom, only under g++. H100 SXM figures; [assumed] ones wait for a measurement on a GPU.
#pragma once
#include "config.cuh"

namespace rdmakit::cost {

constexpr u64 kNanosecond = 1000;
constexpr u64 kLoad = 300 * kNanosecond;         // [published] L2 hit of about 270 cycles at 1.7 GHz, plus issue
constexpr u64 kStore = 5 * kNanosecond;          // [assumed] posted
constexpr u64 kAtomic = 400 * kNanosecond;       // [assumed] round trip to L2
constexpr u64 kFenceCta = 10 * kNanosecond;      // [assumed]
constexpr u64 kFenceGpu = 400 * kNanosecond;     // [assumed] waits for L2 to answer
constexpr u64 kFenceSys = 800 * kNanosecond;     // [assumed] waits for outstanding NVLink and PCIe writes too
constexpr u64 kMmio = 20 * kNanosecond;          // [assumed] posted write into the NIC's register page
constexpr u64 kCollective = 15 * kNanosecond;    // [assumed] shuffle, vote
constexpr u64 kBarrier = 30 * kNanosecond;       // [assumed] __syncthreads
constexpr u64 kPoll = 100 * kNanosecond;         // [assumed] from a write to the spinning warp that notices it
// A warp copies with 16-byte vectors: 16 warps of a SM together reach 49 GB/s, counted once a byte moved [measured on
// H100 with TMA copies]; a lone warp gets about a quarter of that [assumed].
constexpr u64 kCopyPicosecondsPerByte = 80;
// A bulk copy: its SM's engine takes them one behind the other at the rate above, of which no thread has any trouble.
constexpr u64 kBulkIssue = 20 * kNanosecond;     // [assumed] one instruction, and its descriptor
constexpr u64 kBulkLatency = 600 * kNanosecond;  // [assumed] from the engine to L2 or HBM and back, or there and its answer
constexpr u64 kBulkPicosecondsPerByte = 20;      // [measured on H100 with TMA copies] 49 GB/s a SM
constexpr u64 kProxyFence = 20 * kNanosecond;    // [assumed]

}  // namespace rdmakit::cost
