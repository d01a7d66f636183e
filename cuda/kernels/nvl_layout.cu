// nvl_layout.cu — get_dispatch_layout: how many tokens go to each rank and expert, and which token goes where.
#include <rdmakit/nvl.cuh>

namespace rdmakit {
struct NvlLayoutInput {
    const i64* topk;          // [tokens][topk_count] global experts, -1 where masked
    i32* tokens_per_rank;     // [ranks]
    i32* tokens_per_expert;   // [experts]
    u8* is_in_rank;           // [tokens][ranks]
    u32* sums;                // [experts + ranks], zero before and after
    u32 tokens, topk_count, experts, ranks;
};
constexpr u32 kLayoutTile = 128;  // tokens that a block looks at together: a thread takes a choice, not a token
struct NvlTile {
    u32 goes[kLayoutTile];        // ranks, as bits
};
}  // namespace rdmakit

// Any grid; shared memory of 4 * (experts + ranks) bytes. Each block counts a share of the tokens, the last adds up.
RDMAKIT_KERNEL nvl_dispatch_layout(RDMAKIT_GRID_CONSTANT rdmakit::NvlRank nvl, RDMAKIT_GRID_CONSTANT rdmakit::NvlLayoutInput in) {
    using namespace rdmakit;
    RDMAKIT_DYNAMIC_SHARED(u32, counts);
    RDMAKIT_SHARED(NvlTile, tile);
    RDMAKIT_SHARED(u32, last);
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version")) return;
    const u32 block = static_cast<u32>(block_id()), blocks = static_cast<u32>(blocks_in_grid());
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 words = in.experts + in.ranks, per_rank = in.experts / in.ranks;
    for (u32 i = me; i < words; i += step) counts[i] = 0;
    block_sync();
    const u32 end = static_cast<u32>(static_cast<u64>(in.tokens) * (block + 1) / blocks);
    for (u32 t0 = static_cast<u32>(static_cast<u64>(in.tokens) * block / blocks); t0 < end; t0 += kLayoutTile) {
        const u32 tokens = smaller(kLayoutTile, end - t0);
        for (u32 t = me; t < tokens; t += step) tile.goes[t] = 0;
        block_sync();
        for (u32 c = me; c < tokens * in.topk_count; c += step) {
            const i64 expert = in.topk[static_cast<u64>(t0) * in.topk_count + c];
            if (expert < 0 || expert >= static_cast<i64>(in.experts)) continue;
            fetch_add<Scope::cta>(counts + expert, 1u);
            fetch_or<Scope::cta>(tile.goes + c / in.topk_count, 1u << (static_cast<u32>(expert) / per_rank));
        }
        block_sync();
        for (u32 w = me; w < tokens * in.ranks; w += step) {
            const u32 r = w % in.ranks, there = tile.goes[w / in.ranks] >> r & 1;
            in.is_in_rank[static_cast<u64>(t0) * in.ranks + w] = static_cast<u8>(there);
            if (there != 0) fetch_add<Scope::cta>(counts + in.experts + r, 1u);
        }
        block_sync();
    }
    for (u32 i = me; i < words; i += step) {
        if (counts[i] != 0) fetch_add<Scope::gpu>(in.sums + i, counts[i]);
    }
    if (!nvl_last_block(nvl, NvlKind::layout, &last)) return;
    for (u32 i = me; i < words; i += step) {
        const i32 sum = static_cast<i32>(in.sums[i]);
        in.sums[i] = 0;
        if (i < in.experts) in.tokens_per_expert[i] = sum;
        else in.tokens_per_rank[i - in.experts] = sum;
    }
    nvl_end(nvl, NvlKind::layout, 0);
}
