// ep_route.cu — what a rank knows of its own tokens before it asks anybody: ep_count counts them by rank, host and expert, from
// the choices alone; ep_route makes the plan of an operation from which token goes to which rank.
// One block or many; each warp owns some ranks, hosts and experts, so no two write the same word.
#include <rdmakit/ep.cuh>

namespace rdmakit {

struct CountInput {
    const i32* topk;          // [tokens][topk_count] of 64 bits, -1 where masked: the lower half tells
    i32* tokens_per_rank;     // [ranks]
    i32* tokens_per_host;     // [ranks / local_ranks]
    i32* tokens_per_expert;   // [experts]
    u8* is_in_rank;           // [tokens][ranks]
    u32 tokens, topk_count, experts, ranks, local_ranks, reserved;
};

// Does token t choose any of the experts [first, end)?
RDMAKIT_DEVICE bool token_chooses(const CountInput& in, u32 t, i32 first, i32 end) {
    const i32* const topk = in.topk + 2ull * t * in.topk_count;
    bool found = false;
    for (u32 k = 0; k < in.topk_count; ++k) found |= topk[2 * k] >= first && topk[2 * k] < end;
    return found;
}
template <class Each> RDMAKIT_DEVICE u32 count_tokens(const CountInput& in, u32 first, u32 experts, Each each) {
    u32 n = 0;
    for (u32 t = static_cast<u32>(lane_id()); t < in.tokens; t += kLanes) {
        const bool yes = token_chooses(in, t, static_cast<i32>(first), static_cast<i32>(first + experts));
        each(t, yes);
        n += yes ? 1 : 0;
    }
    return warp_sum(n);
}

}  // namespace rdmakit

RDMAKIT_KERNEL ep_count(rdmakit::CountInput in) {
    using namespace rdmakit;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u32 hosts = in.ranks / in.local_ranks, each = in.experts / in.ranks;
    for (u32 job = warp; job < in.ranks + hosts + in.experts; job += warps) {
        u32 n = 0;
        i32* to = nullptr;
        if (job < in.ranks) {
            to = in.tokens_per_rank + job;
            n = count_tokens(in, job * each, each, [&](u32 t, bool yes) {
                in.is_in_rank[static_cast<u64>(t) * in.ranks + job] = yes ? 1 : 0;
            });
        } else if (job < in.ranks + hosts) {
            const u32 host = job - in.ranks;
            to = in.tokens_per_host + host;
            n = count_tokens(in, host * in.local_ranks * each, in.local_ranks * each, [](u32, bool) {});
        } else {
            const u32 expert = job - in.ranks - hosts;
            to = in.tokens_per_expert + expert;
            n = count_tokens(in, expert, 1, [](u32, bool) {});
        }
        if (lane_id() == 0) *to = static_cast<i32>(n);
    }
}

RDMAKIT_KERNEL ep_route(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, const unsigned char* is_in_rank, unsigned tokens) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    if (!layout_matches(ep.layout_version, ep.watch, "EpRank of another layout version")) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    for (u32 job = warp; job < ep.ranks + ep.hosts * ep.channels; job += warps) {
        if (job < ep.ranks) {
            const u32 n = number_tokens(0, tokens, [&](u32 t) { return is_in_rank[static_cast<u64>(t) * ep.ranks + job] != 0; },
                                        [&](u32 t, bool yes, u32 before) {
                                            plan.order[static_cast<u64>(t) * ep.ranks + job] = yes ? static_cast<i32>(before) : -1;
                                        });
            if (lane_id() == 0) plan.tokens_per_rank[job] = static_cast<i32>(n);
            continue;
        }
        const u32 host = (job - ep.ranks) / ep.channels, channel = (job - ep.ranks) % ep.channels;
        const Range range = channel_tokens(tokens, channel, ep.channels);
        const auto goes_there = [&](u32 t) {
            const u8* const in = is_in_rank + static_cast<u64>(t) * ep.ranks + host * ep.local_ranks;
            bool any = false;
            for (u32 g = 0; g < ep.local_ranks; ++g) any |= in[g] != 0;
            return any;
        };
        const u32 n = number_tokens(range.begin, range.end, goes_there, [&](u32 t, bool yes, u32 before) {
            const i32 slot = static_cast<i32>(before);
            plan.host_slot[static_cast<u64>(t) * ep.hosts + host] = yes ? slot : ~slot;
        });
        if (lane_id() == 0) plan.channel_counts[job - ep.ranks] = static_cast<i32>(n);
    }
}
