// ep_combine.cu — combine: each rank's rows go back to where the tokens came from and are summed. A host's rows of one
// token are summed on the rail of its source and cross to it once. Two blocks a channel: block 2c reduces and sends
// what goes to other hosts, block 2c + 1 finishes this rank's own tokens.
//
// Order of summation, the same on every run: a host's ranks ascending, in float32, rounded once to BF16; then hosts
// ascending, in float32, rounded once to BF16.
#include <rdmakit/ep_ride.cuh>

namespace rdmakit {

struct CombineInput {
    const u8* x;             // [rows] of BF16: this rank's, as dispatch ordered them; may be combine_x itself
    const float* weights;    // [rows][topk], or null
    u8* out;                 // [tokens] rows of BF16
    float* out_weights;      // [tokens][topk], or null
    u32 rows, tokens;
    u64 offered;             // blocks of each local rank that will have left their rows, over all combines, this one included
    const u8* bias[2];       // [tokens] rows of BF16, added before the last rounding; or null
};

RDMAKIT_DEVICE u32 row_bytes(const EpRank& ep) { return ep.hidden * 2; }

// Sums the rows of one token on this host's ranks; order[g] < 0 where it did not go. `base` names the source's first
// row at each local rank.
template <class Base>
RDMAKIT_DEVICE void sum_host(const EpRank& ep, const i32* order, Base base, u8* to, float* to_weights) {
    const Vec16* rows[kMaxLocalRanks];
    const float* weights[kMaxLocalRanks];
    u32 n = 0;
    for (u32 g = 0; g < ep.local_ranks; ++g) {
        if (order[g] < 0) continue;
        const u64 row = static_cast<u64>(base(g) + order[g]);
        const u32 rank = first_local_rank(ep) + g;
        rows[n] = heap_array<Vec16>(ep, rank, ep.at.combine_x + row * row_bytes(ep));
        weights[n++] = heap_array<float>(ep, rank, ep.at.combine_weights) + row * ep.topk;
    }
    charge_copy(static_cast<u64>(n + 1) * row_bytes(ep));
    for (u32 r = 0; r < n; ++r) charge_pull(rows[r], row_bytes(ep));
    if (payload_moves(row_bytes(ep))) {
        for (u32 i = static_cast<u32>(lane_id()); i < row_bytes(ep) / sizeof(Vec16); i += kLanes) {
            Sum8 sum = {};
            for (u32 r = 0; r < n; ++r) add_bf16(sum, load_stream(rows[r] + i));
            store_stream(reinterpret_cast<Vec16*>(to) + i, to_bf16(sum));
        }
    }
    if (to_weights == nullptr) return;
    for (u32 k = static_cast<u32>(lane_id()); k < ep.topk; k += kLanes) {
        float sum = 0;
        for (u32 r = 0; r < n; ++r) sum += weights[r][k];
        to_weights[k] = sum;
    }
}

RDMAKIT_DEVICE Status reduce_to_host(const EpRank& ep, const EpPlan& plan, const CombineInput& in, u32 host, u32 channel_id,
                                     const WarpShare& share, u64* turn) {
    const ChannelHandle& channel = rail(ep, host, channel_id);
    const u32 source = rail_rank(ep, host);
    const u64 base = *channel.sent;
    u64 before = static_cast<u64>(host) * ep.max_tokens;
    for (u32 c = 0; c < channel_id; ++c) before += static_cast<u32>(plan.forward_counts[host * ep.channels + c]);
    const Chunks chunks{base, base + static_cast<u32>(plan.forward_counts[host * ep.channels + channel_id]), channel.chunk};
    if (chunks.first == chunks.end) return Status::ok;
    Status s = by_lane_zero([&] { return wait_emptied(channel, base); });
    if (s != Status::ok) return s;
    for (u64 n = chunks.begin_chunk() + share.part; n < chunks.end_chunk(); n += share.parts) {
        const u64 first = chunks.begin_of(n), end = chunks.end_of(n);
        s = by_lane_zero([&] { return wait_credit(channel, end); });
        if (s != Status::ok) return s;
        for (u64 slot = first; slot < end; ++slot) {
            const i32* order = plan.forward_order + (before + (slot - base)) * ep.local_ranks;
            auto* weights = reinterpret_cast<float*>(staging_meta(channel, slot));
            sum_host(ep, order, [&](u32 g) { return plan.start[g * (ep.ranks + 1) + source]; }, staging_payload(channel, slot),
                     in.weights != nullptr ? weights : nullptr);
        }
        s = by_lane_zero([&] {
            return in_turn(turn, n - chunks.begin_chunk(), ep.watch, about(channel.qp, "the turn to send a chunk", n),
                           [&] { return send_slots(channel, first, static_cast<u32>(end - first)); });
        });
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

// One of this rank's tokens: a partial row of each host that it went to, hosts ascending.
RDMAKIT_DEVICE Status finish_token(const EpRank& ep, const EpPlan& plan, const CombineInput& in, u32 t, u32 channel_id,
                                   u8* own_partial, float* own_weights) {
    const i32* const order = plan.order + static_cast<u64>(t) * ep.ranks + first_local_rank(ep);
    const i32* const places = plan.host_slot + static_cast<u64>(t) * ep.hosts;
    const u64 at = static_cast<u64>(t) * row_bytes(ep);
    if (goes(places[ep.host])) {
        sum_host(ep, order, [&](u32 g) { return plan.start[g * (ep.ranks + 1) + ep.rank]; }, own_partial,
                 in.weights != nullptr ? own_weights : nullptr);
        warp_sync();
    }
    for (u32 h = 0; h < ep.hosts; ++h) {
        if (h == ep.host || !goes(places[h])) continue;
        const ChannelHandle& channel = rail(ep, h, channel_id);
        const Status s = by_lane_zero([&] { return wait_slot(channel, *channel.received + tokens_before(places[h])); });
        if (s != Status::ok) return s;
    }
    const auto partial = [&](u32 h) {
        const ChannelHandle& channel = rail(ep, h, channel_id);
        return ring_payload(channel, *channel.received + tokens_before(places[h]));
    };
    const auto partial_weights = [&](u32 h) {
        const ChannelHandle& channel = rail(ep, h, channel_id);
        return reinterpret_cast<const float*>(ring_meta(channel, *channel.received + tokens_before(places[h])));
    };
    charge_copy(row_bytes(ep));
    if (payload_moves(row_bytes(ep))) {
        for (u32 i = static_cast<u32>(lane_id()); i < row_bytes(ep) / sizeof(Vec16); i += kLanes) {
            Sum8 sum = {};
            for (u32 h = 0; h < ep.hosts; ++h) {
                if (!goes(places[h])) continue;
                add_bf16(sum, load_stream(reinterpret_cast<const Vec16*>(h == ep.host ? own_partial : partial(h)) + i));
            }
            for (const u8* bias : in.bias) {
                if (bias != nullptr) add_bf16(sum, load_stream(reinterpret_cast<const Vec16*>(bias + at) + i));
            }
            store_stream(reinterpret_cast<Vec16*>(in.out + at) + i, to_bf16(sum));
        }
    }
    if (in.weights == nullptr) return Status::ok;
    for (u32 k = static_cast<u32>(lane_id()); k < ep.topk; k += kLanes) {
        float sum = 0;
        for (u32 h = 0; h < ep.hosts; ++h) {
            if (goes(places[h])) sum += h == ep.host ? own_weights[k] : partial_weights(h)[k];
        }
        in.out_weights[static_cast<u64>(t) * ep.topk + k] = sum;
    }
    return Status::ok;
}

// All slots below token `end` are used: returns the credits of each host, by one warp at a time.
RDMAKIT_DEVICE Status return_credits(const EpRank& ep, const EpPlan& plan, Range range, u32 end, u32 channel_id, u64* credited) {
    for (u32 h = 0; h < ep.hosts; ++h) {
        if (h == ep.host) continue;
        const ChannelHandle& channel = rail(ep, h, channel_id);
        const u32 total = static_cast<u32>(plan.channel_counts[h * ep.channels + channel_id]);
        const u64 used = end == range.end ? total : tokens_before(plan.host_slot[static_cast<u64>(end) * ep.hosts + h]);
        // How many may be held back: the sender waits for room for a whole chunk while a warp here may hold a turn's
        // slots (at most a chunk) that it cannot finish before that chunk comes.
        const u64 hold = smaller<u64>(channel.chunk, channel.slots - 2 * channel.chunk + 1);
        if (used == credited[h] || (used < credited[h] + hold && end != range.end)) continue;
        const Status s = return_credit(channel, used - credited[h]);
        credited[h] = used;
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

constexpr u32 kTokensPerTurn = 8;  // and never more than a chunk: see return_credits

RDMAKIT_DEVICE Status finish_tokens(const EpRank& ep, const EpPlan& plan, const CombineInput& in, Range range, u32 channel_id,
                                    u64* turn, u64* credited, u8* scratch) {
    const u32 warps = static_cast<u32>(warps_in_block()), warp = static_cast<u32>(warp_id());
    // Scratch for the own host's partial sum: this block's, a row and its weights for each warp.
    const u64 part = round_up<u64>(row_bytes(ep) + 4ull * ep.topk, 16);
    u8* const own = scratch + (static_cast<u64>(channel_id) * warps + warp) * part;
    const u32 chunk = ep.hosts > 1 ? rail(ep, ep.host == 0 ? 1 : 0, channel_id).chunk : kTokensPerTurn;
    const u32 per_turn = smaller(kTokensPerTurn, chunk);
    const u32 turns = ceil_div(range.end - range.begin, per_turn);
    for (u32 n = warp; n < turns; n += warps) {
        const u32 begin = range.begin + n * per_turn, end = smaller(begin + per_turn, range.end);
        for (u32 t = begin; t < end; ++t) {
            const Status s = finish_token(ep, plan, in, t, channel_id, own, reinterpret_cast<float*>(own + row_bytes(ep)));
            if (s != Status::ok) return s;
        }
        const Status s = by_lane_zero([&] {
            return in_turn(turn, n, ep.watch, Subject{"the turn to return credits", n, 0, ep.rank, channel_id},
                           [&] { return return_credits(ep, plan, range, end, channel_id, credited); });
        });
        if (s != Status::ok) return s;
    }
    return Status::ok;
}

// Rows go where the other ranks of the host can read them, unless they are there already.
RDMAKIT_DEVICE void offer_rows(const EpRank& ep, const CombineInput& in) {
    u8* const x = my_heap(ep, ep.at.combine_x);
    auto* const w = heap_array<u32>(ep, ep.rank, ep.at.combine_weights);
    const u32 warps = static_cast<u32>(warps_in_block()) * 2 * ep.channels;
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    for (u32 r = warp; r < in.rows; r += warps) {
        const u64 at = static_cast<u64>(r) * row_bytes(ep);
        if (in.x != x) warp_copy(x + at, in.x + at, row_bytes(ep));
        if (in.weights == nullptr) continue;
        for (u32 k = static_cast<u32>(lane_id()); k < ep.topk; k += kLanes) {
            const u64 i = static_cast<u64>(r) * ep.topk + k;
            w[i] = reinterpret_cast<const u32*>(in.weights)[i];
        }
    }
    block_sync();
    if (block_rank() == 0) {
        fence<Scope::sys>();  // this block's rows before the count of blocks that are done
        fetch_add<Scope::sys>(heap_array<u64>(ep, ep.rank, ep.at.combine_epoch), 1ull);
    }
}

RDMAKIT_DEVICE void combine_rows(const EpRank& ep, const EpPlan& plan, const CombineInput& in, u8* scratch) {
    if (!check_rails(ep, static_cast<u32>(block_id()) / 2)) return;
    using Words = u64[kMaxHosts];
    RDMAKIT_SHARED(Words, turns);
    RDMAKIT_SHARED(Words, credited);
    for (int i = block_rank(); i < static_cast<int>(kMaxHosts); i += block_size()) {
        turns[i] = 0;
        credited[i] = 0;
    }
    offer_rows(ep, in);

    Status status = by_lane_zero([&] {
        for (u32 g = 0; g < ep.local_ranks; ++g) {
            u64 seen = 0;
            const u32 r = first_local_rank(ep) + g;
            const Status s = wait_signal(heap_array<u64>(ep, r, ep.at.combine_epoch), in.offered, ep.watch,
                                         Subject{"a local rank's rows to combine", in.offered, 0, r, 0}, &seen);
            if (s != Status::ok) return s;
        }
        return Status::ok;
    });
    const u32 channel = static_cast<u32>(block_id()) / 2;
    const bool reducer = block_id() % 2 == 0;
    if (reducer) {
        const WarpShare share = share_hosts(ep.hosts);
        for (u32 h = share.first; h < ep.hosts && status == Status::ok; h += share.step) {
            if (h != ep.host) status = reduce_to_host(ep, plan, in, h, channel, share, &turns[h]);
        }
    } else if (status == Status::ok) {
        status = finish_tokens(ep, plan, in, channel_tokens(in.tokens, channel, ep.channels), channel, &turns[0], credited, scratch);
    }
    block_sync();
    if (block_rank() != 0) return;
    for (u32 h = 0; h < ep.hosts; ++h) {
        if (h == ep.host) continue;
        const ChannelHandle& c = rail(ep, h, channel);
        if (reducer) *c.sent += static_cast<u32>(plan.forward_counts[h * ep.channels + channel]);
        else *c.received += static_cast<u32>(plan.channel_counts[h * ep.channels + channel]);
    }
    // This block reads no row of a local rank any more; nobody's rows may change before all have said so.
    fence<Scope::sys>();  // its reads, ordered by the barrier above, before the count
    for (u32 g = 0; g < ep.local_ranks; ++g) {
        fetch_add<Scope::sys>(heap_array<u64>(ep, first_local_rank(ep) + g, ep.at.combine_done), 1ull);
    }
    if (block_id() != 0) return;
    const u64 done = in.offered * ep.local_ranks;
    u64 seen = 0;
    wait_signal(heap_array<u64>(ep, ep.rank, ep.at.combine_done), done, ep.watch,
                Subject{"local ranks that still read this rank's rows", done, 0, ep.rank, 0}, &seen);
}

}  // namespace rdmakit

RDMAKIT_KERNEL ep_combine(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, rdmakit::CombineInput in, unsigned char* scratch) {
    rdmakit::combine_rows(*rank, plan, in, scratch);
}

// Behind the channels' blocks stand those that are their HCA.
RDMAKIT_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1)
ep_combine_riding(RDMAKIT_GRID_CONSTANT rdmakit::HcaHandle hca, const rdmakit::EpRank* rank, rdmakit::EpPlan plan,
                  rdmakit::CombineInput in, unsigned char* scratch) {
    rdmakit::with_riders(hca, 2 * rank->channels, [&] { rdmakit::combine_rows(*rank, plan, in, scratch); });
}
