// flag_ping.cu — two ends that answer each other by a flag: how long a word takes there and back. An end is a block; both
// may be of one grid, or each of a grid on a GPU of its own, or the other one a thread of the host.
#include <rdmakit/report.cuh>

struct FlagEnd {
    const unsigned long long* mine;  // what the other end tells here
    unsigned long long* theirs;
    unsigned long long begins;       // 1: speaks first
    unsigned long long ns;           // of all rounds but the first `warm`
    unsigned long long sum;          // of what was told
};

namespace rdmakit {
template <Scope S> RDMAKIT_DEVICE void ping(FlagEnd& end, u32 warm, u32 rounds, const Watch& watch) {
    u64 since = 0, sum = 0;
    for (u64 round = 1; round <= rounds; ++round) {
        if (round == warm + 1) since = time_ns();
        if (end.begins != 0) store_release<S>(end.theirs, round);
        u64 seen = 0;
        const Subject who{"the other end's flag", round, 0, 0, 0};
        if (wait_until<S>(end.mine, [round](u64 v) { return v >= round; }, watch, who, &seen) != Status::ok) break;
        sum += seen;
        if (end.begins == 0) store_release<S>(end.theirs, round);
    }
    end.ns = time_ns() - since;
    end.sum = sum;
}
}  // namespace rdmakit

// `gpu_scope` 1: both ends are blocks of this grid.
RDMAKIT_KERNEL flag_ping(FlagEnd* ends, unsigned gpu_scope, unsigned warm, unsigned rounds, rdmakit::Watch watch) {
    using namespace rdmakit;
    if (thread_in_block() != 0) return;
    if (gpu_scope != 0) ping<Scope::gpu>(ends[block_id()], warm, rounds, watch);
    else ping<Scope::sys>(ends[block_id()], warm, rounds, watch);
}
