// nvl_dispatch.cu — dispatch over NVLink: each token's row is read once and written once to each rank that needs it, straight
// to its final row there; beside it its scales, choices, weights and index.
//
// A warp takes rows in turn and moves them in chunks through slots of shared memory: one bulk load, then a store to each
// destination. Nothing is staged, nothing is copied twice.
#include <rdmakit/nvl.cuh>

namespace rdmakit {
struct NvlDispatchInput {
    NvlOffer here;             // where this rank receives: offsets in its heap
    const u8* x;               // [tokens] rows of row_bytes
    const u32* scales;         // [tokens] rows of scale_words, or null
    const i64* topk;           // [tokens][topk_count] global experts, -1 where masked; or null
    const float* weights;      // [tokens][topk_count]; or null
    const i32* positions;      // [tokens][ranks], of nvl_notify_dispatch
    const i32* prefix;         // [ranks][ranks]
    u32 tokens, row_bytes, scale_words, topk_count;
    u32 experts;
    u32 rows;                  // room for rows here; those that nothing comes for get choices of -1
    u32 chunk_bytes;           // divides row_bytes; a multiple of 16
    u32 row_warps;             // of a block, that move rows; the others move what goes beside them
    u32 pace_ns;               // between two chunks that a warp sends to another rank, at least; 0: as fast as they go
    u32 by_bulk;               // 1: rows that stay leave by bulk stores, too
};
constexpr u32 kNvlSlots = 4;   // of a warp, chunk_bytes each
constexpr u32 kNvlAhead = 2;   // chunks that are loaded while one is stored

struct NvlTargets {
    NvlOffered offered;
    u32 first[kMaxNvlRanks];   // row of our first token there
    u32 failed, last;

    RDMAKIT_DEVICE u8* x(u32 d) const { return offered.at[d][0]; }
    RDMAKIT_DEVICE u32* scales(u32 d) const { return reinterpret_cast<u32*>(offered.at[d][1]); }
    RDMAKIT_DEVICE i64* topk(u32 d) const { return reinterpret_cast<i64*>(offered.at[d][2]); }
    RDMAKIT_DEVICE float* weights(u32 d) const { return reinterpret_cast<float*>(offered.at[d][3]); }
    RDMAKIT_DEVICE i32* source(u32 d) const { return reinterpret_cast<i32*>(offered.at[d][4]); }
};
// When a warp may send its next chunk. More than the link takes would only queue up at it, and in the same queues wait rows
// that stay here and loads of the next: at 10 % too much a fifth of the throughput is lost (docs/nvlink.md).
struct NvlPace {
    u64 due = 0, period = 0;   // ns

    // Lane 0: warps of all blocks begin spread over one period.
    RDMAKIT_DEVICE void start(u32 ns, u32 index, u32 of) {
        period = ns;
        if (period != 0) due = time_ns() + period * index / of;
    }
    // Who has been held up may catch up by a few chunks.
    RDMAKIT_DEVICE void wait(u32 chunks) {
        if (period == 0 || chunks == 0) return;
        const u64 now = time_reached(due);
        due = larger(due + kSlack * period, now) - kSlack * period + chunks * period;
    }
    static constexpr u32 kSlack = 2;
};
struct NvlWarp {
    Mbarrier full[kNvlSlots];
    NvlPlaces places;
};
static_assert(sizeof(NvlWarp) <= kNvlWarpBytes, "the host makes room for it");

// The rows that one warp moves, in chunks. Rows to other ranks leave by bulk stores; those that stay are stored by the warp
// itself, since a bulk store to memory here would wait behind those that the link holds up. Where SMs are too few for the
// link it holds nothing up, and bulk stores, which no warp has to carry out, are faster.
struct NvlRows {
    const NvlDispatchInput& in;
    const NvlTargets& to;
    NvlItinerary way;
    u8* slots;
    Mbarrier* full;
    u32 self, chunks;

