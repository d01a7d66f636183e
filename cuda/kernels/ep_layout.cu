// ep_layout.cu — a rank's plan for its tokens: how many go where, and each one's place in every stream it joins.
// One block or many; each warp owns some ranks, hosts and experts, so no two write the same word.
#include <rdmakit/ep.cuh>

namespace rdmakit {

// Does any of the token's experts live on ranks [first, end)?
RDMAKIT_DEVICE bool token_goes_to(const EpRank& ep, const i32* topk, u32 first, u32 end) {
    for (u32 k = 0; k < ep.topk; ++k) {
        if (topk[k] < 0) continue;
        const u32 rank = static_cast<u32>(topk[k]) / ep.local_experts;
        if (rank >= first && rank < end) return true;
    }
    return false;
}

}  // namespace rdmakit

RDMAKIT_KERNEL ep_layout(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, const int* topk, unsigned tokens) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    if (!layout_matches(ep.layout_version, ep.watch, "EpRank of another layout version")) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());

    for (u32 r = warp; r < ep.ranks; r += warps) {
        const u32 n = number_tokens(0, tokens, [&](u32 t) { return token_goes_to(ep, topk + t * ep.topk, r, r + 1); },
                                    [&](u32 t, bool yes, u32 before) {
                                        plan.order[static_cast<u64>(t) * ep.ranks + r] = yes ? static_cast<i32>(before) : -1;
                                    });
        if (lane_id() == 0) plan.tokens_per_rank[r] = static_cast<i32>(n);
    }
    for (u32 job = warp; job < ep.hosts * ep.channels; job += warps) {
        const u32 host = job / ep.channels, channel = job % ep.channels;
        const Range range = channel_tokens(tokens, channel, ep.channels);
        const u32 first = host * ep.local_ranks;
        const u32 n = number_tokens(range.begin, range.end,
                                    [&](u32 t) { return token_goes_to(ep, topk + t * ep.topk, first, first + ep.local_ranks); },
                                    [&](u32 t, bool yes, u32 before) {
                                        const i32 slot = static_cast<i32>(before);
                                        plan.host_slot[static_cast<u64>(t) * ep.hosts + host] = yes ? slot : ~slot;
                                    });
        if (lane_id() == 0) plan.channel_counts[job] = static_cast<i32>(n);
    }
    for (u32 e = warp; e < ep.experts; e += warps) {
        u32 n = 0;
        for (u32 i = static_cast<u32>(lane_id()); i < tokens * ep.topk; i += kLanes) n += topk[i] == static_cast<i32>(e) ? 1 : 0;
        n = warp_sum(n);
        if (lane_id() == 0) plan.tokens_per_expert[e] = static_cast<i32>(n);
    }
}
