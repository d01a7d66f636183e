// nvl_combine.cu — combine over NVLink: whoever sent a token reads its rows where the experts left them and adds them up.
//
// A warp takes tokens in turn, in chunks: bulk loads bring the rows of all ranks side by side into shared memory, the warp
// adds them in float by ascending rank and rounds once. Nothing is staged: a row crosses the link once.
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
    u32 chunk_bytes;           // divides 2 * hidden; a multiple of 16, at most 4096
    u32 row_warps, unused;     // of a block, that add up rows; the others add up weights
};
constexpr u32 kNvlStages = 2;
constexpr u32 kNvlVectors = 8 * 32 / kLanes;   // of a lane, in the longest chunk: 4096 bytes
static_assert(kNvlStages <= kNvlBatch, "places of the tokens that are loaded ahead are known");

struct NvlSources {
    NvlOffered offered;
    u32 first[kMaxNvlRanks];
    u32 failed, last;

    RDMAKIT_DEVICE const u8* x(u32 r) const { return offered.at[r][0]; }
    RDMAKIT_DEVICE const float* weights(u32 r) const { return reinterpret_cast<const float*>(offered.at[r][3]); }
};
struct NvlWarp {
    Mbarrier full[kNvlStages];
    NvlPlaces places;
};
static_assert(sizeof(NvlWarp) <= kNvlWarpBytes, "the host makes room for it");

// The tokens that one warp adds up, in chunks. This rank's own rows come by bulk loads too: loads of the warp's own would be
// waited for one after the other.
struct NvlTokens {
    const NvlCombineInput& in;
    const NvlSources& from;
    NvlItinerary way;
    u8* slots;                 // [stages][ranks] chunks
    Mbarrier* full;
    u32 chunks;

    RDMAKIT_DEVICE u8* slot(u32 stage, u32 rank) const { return slots + (stage * way.ranks + rank) * in.chunk_bytes; }
    RDMAKIT_DEVICE u64 row(u32 i, u32 rank) const { return from.first[rank] + static_cast<u32>(way.to(i)[rank]); }
    // Lane 0: a chunk of each rank's row on its way into the slots of a stage.
    RDMAKIT_DEVICE void load(u32 stage, u32 i, u32 chunk) const {
        const i32* const place = way.to(i);
        u32 bytes = 0;
        for (u32 r = 0; r < way.ranks; ++r) bytes += place[r] >= 0 ? in.chunk_bytes : 0;
        mbarrier_arrive_expect(full + stage, bytes);
        for (u32 r = 0; r < way.ranks; ++r) {
            if (place[r] < 0) continue;
            bulk_load(slot(stage, r), from.x(r) + row(i, r) * 2 * in.hidden + chunk * in.chunk_bytes, in.chunk_bytes, full + stage);
        }
    }
    // All lanes: the sum of a chunk of token i, whose rows are there: vectors lane, lane + 32 … in `out`. Ranks outside, vectors
    // inside: what a rank's chunk takes to find is done once for several of them.
    RDMAKIT_DEVICE void add(u32 stage, u32 i, u32 chunk, Vec16 (&out)[kNvlVectors]) const {
        constexpr u32 kAbreast = 4;  // in registers all at once
        const u32 vectors = in.chunk_bytes / sizeof(Vec16), lane = static_cast<u32>(lane_id());
        const i32* const place = way.to(i);
        charge_copy(in.chunk_bytes);
        RDMAKIT_UNROLL
        for (u32 n = 0; n < kNvlVectors; n += kAbreast) {
            const u32 v = n * kLanes + lane;
            if (n * kLanes >= vectors) break;
            Sum8 sum[kAbreast] = {};
            for (const u8* bias : in.bias) {
                if (bias != nullptr) add_all(sum, reinterpret_cast<const Vec16*>(bias + at(i, chunk)), v, vectors);
            }
            RDMAKIT_NO_UNROLL
            for (u32 r = 0; r < way.ranks; ++r) {
                if (place[r] >= 0) add_all(sum, reinterpret_cast<const Vec16*>(slot(stage, r)), v, vectors);
            }
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kAbreast; ++a) out[n + a] = to_bf16(sum[a]);
        }
    }
    // Vectors v, v + 32 … of a row; of those beyond its end it is no matter what they add up to.
    template <u32 N> RDMAKIT_DEVICE static void add_all(Sum8 (&sum)[N], const Vec16* row, u32 v, u32 vectors) {
        Vec16 part[N];
        RDMAKIT_UNROLL
        for (u32 a = 0; a < N; ++a) part[a] = row[smaller(v + a * static_cast<u32>(kLanes), vectors - 1)];
        RDMAKIT_UNROLL
        for (u32 a = 0; a < N; ++a) add_bf16(sum[a], part[a]);
    }
    RDMAKIT_DEVICE u64 at(u32 i, u32 chunk) const { return static_cast<u64>(way.token(i)) * 2 * in.hidden + chunk * in.chunk_bytes; }
    RDMAKIT_DEVICE void write(u32 i, u32 chunk, const Vec16 (&out)[kNvlVectors]) const {
        const u32 vectors = in.chunk_bytes / sizeof(Vec16);
        auto* const to = reinterpret_cast<Vec16*>(in.out + at(i, chunk));
        RDMAKIT_UNROLL
        for (u32 n = 0; n < kNvlVectors; ++n) {
            const u32 v = n * kLanes + static_cast<u32>(lane_id());
            if (v < vectors) store_stream(to + v, out[n]);
        }
    }
};

