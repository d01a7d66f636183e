// rdmakit/warp.cuh — where a thread stands, what the lanes of a warp do together, shared memory, a warp's copy.
// Layer: atom (leans on atom). Written so that a loop strided by kLanes or block_size() means the same work whether
// 32 lanes run it or one fibre stands for all of them.
#pragma once
#include "atom.cuh"

namespace rdmakit {

#if RDMAKIT_GPU
#define RDMAKIT_SHARED(T, name) __shared__ T name
#define RDMAKIT_DYNAMIC_SHARED(T, name) \
    extern __shared__ __align__(128) unsigned char rdmakit_dynamic_shared[]; \
    T* name = reinterpret_cast<T*>(rdmakit_dynamic_shared)
#else
// Each place in the source owns one slot of the block's arena; arrays are declared through a typedef.
#define RDMAKIT_SHARED(T, name)                                                                              \
    static const char rdmakit_key_##name[] = #name;                                                          \
    T& name = *static_cast<T*>(::rdmakit::cpu::self().api->shared(&::rdmakit::cpu::self(), rdmakit_key_##name, \
                                                                  sizeof(T), alignof(T)))
#define RDMAKIT_DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(::rdmakit::cpu::self().dynamic_shared)
#endif

// ---- where am I -------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE int thread_in_block() {
#if RDMAKIT_GPU
    return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
#else
    const cpu::Thread& t = cpu::self();
    return static_cast<int>(t.thread_index.x + t.block_size.x * (t.thread_index.y + t.block_size.y * t.thread_index.z));
#endif
}
RDMAKIT_DEVICE int threads_in_block() {
#if RDMAKIT_GPU
    return static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
#else
    const cpu::Dim3& d = cpu::self().block_size;
    return static_cast<int>(d.x * d.y * d.z);
#endif
}
RDMAKIT_DEVICE int lane_id() { return kLanes == 1 ? 0 : thread_in_block() % kWarpThreads; }
RDMAKIT_DEVICE int warp_id() { return thread_in_block() / kWarpThreads; }
RDMAKIT_DEVICE int warps_in_block() { return ceil_div(threads_in_block(), kWarpThreads); }
// Index and number of instruction streams in the block: threads on a GPU, warps where one fibre is a warp.
RDMAKIT_DEVICE int block_rank() { return kLanes == 1 ? warp_id() : thread_in_block(); }
RDMAKIT_DEVICE int block_size() { return kLanes == 1 ? warps_in_block() : threads_in_block(); }
RDMAKIT_DEVICE int block_id() {
#if RDMAKIT_GPU
    return static_cast<int>(blockIdx.x);
#else
    return static_cast<int>(cpu::self().block_index.x);
#endif
}
RDMAKIT_DEVICE int blocks_in_grid() {
#if RDMAKIT_GPU
    return static_cast<int>(gridDim.x);
#else
    return static_cast<int>(cpu::self().grid_size.x);
#endif
}

// While it lives, 2^log steps cost what one does: the lanes of a warp where one fibre does the work of all, loads that
// do not wait for each other, steps that charge_copy has charged for. Virtual time only; on a GPU it is nothing.
constexpr u32 kLanesAbreast = kLanes == 1 ? 5 : 0;
constexpr u32 kChargedAlready = 20;
struct Abreast {
#if !RDMAKIT_GPU && RDMAKIT_POLICY == RDMAKIT_TIMED
    explicit Abreast(u32 log) : before_(cpu::self().abreast_log) { cpu::self().abreast_log += log; }
    ~Abreast() { cpu::self().abreast_log = before_; }
    Abreast(const Abreast&) = delete;
    Abreast& operator=(const Abreast&) = delete;

  private:
    u32 before_;
#else
    explicit RDMAKIT_DEVICE Abreast(u32) {}
#endif
};

// ---- block ------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE void block_sync([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    __syncthreads();
#else
    cpu::step(cost::of(cost::kBarrier));
    cpu::self().api->barrier(&cpu::self(), site);
#endif
}

// ---- warp: all lanes take part ----------------------------------------------------------------------------------
constexpr u32 kFullMask = 0xffffffffu;

#if !RDMAKIT_GPU
namespace host {
// Calls use(values) with the value of every lane, indexed by lane.
template <class Use> auto with_lanes(u64 mine, Use use, Site site, u32 mask = kFullMask) {
    cpu::Thread& t = cpu::self();
    cpu::step(cost::of(cost::kCollective));
    const u64* values = t.api->gather(&t, mask, mine, site);
    const auto result = use(values);
    t.api->gathered(&t);
    return result;
}
template <class T> u64 to_bits(T v) {
    u64 bits = 0;
    static_assert(sizeof(T) <= 8, "collectives carry up to 8 bytes a lane");
    std::memcpy(&bits, &v, sizeof(T));
    return bits;
}
template <class T> T from_bits(u64 bits) {
    T v;
    std::memcpy(&v, &bits, sizeof(T));
    return v;
}
}  // namespace host
#endif

