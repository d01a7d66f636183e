// ep_dispatch.cu — normal dispatch: every token once to each host that needs it, once from there to each rank, straight
// to its final row. Two blocks a channel: block 2c sends, block 2c + 1 forwards what came from other hosts.
//
// Counts were exchanged before (ep_notify), so a row's place is known to everyone who writes it: the destination's first
// row for the source, plus the token's order among the source's tokens to that rank. No receiver has to move anything.
#include <rdmakit/ep_ride.cuh>

namespace rdmakit {

struct DispatchInput {
    const u8* x;             // [tokens] rows of row_bytes
    const float* scales;     // [tokens][scale_count], or null
    const i32* topk;         // [tokens][topk][topk_words] global experts, -1 where masked
    const float* weights;    // [tokens][topk]
    u32 tokens, row_bytes, scale_count;
    u32 topk_words;          // 1, or 2 for indices of 64 bits, of which the lower half tells
    u64 epoch;
    u64 arrived;             // rows that will have arrived at this rank, over all epochs, when this one is done
};

// One row to its place on one local rank: payload, scales, and the expert choices as that rank numbers them.
RDMAKIT_DEVICE void place_row(const EpRank& ep, const DispatchInput& in, u32 rank, u32 row, const u8* x, const u8* scales,
                              i32 source, const i32* topk, u32 topk_words, const float* weights) {
    warp_copy(heap_of(ep, rank, ep.at.recv_x) + static_cast<u64>(row) * in.row_bytes, x, in.row_bytes);
    if (in.scale_count != 0) {
        auto* to = heap_array<u32>(ep, rank, ep.at.recv_scales) + static_cast<u64>(row) * in.scale_count;
        const auto* from = reinterpret_cast<const u32*>(scales);
        for (u32 i = static_cast<u32>(lane_id()); i < in.scale_count; i += kLanes) to[i] = from[i];
    }
    const u64 first = static_cast<u64>(row) * ep.topk;
    const i32 base = static_cast<i32>(rank * ep.local_experts);
    auto* to_topk = heap_array<i32>(ep, rank, ep.at.recv_topk) + first;
    auto* to_weights = heap_array<u32>(ep, rank, ep.at.recv_weights) + first;
    for (u32 k = static_cast<u32>(lane_id()); k < ep.topk; k += kLanes) {
        const i32 chosen = topk[static_cast<u64>(k) * topk_words];
        const i32 expert = chosen - base;
        const bool here = chosen >= 0 && expert >= 0 && expert < static_cast<i32>(ep.local_experts);
        u32 bits = 0;
        if (here) bits = reinterpret_cast<const u32*>(weights)[k];
        to_topk[k] = here ? expert : -1;
        to_weights[k] = bits;
    }
    if (lane_id() == 0) heap_array<i32>(ep, rank, ep.at.recv_source)[row] = source;
}

// Rows that a warp has placed on each local rank, told once at its end.
RDMAKIT_DEVICE void tell_arrivals(const EpRank& ep, u32 local, u64 rows) {
    if (rows == 0) return;
    warp_sync();
    if (lane_id() != 0) return;
    fence<Scope::sys>();  // the warp's rows before the count of them
    fetch_add<Scope::sys>(heap_array<u64>(ep, first_local_rank(ep) + local, ep.at.arrived), rows);
}

// Tokens for ranks of this host go there by direct stores.
RDMAKIT_DEVICE void place_own(const EpRank& ep, const EpPlan& plan, const DispatchInput& in, Range range, const WarpShare& share) {
    for (u32 i = 0; i < ep.local_ranks; ++i) {
        const u32 g = (ep.rank + share.part + i) % ep.local_ranks;  // all at once, not all ranks into one after the other
        const u32 rank = first_local_rank(ep) + g;
        const u32 start = static_cast<u32>(heap_array<i32>(ep, rank, ep.at.start)[ep.rank]);
        u64 rows = 0;
        for (u32 t = range.begin + share.part; t < range.end; t += share.parts) {
            const i32 order = plan.order[static_cast<u64>(t) * ep.ranks + rank];
            if (order < 0) continue;
            ++rows;
            place_row(ep, in, rank, start + static_cast<u32>(order), in.x + static_cast<u64>(t) * in.row_bytes,
                      reinterpret_cast<const u8*>(in.scales + static_cast<u64>(t) * in.scale_count), static_cast<i32>(t),
                      in.topk + static_cast<u64>(t) * ep.topk * in.topk_words, in.topk_words,
                      in.weights + static_cast<u64>(t) * ep.topk);
        }
        tell_arrivals(ep, g, rows);
    }
}

// Copies one token into its slot of the send ring.
RDMAKIT_DEVICE void stage_token(const EpRank& ep, const EpPlan& plan, const DispatchInput& in, const ChannelHandle& channel,
                                u64 slot, u32 t, u32 host) {
    u8* const payload = staging_payload(channel, slot);
    warp_copy(payload, in.x + static_cast<u64>(t) * in.row_bytes, in.row_bytes);
    const u32* scales = reinterpret_cast<const u32*>(in.scales + static_cast<u64>(t) * in.scale_count);
    for (u32 i = static_cast<u32>(lane_id()); i < in.scale_count; i += kLanes) {
        reinterpret_cast<u32*>(payload + in.row_bytes)[i] = scales[i];
    }
    const TokenMeta meta = token_meta(ep, staging_meta(channel, slot));
    if (lane_id() == 0) *meta.source = static_cast<i32>(t);
    for (u32 g = static_cast<u32>(lane_id()); g < ep.local_ranks; g += kLanes) {
        meta.order[g] = plan.order[static_cast<u64>(t) * ep.ranks + host * ep.local_ranks + g];
    }
    for (u32 k = static_cast<u32>(lane_id()); k < ep.topk; k += kLanes) {
        meta.topk[k] = in.topk[(static_cast<u64>(t) * ep.topk + k) * in.topk_words];
        meta.weights[k] = in.weights[static_cast<u64>(t) * ep.topk + k];
    }
}

// Tokens for another host go through the channel's ring, a chunk of slots a put; the warps of the host take chunks in
// turn and post them in order, for the tail counts slots.
RDMAKIT_DEVICE Status send_to_host(const EpRank& ep, const EpPlan& plan, const DispatchInput& in, Range range, u32 host,
                                   u32 channel_id, const WarpShare& share, u64* turn) {
    const ChannelHandle& channel = rail(ep, host, channel_id);
    const u64 base = *channel.sent;
    const Chunks chunks{base, base + static_cast<u32>(plan.channel_counts[host * ep.channels + channel_id]), channel.chunk};
    if (chunks.first == chunks.end) return Status::ok;
    Status s = by_lane_zero([&] { return wait_emptied(channel, base); });
    if (s != Status::ok) return s;
    u32 t = range.begin;
    for (u64 n = chunks.begin_chunk() + share.part; n < chunks.end_chunk(); n += share.parts) {
        const u64 first = chunks.begin_of(n), end = chunks.end_of(n);
        s = by_lane_zero([&] { return wait_credit(channel, end); });
        if (s != Status::ok) return s;
        for (; t < range.end; ++t) {
            const i32 place = plan.host_slot[static_cast<u64>(t) * ep.hosts + host];
            const u64 slot = base + tokens_before(place);
            if (slot >= end) break;
            if (goes(place) && slot >= first) stage_token(ep, plan, in, channel, slot, t, host);
        }
        s = by_lane_zero([&] {
            return in_turn(turn, n - chunks.begin_chunk(), ep.watch, about(channel.qp, "the turn to send a chunk", n),
                           [&] { return send_slots(channel, first, static_cast<u32>(end - first)); });
        });
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

// What came from the rail peer on `host` goes on to the ranks of this host.
RDMAKIT_DEVICE Status forward_from_host(const EpRank& ep, const EpPlan& plan, const DispatchInput& in, u32 host,
                                        u32 channel_id, const WarpShare& share, u64* turn) {
    const ChannelHandle& channel = rail(ep, host, channel_id);
    const u32 source = rail_rank(ep, host);
    const u64 base = *channel.received;
    u64 before = static_cast<u64>(host) * ep.max_tokens;  // row of forward_order where this channel's tokens begin
    for (u32 c = 0; c < channel_id; ++c) before += static_cast<u32>(plan.forward_counts[host * ep.channels + c]);
    const Chunks chunks{base, base + static_cast<u32>(plan.forward_counts[host * ep.channels + channel_id]), channel.chunk};
    u64 rows[kMaxLocalRanks] = {};
    for (u64 n = chunks.begin_chunk() + share.part; n < chunks.end_chunk() && chunks.first != chunks.end; n += share.parts) {
        for (u64 slot = chunks.begin_of(n); slot < chunks.end_of(n); ++slot) {
            const Status s = by_lane_zero([&] { return wait_slot(channel, slot); });
            if (s != Status::ok) return s;
            const u8* const payload = ring_payload(channel, slot);
            const TokenMeta meta = token_meta(ep, ring_meta(channel, slot));
            for (u32 g = 0; g < ep.local_ranks; ++g) {
                const i32 order = meta.order[g];
                if (lane_id() == 0) plan.forward_order[(before + (slot - base)) * ep.local_ranks + g] = order;
                if (order < 0) continue;
                const u32 rank = first_local_rank(ep) + g;
                const i32 start = heap_array<i32>(ep, rank, ep.at.start)[source];
                ++rows[g];
                place_row(ep, in, rank, static_cast<u32>(start + order), payload, payload + in.row_bytes, *meta.source,
                          meta.topk, 1, meta.weights);
            }
        }
        const Status s = by_lane_zero([&] {
            return in_turn(turn, n - chunks.begin_chunk(), ep.watch, about(channel.qp, "the turn to return a credit", n),
                           [&] { return return_credit(channel, chunks.end_of(n) - chunks.begin_of(n)); });
        });
        if (s != Status::ok) return s;
    }
    for (u32 g = 0; g < ep.local_ranks; ++g) tell_arrivals(ep, g, rows[g]);
    return Status::ok;
}

RDMAKIT_DEVICE void dispatch_tokens(const EpRank& ep, const EpPlan& plan, const DispatchInput& in) {
    if (!check_rails(ep, static_cast<u32>(block_id()) / 2)) return;
    using Turns = u64[kMaxHosts];
    RDMAKIT_SHARED(Turns, turns);  // a host's chunks, whose turn
    for (int i = block_rank(); i < static_cast<int>(kMaxHosts); i += block_size()) turns[i] = 0;
    block_sync();

    const u32 channel = static_cast<u32>(block_id()) / 2;
    const bool sender = block_id() % 2 == 0;
    const WarpShare share = share_hosts(ep.hosts);
    Status status = by_lane_zero([&] { return wait_starts(ep, in.epoch); });
    if (sender) {
        const Range range = channel_tokens(in.tokens, channel, ep.channels);
        for (u32 h = share.first; h < ep.hosts && status == Status::ok; h += share.step) {
            if (h == ep.host) place_own(ep, plan, in, range, share);
            else status = send_to_host(ep, plan, in, range, h, channel, share, &turns[h]);
        }
    } else {
        for (u32 h = share.first; h < ep.hosts && status == Status::ok; h += share.step) {
            if (h != ep.host) status = forward_from_host(ep, plan, in, h, channel, share, &turns[h]);
        }
    }
    block_sync();
    if (block_rank() == 0) {  // where the next operation on these rings begins
        for (u32 h = 0; h < ep.hosts; ++h) {
            if (h == ep.host) continue;
            const ChannelHandle& c = rail(ep, h, channel);
            if (sender) *c.sent += static_cast<u32>(plan.channel_counts[h * ep.channels + channel]);
            else *c.received += static_cast<u32>(plan.forward_counts[h * ep.channels + channel]);
        }
    }
    // Local copies of the tables that combine needs, and the last arrival.
    if (block_id() == 0) {
        for (u32 i = static_cast<u32>(block_rank()); i < ep.local_ranks * (ep.ranks + 1); i += static_cast<u32>(block_size())) {
            const u32 g = i / (ep.ranks + 1), s = i % (ep.ranks + 1);
            plan.start[i] = heap_array<i32>(ep, first_local_rank(ep) + g, ep.at.start)[s];
        }
        block_sync();
        if (block_rank() == 0) {
            fence<Scope::sys>();  // the block's reads, ordered by the barrier above, before the count of them
            for (u32 g = 0; g < ep.local_ranks; ++g) {  // a cached dispatch may rewrite `start` now, see ep_reopen.cu
                fetch_add<Scope::sys>(heap_array<u64>(ep, first_local_rank(ep) + g, ep.at.start_read), 1ull);
            }
            u64 seen = 0;
            wait_signal(heap_array<u64>(ep, ep.rank, ep.at.arrived), in.arrived, ep.watch,
                        Subject{"rows of this dispatch", in.arrived, 0, ep.rank, 0}, &seen);
        }
    }
}

}  // namespace rdmakit

RDMAKIT_KERNEL ep_dispatch(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, rdmakit::DispatchInput in) {
    rdmakit::dispatch_tokens(*rank, plan, in);
}

// Behind the channels' blocks stand those that are their HCA.
RDMAKIT_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1)
ep_dispatch_riding(RDMAKIT_GRID_CONSTANT rdmakit::HcaHandle hca, const rdmakit::EpRank* rank, rdmakit::EpPlan plan,
                   rdmakit::DispatchInput in) {
    rdmakit::with_riders(hca, 2 * rank->channels, [&] { rdmakit::dispatch_tokens(*rank, plan, in); });
}
