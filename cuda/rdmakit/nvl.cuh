// rdmakit/nvl.cuh — what MoE kernels share whose ranks reach each other's memory by loads and stores (NVLink, or one GPU).
// Layer: ep (leans on bulk, warp).
//
// A rank's *heap* is memory that every rank has mapped; offsets mean the same on all. Operations are collective and come
// in one order on every rank. Each kind counts its *epochs* in the rank's own memory, so that a launch has no argument
// that changes and can be replayed from a CUDA graph. Words of a heap are written by one rank each, with the epoch as
// their value or above it, and are never cleared: who waits, waits until the word has come that far.
#pragma once
#include "bulk.cuh"

namespace rdmakit {

constexpr u32 kMaxNvlRanks = 8;
constexpr u32 kMaxTopk = 32;
constexpr u32 kNvlWarps = 16;       // of a block that moves rows, at most
constexpr u32 kNvlWarpBytes = 1088; // of shared memory for what a warp that moves rows keeps beside the rows

// Kinds of operations, each with its own epochs.
enum class NvlKind : u32 { layout = 0, barrier, notify, dispatch, combine, ll_dispatch_send, ll_dispatch_receive, ll_combine_send,
                           ll_combine_receive, count };

struct NvlProgress {
    u64 epoch;       // of the last operation of its kind that has ended
    u32 finished;    // blocks of the one under way that are at its end
    u32 unused;
};

// What a rank tells another at the beginning of an operation: where things lie in its heap, in multiples of 4 bytes.
struct NvlOffer {
    u64 x, scales, topk, weights, source;
};
constexpr u32 kNvlOfferWords = sizeof(NvlOffer) / sizeof(u64);

// A number of 32 bits with the operation's epoch above it, so that whoever sees the one knows that it is of the other.
RDMAKIT_DEVICE constexpr u64 nvl_tagged(u64 epoch, u32 value) { return epoch << 32 | value; }
RDMAKIT_DEVICE constexpr bool nvl_is_of(u64 tagged, u64 epoch) { return tagged >> 32 == (epoch & 0xffffffff); }

// Offsets of the words that ranks exchange. Indexed by the rank that writes.
struct NvlHeap {
    u64 barrier;          // [ranks] u64
    u64 counts;           // [2][ranks] rows of `count_bytes`, by the epoch's parity: tagged counts
    u64 dispatch_offer;   // [ranks] NvlOffer, tagged: where each rank receives
    u64 arrived;          // [ranks] u64: epochs of dispatch for which that rank has written everything
    u64 combine_offer;    // [ranks] NvlOffer, tagged: where each rank's rows lie
    u64 taken;            // [ranks] u64: epochs of combine for which that rank has read all our rows
    u64 count_bytes;
};

struct NvlMasks;   // nvl_mask.cuh

struct NvlRank {
    u32 layout_version;
    u32 rank, ranks, unused;
    u8* heaps[kMaxNvlRanks];
    NvlHeap at;
    NvlProgress* progress;     // [NvlKind::count], this rank's own
    NvlMasks* masks;           // this rank's own; null: nobody can be left out
    Watch watch;
};

template <class T> RDMAKIT_DEVICE T* nvl_at(const NvlRank& nvl, u32 rank, u64 offset) {
    return reinterpret_cast<T*>(nvl.heaps[rank] + offset);
}
RDMAKIT_DEVICE NvlProgress& nvl_progress(const NvlRank& nvl, NvlKind kind) { return nvl.progress[static_cast<u32>(kind)]; }
// The epoch of the operation that this kernel is, the same in all blocks: it moves on only when all have ended.
RDMAKIT_DEVICE u64 nvl_epoch(const NvlRank& nvl, NvlKind kind) { return load_relaxed<Scope::gpu>(&nvl_progress(nvl, kind).epoch) + 1; }

// Waits for a word of rank `from`'s, in our own heap, to reach `epoch`.
RDMAKIT_DEVICE Status nvl_reached(const NvlRank& nvl, const u64* word, u32 from, u64 epoch, const char* what,
                                  Site site = Site::here(), Site place = Site::here()) {
    u64 seen = 0;
    return wait_until<Scope::sys>(word, [epoch](u64 v) { return v >= epoch; }, nvl.watch, Subject{what, epoch, 0, from, 0}, &seen,
                                  site, place);
}
// The same, for one of an array's words.
RDMAKIT_DEVICE Status nvl_wait(const NvlRank& nvl, u64 words, u32 from, u64 epoch, const char* what, Site site = Site::here(),
                               Site place = Site::here()) {
    return nvl_reached(nvl, nvl_at<u64>(nvl, nvl.rank, words) + from, from, epoch, what, site, place);
}
// Sets our word in the heap of rank `to`, behind all that this thread has written or seen.
RDMAKIT_DEVICE void nvl_tell(const NvlRank& nvl, u64 words, u32 to, u64 epoch) {
    store_release<Scope::sys>(nvl_at<u64>(nvl, to, words) + nvl.rank, epoch);
}

// The last of the grid's blocks to come by, of which `came` counts.
RDMAKIT_DEVICE bool nvl_comes_last(u32* came) {
    const u32 last = static_cast<u32>(blocks_in_grid()) - 1;
    return fetch_wrap<Scope::gpu>(came, last) == last;
}
// All threads of all blocks: what a block has written is ordered before what the last one tells others, by a release of system
// scope. True in the block that comes last. `last` is a word of shared memory.
RDMAKIT_DEVICE bool nvl_meets_last(u32* came, u32* last) {
    block_sync();
    if (block_rank() == 0) {
        fence<Scope::gpu>();
        *last = nvl_comes_last(came) ? 1 : 0;
        fence<Scope::gpu>();
    }
    block_sync();
    return *last != 0;
}
// The same, at the end of an operation.
RDMAKIT_DEVICE bool nvl_last_block(const NvlRank& nvl, NvlKind kind, u32* last) {
    return nvl_meets_last(&nvl_progress(nvl, kind).finished, last);
}
// The last block, all threads: the operation has ended.
RDMAKIT_DEVICE void nvl_end(const NvlRank& nvl, NvlKind kind, u64 epoch) {
    block_sync();
    if (block_rank() == 0) nvl_progress(nvl, kind).epoch = epoch;  // all blocks have read it, before the fences
}
// As nvl_last_block, for one thread, where nothing is told behind it: all blocks have read the epoch, and what they wrote is
// for later kernels.
RDMAKIT_DEVICE bool nvl_last_quietly(const NvlRank& nvl, NvlKind kind) {
    block_sync();
    return block_rank() == 0 && nvl_comes_last(&nvl_progress(nvl, kind).finished);
}
// All threads of a block: publish an offer to all ranks. A release: what lies there is there.
RDMAKIT_DEVICE void nvl_offer(const NvlRank& nvl, u64 offers, const NvlOffer& offer, u64 epoch) {
    const u64* const places = &offer.x;
    for (u32 i = static_cast<u32>(block_rank()); i < nvl.ranks * kNvlOfferWords; i += static_cast<u32>(block_size())) {
        const u32 to = i / kNvlOfferWords, w = i % kNvlOfferWords;
        u64* const slot = nvl_at<u64>(nvl, to, offers) + nvl.rank * kNvlOfferWords + w;
        store_release<Scope::sys>(slot, nvl_tagged(epoch, static_cast<u32>(places[w] / 4)));
    }
}
// One thread: waits for a tagged word of rank `from`'s, in our own heap.
RDMAKIT_DEVICE Status nvl_tagged_came(const NvlRank& nvl, const u64* word, u32 from, u64 epoch, const char* what, u64* seen,
                                        Site site = Site::here(), Site place = Site::here()) {
    return wait_until<Scope::sys>(word, [epoch](u64 v) { return nvl_is_of(v, epoch); }, nvl.watch, Subject{what, epoch, 0, from, 0},
                                  seen, site, place);
}
// One thread a word of a rank's offer: waits for it; where it is, as we reach it.
RDMAKIT_DEVICE Status nvl_offered(const NvlRank& nvl, u64 offers, u32 from, u32 word, u64 epoch, const char* what, u8** place,
                                  Site site = Site::here(), Site at = Site::here()) {
    u64 seen = 0;
    const u64* const slot = nvl_at<u64>(nvl, nvl.rank, offers) + from * kNvlOfferWords + word;
    const Status status = nvl_tagged_came(nvl, slot, from, epoch, what, &seen, site, at);
    *place = nvl.heaps[from] + 4 * (seen & 0xffffffff);
    return status;
}
// Where every rank's offer says that things lie, in shared memory.
struct NvlOffered {
    u8* at[kMaxNvlRanks][kNvlOfferWords];
};
// All threads, each for some words.
RDMAKIT_DEVICE Status nvl_all_offered(const NvlRank& nvl, u64 offers, u64 epoch, const char* what, NvlOffered& to,
                                      Site site = Site::here(), Site at = Site::here()) {
    Status status = Status::ok;
    const u32 step = static_cast<u32>(block_size());
    for (u32 w = static_cast<u32>(block_rank()); w < nvl.ranks * kNvlOfferWords && status == Status::ok; w += step) {
        const u32 from = w / kNvlOfferWords, word = w % kNvlOfferWords;
        status = nvl_offered(nvl, offers, from, word, epoch, what, &to.at[from][word], site, at);
    }
    return status;
}

// All threads: whether no thread of the block has failed. `failed` is a word of shared memory that is 0 before.
RDMAKIT_DEVICE bool nvl_all_ok(u32* failed, Status mine) {
    if (mine != Status::ok) store_relaxed<Scope::cta>(failed, 1u);
    block_sync();
    return load_relaxed<Scope::cta>(failed) == 0;
}

// Where a warp's tokens go, in shared memory: read in batches ahead of need, so that nobody waits for each one's words.
// Token i of the warp is token first + i * step of the rank.
constexpr u32 kNvlBatch = 16;
struct NvlPlaces {
    i32 at[2][kNvlBatch][kMaxNvlRanks];
};
struct NvlItinerary {
    NvlPlaces& places;
    const i32* positions;      // [tokens][ranks]
    u32 ranks, first, step, tokens;