RDMAKIT_DEVICE void warp_sync([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    __syncwarp();
#else
    if constexpr (kLanes > 1) {
        host::with_lanes(0, [](const u64*) { return 0; }, site);
    }
#endif
}
template <class T> RDMAKIT_DEVICE T warp_shuffle(T v, int source_lane, [[maybe_unused]] Site site = Site::here()) {
    if constexpr (kLanes == 1) {
        return v;
    } else {
#if RDMAKIT_GPU
        return __shfl_sync(kFullMask, v, source_lane);
#else
        return host::with_lanes(host::to_bits(v), [=](const u64* all) {
            return host::from_bits<T>(all[source_lane & 31]); }, site);
#endif
    }
}
template <class T> RDMAKIT_DEVICE T warp_broadcast(T v, Site site = Site::here()) { return warp_shuffle(v, 0, site); }
RDMAKIT_DEVICE u32 warp_ballot(bool v, [[maybe_unused]] Site site = Site::here()) {
    if constexpr (kLanes == 1) {
        return v ? 1u : 0u;
    } else {
#if RDMAKIT_GPU
        return __ballot_sync(kFullMask, v);
#else
        return host::with_lanes(v, [](const u64* all) {
            u32 mask = 0;
            for (int i = 0; i < 32; ++i) mask |= (all[i] != 0 ? 1u : 0u) << i;
            return mask; }, site);
#endif
    }
}
RDMAKIT_DEVICE int lowest_lane(u32 mask) {  // of a ballot that is not 0
#if RDMAKIT_GPU
    return __ffs(static_cast<int>(mask)) - 1;
#else
    return __builtin_ctz(mask);
#endif
}
RDMAKIT_DEVICE bool warp_any(bool v, Site site = Site::here()) { return warp_ballot(v, site) != 0; }
RDMAKIT_DEVICE bool warp_all(bool v, Site site = Site::here()) { return warp_ballot(!v, site) == 0; }
template <class T> RDMAKIT_DEVICE T warp_sum(T v, [[maybe_unused]] Site site = Site::here()) {
    if constexpr (kLanes == 1) {
        return v;
    } else {
#if RDMAKIT_GPU
        for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(kFullMask, v, step);
        return v;
#else
        return host::with_lanes(host::to_bits(v), [](const u64* all) {
            T sum = 0;
            for (int i = 0; i < 32; ++i) sum = static_cast<T>(sum + host::from_bits<T>(all[i]));
            return sum; }, site);
#endif
    }
}

// ---- payload --------------------------------------------------------------------------------------------------
// False in a world that runs control traffic only: payload is neither copied nor summed.
RDMAKIT_DEVICE bool payload_moves([[maybe_unused]] u64 bytes) {
#if RDMAKIT_GPU
    return true;
#else
    return cpu::self().copy_limit >= bytes;
#endif
}
// Charges virtual time for payload that a warp reads and writes by other means than warp_copy.
RDMAKIT_DEVICE void charge_copy([[maybe_unused]] u64 bytes) {
#if !RDMAKIT_GPU
    cpu::step(bytes * cost::of(cost::kCopyByte));
#endif
}

// A row that a warp reads by other means than warp_copy, where it may lie with another GPU: what its way over NVLink takes,
// beside what charge_copy has charged.
RDMAKIT_DEVICE void charge_pull([[maybe_unused]] const void* from, [[maybe_unused]] u64 bytes) {
#if !RDMAKIT_GPU && RDMAKIT_POLICY == RDMAKIT_TIMED
    cpu::self().api->copied(&cpu::self(), from, bytes, cpu::self().clock_ps, true);
#endif
}

// ---- copies -----------------------------------------------------------------------------------------------------
// One warp copies bytes (a multiple of 16, both ends 16-byte aligned). Plain stores: publish them with a release.
RDMAKIT_DEVICE void warp_copy(void* to, const void* from, u64 bytes) {
#if RDMAKIT_GPU || RDMAKIT_POLICY == RDMAKIT_EXPLORE
    auto* d = static_cast<Vec16*>(to);
    const auto* s = static_cast<const Vec16*>(from);
    const u64 n = bytes / sizeof(Vec16);
    u64 i = static_cast<u64>(lane_id());
    constexpr u64 kUnroll = 4;
    for (; i + (kUnroll - 1) * kLanes < n; i += kUnroll * kLanes) {
        Vec16 v[kUnroll];
        for (u64 k = 0; k < kUnroll; ++k) v[k] = load_stream(s + i + k * kLanes);
        for (u64 k = 0; k < kUnroll; ++k) store_stream(d + i + k * kLanes, v[k]);
    }
    for (; i < n; i += kLanes) store_stream(d + i, load_stream(s + i));
#else
    const u64 share = kLanes == 1 ? bytes : bytes / sizeof(Vec16) / kLanes * sizeof(Vec16);
    const u64 begin = static_cast<u64>(lane_id()) * share;
    const u64 mine = lane_id() == kLanes - 1 ? bytes - begin : share;
#if RDMAKIT_POLICY == RDMAKIT_TIMED
    const u64 began = cpu::self().clock_ps;
    charge_copy(bytes);
    cpu::self().api->copied(&cpu::self(), to, bytes, began, false);  // over NVLink, if it is another GPU's
#endif
    if (payload_moves(bytes)) {
        std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, mine);
    }
    cpu::written(static_cast<char*>(to) + begin, mine);
#endif
}

}  // namespace rdmakit
