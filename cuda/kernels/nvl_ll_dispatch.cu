// nvl_ll_dispatch.cu — low-latency dispatch over NVLink, both halves in one launch or each in its own.
#include <rdmakit/nvl_ll.cuh>

namespace rdmakit {
struct NvlLlDispatchInput {
    const u8* x;             // [tokens][hidden] BF16
    const i64* topk;         // [tokens][topk]
    u8* out_x;               // [local experts][rows][hidden] BF16 or FP8; rows = ranks * max_tokens
    u8* out_scales;          // [local experts][hidden / 128][rows] float; UE8M0: [local experts][hidden / 512][rows][4] bytes
    i32* out_count;          // [local experts]
    i32* source;             // [local experts][rows]: token at its source
    i64* ranges;             // [local experts][ranks]: first row << 32 | rows
    i32* row_map;            // [ranks][max_tokens][topk]: local expert * rows + row, or -1
    i32* statistics;         // [local experts], counted up; or null
    u64* waits;              // [ranks]: clocks waited for each, added up; or null
    u32 tokens, fp8, round_scale, ue8m0;
    u32 halves, unused;
};

// Blocks that have a token to send leave receiving to the others, when those are at least half of all.
struct NvlReceivers {
    u32 first, count;        // blocks
    RDMAKIT_DEVICE bool has(u32 block) const { return block >= first; }
};
RDMAKIT_DEVICE u32 nvl_least_receivers(u32 blocks) { return ceil_div(blocks, 2u); }
RDMAKIT_DEVICE NvlReceivers nvl_receivers(const NvlLlDispatchInput& in, u32 blocks) {
    const bool apart = (in.halves & kLlSend) != 0 && blocks - nvl_least_receivers(blocks) >= in.tokens;
    return apart ? NvlReceivers{in.tokens, blocks - in.tokens} : NvlReceivers{0, blocks};
}

// Shared memory: a block's counters, then the token that it casts.
struct NvlLlCounters {
    u32* before;             // [local experts]: rows of each before the block's share
    u32* own;                // [experts that the block counts][ranks]
    u8* token;               // [hidden] BF16
    float* largest;          // [hidden / 8]
};
RDMAKIT_DEVICE u32 nvl_counter_words(u32 local, u32 ranks, u32 blocks) {
    return round_up<u32>(local + ceil_div(local, nvl_least_receivers(blocks)) * ranks, 4);
}
// Bytes of it, which a launch asks for (rdmakit/ep/nvl_low_latency.py computes the same).
RDMAKIT_DEVICE u32 nvl_ll_shared_bytes(u32 local, u32 ranks, u32 blocks, u32 hidden) {
    return 4 * nvl_counter_words(local, ranks, blocks) + 2 * hidden + hidden / 8 * static_cast<u32>(sizeof(float));
}
RDMAKIT_DEVICE NvlLlCounters nvl_ll_counters(const NvlLl& p, u8* shared, u32 blocks) {
    const u32 local = nvl_local_experts(p), words = nvl_counter_words(local, p.nvl.ranks, blocks);
    auto* const before = reinterpret_cast<u32*>(shared);
    return {before, before + local, shared + 4ull * words, reinterpret_cast<float*>(shared + 4ull * words + 2ull * p.hidden)};
}

// Vector u of the token that lies in shared memory as FP8, and the scale of its block of 128 channels.
RDMAKIT_DEVICE Vec16 nvl_cast(const NvlLlDispatchInput& in, const NvlLlCounters& mine, u32 u, float* scale) {
    float amax = kFp8MinAmax;
    for (u32 i = 0; i < 16; ++i) amax = larger(amax, mine.largest[u / 8 * 16 + i]);
    float up = kFp8Max / amax;
    *scale = amax / kFp8Max;
    if (in.round_scale != 0) {
        *scale = power_of_two_above(*scale);
        up = 1.0f / *scale;
    }
    const auto* const tile = reinterpret_cast<const Vec16*>(mine.token);
    Vec16 out;
    for (u32 j = 0; j < 2; ++j) {
        const Vec16 v = tile[2 * u + j];
        for (u32 w = 0; w < 2; ++w) {
            const u32 a = v.w[2 * w], b = v.w[2 * w + 1];
            out.w[2 * j + w] = pack_e4m3(product(bf16_to_float(a & 0xffff), up), product(bf16_to_float(a >> 16), up)) |
                               pack_e4m3(product(bf16_to_float(b & 0xffff), up), product(bf16_to_float(b >> 16), up)) << 16;
        }
    }
    return out;
}

// Token t into shared memory, with its choices. All threads; the block has to meet behind it.
RDMAKIT_DEVICE void nvl_read_token(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLlCounters& mine, NvlRow& words, u32 t) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const auto* const x = reinterpret_cast<const Vec16*>(in.x + static_cast<u64>(t) * 2 * p.hidden);
    charge_copy(2ull * p.hidden);
    if (warp_id() == 0) {
        u32 needed = 0;  // ranks
        for (u32 k0 = 0; k0 < p.topk; k0 += kLanes) {
            const u32 k = k0 + static_cast<u32>(lane_id());
            const i64 expert = k < p.topk ? in.topk[static_cast<u64>(t) * p.topk + k] : -1;
            const bool there = expert >= 0 && expert < static_cast<i64>(p.experts);
            const u32 rank = there ? static_cast<u32>(expert) / nvl_local_experts(p) : p.nvl.ranks;
            if (k < p.topk) words.row[k] = there ? static_cast<i32>(expert) : -1;
            RDMAKIT_NO_UNROLL
            for (u32 r = 0; r < p.nvl.ranks; ++r) needed |= warp_ballot(rank == r) != 0 ? 1u << r : 0;
        }
        if (lane_id() == 0) words.ranks = needed;
    }
    for (u32 v = me; v < p.hidden / 8; v += step) {
        const Vec16 part = load_stream(x + v);
        float most = 0;
        for (u32 w : part.w) most = larger(most, larger(bf16_to_float(w & 0x7fff), bf16_to_float(w >> 16 & 0x7fff)));
        reinterpret_cast<Vec16*>(mine.token)[v] = part;
        mine.largest[v] = most;
    }
}
// Its choices to all ranks that are here. All threads.
RDMAKIT_DEVICE void nvl_send_choices(const NvlLl& p, const NvlRow& words, u32 t, u64 epoch) {
    const u32 pairs = nvl_pairs(p);
    const auto expert = [&](u32 k) { return k < p.topk && words.row[k] >= 0 ? static_cast<u32>(words.row[k]) : kNvlNoExpert; };
    for (u32 i = static_cast<u32>(block_rank()); i < p.nvl.ranks * pairs; i += static_cast<u32>(block_size())) {
        const u32 d = i / pairs, w = i % pairs;
        if ((words.present >> d & 1) == 0) continue;
        store_relaxed<Scope::sys>(nvl_choices(p, epoch, p.nvl.rank, d) + t * pairs + w,
                                  nvl_tagged(epoch, expert(2 * w) | expert(2 * w + 1) << 16));
    }
}
// The token that was read to every rank that needs it, and its flag behind it. All threads.
RDMAKIT_DEVICE void nvl_send_token(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLlCounters& mine, NvlRow& words, u32 t,
                                   u64 epoch) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    nvl_send_choices(p, words, t, epoch);
    const u32 mask = words.ranks & words.present;
    const u64 slot = nvl_slot(p, epoch, p.nvl.rank, t);
    const u32 vectors = in.fp8 != 0 ? p.hidden / 16 : p.hidden / 8;
    for (u32 u = me; u < vectors; u += step) {
        float scale = 0;
        const Vec16 out = in.fp8 != 0 ? nvl_cast(in, mine, u, &scale) : reinterpret_cast<const Vec16*>(mine.token)[u];
        RDMAKIT_NO_UNROLL
        for (u32 d = 0; d < p.nvl.ranks; ++d) {
            if ((mask >> d & 1) == 0) continue;
            u8* const message = nvl_at<u8>(p.nvl, d, p.ll.messages) + slot * nvl_slot_bytes(p);
            reinterpret_cast<Vec16*>(message)[u] = out;
            if (in.fp8 != 0 && u % 8 == 0) reinterpret_cast<float*>(message + p.hidden)[u / 8] = scale;
        }
    }
    block_sync();
    for (u32 d = me; d < p.nvl.ranks; d += step) {
        if ((mask >> d & 1) != 0) store_release<Scope::sys>(nvl_at<u64>(p.nvl, d, p.ll.sent) + slot, epoch);
    }
}

