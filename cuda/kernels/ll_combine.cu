// ll_combine.cu — low-latency combine in two halves: `ll_combine_send` returns each expert's rows to the place that their
// token and choice have at the source, and signals; `ll_combine_receive` weights and sums them.
#include <rdmakit/ll.cuh>

namespace rdmakit {

// One row of the caller's to the place that choice k of token t has at its source.
RDMAKIT_DEVICE Status ll_return_row(const LlRank& ll, const u8* x, u32 to, u32 e, u64 row, u32 t, u32 k, u64 epoch) {
    const u32 row_bytes = 2 * ll.hidden;
    const u64 from = ll.at.combine_x + row * row_bytes;
    if (x != ll_heap(ll, ll.rank, ll.at.combine_x)) warp_copy(ll_heap(ll, ll.rank, from), x + row * row_bytes, row_bytes);
    return ll_send(ll, to, e, ll_partial(ll, epoch, t, k), from, row_bytes);
}
RDMAKIT_DEVICE Status ll_all_returned(const LlRank& ll, u32 to, u32 e) {
    return ll_signal(ll, to, e, ll.at.returned + 8ull * (ll.rank * ll.local_experts + e), 1);
}

// Whichever choices of rank `to` this expert was, by the map of ll_dispatch_receive.
RDMAKIT_DEVICE Status ll_return_mapped(const LlRank& ll, const u8* x, const i32* row_map, u32 to, u32 e, u64 epoch) {
    const u64 rows = static_cast<u64>(ll.ranks) * ll.max_tokens;
    const i32* const map = row_map + static_cast<u64>(to) * ll.max_tokens * ll.topk;
    for (u32 i0 = 0; i0 < ll.max_tokens * ll.topk; i0 += kLanes) {
        const u32 i = i0 + static_cast<u32>(lane_id());
        const u64 found = i < ll.max_tokens * ll.topk ? static_cast<u32>(map[i]) : 0;
        for (u32 mask = warp_ballot(found > e * rows && found <= (e + 1) * rows); mask != 0; mask &= mask - 1) {
            u32 lane = 0;
            while (((mask >> lane) & 1) == 0) ++lane;
            const u64 row = static_cast<u32>(map[i0 + lane]) - 1ull;
            const Status s = ll_return_row(ll, x, to, e, row, (i0 + lane) / ll.topk, (i0 + lane) % ll.topk, epoch);
            if (s != Status::ok) return s;
        }
    }
    return ll_all_returned(ll, to, e);
}

}  // namespace rdmakit

RDMAKIT_KERNEL ll_combine_send(const rdmakit::LlRank* rank, const unsigned char* x, const int* source, const int* choice,
                               const int* ranges, unsigned long long epoch) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    for (u32 job = warp; job < ll.local_experts * ll.ranks; job += warps) {
        const u32 e = job / ll.ranks, to = job % ll.ranks;
        const u64 first = e * static_cast<u64>(ll.ranks) * ll.max_tokens + static_cast<u32>(ranges[2 * job + 1]);
        for (u32 i = 0; i < static_cast<u32>(ranges[2 * job]); ++i) {
            const u64 row = first + i;
            if (ll_return_row(ll, x, to, e, row, static_cast<u32>(source[row]), static_cast<u32>(choice[row]), epoch) != Status::ok) return;
        }
        if (ll_all_returned(ll, to, e) != Status::ok) return;
    }
}

// The same, for who kept the map of ll_dispatch_receive instead of sources, choices and ranges.
RDMAKIT_KERNEL ll_combine_send_mapped(const rdmakit::LlRank* rank, const unsigned char* x, const int* row_map,
                                      unsigned long long epoch) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    for (u32 job = static_cast<u32>(block_id() * warps_in_block() + warp_id()); job < ll.local_experts * ll.ranks; job += warps) {
        if (ll_return_mapped(ll, x, row_map, job % ll.ranks, job / ll.ranks, epoch) != Status::ok) return;
    }
}

// `waits` [ranks]: clocks waited for each, added up; or null.
RDMAKIT_KERNEL ll_combine_receive(const rdmakit::LlRank* rank, unsigned char* out, const int* topk, const float* weights,
                                  unsigned tokens, unsigned long long epoch, unsigned format, unsigned long long* waits) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u64* const returned = reinterpret_cast<const u64*>(ll_heap(ll, ll.rank, ll.at.returned));
    for (u32 e = warp; e < ll.experts; e += warps) {  // every expert answers, also those that nobody chose: the epoch is over
        const Status s = ll_clocked(e % ll.local_experts == 0 ? waits : nullptr, e / ll.local_experts, [&] {
            u64 seen = 0;
            return wait_signal(returned + e, epoch, ll.watch,
                               Subject{"an expert's rows to come back", epoch, 0, e / ll.local_experts, e % ll.local_experts}, &seen);
        });
        if (s != Status::ok) return;
    }
    for (u32 t = warp; t < tokens; t += warps) {
        const auto chosen = [&](u32 k) { return ll_choice(topk, static_cast<u64>(t) * ll.topk + k, format); };
        for (u32 k = 0; k < ll.topk; ++k) {
            const i32 expert = chosen(k);
            if (expert < 0) continue;
            const Status s = by_lane_zero([&] {
                u64 seen = 0;
                return wait_signal(returned + expert, epoch, ll.watch,
                                   Subject{"an expert's rows to come back", epoch, 0, static_cast<u32>(expert) / ll.local_experts,
                                           static_cast<u32>(expert) % ll.local_experts}, &seen);
            });
            if (s != Status::ok) return;
        }
        charge_copy(static_cast<u64>(ll.topk) * 2 * ll.hidden);
        if (!payload_moves(2ull * ll.hidden)) continue;
        for (u32 i = static_cast<u32>(lane_id()); i < 2 * ll.hidden / sizeof(Vec16); i += kLanes) {
            Sum8 sum = {};
            for (u32 k = 0; k < ll.topk; ++k) {
                if (chosen(k) < 0) continue;
                const auto* row = reinterpret_cast<const Vec16*>(ll_heap(ll, ll.rank, ll_partial(ll, epoch, t, k)));
                add_scaled_bf16(sum, load_stream(row + i), weights[static_cast<u64>(t) * ll.topk + k]);
            }
            store_stream(reinterpret_cast<Vec16*>(out + static_cast<u64>(t) * 2 * ll.hidden) + i, to_bf16(sum));
        }
    }
    // The NIC may still read rows that ll_combine_send posted; when this kernel ends they may be overwritten.
    for (u32 i = warp; i < ll.ranks * ll.qps_per_rank; i += warps) {
        if (same_host(ll, i / ll.qps_per_rank)) continue;
        if (by_lane_zero([&] { return quiet(ll.qps[i]); }) != Status::ok) return;
    }
}
