// nvl_notify.cu — before a dispatch: every rank tells every other how many tokens it sends to whom, so that each writer
// knows the final row of each of its tokens, and the host how much will come.
#include <rdmakit/nvl.cuh>

namespace rdmakit {
// What the host waits for, in memory of its own: counts, each tagged with the launch's ticket. The epoch would not do: a
// CUDA graph that is replayed counts it on without the host, which could then not tell counts that it waits for from older.
struct NvlCounts {
    u64 rows;         // that will come
    u64 experts[1];   // [local experts] rows of each, rounded up to the alignment
};
struct NvlNotifyInput {
    const u8* is_in_rank;            // [tokens][ranks]
    const i32* tokens_per_rank;      // [ranks]: what is_in_rank comes to
    const i32* tokens_per_expert;    // [experts]
    i32* positions;                  // out [tokens][ranks]: index among this rank's tokens to that rank, or -1
    i32* prefix;                     // out [ranks][ranks]: tokens of sources up to and including s to d
    NvlCounts* counts;
    u32 tokens, experts, alignment, ticket;
};
constexpr u32 kNotifyWarps = 32;
constexpr u32 kNotifyAbreast = 4;

struct NvlScan {
    i32 of_warp[kNotifyWarps][kMaxNvlRanks];   // tokens of its run
    i32 before[kNotifyWarps][kMaxNvlRanks];    // tokens before those that it has placed
};
}  // namespace rdmakit