// One pass over the choices of all sources, as they come: rows of each expert before the block's share, and the rows of the
// experts that this block counts, by source.
RDMAKIT_DEVICE Status nvl_count_choices(const NvlLl& p, const NvlLists& lists, const NvlShare& share, const NvlLlCounters& mine,
                                        u32 index, u32 blocks, u64 epoch) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 local = nvl_local_experts(p), pairs = nvl_pairs(p);
    Status status = Status::ok;
    for (u32 w = me; w < lists.first[p.nvl.ranks] * pairs && status == Status::ok; w += step) {
        u32 s = 0;
        while (w / pairs >= lists.first[s + 1]) ++s;
        u64 word = 0;
        const u64* const at = nvl_choices(p, epoch, s, p.nvl.rank) + (w - lists.first[s] * pairs);
        status = nvl_tagged_came(p.nvl, at, s, epoch, "a token's choices", &word);
        for (u32 a = 0; a < 2; ++a) {
            const u32 chosen = nvl_of_pair(word, a), e = chosen - p.nvl.rank * local;  // what is masked wraps to more than any
            if (chosen == kNvlNoExpert || e >= local) continue;
            if (w / pairs < share.begin) fetch_add<Scope::cta>(mine.before + e, 1u);
            if (e % blocks == index) fetch_add<Scope::cta>(mine.own + e / blocks * p.nvl.ranks + s, 1u);
        }
    }
    return status;
}

