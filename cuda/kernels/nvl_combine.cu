// nvl_combine.cu — combine over NVLink: whoever sent a token reads its rows where the experts left them and adds them up.
//
// A warp takes tokens in turn, in chunks: bulk loads bring the rows of the other ranks side by side into shared memory,
// the warp adds all in float by ascending rank and rounds once. Nothing is staged: a row crosses the link once.
#include <rdmakit/numbers.cuh>
#include <rdmakit/nvl.cuh>

namespace rdmakit {
struct NvlCombineInput {
    NvlOffer here;             // this rank's rows: offsets in its heap of x (BF16) and weights (float)
    const i32* positions;      // [tokens][ranks], of nvl_notify_dispatch
    const i32* prefix;         // [ranks][ranks]
    const u8* bias[2];         // [tokens][hidden] BF16, or null
    u8* out;                   // [tokens][hidden] BF16
    float* out_weights;        // [tokens][topk_count], or null
    u32 tokens, hidden, topk_count;
    u32 chunk_bytes;           // divides 2 * hidden; a multiple of 16
};
constexpr u32 kNvlStages = 4;
static_assert(kNvlStages <= kNvlBatch, "places of the tokens that are loaded ahead are known");

struct NvlSources {
    const u8* x[kMaxNvlRanks];
    const float* weights[kMaxNvlRanks];
    u32 first[kMaxNvlRanks];
    u32 failed, last;
};
struct NvlWarp {
    Mbarrier full[kNvlStages];
    NvlPlaces places;
};
static_assert(sizeof(NvlWarp) <= kNvlWarpBytes, "the host makes room for it");

// The tokens that one warp adds up, in chunks. Rows of other ranks come by bulk loads; this rank's own is read by the warp
// itself, since a bulk load from memory here would wait behind those that the link holds up.
struct NvlTokens {
    const NvlCombineInput& in;
    const NvlSources& from;
    NvlItinerary way;
    u8* slots;                 // [stages][ranks - 1] chunks
    Mbarrier* full;
    u32 self, chunks;

    RDMAKIT_DEVICE u8* slot(u32 j, u32 rank) const {
        return slots + (j % kNvlStages * (way.ranks - 1) + (rank < self ? rank : rank - 1)) * in.chunk_bytes;
    }
    RDMAKIT_DEVICE u64 row(u32 i, u32 rank) const { return from.first[rank] + static_cast<u32>(way.to(i)[rank]); }
    RDMAKIT_DEVICE const u8* chunk_of(u32 i, u32 rank, u32 chunk) const {
        return from.x[rank] + row(i, rank) * 2 * in.hidden + chunk * in.chunk_bytes;
    }
    // Lane 0: a chunk of the other ranks' rows on its way into the slots of chunk j.
    RDMAKIT_DEVICE void load(u32 j, u32 i, u32 chunk) const {
        u32 bytes = 0;
        for (u32 r = 0; r < way.ranks; ++r) bytes += r != self && way.to(i)[r] >= 0 ? in.chunk_bytes : 0;
        mbarrier_arrive_expect(full + j % kNvlStages, bytes);
        for (u32 r = 0; r < way.ranks; ++r) {
            if (r != self && way.to(i)[r] >= 0) bulk_load(slot(j, r), chunk_of(i, r, chunk), in.chunk_bytes, full + j % kNvlStages);
        }
    }
    // All lanes: the sum of a chunk of token i, once its rows are there. Ranks outside, vectors inside: what a rank's chunk
    // takes to find is done once for all of a lane's vectors.
    template <class Wait> RDMAKIT_DEVICE Status add(u32 j, u32 i, u32 chunk, Wait wait) const {
        constexpr u32 kAbreast = 4;  // vectors of a lane, in registers all at once
        const u32 vectors = in.chunk_bytes / sizeof(Vec16);
        const i32* const place = way.to(i);
        const u64 at = static_cast<u64>(way.token(i)) * 2 * in.hidden + chunk * in.chunk_bytes;
        charge_copy(in.chunk_bytes);
        for (u32 v = static_cast<u32>(lane_id()); v < round_up<u32>(vectors, kLanes); v += kAbreast * kLanes) {
            Vec16 mine[kAbreast] = {};
            if (place[self] >= 0) {
                const auto* const own = reinterpret_cast<const Vec16*>(chunk_of(i, self, chunk)) + v;
                RDMAKIT_UNROLL
                for (u32 a = 0; a < kAbreast; ++a) {
                    if (v + a * kLanes < vectors) mine[a] = load_stream(own + a * kLanes);
                }
            }
            Sum8 sum[kAbreast] = {};
            for (const u8* bias : in.bias) {
                if (bias == nullptr) continue;
                const auto* const more = reinterpret_cast<const Vec16*>(bias + at) + v;
                RDMAKIT_UNROLL
                for (u32 a = 0; a < kAbreast; ++a) {
                    if (v + a * kLanes < vectors) add_bf16(sum[a], more[a * kLanes]);
                }
            }
            const Status came = wait();
            if (came != Status::ok) return came;
            RDMAKIT_NO_UNROLL
            for (u32 r = 0; r < way.ranks; ++r) {
                if (place[r] < 0) continue;
                const auto* const row = reinterpret_cast<const Vec16*>(slot(j, r)) + v;
                RDMAKIT_UNROLL
                for (u32 a = 0; a < kAbreast; ++a) {
                    Vec16 part = mine[a];
                    if (r != self && v + a * kLanes < vectors) part = row[a * kLanes];
                    add_bf16(sum[a], part);
                }
            }
            auto* const out = reinterpret_cast<Vec16*>(in.out + at) + v;
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kAbreast; ++a) {
                if (v + a * kLanes < vectors) store_stream(out + a * kLanes, to_bf16(sum[a]));
            }
        }
        return Status::ok;
    }
    RDMAKIT_DEVICE void add_weights(u32 i) const {
        for (u32 k = static_cast<u32>(lane_id()); k < in.topk_count; k += kLanes) {
            float sum = 0;
            for (u32 r = 0; r < way.ranks; ++r) {
                if (way.to(i)[r] >= 0) sum += from.weights[r][row(i, r) * in.topk_count + k];
            }
            in.out_weights[static_cast<u64>(way.token(i)) * in.topk_count + k] = sum;
        }
    }
};

