// ep_collect.cu — behind a dispatch: its rows leave the region that other ranks write, for memory of the caller's. The next
// dispatch finds the region free, whatever the caller keeps.
#include <rdmakit/ep.cuh>

namespace rdmakit {

struct CollectOutput {
    u8* x;             // [rows] of row_bytes
    u32* scales;       // [rows][scale_count]
    i64* topk;         // [rows][topk], local experts or -1
    u32* weights;      // [rows][topk], floats
    i32* source;       // [rows]
    u32 rows, row_bytes, scale_count, reserved;
};

}  // namespace rdmakit

RDMAKIT_KERNEL ep_collect(const rdmakit::EpRank* rank, rdmakit::CollectOutput out) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 lane = static_cast<u32>(lane_id());
    const u32* const scales = heap_array<u32>(ep, ep.rank, ep.at.recv_scales);
    const u32* const weights = heap_array<u32>(ep, ep.rank, ep.at.recv_weights);
    const i32* const topk = heap_array<i32>(ep, ep.rank, ep.at.recv_topk);
    for (u32 r = static_cast<u32>(block_id() * warps_in_block() + warp_id()); r < out.rows; r += warps) {
        const u64 at = static_cast<u64>(r) * out.row_bytes;
        warp_copy(out.x + at, my_heap(ep, ep.at.recv_x) + at, out.row_bytes);
        const u64 scale = static_cast<u64>(r) * out.scale_count, choice = static_cast<u64>(r) * ep.topk;
        for (u32 i = lane; i < out.scale_count; i += kLanes) out.scales[scale + i] = scales[scale + i];
        for (u32 k = lane; k < ep.topk; k += kLanes) {
            out.topk[choice + k] = topk[choice + k];
            out.weights[choice + k] = weights[choice + k];
        }
        if (lane == 0) out.source[r] = heap_array<i32>(ep, ep.rank, ep.at.recv_source)[r];
    }
}
