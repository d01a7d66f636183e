// rdmakit/ep.cuh — what the MoE kernels share: ranks and rails, the symmetric heap, token records.
// Layer: ep (leans on channel, warp).
//
// Ranks are numbered host by host: rank = host * local_ranks + local. Ranks of one host reach each other's heap by
// loads and stores; ranks with the same `local` on different hosts are joined by `channels` QPs each (a *rail*). A token
// crosses to a host once, on the rail of its source, and is forwarded there to every rank that needs it.
#pragma once
#include "channel.cuh"
#include "numbers.cuh"
#include "warp.cuh"

namespace rdmakit {

constexpr u32 kMaxHosts = 256;
constexpr u32 kMaxLocalRanks = 16;

// Offsets of the regions of a rank's heap; the same on every rank.
struct EpHeap {
    u64 notify_out;        // [2][hosts] messages, by parity of the epoch
    u64 notify_in;         // [2][hosts]
    u64 notify_tail;       // [hosts] u64: messages that have come from each host
    u64 counts;            // [2][ranks] CountRow
    u64 start;             // [ranks + 1] i32: first row of each source in recv_*
    u64 start_read;        // u64: local ranks that have copied `start`, over all dispatches
    u64 start_epoch;       // u64: the epoch that `start` belongs to, hence that recv_* may be written for
    u64 arrived;           // u64: rows that have arrived, over all epochs
    u64 recv_x;            // [capacity] rows of row_bytes
    u64 recv_scales;       // [capacity][hidden / 128] f32
    u64 recv_topk;         // [capacity][topk] i32, local expert or -1
    u64 recv_weights;      // [capacity][topk] f32
    u64 recv_source;       // [capacity] i32: index of the token at its source
    u64 combine_x;         // [capacity] rows of BF16
    u64 combine_weights;   // [capacity][topk] f32
    u64 combine_epoch;     // u64: blocks that have left their rows in combine_*, over all epochs
    u64 combine_done;      // u64: local ranks that have read them, over all epochs
};

struct EpRank {
    u32 layout_version;
    u32 rank, ranks, host, hosts, local, local_ranks;
    u32 channels;
    u32 experts, local_experts;
    u32 topk;
    u32 hidden;              // elements
    u32 capacity;            // rows of recv_* and combine_*
    u32 notify_bytes;        // of one message, a multiple of 16
    u8* const* heaps;        // [ranks]; null for ranks of other hosts
    const RemoteMemory* rail_heaps;  // [hosts]: the rail peer's heap, as the NIC of channel 0 knows it there
    const ChannelHandle* rails;      // [hosts][channels]; those of the own host are not used
    u32 max_tokens;          // of one source, in one operation
    u32 count_bytes;         // of a source's row in `counts`, a multiple of 16: at least 16 + 4 * local_experts
    EpHeap at;
    Watch watch;
};

// A rank's plan for its own tokens, made by ep_layout; and what the notification told it to forward.
struct EpPlan {
    i32* tokens_per_rank;    // [ranks]
    i32* tokens_per_expert;  // [experts]
    i32* channel_counts;     // [hosts][channels]: this rank's tokens to each host, by channel
    i32* order;              // [tokens][ranks]: place of the token among those to that rank, or -1
    i32* host_slot;          // [tokens][hosts]: tokens before it, in its channel, to that host; ~ of that if not going
    i32* forward_counts;     // [hosts][channels]: tokens that the rail peer on each host sends through us
    i32* forward_order;      // [hosts][max_tokens][local_ranks]: order of each at our host's ranks, or -1
    i32* start;              // [local_ranks][ranks + 1]: copies of the local ranks' `start` tables
    i32* totals;             // [1 + local_experts]: rows received, then rows by local expert
};

// One message from a source to its rail peer: counts for the ranks of that host.
struct NotifyMessage {
    i32* tokens;     // [local_ranks]
    i32* channels;   // [channels]
    i32* experts;    // [local_ranks][local_experts]
};
RDMAKIT_DEVICE NotifyMessage notify_message(const EpRank& ep, u8* bytes) {
    auto* words = reinterpret_cast<i32*>(bytes);
    return {words, words + ep.local_ranks, words + ep.local_ranks + ep.channels};
}
// A source's row in a destination's table of counts: an epoch, the tokens, then the tokens by local expert. Its size does not
// follow the experts of one exchange: another number of them would find old counts where epochs are expected.
RDMAKIT_DEVICE u64 count_row_bytes(const EpRank& ep) { return ep.count_bytes; }

// What travels beside a token's payload.
struct TokenMeta {
    i32* source;     // index at its source
    i32* order;      // [local_ranks] of the host it goes to, or -1
    i32* topk;       // [topk] global experts, -1 where masked
    float* weights;  // [topk]
};
RDMAKIT_DEVICE u32 token_meta_bytes(const EpRank& ep) {
    return round_up<u32>(4 * (1 + ep.local_ranks + 2 * ep.topk), 16);
}
RDMAKIT_DEVICE TokenMeta token_meta(const EpRank& ep, const u8* bytes) {
    auto* words = reinterpret_cast<i32*>(const_cast<u8*>(bytes));
    return {words, words + 1, words + 1 + ep.local_ranks, reinterpret_cast<float*>(words + 1 + ep.local_ranks + ep.topk)};
}

RDMAKIT_DEVICE u8* heap_of(const EpRank& ep, u32 rank, u64 offset) { return ep.heaps[rank] + offset; }
RDMAKIT_DEVICE u8* my_heap(const EpRank& ep, u64 offset) { return heap_of(ep, ep.rank, offset); }
template <class T> RDMAKIT_DEVICE T* heap_array(const EpRank& ep, u32 rank, u64 offset) {
    return reinterpret_cast<T*>(heap_of(ep, rank, offset));
}
RDMAKIT_DEVICE u32 first_local_rank(const EpRank& ep) { return ep.host * ep.local_ranks; }
RDMAKIT_DEVICE u32 rail_rank(const EpRank& ep, u32 host) { return host * ep.local_ranks + ep.local; }
RDMAKIT_DEVICE const ChannelHandle& rail(const EpRank& ep, u32 host, u32 channel) {
    return ep.rails[host * ep.channels + channel];
}

// Every block looks at the handles that it will use, before it uses any. All threads call it; false: one does not fit.
RDMAKIT_DEVICE bool check_rails(const EpRank& ep, u32 channel) {
    if (!layout_matches(ep.layout_version, ep.watch, "EpRank of another layout version")) return false;
    for (u32 h = static_cast<u32>(block_rank()); h < ep.hosts; h += static_cast<u32>(block_size())) {
        if (h != ep.host) check_handle(rail(ep, h, channel).qp);
    }
    block_sync();
    return !aborted(ep.watch.report);
}

// Channel c has tokens [begin, end) of its rank: contiguous and equal to within one.
struct Range {
    u32 begin, end;
};
RDMAKIT_DEVICE Range channel_tokens(u32 tokens, u32 channel, u32 channels) {
    return {static_cast<u32>(static_cast<u64>(tokens) * channel / channels),
            static_cast<u32>(static_cast<u64>(tokens) * (channel + 1) / channels)};
}

// Walks tokens [begin, end) a warp's width at a time; calls place(token, goes, number of those before that go).
template <class Goes, class Place> RDMAKIT_DEVICE u32 number_tokens(u32 begin, u32 end, Goes goes_there, Place place) {
    u32 before = 0;
    for (u32 t0 = begin; t0 < end; t0 += kLanes) {
        const u32 t = t0 + static_cast<u32>(lane_id());
        const bool yes = t < end && goes_there(t);
        const u32 mask = warp_ballot(yes);
        u32 mine = before;
        for (u32 m = mask & ((1u << lane_id()) - 1); m != 0; m &= m - 1) ++mine;
        if (t < end) place(t, yes, mine);
        for (u32 m = mask; m != 0; m &= m - 1) ++before;
    }
    return before;
}

// host_slot packs "does it go" into the sign.
RDMAKIT_DEVICE bool goes(i32 host_slot) { return host_slot >= 0; }
RDMAKIT_DEVICE u32 tokens_before(i32 host_slot) { return static_cast<u32>(host_slot >= 0 ? host_slot : ~host_slot); }

// A block's warps share the hosts out: `per_host` warps serve host `first`, then first + step, …
struct WarpShare {
    u32 first, step, part, parts;
};
RDMAKIT_DEVICE WarpShare share_hosts(u32 hosts) {
    const u32 warps = static_cast<u32>(warps_in_block()), warp = static_cast<u32>(warp_id());
    const u32 parts = larger(warps / larger(hosts, 1u), 1u);
    const u32 groups = warps / parts;
    if (warp >= groups * parts) return {hosts, 1, 0, parts};  // left over
    return {warp / parts, groups, warp % parts, parts};
}

// Chunks of a ring that [first, first + count) touches; chunk n holds slots [n * size, (n + 1) * size).
struct Chunks {
    u64 first, end;
    u32 size;
    RDMAKIT_DEVICE u64 begin_chunk() const { return first / size; }
    RDMAKIT_DEVICE u64 end_chunk() const { return ceil_div<u64>(end, size); }
    RDMAKIT_DEVICE u64 begin_of(u64 chunk) const { return larger(first, chunk * size); }
    RDMAKIT_DEVICE u64 end_of(u64 chunk) const { return smaller(end, (chunk + 1) * size); }
};

// Warps of a block that take chunks in turn post them in order: shared memory holds whose turn it is.
template <class Post>
RDMAKIT_DEVICE Status in_turn(u64* turn, u64 mine, const Watch& watch, const Subject& who, Post post) {
    u64 seen = 0;
    const Status waited = wait_until<Scope::cta>(turn, [mine](u64 v) { return v == mine; }, watch, who, &seen);
    if (waited != Status::ok) return waited;
    const Status posted = post();
    if (posted == Status::ok) store_release<Scope::cta>(turn, mine + 1);
    return posted;
}
// Waits until the local ranks' recv_* may be written for this epoch.
RDMAKIT_DEVICE Status wait_starts(const EpRank& ep, u64 epoch) {
    for (u32 g = 0; g < ep.local_ranks; ++g) {
        u64 seen = 0;
        const u32 rank = first_local_rank(ep) + g;
        const Status s = wait_signal(heap_array<u64>(ep, rank, ep.at.start_epoch), epoch, ep.watch,
                                     Subject{"a local rank's receive buffer", epoch, 0, rank, 0}, &seen);
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

}  // namespace rdmakit
