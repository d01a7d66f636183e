// ll_dispatch.cu — low-latency dispatch in two halves, so that a caller may compute between them: `ll_dispatch_send`
// quantises, sends and signals; `ll_dispatch_receive` waits for the counts and packs the rows of each local expert.
#include <rdmakit/ll.cuh>

namespace rdmakit {

// Token t's message into staging: header, then BF16 as is or FP8 with its scales.
RDMAKIT_DEVICE void ll_stage(const LlRank& ll, const u8* x, const i32* topk, u32 t, u64 epoch, u32 format) {
    const bool fp8 = (format & kLlFp8) != 0;
    u8* const bytes = ll_heap(ll, ll.rank, ll.at.staging) + ((epoch & 1) * ll.max_tokens + t) * ll_slot_bytes(ll);
    const LlMessage m = ll_message(ll, bytes, fp8);
    if (lane_id() == 0) *m.source = static_cast<i32>(t);
    for (u32 k = static_cast<u32>(lane_id()); k < ll.topk; k += kLanes) {
        m.topk[k] = ll_choice(topk, static_cast<u64>(t) * ll.topk + k, format);
    }
    const u8* const row = x + static_cast<u64>(t) * 2 * ll.hidden;
    if (!fp8) {
        warp_copy(m.payload, row, 2ull * ll.hidden);
        return;
    }
    charge_copy(3ull * ll.hidden);
    if (!payload_moves(ll.hidden)) return;
    // One lane a block of 128 channels: two passes over 256 bytes, the maximum and then the values.
    for (u32 b = static_cast<u32>(lane_id()); b < ll.hidden / 128; b += kLanes) {
        const auto* in = reinterpret_cast<const Vec16*>(row + static_cast<u64>(b) * 256);
        float amax = kFp8MinAmax;
        for (u32 i = 0; i < 16; ++i) {
            const Vec16 v = load_stream(in + i);
            for (u32 w : v.w) {
                for (u32 half : {w & 0xffff, w >> 16}) amax = larger(amax, bf16_to_float(half & 0x7fff));
            }
        }
        float up = kFp8Max / amax, scale = amax / kFp8Max;
        if ((format & kLlRoundScale) != 0) {
            scale = power_of_two_above(scale);
            up = 1.0f / scale;
        }
        for (u32 i = 0; i < 8; ++i) {
            Vec16 out = {};
            for (u32 j = 0; j < 2; ++j) {
                const Vec16 v = load_stream(in + 2 * i + j);
                for (u32 w = 0; w < 4; ++w) {
                    const u32 low = float_to_e4m3(bf16_to_float(v.w[w] & 0xffff) * up);
                    const u32 high = float_to_e4m3(bf16_to_float(v.w[w] >> 16) * up);
                    out.w[2 * j + w / 2] |= (low | (high << 8)) << (16 * (w & 1));
                }
            }
            store_stream(reinterpret_cast<Vec16*>(m.payload + b * 128) + i, out);
        }
        reinterpret_cast<u32*>(m.scales)[b] = float_bits(scale);
    }
}

// All tokens that chose one expert, in order, then their number.
RDMAKIT_DEVICE Status ll_send_expert(const LlRank& ll, const i32* topk, u32 tokens, u32 expert, u64 epoch, u32 format) {
    const bool fp8 = (format & kLlFp8) != 0;
    const u32 rank = expert / ll.local_experts, local_expert = expert % ll.local_experts;
    u64* const staged = reinterpret_cast<u64*>(ll_heap(ll, ll.rank, ll.at.staged));
    u32 n = 0;
    for (u32 i0 = 0; i0 < tokens * ll.topk; i0 += kLanes) {
        const u32 i = i0 + static_cast<u32>(lane_id());
        u32 mask = warp_ballot(i < tokens * ll.topk && ll_choice(topk, i, format) == static_cast<i32>(expert));
        for (; mask != 0; mask &= mask - 1, ++n) {
            u32 lane = 0;
            while (((mask >> lane) & 1) == 0) ++lane;
            const u32 t = (i0 + lane) / ll.topk;
            Status s = by_lane_zero([&] {
                u64 seen = 0;
                return wait_until<Scope::gpu>(staged + t, [epoch](u64 v) { return v == epoch; }, ll.watch,
                                              Subject{"a staged token", epoch, 0, ll.rank, 0}, &seen);
            });
            if (s != Status::ok) return s;
            const u64 from = ll.at.staging + ((epoch & 1) * ll.max_tokens + t) * ll_slot_bytes(ll);
            s = ll_send(ll, rank, local_expert, ll_slot(ll, epoch, local_expert, ll.rank, n), from, ll_message_bytes(ll, fp8));
            if (s != Status::ok) return s;
        }
    }
    // The word is ours alone, so adding the difference sets it.
    u64* const announced = ll.announced + (epoch & 1) * ll.experts + expert;
    const u64 value = (epoch << 32) | n;
    const Status s = ll_signal(ll, rank, local_expert, ll_count(ll, epoch, local_expert, ll.rank), value - *announced);
    warp_sync();
    if (lane_id() == 0) *announced = value;
    return s;
}

struct LlReceived {
    u8* x;             // [local_experts][ranks * max_tokens] rows, BF16 or FP8
    float* scales;     // [local_experts][ranks * max_tokens][hidden / 128], or null; by column: the last two the other way
                       // round, and as UE8M0 bytes [local_experts][hidden / 512][ranks * max_tokens][4]
    i32* counts;       // [local_experts]
    i32* source;       // [local_experts][ranks * max_tokens]: token index at its source
    i32* choice;       // [local_experts][ranks * max_tokens]: which of its choices this expert was; or null
    i32* ranges;       // [local_experts][ranks][2]: number of rows from that rank, and the first
    i32* row_map;      // [ranks][max_tokens][topk], zeroed: 1 + local expert * (ranks * max_tokens) + row; or null
    u32* statistics;   // [local_experts]: rows received, added up; or null
    u64* waits;        // [ranks]: clocks waited for each, added up; or null
};

RDMAKIT_DEVICE void ll_place_scale(const LlRank& ll, const LlReceived& out, u32 e, u64 row, u32 j, float scale, u32 format) {
    const u64 rows = static_cast<u64>(ll.ranks) * ll.max_tokens;
    const u32 count = ll.hidden / 128;
    if ((format & kLlUe8m0) != 0) {
        reinterpret_cast<u8*>(out.scales)[((e * (count / 4) + j / 4) * rows + row) * 4 + j % 4] = static_cast<u8>(float_bits(scale) >> 23);
    } else if ((format & kLlByColumn) != 0) {
        out.scales[(static_cast<u64>(e) * count + j) * rows + row] = scale;
    } else {
        out.scales[(e * rows + row) * count + j] = scale;
    }
}

}  // namespace rdmakit

