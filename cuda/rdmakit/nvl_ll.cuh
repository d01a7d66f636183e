// rdmakit/nvl_ll.cuh — what low-latency MoE kernels over NVLink share.
// Layer: ep (leans on nvl_mask, numbers).
//
// Dispatch: a token crosses once to each rank that hosts one of its experts, into a slot of its own, with a flag of its
// own; choices cross before, to all ranks, in words that say of which epoch they are, so that the receiver knows each row's
// place while rows are still under way, and it copies them to every expert. Combine: weights cross first; the experts' rank adds its rows of a token up, and one row
// crosses back for each rank. Slots alternate by the epoch's parity; a rank fills those of an epoch when everybody has
// told that it is through with the last but one. It tells so when its next kernel begins, when nothing is under way that
// a fence would have to wait for.
// Where ranks can be masked, a rank tells once more, when all that it sends to another is there, and that word alone decides
// whether it takes part: of a rank that dies on the way nothing counts.
#pragma once
#include "numbers.cuh"
#include "nvl_mask.cuh"

namespace rdmakit {

struct NvlLlHeap {
    u64 choices;        // [2][ranks][max_tokens][pairs] tagged words, two global experts each: of each source's tokens
    u64 chosen;         // [2][ranks] u64: epoch << 32 | tokens
    u64 messages;       // [2][ranks][max_tokens] slots of nvl_slot_bytes
    u64 sent;           // [2][ranks][max_tokens] u64: epoch whose message lies there
    u64 received;       // [ranks] u64: epochs that rank has received all of
    u64 weights;        // [2][ranks][max_tokens * topk] float
    u64 weighed;        // [2][ranks] u64: epoch << 32 | tokens
    u64 sums;           // [2][ranks][max_tokens] rows of BF16
    u64 summed;         // [2][ranks][max_tokens] u64
    u64 combined;       // [ranks] u64: epochs of combine that rank has received all of
    u64 complete;       // [ranks] u64: epoch << 32, of combine, of which all its sums are here; where ranks can be masked
};

struct NvlLl {
    NvlRank nvl;
    NvlLlHeap ll;
    u32 max_tokens, hidden, experts, topk;
};
constexpr u32 kLlSend = 1, kLlReceive = 2;   // halves of an operation, as bits

RDMAKIT_DEVICE u32 nvl_local_experts(const NvlLl& p) { return p.experts / p.nvl.ranks; }
// A message: the payload, BF16 or FP8, then the scales.
RDMAKIT_DEVICE u64 nvl_slot_bytes(const NvlLl& p) { return round_up<u64>(2ull * p.hidden, 128); }
RDMAKIT_DEVICE u64 nvl_slot(const NvlLl& p, u64 epoch, u32 source, u32 token) {
    return ((epoch & 1) * p.nvl.ranks + source) * p.max_tokens + token;
}
RDMAKIT_DEVICE u32 nvl_pairs(const NvlLl& p) { return ceil_div(p.topk, 2u); }  // words that hold a token's choices
constexpr u32 kNvlNoExpert = 0xffff;
RDMAKIT_DEVICE u32 nvl_of_pair(u64 word, u32 k) { return static_cast<u32>(word >> 16 * (k & 1)) & 0xffff; }
// Choices of a source's tokens in a rank's heap, one token's behind the other's.
RDMAKIT_DEVICE u64* nvl_choices(const NvlLl& p, u64 epoch, u32 source, u32 rank) {
    return nvl_at<u64>(p.nvl, rank, p.ll.choices) + ((epoch & 1) * p.nvl.ranks + source) * p.max_tokens * nvl_pairs(p);
}
RDMAKIT_DEVICE u64 nvl_lists(const NvlLl& p, u64 epoch, u32 source) {  // of weights: the first of a source
    return ((epoch & 1) * p.nvl.ranks + source) * p.max_tokens * p.topk;
}
RDMAKIT_DEVICE u64 nvl_pair(const NvlLl& p, u64 epoch, u32 source) { return (epoch & 1) * p.nvl.ranks + source; }

RDMAKIT_DEVICE void nvl_tell_list(const NvlLl& p, u32 to, u64 words, u64 epoch, u32 tokens) {
    store_release<Scope::sys>(nvl_at<u64>(p.nvl, to, words) + nvl_pair(p, epoch, p.nvl.rank), epoch << 32 | tokens);
}
// Every rank's list, behind which a word of epoch and length stands. One block serves one destination.
template <class T, class Source>
RDMAKIT_DEVICE void nvl_send_list(const NvlLl& p, u32 to, u64 lists, u64 words, u64 epoch, u32 tokens, Source source) {
    T* const list = nvl_at<T>(p.nvl, to, lists) + nvl_lists(p, epoch, p.nvl.rank);
    const u32 step = static_cast<u32>(block_size());
    for (u32 i = static_cast<u32>(block_rank()); i < tokens * p.topk; i += step) list[i] = source(i);
    block_sync();
    if (block_rank() == 0) nvl_tell_list(p, to, words, epoch, tokens);
}
// One thread: waits for a source's list; its length, 0 of a rank that is left out, or the status of a wait that ended badly.
RDMAKIT_DEVICE Status nvl_list_came(const NvlLl& p, u64 words, NvlVerdict about, u64 epoch, u32 source, const char* what,
                                    u32* tokens, Site site = Site::here(), Site place = Site::here()) {
    const u64* const word = nvl_at<u64>(p.nvl, p.nvl.rank, words) + nvl_pair(p, epoch, source);
    if (p.nvl.masks != nullptr) {
        const Status status = nvl_verdict(p.nvl, about, word, source, epoch, what, tokens, site, place);
        if (status != Status::ok) *tokens = 0;
        return status == Status::absent ? Status::ok : status;
    }
    u64 seen = 0;
    const Status status = wait_until<Scope::sys>(word, [epoch](u64 v) { return v >> 32 == epoch; }, p.nvl.watch,
                                                 Subject{what, epoch, 0, source, 0}, &seen, site, place);
    *tokens = static_cast<u32>(seen);
    return status;
}
// All threads of one block, first of all: `told` epochs are received, their slots are free.
RDMAKIT_DEVICE void nvl_free(const NvlLl& p, u64 words, u64 told) {
    if (block_id() != blocks_in_grid() / 2) return;  // one that sends no list
    for (u32 r = static_cast<u32>(block_rank()); r < p.nvl.ranks; r += static_cast<u32>(block_size())) {
        if (!nvl_masked(p.nvl, r)) nvl_tell(p.nvl, words, r, told);
    }
}
// Whether slots of this epoch may be filled; each thread waits for some ranks.
RDMAKIT_DEVICE Status nvl_room(const NvlLl& p, u64 words, u64 epoch) {
    Status status = Status::ok;
    const u32 step = static_cast<u32>(block_size());
    for (u32 r = static_cast<u32>(block_rank()); r < p.nvl.ranks && epoch > 2 && status == Status::ok; r += step) {
        status = nvl_answers(p.nvl, words, r, epoch - 2, "a rank to be through with slots that are to be filled anew");
        if (status == Status::absent) status = Status::ok;
    }
    return status;
}
// Words of the token that a block sends or adds up, in shared memory: read by a thread each, once, and then by all.
struct NvlRow {
    i32 row[kMaxTopk];      // its rows
    float weight[kMaxTopk];
    u32 rows;               // how many there are
    u32 ranks;              // that host one of its experts, as bits
    u32 present;            // ranks to which this block sends, from which it receives, as bits
    u32 came;               // ranks whose sums are here, as bits; where ranks can be masked
};
// All threads, behind a meeting: those ranks that are not masked are present.
RDMAKIT_DEVICE void nvl_look_around(const NvlLl& p, NvlRow& words) {
    if (p.nvl.masks == nullptr) return;
    if (block_rank() == 0) words.present = nvl_present(p.nvl);
    block_sync();
}
// One wait for rank `rank`, its clocks added to `waits` [ranks], which may be null.
template <class Wait> RDMAKIT_DEVICE Status nvl_clocked(u64* waits, u32 rank, Wait wait) {
    const u64 began = waits != nullptr ? clock_cycles() : 0;
    const Status status = wait();
    if (waits != nullptr) fetch_add<Scope::gpu>(waits + rank, clock_cycles() - began);
    return status;
}
// Some threads: a token's choices, and whom they are for. `words.ranks` is 0 before; the block has to meet behind it.
RDMAKIT_DEVICE void nvl_read_choices(const NvlLl& p, const i64* topk, NvlRow& words) {
    for (u32 k = static_cast<u32>(block_rank()); k < p.topk; k += static_cast<u32>(block_size())) {
        const i64 expert = topk[k];
        if (expert < 0 || expert >= static_cast<i64>(p.experts)) continue;
        fetch_or<Scope::cta>(&words.ranks, 1u << (static_cast<u32>(expert) / nvl_local_experts(p)));
    }
}

// Lengths of all lists and where each begins among all tokens, in shared memory.
struct NvlLists {
    u32 tokens[kMaxNvlRanks];
    u32 first[kMaxNvlRanks + 1];
    u32 failed;
    u32 last;
};
RDMAKIT_DEVICE void nvl_add_up(NvlLists& lists, u32 ranks) {
    lists.first[0] = 0;
    for (u32 s = 0; s < ranks; ++s) lists.first[s + 1] = lists.first[s] + lists.tokens[s];
}
struct NvlShare {
    u32 begin, end;
};
// The last block, one thread: these operations have ended.
RDMAKIT_DEVICE void nvl_ll_end(const NvlRank& nvl, u32 halves, NvlKind send, u64 sent, NvlKind receive, u64 received) {
    if ((halves & kLlSend) != 0) store_relaxed<Scope::gpu>(&nvl_progress(nvl, send).epoch, sent);
    if ((halves & kLlReceive) != 0) store_relaxed<Scope::gpu>(&nvl_progress(nvl, receive).epoch, received);
}
// A block's share of the tokens of all sources, in order; `index`: which it is of `blocks` that have one.
RDMAKIT_DEVICE NvlShare nvl_share(const NvlLists& lists, u32 ranks, u32 index, u32 blocks) {
    const u64 all = lists.first[ranks];
    return {static_cast<u32>(all * index / blocks), static_cast<u32>(all * (index + 1) / blocks)};
}

}  // namespace rdmakit