    RDMAKIT_DEVICE u8* slot(u32 j) const { return slots + j % kNvlSlots * in.chunk_bytes; }
    // Lane 0: a chunk on its way into the slot of chunk j.
    RDMAKIT_DEVICE void load(u32 j, u32 i, u32 chunk) const {
        const u8* const from = in.x + static_cast<u64>(way.token(i)) * in.row_bytes + chunk * in.chunk_bytes;
        fetch(slot(j), from, in.chunk_bytes, full + j % kNvlSlots);
    }
    RDMAKIT_DEVICE u8* place(u32 i, u32 rank, u32 chunk) const {
        const u64 row = to.first[rank] + static_cast<u32>(way.to(i)[rank]);
        return to.x(rank) + row * in.row_bytes + chunk * in.chunk_bytes;
    }
    // All lanes; a chunk of token i to each rank.
    RDMAKIT_DEVICE void store(u32 j, u32 i, u32 chunk, NvlPace& pace) const {
        if (lane_id() == 0) {
            u32 away = 0;
            for (u32 d = 0; d < way.ranks; ++d) away += d != self && way.to(i)[d] >= 0 ? 1 : 0;
            pace.wait(away);
            for (u32 d = 0; d < way.ranks; ++d) {
                if ((d != self || in.by_bulk != 0) && way.to(i)[d] >= 0) bulk_store(place(i, d, chunk), slot(j), in.chunk_bytes);
            }
            bulk_commit();
        }
        if (in.by_bulk != 0 || way.to(i)[self] < 0) return;
        auto* const here = reinterpret_cast<Vec16*>(place(i, self, chunk));
        const auto* const from = reinterpret_cast<const Vec16*>(slot(j));
        charge_copy(in.chunk_bytes);
        for (u32 v = static_cast<u32>(lane_id()); v < in.chunk_bytes / sizeof(Vec16); v += kLanes) store_stream(here + v, from[v]);
        proxy_fence_shared();  // these reads before the slot is loaded anew
    }
};

// Lane 0: chunks of a warp's rows that are loaded ahead.
struct NvlAhead {
    u32 token = 0, chunk = 0, loaded = 0;   // the next to load, and how many have been

    RDMAKIT_DEVICE void load(const NvlRows& rows) {
        if (token == rows.way.count()) return;
        rows.load(loaded++, token, chunk);
        if (++chunk == rows.chunks) chunk = 0, ++token;
    }
};

RDMAKIT_DEVICE Status nvl_send_rows(const NvlRank& nvl, const NvlRows& rows, NvlAhead& ahead) {
    const u32 tokens = rows.way.count();
    NvlPace pace;
    if (lane_id() == 0) pace.start(rows.in.pace_ns, rows.way.first, rows.way.step);
    for (u32 i = 0, j = 0; i < tokens; ++i) {
        rows.way.arrive(i);
        for (u32 chunk = 0; chunk < rows.chunks; ++chunk, ++j) {
            warp_sync();  // all lanes are through with the slot that is loaded next
            if (lane_id() == 0) {
                bulk_wait_read<kNvlSlots - kNvlAhead - 1>();  // and what was stored from it
                ahead.load(rows);
            }
            const Subject who{"a row of x", rows.way.token(i), 0, nvl.rank, 0};
            const Status came = mbarrier_wait(rows.full + j % kNvlSlots, j / kNvlSlots & 1, nvl.watch, who);
            if (came != Status::ok) return came;
            rows.store(j, i, chunk, pace);
        }
    }
    if (lane_id() == 0) bulk_wait();
    return Status::ok;
}

// What goes beside the rows of a warp's tokens, a batch of tokens at a time: lanes take words, not tokens, so that few loads
// wait for each other. Each word is read once and written to each rank.
RDMAKIT_DEVICE void nvl_send_words(const NvlDispatchInput& in, const NvlTargets& to, const NvlItinerary& way) {
    const u32 tokens = way.count(), local_experts = in.experts / way.ranks, lane = static_cast<u32>(lane_id());
    for (u32 i0 = 0; i0 < tokens; i0 += kNvlBatch) {
        way.arrive(i0);
        const u32 batch = smaller(kNvlBatch, tokens - i0);
        for (u32 w = lane; w < batch * in.topk_count; w += kLanes) {
            const u32 i = i0 + w / in.topk_count, k = w % in.topk_count;
            const u64 from = static_cast<u64>(way.token(i)) * in.topk_count + k;
            const i64 chosen = in.topk[from];
            const float weight = in.weights[from];
            for (u32 d = 0; d < way.ranks; ++d) {
                const i32 place = way.to(i)[d];
                if (place < 0) continue;
                const u64 at = (to.first[d] + static_cast<u64>(place)) * in.topk_count + k;
                const i64 expert = chosen - static_cast<i64>(d) * local_experts;
                const bool there = expert >= 0 && expert < static_cast<i64>(local_experts);
                to.topk(d)[at] = there ? expert : -1;
                to.weights(d)[at] = there ? weight : 0.0f;
            }
        }
        constexpr u32 kAbreast = 4;
        for (u32 w0 = lane; w0 < batch * in.scale_words; w0 += kAbreast * kLanes) {
            u32 scale[kAbreast] = {};
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kAbreast; ++a) {
                const u32 w = w0 + a * kLanes, i = i0 + w / in.scale_words;
                if (w < batch * in.scale_words) scale[a] = in.scales[static_cast<u64>(way.token(i)) * in.scale_words + w % in.scale_words];
            }
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kAbreast; ++a) {
                const u32 w = w0 + a * kLanes, i = i0 + w / in.scale_words;
                for (u32 d = 0; d < way.ranks && w < batch * in.scale_words; ++d) {
                    const i32 place = way.to(i)[d];
                    if (place >= 0) to.scales(d)[(to.first[d] + static_cast<u64>(place)) * in.scale_words + w % in.scale_words] = scale[a];
                }
            }
        }
        for (u32 w = lane; w < batch * way.ranks; w += kLanes) {
            const u32 i = i0 + w / way.ranks, d = w % way.ranks;
            const i32 place = way.to(i)[d];
            if (place >= 0) to.source(d)[to.first[d] + static_cast<u32>(place)] = static_cast<i32>(way.token(i));
        }
    }
}

