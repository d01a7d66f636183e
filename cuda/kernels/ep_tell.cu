// ep_tell.cu — behind an exchange of counts: tells the host what will come, and leaves the sums that a handle shows. One block.
#include <rdmakit/ep.cuh>

namespace rdmakit {

// In memory of the host.
struct ToldCounts {
    u64 exchange;  // written last
    i32 rows;
    i32 by_expert[1];  // local experts, each rounded up
};
struct TellOutput {
    ToldCounts* told;
    i32* rank_prefix;  // [ranks]: rows of this rank that come from sources up to each
    i32* host_prefix;  // [hosts]: tokens that cross from hosts up to each to this rank, its own host's included
    u64 exchange;
    u32 alignment, reserved;
};

}  // namespace rdmakit

RDMAKIT_KERNEL ep_tell(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, rdmakit::TellOutput out) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    if (aborted(ep.watch.report)) return;  // the exchange has failed, and whoever waits for the counts looks at the report
    const i32* const start = heap_array<i32>(ep, ep.rank, ep.at.start);
    const u32 step = static_cast<u32>(block_size()), first = static_cast<u32>(block_rank());
    for (u32 s = first; s < ep.ranks; s += step) out.rank_prefix[s] = start[s + 1];
    const i32 unit = static_cast<i32>(out.alignment);
    for (u32 e = first; e < ep.local_experts; e += step) out.told->by_expert[e] = ceil_div(plan.totals[1 + e], unit) * unit;
    block_sync();
    if (first != 0) return;
    i32 crossed = 0;
    for (u32 h = 0; h < ep.hosts; ++h) {
        for (u32 c = 0; c < ep.channels; ++c) crossed += plan.forward_counts[h * ep.channels + c];
        out.host_prefix[h] = crossed;
    }
    out.told->rows = plan.totals[0];
    store_release<Scope::sys>(&out.told->exchange, out.exchange);
}