RDMAKIT_KERNEL ll_dispatch_send(const rdmakit::LlRank* rank, const unsigned char* x, const int* topk, unsigned tokens,
                                unsigned long long epoch, unsigned format) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    u64* const staged = reinterpret_cast<u64*>(ll_heap(ll, ll.rank, ll.at.staged));
    for (u32 t = warp; t < tokens; t += warps) {
        ll_stage(ll, x, topk, t, epoch, format);
        warp_sync();
        if (lane_id() == 0) store_release<Scope::gpu>(staged + t, static_cast<u64>(epoch));
    }
    for (u32 e = warp; e < ll.experts; e += warps) {
        if (ll_send_expert(ll, topk, tokens, e, epoch, format) != Status::ok) return;
    }
}

RDMAKIT_KERNEL ll_dispatch_receive(const rdmakit::LlRank* rank, rdmakit::LlReceived out, unsigned long long epoch, unsigned format) {
    using namespace rdmakit;
    const LlRank& ll = *rank;
    if (!check_queues(ll)) return;
    const bool fp8 = (format & kLlFp8) != 0;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u32 row_bytes = ll_payload_bytes(ll, fp8), scales = ll_scale_count(ll, fp8);
    for (u32 job = warp; job < ll.local_experts * ll.ranks; job += warps) {
        const u32 e = job / ll.ranks, source = job % ll.ranks;
        // Rows are packed by source rank. Each lane waits for some of the counts: one after the other they would take a
        // load's latency times the ranks behind the last arrival.
        u32 before = 0, own = 0;
        Status status = Status::ok;
        {
            [[maybe_unused]] const Abreast lanes(kLanesAbreast);
            const auto arrived = [epoch](u64 v) { return (v >> 32) == epoch; };
            for (u32 s = static_cast<u32>(lane_id()); s <= source && status == Status::ok; s += kLanes) {
                const u64* word = reinterpret_cast<const u64*>(ll_heap(ll, ll.rank, ll_count(ll, epoch, e, s)));
                for (u32 there = there_already(word, (source - s) / kLanes, arrived); there != 0; --there) {
                    before += static_cast<u32>(*word & 0xffffffffu);
                    word += kLanes;
                    s += kLanes;
                }
                u64 seen = 0;
                const u64 began = clock_cycles();
                status = wait_until<Scope::sys>(word, arrived, ll.watch,
                                                Subject{"the number of an expert's tokens from a rank", epoch, 0, s, e}, &seen);
                if (e == 0 && s == source && out.waits != nullptr) out.waits[s] += clock_cycles() - began;
                if (s == source && status == Status::ok) RDMAKIT_MARK(kMarkSeen, 0, seen & 0xffffffffu);
                (s == source ? own : before) += static_cast<u32>(seen & 0xffffffffu);
            }
        }
        warp_sync();  // all lanes read what each has waited for
        if (warp_any(status != Status::ok)) return;
        const u32 begin = warp_sum(before), n = warp_sum(own);
        const u64 rows = static_cast<u64>(ll.ranks) * ll.max_tokens;
        if (lane_id() == 0) {
            out.ranges[2 * job] = static_cast<i32>(n);
            out.ranges[2 * job + 1] = static_cast<i32>(begin);
            if (source == ll.ranks - 1) {
                out.counts[e] = static_cast<i32>(begin + n);
                if (out.statistics != nullptr) out.statistics[e] += begin + n;
            }
        }
        for (u32 i = 0; i < n; ++i) {
            const LlMessage m = ll_message(ll, ll_heap(ll, ll.rank, ll_slot(ll, epoch, e, source, i)), fp8);
            const u64 row = e * rows + begin + i;
            warp_copy(out.x + row * row_bytes, m.payload, row_bytes);
            for (u32 j = static_cast<u32>(lane_id()); j < scales; j += kLanes) {
                ll_place_scale(ll, out, e, begin + i, j, reinterpret_cast<const float*>(m.scales)[j], format);
            }
            if (lane_id() != 0) continue;
            const i32 expert = static_cast<i32>(ll.rank * ll.local_experts + e);
            i32 k = 0;
            while (k < static_cast<i32>(ll.topk) && m.topk[k] != expert) ++k;
            out.source[row] = *m.source;
            if (out.choice != nullptr) out.choice[row] = k;
            if (out.row_map == nullptr) continue;
            const u64 token = static_cast<u64>(source) * ll.max_tokens + static_cast<u32>(*m.source);
            out.row_map[token * ll.topk + static_cast<u32>(k)] = 1 + static_cast<i32>(row);
        }
    }
}
