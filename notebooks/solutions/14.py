# %% exercise="14.fused"
# exercise: 14.fused
mine = r"""
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>
using namespace rdmakit;

RDMAKIT_KERNEL fused(QpHandle qp, RemoteMemory to, LocalMemory from, u8* buffer, const u8* payload, u64 bytes,
                     RemoteMemory word, u32* done) {
    const u64 warps = static_cast<u64>(warps_in_block()) * blocks_in_grid();
    const u64 warp = static_cast<u64>(block_id()) * warps_in_block() + warp_id();
    const u64 share = round_up<u64>(ceil_div(bytes, warps), 16);
    const u64 begin = smaller(warp * share, bytes), end = smaller(begin + share, bytes);
    if (begin < end) warp_copy(buffer + begin, payload + begin, end - begin);
    block_sync();  // this block's part is there, for its thread 0
    if (thread_in_block() != 0) return;
    fence<Scope::gpu>();  // the part before the count: whoever reads the count sees the part
    if (fetch_add(done, 1u) + 1 != blocks_in_grid()) return;
    fence<Scope::gpu>();  // the last one: the counts of all others before the put
    put_signal(qp, to, from, bytes, word, 1);
}
"""