// One block of at most 1024 threads.
RDMAKIT_KERNEL RDMAKIT_LAUNCH_BOUNDS(1024, 1) nvl_notify_dispatch(RDMAKIT_GRID_CONSTANT rdmakit::NvlRank nvl, RDMAKIT_GRID_CONSTANT rdmakit::NvlNotifyInput in) {
    using namespace rdmakit;
    RDMAKIT_SHARED(NvlScan, scan);
    RDMAKIT_SHARED(u32, failed);
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version")) return;
    const u64 epoch = nvl_epoch(nvl, NvlKind::notify);
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 ranks = nvl.ranks, local_experts = in.experts / ranks;
    const u32 warp = static_cast<u32>(warp_id()), warps = static_cast<u32>(warps_in_block());
    if (me == 0) failed = 0;

    // A row of counts: this rank's tokens to each rank, then those for each expert of the rank that reads. First of all, so
    // that they travel while places are found.
    const u64 rows = nvl.at.counts + (epoch & 1) * ranks * nvl.at.count_bytes;
    const u32 words = ranks + local_experts;
    for (u32 i = me; i < ranks * words; i += step) {
        const u32 to = i / words, w = i % words;
        const i32 value = w < ranks ? in.tokens_per_rank[w] : in.tokens_per_expert[to * local_experts + w - ranks];
        store_relaxed<Scope::sys>(nvl_at<u64>(nvl, to, rows + nvl.rank * nvl.at.count_bytes) + w, nvl_tagged(epoch, static_cast<u32>(value)));
    }

    // Each warp has a run of tokens, and counts those to each rank.
    const u32 begin = static_cast<u32>(static_cast<u64>(in.tokens) * warp / warps);
    const u32 end = static_cast<u32>(static_cast<u64>(in.tokens) * (warp + 1) / warps);
    const u32 lane = static_cast<u32>(lane_id());
    // Ranks of the lane's token of each of kNotifyAbreast groups of 32, as bits: all loads are under way together.
    const auto read = [&](u32 t0, u32 (&goes)[kNotifyAbreast]) {
        RDMAKIT_UNROLL
        for (u32 a = 0; a < kNotifyAbreast; ++a) {
            const u32 t = t0 + a * kLanes + lane;
            goes[a] = 0;
            RDMAKIT_UNROLL
            for (u32 r = 0; r < kMaxNvlRanks; ++r) {
                if (r < ranks && t < end) goes[a] |= in.is_in_rank[static_cast<u64>(t) * ranks + r] != 0 ? 1u << r : 0;
            }
        }
    };
    for (u32 r = lane; r < ranks; r += kLanes) scan.of_warp[warp][r] = 0;
    warp_sync();
    RDMAKIT_NO_UNROLL
    for (u32 t0 = begin; t0 < end; t0 += kNotifyAbreast * kLanes) {
        u32 goes[kNotifyAbreast];
        read(t0, goes);
        for (u32 r = 0; r < ranks; ++r) {
            u32 mine = 0;
            RDMAKIT_UNROLL
            for (u32 word : goes) mine += word >> r & 1;
            mine = warp_sum(mine);
            if (lane == 0) scan.of_warp[warp][r] += static_cast<i32>(mine);
        }
    }
    block_sync();
    Status status = Status::ok;
    for (u32 r = warp; r < ranks; r += warps) {  // what has been told is what the places come to
        i32 all = 0;
        for (u32 w = lane; w < warps; w += kLanes) all += scan.of_warp[w][r];
        all = warp_sum(all);
        if (lane == 0 && all != in.tokens_per_rank[r]) {
            const Subject who{"tokens_per_rank against is_in_rank", static_cast<u64>(all), 0, r, 0};
            status = fail(nvl.watch, Status::bad_argument, who, static_cast<u64>(in.tokens_per_rank[r]), 0, 0, 0, 0, Site::here());
        }
    }

    // Each token's place, behind those of the runs before.
    for (u32 r = 0; r < ranks; ++r) {
        i32 before = 0;
        for (u32 w = lane; w < warp; w += kLanes) before += scan.of_warp[w][r];
        before = warp_sum(before);
        if (lane == 0) scan.before[warp][r] = before;
    }
    warp_sync();
    RDMAKIT_NO_UNROLL
    for (u32 t0 = begin; t0 < end; t0 += kNotifyAbreast * kLanes) {
        u32 goes[kNotifyAbreast];
        read(t0, goes);
        for (u32 r = 0; r < ranks; ++r) {
            i32 place = scan.before[warp][r];
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kNotifyAbreast; ++a) {
                const u32 t = t0 + a * kLanes + lane, mask = warp_ballot((goes[a] >> r & 1) != 0);
                const i32 mine = place + static_cast<i32>(count_ones(mask & ((1u << lane) - 1)));
                if (t < end) in.positions[static_cast<u64>(t) * ranks + r] = (mask >> lane & 1) != 0 ? mine : -1;
                place += static_cast<i32>(count_ones(mask));
            }
            warp_sync();
            if (lane == 0) scan.before[warp][r] = place;
        }
        warp_sync();
    }
    const auto row = [&](u32 source) { return nvl_at<u64>(nvl, nvl.rank, rows + source * nvl.at.count_bytes); };
    for (u32 i = me; i < ranks * words && status == Status::ok; i += step) {
        const u32 s = i / words;
        u64 seen = 0;
        status = nvl_tagged_came(nvl, row(s) + i % words, s, epoch, "a rank's counts of a dispatch", &seen);
    }
    if (!nvl_all_ok(&failed, status)) return;

    const auto count = [&](u32 source, u32 word) { return static_cast<u32>(load_relaxed<Scope::sys>(row(source) + word)); };
    for (u32 d = me; d < ranks; d += step) {
        u32 sum = 0;
        for (u32 s = 0; s < ranks; ++s) {
            sum += count(s, d);
            in.prefix[s * ranks + d] = static_cast<i32>(sum);
        }
        if (d == nvl.rank) store_relaxed<Scope::sys>(&in.counts->rows, nvl_tagged(in.ticket, sum));
    }
    for (u32 e = step - 1 - me; e < local_experts; e += step) {  // other threads than those of prefixes
        u32 sum = 0;
        for (u32 s = 0; s < ranks; ++s) sum += count(s, ranks + e);
        store_relaxed<Scope::sys>(in.counts->experts + e, nvl_tagged(in.ticket, round_up(sum, in.alignment)));
    }
    nvl_end(nvl, NvlKind::notify, epoch);
}