RDMAKIT_DEVICE void nvl_write_counts(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLlCounters& mine, u32 index, u32 blocks) {
    const u32 local = nvl_local_experts(p), step = static_cast<u32>(block_size());
    for (u32 o = static_cast<u32>(block_rank()); o * blocks + index < local; o += step) {
        const u32 e = o * blocks + index;
        u32 rows = 0;
        for (u32 s = 0; s < p.nvl.ranks; ++s) {
            const u32 n = mine.own[o * p.nvl.ranks + s];
            in.ranges[e * p.nvl.ranks + s] = static_cast<i64>(static_cast<u64>(rows) << 32 | n);
            rows += n;
        }
        in.out_count[e] = static_cast<i32>(rows);
        if (in.statistics != nullptr) in.statistics[e] += static_cast<i32>(rows);
    }
}

// Messages that a block unpacks at a time, so that it waits for all of them at once.
constexpr u32 kNvlUnpack = 8;
struct NvlBatch {
    u32 source[kNvlUnpack], token[kNvlUnpack];
    u64 slot[kNvlUnpack];
    i32 choice[kNvlUnpack][kMaxTopk];   // local expert, or -1
    i32 row[kNvlUnpack][kMaxTopk];      // its row, or -1
};

// All threads: which messages, their rows, and that they have come. Rows of one expert go up with the token.
RDMAKIT_DEVICE Status nvl_await_batch(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLists& lists, const NvlLlCounters& mine,
                                      NvlBatch& batch, u32 first, u32 count, u64 epoch) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 local = nvl_local_experts(p), rows = p.nvl.ranks * p.max_tokens;
    Status status = Status::ok;
    for (u32 w = me; w < count * p.topk; w += step) {
        const u32 m = w / p.topk, k = w % p.topk;
        u32 s = 0;
        while (first + m - lists.first[s] >= lists.tokens[s]) ++s;
        const u32 t = first + m - lists.first[s];
        const u64 word = load_relaxed<Scope::sys>(nvl_choices(p, epoch, s, p.nvl.rank) + t * nvl_pairs(p) + k / 2);
        const u32 chosen = nvl_of_pair(word, k), e = chosen - p.nvl.rank * local;
        const bool here = chosen != kNvlNoExpert && e < local;
        batch.choice[m][k] = here ? static_cast<i32>(e) : -1;
        if (k == 0) {
            batch.source[m] = s;
            batch.token[m] = t;
            batch.slot[m] = nvl_slot(p, epoch, s, t);
        }
        if (!here || status != Status::ok) continue;
        status = nvl_clocked(in.waits, s, [&] {
            u64 seen = 0;
            return wait_until<Scope::sys>(nvl_at<u64>(p.nvl, p.nvl.rank, p.ll.sent) + nvl_slot(p, epoch, s, t),
                                          [epoch](u64 v) { return v == epoch; }, p.nvl.watch, Subject{"a token", epoch, 0, s, 0}, &seen);
        });
    }
    block_sync();
    for (u32 w = me; w < count * p.topk; w += step) {
        const u32 m = w / p.topk, k = w % p.topk;
        const i32 e = batch.choice[m][k];
        i32 row = -1;
        if (e >= 0) {
            u32 before = mine.before[e];
            RDMAKIT_NO_UNROLL
            for (u32 v = 0; v < m * p.topk; ++v) before += batch.choice[v / p.topk][v % p.topk] == e ? 1 : 0;
            row = e * static_cast<i32>(rows) + static_cast<i32>(before);
            in.source[row] = static_cast<i32>(batch.token[m]);
        }
        batch.row[m][k] = row;
        in.row_map[(static_cast<u64>(batch.source[m]) * p.max_tokens + batch.token[m]) * p.topk + k] = row;
    }
    block_sync();
    return status;
}

