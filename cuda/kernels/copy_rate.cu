// copy_rate.cu — how fast SMs copy: each block moves a part of its own, by 16-byte loads and stores of all its threads, or by
// bulk copies through shared memory that one lane of each warp issues, several under way.
#include <rdmakit/bulk.cuh>

namespace rdmakit {
constexpr u32 kCopyStages = 4;  // chunks of a warp, of which all but one are on their way in
constexpr u32 kCopyWarps = 32;
struct CopyBarriers {
    Mbarrier at[kCopyWarps * kCopyStages];
};

RDMAKIT_DEVICE void copy_by_bulk(u8* to, const u8* from, u64 bytes, u32 chunk, u8* shared, Mbarrier* full, const Watch& watch) {
    const u64 first = static_cast<u64>(warp_id()) * chunk, stride = static_cast<u64>(warps_in_block()) * chunk;
    const u64 count = bytes > first ? ceil_div(bytes - first, stride) : 0;
    const auto size = [&](u64 c) { return static_cast<u32>(smaller<u64>(chunk, bytes - (first + c * stride))); };
    const auto bring = [&](u64 c) {
        const u32 stage = static_cast<u32>(c % kCopyStages);
        fetch(shared + stage * chunk, from + first + c * stride, size(c), &full[stage]);
    };
    for (u64 c = 0; c < smaller<u64>(count, kCopyStages - 1); ++c) bring(c);
    for (u64 c = 0; c < count; ++c) {
        const u32 stage = static_cast<u32>(c % kCopyStages);
        const Subject who{"a chunk by a bulk load", c, 0, 0, 0};
        if (mbarrier_wait(&full[stage], static_cast<u32>(c / kCopyStages) & 1, watch, who) != Status::ok) return;
        bulk_store(to + first + c * stride, shared + stage * chunk, size(c));
        bulk_commit();
        if (c + kCopyStages - 1 >= count) continue;
        bulk_wait_read<1>();  // the store before this one: its stage is filled anew
        bring(c + kCopyStages - 1);
    }
    bulk_wait();
}
}  // namespace rdmakit

// `bytes` a block and `chunk` are multiples of 16; `bulk` takes kCopyStages chunks of shared memory a warp.
RDMAKIT_KERNEL copy_rate(unsigned char* to, const unsigned char* from, unsigned long long bytes, unsigned chunk, unsigned bulk,
                         rdmakit::Watch watch) {
    using namespace rdmakit;
    RDMAKIT_SHARED(CopyBarriers, full);
    RDMAKIT_DYNAMIC_SHARED(u8, stages);
    const u64 begin = static_cast<u64>(block_id()) * bytes;
    if (bulk == 0) {
        for (u64 at = static_cast<u64>(warp_id()) * chunk; at < bytes; at += static_cast<u64>(warps_in_block()) * chunk) {
            warp_copy(to + begin + at, from + begin + at, smaller<u64>(chunk, bytes - at));
        }
        return;
    }
    if (!check_bulk(watch)) return;
    Mbarrier* const mine = full.at + warp_id() * static_cast<int>(kCopyStages);
    if (lane_id() == 0) {
        for (u32 s = 0; s < kCopyStages; ++s) mbarrier_init(&mine[s], 1);
    }
    block_sync();
    u8* const room = stages + static_cast<u64>(warp_id()) * kCopyStages * chunk;
    if (lane_id() == 0) copy_by_bulk(to + begin, from + begin, bytes, chunk, room, mine, watch);
}
