// ll_combine.cu — low-latency combine in two halves: `ll_combine_send` returns each expert's rows to the place that their
// token and choice have at the source, and signals; `ll_combine_receive` weights and sums them.
#include <rdmakit/ll.cuh>

RDMAKIT_KERNEL ll_combine_send(const rdmakit::LlRank* rank, const unsigned char* x, const int* source, const int* choice,
                               const int* ranges, unsigned long long epoch) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u32 row_bytes = 2 * ll.hidden;
    const u8* const offered = ll_heap(ll, ll.rank, ll.at.combine_x);
    for (u32 job = warp; job < ll.local_experts * ll.ranks; job += warps) {
        const u32 e = job / ll.ranks, to = job % ll.ranks;
        const u64 rows = static_cast<u64>(ll.ranks) * ll.max_tokens;
        const u64 first = e * rows + static_cast<u32>(ranges[2 * job + 1]);
        for (u32 i = 0; i < static_cast<u32>(ranges[2 * job]); ++i) {
            const u64 from = ll.at.combine_x + (first + i) * row_bytes;
            if (x != offered) warp_copy(ll_heap(ll, ll.rank, from), x + (first + i) * row_bytes, row_bytes);
            const u64 place = ll_partial(ll, epoch, static_cast<u32>(source[first + i]), static_cast<u32>(choice[first + i]));
            if (ll_send(ll, to, e, place, from, row_bytes) != Status::ok) return;
        }
        const u64 word = ll.at.returned + 8ull * (ll.rank * ll.local_experts + e);
        if (ll_signal(ll, to, e, word, 1) != Status::ok) return;
    }
}

RDMAKIT_KERNEL ll_combine_receive(const rdmakit::LlRank* rank, unsigned char* out, const int* topk, const float* weights,
                                  unsigned tokens, unsigned long long epoch) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u64* const returned = reinterpret_cast<const u64*>(ll_heap(ll, ll.rank, ll.at.returned));
    for (u32 e = warp; e < ll.experts; e += warps) {  // every expert answers, also those that nobody chose: the epoch is over
        const Status s = by_lane_zero([&] {
            u64 seen = 0;
            return wait_signal(returned + e, epoch, ll.watch,
                               Subject{"an expert's rows to come back", epoch, 0, e / ll.local_experts, e % ll.local_experts}, &seen);
        });
        if (s != Status::ok) return;
    }
    for (u32 t = warp; t < tokens; t += warps) {
        const i32* const chosen = topk + static_cast<u64>(t) * ll.topk;
        for (u32 k = 0; k < ll.topk; ++k) {
            if (chosen[k] < 0) continue;
            const Status s = by_lane_zero([&] {
                u64 seen = 0;
                return wait_signal(returned + chosen[k], epoch, ll.watch,
                                   Subject{"an expert's rows to come back", epoch, 0, static_cast<u32>(chosen[k]) / ll.local_experts,
                                           static_cast<u32>(chosen[k]) % ll.local_experts}, &seen);
            });
            if (s != Status::ok) return;
        }
        charge_copy(static_cast<u64>(ll.topk) * 2 * ll.hidden);
        if (!payload_moves(2ull * ll.hidden)) continue;
        for (u32 i = static_cast<u32>(lane_id()); i < 2 * ll.hidden / sizeof(Vec16); i += kLanes) {
            Sum8 sum = {};
            for (u32 k = 0; k < ll.topk; ++k) {
                if (chosen[k] < 0) continue;
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