RDMAKIT_DEVICE Status nvl_add_rows(const NvlRank& nvl, const NvlTokens& tokens) {
    const u32 count = tokens.way.count();
    u32 ahead = 0, ahead_chunk = 0, to = 0;  // the next chunk to load: token, part, stage
    const auto load_next = [&] {
        if (ahead == count) return;
        tokens.load(to, ahead, ahead_chunk);
        if (++ahead_chunk == tokens.chunks) ahead_chunk = 0, ++ahead;
        if (++to == kNvlStages) to = 0;
    };
    for (u32 i = 0, stage = 0, parity = 0; i < count; ++i) {
        tokens.way.arrive(i);
        if (i == 0 && lane_id() == 0) {
            for (u32 n = 0; n < kNvlStages; ++n) load_next();
        }
        const Subject who{"rows of a token", tokens.way.token(i), 0, nvl.rank, 0};
        for (u32 chunk = 0; chunk < tokens.chunks; ++chunk) {
            const Status came = mbarrier_wait(tokens.full + stage, parity, nvl.watch, who);
            if (came != Status::ok) return came;
            Vec16 out[kNvlVectors];
            tokens.add(stage, i, chunk, out);
            proxy_fence_shared();  // these reads before the slots are loaded anew
            warp_sync();
            if (lane_id() == 0) load_next();
            tokens.write(i, chunk, out);  // behind the fence, which would wait for it
            if (++stage == kNvlStages) stage = 0, parity ^= 1;
        }
    }
    return Status::ok;
}

// The weights of a warp's tokens, a batch of tokens at a time: a lane takes one, of all ranks.
RDMAKIT_DEVICE void nvl_add_weights(const NvlCombineInput& in, const NvlSources& from, const NvlItinerary& way) {
    const u32 tokens = way.count();
    for (u32 i0 = 0; i0 < tokens; i0 += kNvlBatch) {
        way.arrive(i0);
        for (u32 w = static_cast<u32>(lane_id()); w < smaller(kNvlBatch, tokens - i0) * in.topk_count; w += kLanes) {
            const u32 i = i0 + w / in.topk_count, k = w % in.topk_count;
            const i32* const place = way.to(i);
            float sum = 0;
            for (u32 r = 0; r < way.ranks; ++r) {
                if (place[r] >= 0) sum += from.weights(r)[(from.first[r] + static_cast<u64>(place[r])) * in.topk_count + k];
            }
            in.out_weights[static_cast<u64>(way.token(i)) * in.topk_count + k] = sum;
        }
    }
}

// Any number of blocks that are resident together, of up to 16 warps, row_warps of them or more; dynamic shared memory of
// 2 * ranks chunks for each that adds rows up and kNvlWarpBytes for each.
RDMAKIT_NAMED_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1) combine_nvl(RDMAKIT_GRID_CONSTANT NvlRank nvl, RDMAKIT_GRID_CONSTANT NvlCombineInput in) {
    RDMAKIT_DYNAMIC_SHARED(u8, slots);
    RDMAKIT_SHARED(NvlSources, from);
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version") || !check_bulk(nvl.watch)) return;
    const u64 epoch = nvl_epoch(nvl, NvlKind::combine);
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 warp = static_cast<u32>(warp_id()), block_warps = static_cast<u32>(warps_in_block());
    if (block_id() == 0) nvl_offer(nvl, nvl.at.combine_offer, in.here, epoch);
    const u64 slot_bytes = static_cast<u64>(kNvlStages * nvl.ranks) * in.chunk_bytes;  // of a warp that adds rows up; what warps keep lies behind
    NvlWarp& mine = *reinterpret_cast<NvlWarp*>(slots + in.row_warps * slot_bytes + warp * kNvlWarpBytes);
    const bool adds = warp < in.row_warps;
    const u32 alike = adds ? in.row_warps : block_warps - in.row_warps, index = adds ? warp : warp - in.row_warps;
    const NvlItinerary way{mine.places, in.positions, nvl.ranks, static_cast<u32>(block_id()) * alike + index,
                           static_cast<u32>(blocks_in_grid()) * alike, in.tokens};
    const NvlTokens tokens{in, from, way, slots + warp * slot_bytes, mine.full, 2 * in.hidden / in.chunk_bytes};
    if (lane_id() == 0) {
        for (u32 s = 0; s < kNvlStages; ++s) mbarrier_init(tokens.full + s, 1);
    }
    if (me == 0) from.failed = 0;
    way.start();
    for (u32 d = me; d < nvl.ranks; d += step) from.first[d] = nvl_first_row(nvl, in.prefix, nvl.rank, d);
    block_sync();
    Status status = nvl_all_offered(nvl, nvl.at.combine_offer, epoch, "where a rank's rows lie", from.offered);
    bool ok = nvl_all_ok(&from.failed, status);
    if (ok && !adds) nvl_add_weights(in, from, way);
    if (ok && adds) status = nvl_add_rows(nvl, tokens);
    ok = nvl_all_ok(&from.failed, ok ? status : Status::aborted);
    if (!nvl_last_block(nvl, NvlKind::combine, &from.last)) return;
    for (u32 d = me; d < nvl.ranks && !aborted(nvl.watch.report); d += step) nvl_tell(nvl, nvl.at.taken, d, epoch);
    for (u32 d = me; d < nvl.ranks && ok; d += step) {
        ok = nvl_wait(nvl, nvl.at.taken, d, epoch, "a rank that reads our rows") == Status::ok;
    }
    nvl_end(nvl, NvlKind::combine, epoch);
}
}  // namespace rdmakit