// Any number of blocks that are resident together, of more than row_warps warps; dynamic shared memory of 4 chunks for each
// that moves rows and kNvlWarpBytes for each.
RDMAKIT_NAMED_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1) dispatch_nvl(RDMAKIT_GRID_CONSTANT NvlRank nvl, RDMAKIT_GRID_CONSTANT NvlDispatchInput in) {
    RDMAKIT_DYNAMIC_SHARED(u8, slots);
    RDMAKIT_SHARED(NvlTargets, to);
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version") || !check_bulk(nvl.watch)) return;
    const u64 epoch = nvl_epoch(nvl, NvlKind::dispatch);
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 warp = static_cast<u32>(warp_id()), block_warps = static_cast<u32>(warps_in_block());
    if (block_id() == 0) nvl_offer(nvl, nvl.at.dispatch_offer, in.here, epoch);
    const u64 slot_bytes = static_cast<u64>(kNvlSlots) * in.chunk_bytes;  // of a warp that moves rows; what warps keep lies behind
    NvlWarp& mine = *reinterpret_cast<NvlWarp*>(slots + in.row_warps * slot_bytes + warp * kNvlWarpBytes);
    const bool moves = warp < in.row_warps;
    const u32 alike = moves ? in.row_warps : block_warps - in.row_warps, index = moves ? warp : warp - in.row_warps;
    const NvlItinerary way{mine.places, in.positions, nvl.ranks, static_cast<u32>(block_id()) * alike + index,
                           static_cast<u32>(blocks_in_grid()) * alike, in.tokens};
    const NvlRows rows{in, to, way, slots + warp * slot_bytes, mine.full, nvl.rank, in.row_bytes / in.chunk_bytes};
    NvlAhead ahead;
    if (lane_id() == 0) {
        for (u32 s = 0; s < kNvlSlots; ++s) mbarrier_init(mine.full + s, 1);
        for (u32 n = 0; n < kNvlAhead && moves; ++n) ahead.load(rows);  // before anybody has said where they go
    }
    if (me == 0) to.failed = 0;
    way.start();
    for (u32 d = me; d < nvl.ranks; d += step) to.first[d] = nvl_first_row(nvl, in.prefix, nvl.rank, d);
    block_sync();
    Status status = nvl_all_offered(nvl, nvl.at.dispatch_offer, epoch, "where a rank receives", to.offered);
    bool ok = nvl_all_ok(&to.failed, status);
    if (ok) {
        const u32 threads = step * static_cast<u32>(blocks_in_grid());
        i64* const choices = reinterpret_cast<i64*>(nvl.heaps[nvl.rank] + in.here.topk);
        const u64 come = static_cast<u64>(in.prefix[(nvl.ranks - 1) * nvl.ranks + nvl.rank]) * in.topk_count;
        for (u64 i = come + static_cast<u32>(block_id()) * step + me; i < static_cast<u64>(in.rows) * in.topk_count; i += threads) {
            choices[i] = -1;
        }
    }
    if (ok && !moves) nvl_send_words(in, to, way);
    if (ok && moves) status = nvl_send_rows(nvl, rows, ahead);
    for (u32 j = 0; j < ahead.loaded && !ok; ++j) {  // nobody leaves while something is on its way into its shared memory
        mbarrier_wait(rows.full + j, 0, nvl.watch, Subject{"a row of x that nobody waits for", j, 0, nvl.rank, 0});
    }
    ok = nvl_all_ok(&to.failed, ok ? status : Status::aborted);
    if (!nvl_last_block(nvl, NvlKind::dispatch, &to.last)) return;
    for (u32 d = me; d < nvl.ranks && !aborted(nvl.watch.report); d += step) nvl_tell(nvl, nvl.at.arrived, d, epoch);
    for (u32 d = me; d < nvl.ranks && ok; d += step) {
        ok = nvl_wait(nvl, nvl.at.arrived, d, epoch, "a rank's rows") == Status::ok;
    }
    nvl_end(nvl, NvlKind::dispatch, epoch);
}
}  // namespace rdmakit
