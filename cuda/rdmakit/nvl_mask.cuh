// rdmakit/nvl_mask.cuh — ranks that are left out of barriers and low-latency operations.
// Layer: ep (leans on nvl).
//
// Masks are a rank's own opinion and lie in its own memory; NvlRank::masks is null where nobody can be masked. A masked
// rank is neither written to nor waited for. Who waits for a rank in vain masks it and goes on: nothing is reported. Blocks
// see a mask at different moments, and must not differ in what they make of a rank: the first block that knows whether it
// takes part, because its word has come or because it is masked, gives a *verdict*, by which all others go.
#pragma once
#include "nvl.cuh"

namespace rdmakit {

// What verdicts are about, each with its own epochs.
enum class NvlVerdict : u32 { chosen = 0, weighed, complete, count };

struct NvlMasks {
    u32 masked[kMaxNvlRanks];   // not 0: left out
    u32 sent[2];                // blocks of a dispatch, of a combine, that have sent all that they have
    u64 verdicts[static_cast<u32>(NvlVerdict::count)][kMaxNvlRanks];  // epoch << 32, + 1 + what its word says if it takes part
};

RDMAKIT_DEVICE bool nvl_masked(const NvlRank& nvl, u32 rank) {
    return nvl.masks != nullptr && load_relaxed<Scope::gpu>(&nvl.masks->masked[rank]) != 0;
}
// The ranks that are not masked, as bits.
RDMAKIT_DEVICE u32 nvl_present(const NvlRank& nvl) {
    u32 found = 0;
    for (u32 r = 0; r < nvl.ranks; ++r) found |= nvl_masked(nvl, r) ? 0u : 1u << r;
    return found;
}

// One thread: waits as nvl_wait does; `absent` for a rank that is masked, or that is masked here because it does not come.
RDMAKIT_NOINLINE Status nvl_answers_or_is_masked(const NvlRank& nvl, u64 words, u32 from, u64 epoch, const char* what, Site site,
                                                 Site place) {
    const u64* const word = nvl_at<u64>(nvl, nvl.rank, words) + from;
    u32* const masked = &nvl.masks->masked[from];
    for (Spin spin(nvl.watch);;) {
        const u32 out = load_relaxed<Scope::gpu>(masked);
        if (out != 0) return Status::absent;
        const u64 seen = load_acquire<Scope::sys>(word);
        if (holds(seen >= epoch, place)) return Status::ok;
        const Subject who{what, epoch, 0, from, 0, Status::absent};
        if (spin.pause(who, site, Seen<u64>{word, seen}, Seen<u32>{masked, out})) continue;
        if (spin.status() != Status::absent) return spin.status();
        store_relaxed<Scope::gpu>(masked, 1u);
    }
}
RDMAKIT_DEVICE Status nvl_answers(const NvlRank& nvl, u64 words, u32 from, u64 epoch, const char* what, Site site = Site::here(),
                                  Site place = Site::here()) {
    if (nvl.masks != nullptr) return nvl_answers_or_is_masked(nvl, words, from, epoch, what, site, place);
    return nvl_wait(nvl, words, from, epoch, what, site, place);
}

// One thread of each block: does rank `from` take part in this epoch? Its word, whose upper half has then come to the epoch,
// says that it does, and *said is the word's lower half; else `absent`. Whoever goes by a verdict sees all that lies behind
// the word.
RDMAKIT_NOINLINE Status nvl_verdict(const NvlRank& nvl, NvlVerdict about, const u64* word, u32 from, u64 epoch, const char* what,
                                    u32* said, Site site = Site::here(), Site place = Site::here()) {
    u64* const verdict = &nvl.masks->verdicts[static_cast<u32>(about)][from];
    u32* const masked = &nvl.masks->masked[from];
    for (Spin spin(nvl.watch);;) {
        const u64 given = load_acquire<Scope::gpu>(verdict);
        if (given >> 32 == epoch) {
            *said = static_cast<u32>(given) - 1;
            return static_cast<u32>(given) != 0 ? Status::ok : Status::absent;
        }
        const u32 out = load_relaxed<Scope::gpu>(masked);
        const u64 seen = load_acquire<Scope::sys>(word);
        if (out != 0 || holds(seen >> 32 >= epoch, place)) {
            fence<Scope::gpu>();
            compare_swap<Scope::gpu>(verdict, given, epoch << 32 | (out != 0 ? 0 : 1 + (seen & 0xffffffffu)));
            continue;
        }
        const Subject who{what, epoch, 0, from, 0, Status::absent};
        if (spin.pause(who, site, Seen<u64>{word, seen}, Seen<u64>{verdict, given}, Seen<u32>{masked, out})) continue;
        if (spin.status() != Status::absent) return spin.status();
        store_relaxed<Scope::gpu>(masked, 1u);
    }
}

// All threads of all blocks, when they have sent what they have: true in the block that comes last, for which everything is
// sent. `last` is a word of shared memory. What is known of a rank then is whole.
RDMAKIT_DEVICE bool nvl_all_sent(const NvlRank& nvl, u32 operation, u32* last) {
    return nvl_meets_last(&nvl.masks->sent[operation], last);
}

}  // namespace rdmakit