// Every message of the batch to all rows that it has here. All threads.
RDMAKIT_DEVICE void nvl_unpack(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLlCounters& mine, const NvlBatch& batch, u32 count) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 bytes = in.fp8 != 0 ? p.hidden : 2 * p.hidden, rows = p.nvl.ranks * p.max_tokens, groups = p.hidden / 128;
    const u32 vectors = bytes / sizeof(Vec16);
    const auto message = [&](u32 m) { return nvl_at<u8>(p.nvl, p.nvl.rank, p.ll.messages) + batch.slot[m] * nvl_slot_bytes(p); };
    charge_copy(static_cast<u64>(bytes) * count);
    const auto scale_of = [&](u32 i) {
        return in.fp8 != 0 && i < count * groups ? reinterpret_cast<const float*>(message(i / groups) + p.hidden)[i % groups] : 0.0f;
    };
    float scale = scale_of(me);  // on its way while vectors are
    constexpr u32 kAbreast = 2;  // messages whose loads do not wait for each other
    for (u32 m = 0; m < count; m += kAbreast) {
        RDMAKIT_NO_UNROLL
        for (u32 v = me; v < vectors; v += step) {
            Vec16 part[kAbreast] = {};
            RDMAKIT_UNROLL
            for (u32 a = 0; a < kAbreast; ++a) {
                if (m + a < count) part[a] = load_stream(reinterpret_cast<const Vec16*>(message(m + a)) + v);
            }
            RDMAKIT_NO_UNROLL
            for (u32 k = 0; k < p.topk; ++k) {
                RDMAKIT_UNROLL
                for (u32 a = 0; a < kAbreast; ++a) {
                    const i32 row = m + a < count ? batch.row[m + a][k] : -1;
                    if (row >= 0) store_stream(reinterpret_cast<Vec16*>(in.out_x + static_cast<u64>(row) * bytes) + v, part[a]);
                }
            }
        }
    }
    for (u32 i = me; in.fp8 != 0 && i < count * groups; i += step) {
        if (i != me) scale = scale_of(i);
        const u32 m = i / groups, g = i % groups;
        RDMAKIT_NO_UNROLL
        for (u32 k = 0; k < p.topk; ++k) {
            if (batch.row[m][k] < 0) continue;
            const u64 e = static_cast<u32>(batch.choice[m][k]), r = static_cast<u32>(batch.row[m][k]) - e * rows;
            if (in.ue8m0 != 0) in.out_scales[((e * (groups / 4) + g / 4) * rows + r) * 4 + g % 4] = static_cast<u8>(float_bits(scale) >> 23);
            else reinterpret_cast<float*>(in.out_scales)[(e * groups + g) * rows + r] = scale;
        }
    }
    for (u32 w = me; w < count * p.topk; w += step) {
        const i32 e = batch.choice[w / p.topk][w % p.topk];
        if (e >= 0) fetch_add<Scope::cta>(mine.before + e, 1u);
    }
}

RDMAKIT_DEVICE Status nvl_receive_tokens(const NvlLl& p, const NvlLlDispatchInput& in, NvlLists& lists, const NvlLlCounters& mine,
                                         NvlBatch& batch, const NvlReceivers& receivers, u64 epoch) {
    const u32 index = static_cast<u32>(block_id()) - receivers.first;
    const NvlShare share = nvl_share(lists, p.nvl.ranks, index, receivers.count);
    if (!nvl_all_ok(&lists.failed, nvl_count_choices(p, lists, share, mine, index, receivers.count, epoch))) return Status::aborted;
    nvl_write_counts(p, in, mine, index, receivers.count);
    for (u32 m = share.begin; m < share.end; m += kNvlUnpack) {
        const u32 count = smaller(kNvlUnpack, share.end - m);
        if (!nvl_all_ok(&lists.failed, nvl_await_batch(p, in, lists, mine, batch, m, count, epoch))) return Status::aborted;
        nvl_unpack(p, in, mine, batch, count);
        block_sync();
    }
    return Status::ok;
}