RDMAKIT_DEVICE Status nvl_add_rows(const NvlRank& nvl, const NvlTokens& tokens) {
    const u32 count = tokens.way.count();
    u32 ahead = 0, ahead_chunk = 0, loaded = 0;  // the next chunk to load: token, part; chunks so far
    const auto load_next = [&] {
        if (ahead == count) return;
        tokens.load(loaded++, ahead, ahead_chunk);
        if (++ahead_chunk == tokens.chunks) ahead_chunk = 0, ++ahead;
    };
    for (u32 i = 0, j = 0; i < count; ++i) {
        tokens.way.arrive(i);
        if (i == 0 && lane_id() == 0) {
            for (u32 n = 0; n < kNvlStages; ++n) load_next();
        }
        const Subject who{"rows of a token", tokens.way.token(i), 0, nvl.rank, 0};
        for (u32 chunk = 0; chunk < tokens.chunks; ++chunk, ++j) {
            const Status came = tokens.add(j, i, chunk, [&] {
                return mbarrier_wait(tokens.full + j % kNvlStages, j / kNvlStages & 1, nvl.watch, who);
            });
            if (came != Status::ok) return came;
            proxy_fence_shared();  // these reads before the slots are loaded anew
            warp_sync();
            if (lane_id() == 0) load_next();
        }
        if (tokens.in.out_weights != nullptr) tokens.add_weights(i);
    }
    return Status::ok;
}

// Any number of blocks that are resident together, of up to 16 warps; dynamic shared memory of 4 * (ranks - 1) chunks and
// kNvlWarpBytes a warp.
RDMAKIT_NAMED_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1) combine_nvl(RDMAKIT_GRID_CONSTANT NvlRank nvl, RDMAKIT_GRID_CONSTANT NvlCombineInput in) {
    RDMAKIT_DYNAMIC_SHARED(u8, slots);
    RDMAKIT_SHARED(NvlSources, from);
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version") || !check_bulk(nvl.watch)) return;
    const u64 epoch = nvl_epoch(nvl, NvlKind::combine);
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 warp = static_cast<u32>(warp_id()), block_warps = static_cast<u32>(warps_in_block());
    if (block_id() == 0) {
        for (u32 d = me; d < nvl.ranks; d += step) nvl_offer(nvl, nvl.at.combine_offer, d, in.here, epoch);
    }
    const u64 slot_bytes = static_cast<u64>(kNvlStages * (nvl.ranks - 1)) * in.chunk_bytes;  // of a warp; behind all of them is what warps keep
    NvlWarp& mine = *reinterpret_cast<NvlWarp*>(slots + block_warps * slot_bytes + warp * kNvlWarpBytes);
    const NvlItinerary way{mine.places, in.positions, nvl.ranks, static_cast<u32>(block_id()) * block_warps + warp,
                           static_cast<u32>(blocks_in_grid()) * block_warps, in.tokens};
    const NvlTokens tokens{in, from, way, slots + warp * slot_bytes, mine.full, nvl.rank, 2 * in.hidden / in.chunk_bytes};
    if (lane_id() == 0) {
        for (u32 s = 0; s < kNvlStages; ++s) mbarrier_init(tokens.full + s, 1);
    }
    if (me == 0) from.failed = 0;
    block_sync();
    Status status = Status::ok;
    for (u32 d = me; d < nvl.ranks && status == Status::ok; d += step) {
        status = nvl_offered(nvl, nvl.at.combine_offer, d, epoch, "where a rank's rows lie");
        const NvlOffer& there = nvl_at<NvlOffer>(nvl, nvl.rank, nvl.at.combine_offer)[d];
        from.x[d] = nvl.heaps[d] + there.x;
        from.weights[d] = reinterpret_cast<const float*>(nvl.heaps[d] + there.weights);
        from.first[d] = nvl_first_row(nvl, in.prefix, nvl.rank, d);
    }
    bool ok = nvl_all_ok(&from.failed, status);
    ok = nvl_all_ok(&from.failed, ok ? nvl_add_rows(nvl, tokens) : Status::aborted);
    if (!nvl_last_block(nvl, NvlKind::combine, &from.last)) return;
    for (u32 d = me; d < nvl.ranks && !aborted(nvl.watch.report); d += step) nvl_tell(nvl, nvl.at.taken, d, epoch);
    for (u32 d = me; d < nvl.ranks && ok; d += step) {
        ok = nvl_wait(nvl, nvl.at.taken, d, epoch, "a rank that reads our rows") == Status::ok;
    }
    nvl_end(nvl, NvlKind::combine, epoch);
}
}  // namespace rdmakit
