// rdmakit/ll.cuh — what the low-latency MoE kernels share: no exchange of counts first, a fixed place for every message.
// Layer: ep (leans on ep, signal).
//
// A token goes once for every expert that it chose, straight to that expert's rank, into the slots of its source; behind
// the last one, on the same QP, a strong signal carries the count. Buffers alternate by the epoch's parity: a rank can
// not begin epoch k + 2 before every other has counted its messages of k + 1, which it does after it has unpacked k. So
// at most two dispatches may be sent and not yet received, and rows to combine are the caller's again when the receiving
// half has ended.
#pragma once
#include "ep.cuh"

namespace rdmakit {

struct LlHeap {
    u64 staging;         // [2][max_tokens] messages on their way out
    u64 staged;          // [max_tokens] u64: the epoch whose message lies in staging
    u64 messages;        // [2][local_experts][ranks][max_tokens] messages
    u64 counts;          // [2][local_experts][ranks] u64: epoch << 32 | number of messages
    u64 combine_x;       // [local_experts][ranks * max_tokens] rows of BF16 to send back
    u64 partial;         // [2][max_tokens][topk] rows of BF16 that came back
    u64 returned;        // [experts] u64: epochs for which that expert has sent all of this rank's rows back
};

struct LlRank {
    u32 layout_version;
    u32 rank, ranks, host, local_ranks;
    u32 experts, local_experts;
    u32 topk;
    u32 hidden;
    u32 max_tokens;          // of one rank in one call
    u32 qps_per_rank;
    u32 fenced;              // 1: a signal waits for the completion of all that its QP has been given (no sequence lock)
    u8* const* heaps;        // [ranks]; null for ranks of other hosts
    const RemoteMemory* remote_heaps;  // [ranks][qps_per_rank]: as the NIC of that queue pair knows them
    const u32* heap_lkeys;   // [ranks][qps_per_rank]: this rank's own heap, likewise
    const QpHandle* qps;     // [ranks][qps_per_rank]; those of ranks on this host are not used
    u64* announced;          // [2][experts], by parity: what this rank's count word at each expert holds now
    LlHeap at;
    Watch watch;
};

// What a call's rows look like, and its arguments: DeepEP's choices are 64 bits wide, of which the lower half tells, and its
// scales lie by column.
enum LlFormat : u32 { kLlFp8 = 1, kLlRoundScale = 2, kLlUe8m0 = 4, kLlByColumn = 8, kLlWideTopk = 16 };
RDMAKIT_DEVICE i32 ll_choice(const i32* topk, u64 i, u32 format) { return topk[(format & kLlWideTopk) != 0 ? 2 * i : i]; }

// Waits, and adds the clocks that it took to those of a rank, if they are counted: by one warp for each rank, that of its
// first expert.
template <class Wait> RDMAKIT_DEVICE Status ll_clocked(u64* waits, u32 rank, Wait wait) {
    const u64 began = clock_cycles();
    const Status s = by_lane_zero(wait);
    if (waits != nullptr && lane_id() == 0) waits[rank] += clock_cycles() - began;
    return s;
}

// A message: where it comes from, what its token chose, the payload, its scales.
struct LlMessage {
    i32* source;      // token index at the source
    i32* topk;        // [topk] global experts
    u8* payload;
    u8* scales;
};
RDMAKIT_DEVICE u32 ll_header_bytes(const LlRank& ll) { return round_up<u32>(4 * (1 + ll.topk), 16); }
RDMAKIT_DEVICE u32 ll_payload_bytes(const LlRank& ll, bool fp8) { return fp8 ? ll.hidden : 2 * ll.hidden; }
RDMAKIT_DEVICE u32 ll_scale_count(const LlRank& ll, bool fp8) { return fp8 ? ll.hidden / 128 : 0; }
// Slots are as large as the larger of the two formats needs.
RDMAKIT_DEVICE u64 ll_slot_bytes(const LlRank& ll) { return ll_header_bytes(ll) + 2ull * ll.hidden + 16; }
RDMAKIT_DEVICE u32 ll_message_bytes(const LlRank& ll, bool fp8) {
    return ll_header_bytes(ll) + round_up<u32>(ll_payload_bytes(ll, fp8) + 4 * ll_scale_count(ll, fp8), 16);
}
RDMAKIT_DEVICE LlMessage ll_message(const LlRank& ll, u8* bytes, bool fp8) {
    auto* words = reinterpret_cast<i32*>(bytes);
    u8* const payload = bytes + ll_header_bytes(ll);
    return {words, words + 1, payload, payload + ll_payload_bytes(ll, fp8)};
}

RDMAKIT_DEVICE bool same_host(const LlRank& ll, u32 rank) { return rank / ll.local_ranks == ll.host; }
RDMAKIT_DEVICE u64 ll_slot(const LlRank& ll, u64 epoch, u32 local_expert, u32 source, u32 index) {
    const u64 row = (((epoch & 1) * ll.local_experts + local_expert) * ll.ranks + source) * ll.max_tokens + index;
    return ll.at.messages + row * ll_slot_bytes(ll);
}
RDMAKIT_DEVICE u64 ll_count(const LlRank& ll, u64 epoch, u32 local_expert, u32 source) {
    return ll.at.counts + 8 * (((epoch & 1) * ll.local_experts + local_expert) * ll.ranks + source);
}
RDMAKIT_DEVICE u64 ll_partial(const LlRank& ll, u64 epoch, u32 token, u32 k) {
    return ll.at.partial + (((epoch & 1) * ll.max_tokens + token) * ll.topk + k) * 2ull * ll.hidden;
}
// Everything for one expert of a rank takes one QP, so that its signal stands behind its data.
RDMAKIT_DEVICE u32 ll_way(const LlRank& ll, u32 rank, u32 local_expert) {
    return rank * ll.qps_per_rank + local_expert % ll.qps_per_rank;
}
RDMAKIT_DEVICE u8* ll_heap(const LlRank& ll, u32 rank, u64 offset) { return ll.heaps[rank] + offset; }

// Every block looks at the handles, before it uses any. All threads call it; false: one does not fit.
RDMAKIT_DEVICE bool check_queues(const LlRank& ll) {
    if (!layout_matches(ll.layout_version, ll.watch, "LlRank of another layout version")) return false;
    for (u32 i = static_cast<u32>(block_rank()); i < ll.ranks * ll.qps_per_rank; i += static_cast<u32>(block_size())) {
        if (!same_host(ll, i / ll.qps_per_rank)) check_handle(ll.qps[i]);
    }
    block_sync();
    return !aborted(ll.watch.report);
}

// From this rank's heap to another's: by stores on this host, by a put elsewhere. All lanes take part.
RDMAKIT_DEVICE Status ll_send(const LlRank& ll, u32 rank, u32 local_expert, u64 to, u64 from, u32 bytes) {
    u8* const source = ll_heap(ll, ll.rank, from);
    if (same_host(ll, rank)) {
        warp_copy(ll_heap(ll, rank, to), source, bytes);
        return Status::ok;
    }
    return by_lane_zero([&] {
        const u32 way = ll_way(ll, rank, local_expert);
        return put(ll.qps[way], ll.remote_heaps[way] + to, LocalMemory{reinterpret_cast<u64>(source), ll.heap_lkeys[way]},
                   bytes);
    });
}
// Adds to a word of another rank's heap, behind everything that ll_send sent for that expert.
RDMAKIT_DEVICE Status ll_signal(const LlRank& ll, u32 rank, u32 local_expert, u64 word, u64 add) {
    return by_lane_zero([&] {
        if (!same_host(ll, rank)) {
            const u32 way = ll_way(ll, rank, local_expert);
            const QpHandle& qp = ll.qps[way];
            if (ll.fenced != 0) {
                const Status done = quiet(qp);
                if (done != Status::ok) return done;
            }
            return signal(qp, ll.remote_heaps[way] + word, add);
        }
        fence<Scope::sys>();  // this warp's rows before the word
        fetch_add<Scope::sys>(reinterpret_cast<u64*>(ll_heap(ll, rank, word)), add);
        return Status::ok;
    });
}

}  // namespace rdmakit