// Where ranks can be masked: rows of tokens that no rank has sent. All receiving blocks share them.
RDMAKIT_DEVICE void nvl_clear_rest(const NvlLl& p, const NvlLlDispatchInput& in, const NvlLists& lists, const NvlReceivers& receivers) {
    const u32 size = static_cast<u32>(block_size()), each = p.max_tokens * p.topk;
    const u32 begin = (static_cast<u32>(block_id()) - receivers.first) * size + static_cast<u32>(block_rank());
    for (u32 i = begin; i < p.nvl.ranks * each; i += size * receivers.count) {
        if (i % each / p.topk >= lists.tokens[i / each]) in.row_map[i] = -1;
    }
}

// Any number of blocks that are resident together; dynamic shared memory as nvl_ll_counters has it.
RDMAKIT_NAMED_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 2) dispatch_nvl_ll(RDMAKIT_GRID_CONSTANT NvlLl p, RDMAKIT_GRID_CONSTANT NvlLlDispatchInput in) {
    RDMAKIT_DYNAMIC_SHARED(u8, shared);
    RDMAKIT_SHARED(NvlLists, lists);
    RDMAKIT_SHARED(NvlRow, words);
    RDMAKIT_SHARED(NvlBatch, batch);
    if (!layout_matches(p.nvl.layout_version, p.nvl.watch, "NvlRank of another layout version")) return;
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    const u32 block = static_cast<u32>(block_id()), blocks = static_cast<u32>(blocks_in_grid());
    const u64 sending = nvl_epoch(p.nvl, NvlKind::ll_dispatch_send), receiving = nvl_epoch(p.nvl, NvlKind::ll_dispatch_receive);
    const NvlLlCounters mine = nvl_ll_counters(p, shared, blocks);
    nvl_free(p, p.ll.received, receiving - 1);
    if (me == 0) {
        lists.failed = 0;
        words.present = ~0u;
    }
    const bool sends = (in.halves & kLlSend) != 0;
    if (sends && block < in.tokens) nvl_read_token(p, in, mine, words, block);  // while others make room
    for (u32 i = me; i < nvl_counter_words(nvl_local_experts(p), p.nvl.ranks, blocks); i += step) mine.before[i] = 0;
    block_sync();
    bool ok = true;
    if (sends) {
        ok = nvl_all_ok(&lists.failed, nvl_room(p, p.ll.received, sending));
        nvl_look_around(p, words);
        if (block == blocks - 1 && p.nvl.masks == nullptr && ok) {  // one that has no token, if any
            for (u32 d = me; d < p.nvl.ranks; d += step) nvl_tell_list(p, d, p.ll.chosen, sending, in.tokens);
        }
        for (u32 t = block; t < in.tokens && ok; t += blocks) {
            if (t != block) {
                nvl_read_token(p, in, mine, words, t);
                block_sync();
            }
            nvl_send_token(p, in, mine, words, t, sending);
            block_sync();
        }
        if (p.nvl.masks != nullptr && ok && nvl_all_sent(p.nvl, 0, &lists.last)) {
            for (u32 d = me; d < p.nvl.ranks; d += step) {
                if (!nvl_masked(p.nvl, d)) nvl_tell_list(p, d, p.ll.chosen, sending, in.tokens);
            }
        }
    }
    const NvlReceivers receivers = nvl_receivers(in, blocks);
    if ((in.halves & kLlReceive) != 0 && receivers.has(block)) {
        Status status = ok ? Status::ok : Status::aborted;
        for (u32 s = me; s < p.nvl.ranks && status == Status::ok; s += step) {
            status = nvl_clocked(block == receivers.first ? in.waits : nullptr, s, [&] {
                return nvl_list_came(p, p.ll.chosen, NvlVerdict::chosen, receiving, s, "a rank's choices", &lists.tokens[s]);
            });
        }
        ok = nvl_all_ok(&lists.failed, status);
        if (me == 0) nvl_add_up(lists, p.nvl.ranks);
        block_sync();
        if (p.nvl.masks != nullptr && ok) nvl_clear_rest(p, in, lists, receivers);
        ok = ok && nvl_receive_tokens(p, in, lists, mine, batch, receivers, receiving) == Status::ok;
    }
    if (!nvl_last_quietly(p.nvl, NvlKind::ll_dispatch_send)) return;
    nvl_ll_end(p.nvl, in.halves, NvlKind::ll_dispatch_send, sending, NvlKind::ll_dispatch_receive, receiving);
}
}  // namespace rdmakit
