// ep_notify.cu — tells every rank how many tokens will come, before the first one does: counts cross to each host once,
// on the rail, and are handed out there. One block.
//
// Exchanges are numbered by themselves: dispatches that reuse a handle make none. Buffers alternate by the number's
// parity: a rank can be one exchange ahead of another, never two, since it needs that other's counts to get there.
#include <rdmakit/ep_ride.cuh>

namespace rdmakit {

RDMAKIT_DEVICE u8* notify_slot(const EpRank& ep, u64 region, u64 exchange, u32 host) {
    return my_heap(ep, region) + ((exchange & 1) * ep.hosts + host) * ep.notify_bytes;
}

// Writes this rank's counts for the ranks of `host`, and puts them to the rail peer there.
RDMAKIT_DEVICE Status send_counts(const EpRank& ep, const EpPlan& plan, u32 host, u64 exchange) {
    u8* const bytes = notify_slot(ep, ep.at.notify_out, exchange, host);
    const NotifyMessage m = notify_message(ep, bytes);
    const u32 first = host * ep.local_ranks;
    for (u32 i = static_cast<u32>(lane_id()); i < ep.local_ranks; i += kLanes) m.tokens[i] = plan.tokens_per_rank[first + i];
    for (u32 i = static_cast<u32>(lane_id()); i < ep.channels; i += kLanes) m.channels[i] = plan.channel_counts[host * ep.channels + i];
    const u32 experts = ep.local_ranks * ep.local_experts;
    for (u32 i = static_cast<u32>(lane_id()); i < experts; i += kLanes) {
        m.experts[i] = plan.tokens_per_expert[first * ep.local_experts + i];
    }
    if (host == ep.host) return Status::ok;
    return by_lane_zero([&] {
        const RemoteMemory peer = ep.rail_heaps[host];
        const ChannelHandle& channel = rail(ep, host, 0);
        return put_signal(channel.qp, peer + (ep.at.notify_in + ((exchange & 1) * ep.hosts + ep.host) * ep.notify_bytes),
                          LocalMemory{reinterpret_cast<u64>(bytes), channel.staging_lkey}, ep.notify_bytes,
                          peer + (ep.at.notify_tail + 8ull * ep.host), 1);
    });
}

// Hands the message of the rail peer on `host` out to the ranks of this host.
RDMAKIT_DEVICE Status hand_out_counts(const EpRank& ep, const EpPlan& plan, u32 host, u64 exchange) {
    const u32 source = rail_rank(ep, host);
    const bool own = host == ep.host;
    if (!own) {
        const Status s = by_lane_zero([&] {
            u64 seen = 0;
            return wait_signal(heap_array<u64>(ep, ep.rank, ep.at.notify_tail) + host, exchange, ep.watch,
                               Subject{"token counts from a rail peer", exchange, rail(ep, host, 0).qp.qpn, source, 0}, &seen);
        });
        if (s != Status::ok) return s;
    }
    warp_sync();
    const NotifyMessage m = notify_message(ep, notify_slot(ep, own ? ep.at.notify_out : ep.at.notify_in, exchange, host));
    for (u32 c = static_cast<u32>(lane_id()); c < ep.channels; c += kLanes) plan.forward_counts[host * ep.channels + c] = m.channels[c];
    for (u32 g = 0; g < ep.local_ranks; ++g) {
        u8* const row = heap_of(ep, first_local_rank(ep) + g, ep.at.counts) + ((exchange & 1) * ep.ranks + source) * count_row_bytes(ep);
        auto* words = reinterpret_cast<i32*>(row);
        for (u32 e = static_cast<u32>(lane_id()); e < ep.local_experts; e += kLanes) {
            words[4 + e] = m.experts[g * ep.local_experts + e];
        }
        if (lane_id() == 0) words[2] = m.tokens[g];
        warp_sync();
        if (lane_id() == 0) store_release<Scope::sys>(reinterpret_cast<u64*>(row), exchange);
    }
    return Status::ok;
}

RDMAKIT_DEVICE void exchange_counts(const EpRank& ep, const EpPlan& plan, u64 exchange, u64 epoch) {
    if (!check_rails(ep, 0)) return;
    const u32 warps = static_cast<u32>(warps_in_block()), warp = static_cast<u32>(warp_id());
    Status status = Status::ok;
    for (u32 h = warp; h < ep.hosts && status == Status::ok; h += warps) status = send_counts(ep, plan, h, exchange);
    for (u32 h = warp; h < ep.hosts && status == Status::ok; h += warps) status = hand_out_counts(ep, plan, h, exchange);

    // Rows of all sources: each warp waits for some and leaves the counts in this rank's own plan.
    u8* const rows = my_heap(ep, ep.at.counts) + (exchange & 1) * ep.ranks * count_row_bytes(ep);
    i32* const start = heap_array<i32>(ep, ep.rank, ep.at.start);
    for (u32 s = warp; s < ep.ranks && status == Status::ok; s += warps) {
        status = by_lane_zero([&] {
            u64 seen = 0;
            return wait_until<Scope::sys>(reinterpret_cast<const u64*>(rows + s * count_row_bytes(ep)),
                                          [exchange](u64 v) { return v == exchange; }, ep.watch,
                                          Subject{"token counts of a source rank", exchange, 0, s, 0}, &seen);
        });
    }
    block_sync();
    if (aborted(ep.watch.report)) return;
    if (warp == 0 && lane_id() == 0) {
        i32 total = 0;
        for (u32 s = 0; s < ep.ranks; ++s) {
            start[s] = total;
            total += reinterpret_cast<const i32*>(rows + s * count_row_bytes(ep))[2];
        }
        start[ep.ranks] = total;
        plan.totals[0] = total;
        if (static_cast<u32>(total) > ep.capacity) {
            fail(ep.watch, Status::bad_argument, Subject{"more tokens than the receive buffer holds", ep.capacity, 0, 0, 0},
                 static_cast<u64>(total), 0, 0, 0, 0, Site::here());
        }
    }
    for (u32 e = static_cast<u32>(block_rank()); e < ep.local_experts; e += static_cast<u32>(block_size())) {
        i32 n = 0;
        for (u32 s = 0; s < ep.ranks; ++s) {
            n += reinterpret_cast<const i32*>(rows + s * count_row_bytes(ep))[4 + e];
        }
        plan.totals[1 + e] = n;
    }
    block_sync();
    if (block_rank() == 0 && !aborted(ep.watch.report)) {
        store_release<Scope::sys>(heap_array<u64>(ep, ep.rank, ep.at.start_epoch), static_cast<u64>(epoch));
    }
}

}  // namespace rdmakit

RDMAKIT_KERNEL ep_notify(const rdmakit::EpRank* rank, rdmakit::EpPlan plan, unsigned long long exchange,
                         unsigned long long epoch) {
    rdmakit::exchange_counts(*rank, plan, exchange, epoch);
}

// Behind the one block stand those that are its HCA.
RDMAKIT_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 1)
ep_notify_riding(RDMAKIT_GRID_CONSTANT rdmakit::HcaHandle hca, const rdmakit::EpRank* rank, rdmakit::EpPlan plan,
                 unsigned long long exchange, unsigned long long epoch) {
    rdmakit::with_riders(hca, 1, [&] { rdmakit::exchange_counts(*rank, plan, exchange, epoch); });
}