    RDMAKIT_DEVICE u32 count() const { return first < tokens ? ceil_div(tokens - first, step) : 0; }
    RDMAKIT_DEVICE u32 token(u32 i) const { return first + i * step; }
    RDMAKIT_DEVICE const i32* to(u32 i) const { return places.at[i / kNvlBatch % 2][i % kNvlBatch]; }  // [ranks]
    // All lanes, first of all; then at each token in order: places of this batch of tokens and of the next are known.
    RDMAKIT_DEVICE void start() const { read(0, 2 * kNvlBatch); }
    RDMAKIT_DEVICE void arrive(u32 i) const {
        if (i != 0 && i % kNvlBatch == 0) read(i + kNvlBatch, kNvlBatch);
    }

  private:
    RDMAKIT_DEVICE void read(u32 i, u32 many) const {
        warp_sync();
        for (u32 w = static_cast<u32>(lane_id()); w < many * ranks; w += kLanes) {
            const u32 n = i + w / ranks, r = w % ranks;
            places.at[n / kNvlBatch % 2][n % kNvlBatch][r] = n < count() ? positions[static_cast<u64>(token(n)) * ranks + r] : -1;
        }
        warp_sync();
    }
};

// First row at destination `to` of those that source `from` sends it: `prefix` [ranks][ranks] i32 sums over sources.
RDMAKIT_DEVICE u32 nvl_first_row(const NvlRank& nvl, const i32* prefix, u32 from, u32 to) {
    return from == 0 ? 0 : static_cast<u32>(prefix[(from - 1) * nvl.ranks + to]);
}

}  // namespace rdmakit
