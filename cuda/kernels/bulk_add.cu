// bulk_add.cu — tiles through shared memory by bulk copies, two under way in each direction: `bulk_add` loads, adds to each
// word and stores, then raises a flag; `bulk_take` waits for the flag and copies out what it stands for.
#include <rdmakit/bulk.cuh>

namespace rdmakit {
constexpr u32 kTileWords = 256;  // at most, of 8 bytes
struct Tile {
    alignas(128) u64 word[kTileWords];
};
struct Tiles {
    Tile at[2];
};
struct Barriers {
    Mbarrier at[2];
};
}  // namespace rdmakit

// One block. `tiles` of `words` words (even, at most kTileWords); all threads wait for what came and add to it.
RDMAKIT_KERNEL bulk_add(const unsigned long long* source, unsigned long long* sink, unsigned tiles, unsigned words,
                        unsigned long long add, unsigned* flag, rdmakit::Watch watch) {
    using namespace rdmakit;
    RDMAKIT_SHARED(Tiles, in);
    RDMAKIT_SHARED(Tiles, out);
    RDMAKIT_SHARED(Barriers, full);
    if (!check_bulk(watch)) return;
    const bool first = block_rank() == 0;
    const u32 bytes = 8 * words;
    if (first) {
        mbarrier_init(&full.at[0], 1);
        mbarrier_init(&full.at[1], 1);
        for (u32 t = 0; t < tiles && t < 2; ++t) fetch(in.at[t].word, source + t * words, bytes, &full.at[t]);
    }
    block_sync();
    for (u32 t = 0; t < tiles; ++t) {
        const u32 b = t & 1;
        const Subject who{"a tile from global memory", t, 0, 0, 0};
        if (mbarrier_wait(&full.at[b], (t >> 1) & 1, watch, who) != Status::ok) return;
        if (first) bulk_wait_read<1>();  // what was stored from out.at[b], two tiles ago
        block_sync();
        for (u32 i = static_cast<u32>(block_rank()); i < words; i += static_cast<u32>(block_size())) {
            out.at[b].word[i] = in.at[b].word[i] + add;
        }
        proxy_fence();  // writes of `out` before it is stored, reads of `in` before it is loaded anew
        block_sync();
        if (!first) continue;
        bulk_store(sink + t * words, out.at[b].word, bytes);
        bulk_commit();
        if (t + 2 < tiles) fetch(in.at[b].word, source + (t + 2) * words, bytes, &full.at[b]);
    }
    if (!first) return;
    bulk_wait();  // written, not only read: the flag speaks for the sink
    store_release<Scope::sys>(flag, 1u);
}

// One warp, of any GPU.
RDMAKIT_KERNEL bulk_take(const unsigned* flag, const unsigned long long* sink, unsigned long long* copy, unsigned words,
                         rdmakit::Watch watch) {
    using namespace rdmakit;
    if (warp_id() != 0 || block_id() != 0) return;
    u32 raised = 0;
    const Status status = by_lane_zero([&] {
        return wait_until<Scope::sys>(flag, [](u32 v) { return v != 0; }, watch, Subject{"the flag behind all tiles", 1, 0, 0, 0}, &raised);
    });
    if (status != Status::ok) return;
    for (u32 i = static_cast<u32>(lane_id()); i < words; i += kLanes) copy[i] = sink[i];
}
