// ep_reopen.cu — before a dispatch that reuses a handle: no counts are exchanged, this rank only says again where each
// source's rows begin and that its receive buffer may be written.
//
// An exchange of counts could not be over before every rank had begun it; here nothing but `start_read` says that the local
// ranks are done with the table of the last dispatch.
#include <rdmakit/ep.cuh>

RDMAKIT_KERNEL ep_reopen(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, unsigned long long epoch, unsigned long long reads) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    if (!layout_matches(ep.layout_version, ep.watch, "EpRank of another layout version")) return;
    if (block_rank() == 0) {
        u64 seen = 0;
        wait_signal(heap_array<u64>(ep, ep.rank, ep.at.start_read), reads, ep.watch,
                    Subject{"local ranks that still read the last table of rows", reads, 0, ep.rank, 0}, &seen);
    }
    block_sync();
    if (aborted(ep.watch.report)) return;
    const i32* const saved = plan.start + ep.local * (ep.ranks + 1);
    i32* const start = heap_array<i32>(ep, ep.rank, ep.at.start);
    for (u32 s = static_cast<u32>(block_rank()); s <= ep.ranks; s += static_cast<u32>(block_size())) start[s] = saved[s];
    block_sync();
    if (block_rank() != 0) return;
    store_release<Scope::sys>(heap_array<u64>(ep, ep.rank, ep.at.start_epoch), static_cast<u64>(epoch));
}
