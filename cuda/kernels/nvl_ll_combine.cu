// nvl_ll_combine.cu — low-latency combine over NVLink, both halves in one launch or each in its own.
//
// The rank of the experts adds its rows of a token up, weighted, by ascending choice, and rounds to BF16; the rank of the
// token adds those sums by ascending rank and rounds again. So one row crosses for each rank, not for each expert.
#include <rdmakit/nvl_ll.cuh>

namespace rdmakit {
struct NvlLlCombineInput {
    const u8* x;             // [local experts][rows][hidden] BF16
    const i32* row_map;      // [ranks][max_tokens][topk], of nvl_ll_dispatch
    const i64* topk;         // [tokens][topk]
    const float* weights;    // [tokens][topk]
    u8* out;                 // [tokens][hidden] BF16
    u64* waits;              // [ranks]: clocks waited for each, added up; or null
    u32 tokens, halves;
};

// This rank's rows of token t of source s, added up, to that source. All threads; false: there are none.
RDMAKIT_DEVICE bool nvl_send_sum(const NvlLl& p, const NvlLlCombineInput& in, NvlRow& words, u32 s, u32 t, u64 epoch) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size()), vectors = p.hidden / 8;
    const u64 list = (static_cast<u64>(s) * p.max_tokens + t) * p.topk;
    const float* const weights = nvl_at<const float>(p.nvl, p.nvl.rank, p.ll.weights) + nvl_lists(p, epoch, s) + t * p.topk;
    if (warp_id() == 0) {  // those choices that have a row here, in order
        u32 found = 0;
        for (u32 k0 = 0; k0 < p.topk; k0 += kLanes) {
            const u32 k = k0 + static_cast<u32>(lane_id());
            const i32 row = k < p.topk ? in.row_map[list + k] : -1;
            const float weight = k < p.topk ? weights[k] : 0.0f;
            const u32 mask = warp_ballot(row >= 0), at = found + count_ones(mask & ((1u << lane_id()) - 1));
            if (row >= 0) {
                words.row[at] = row;
                words.weight[at] = weight;
            }
            found += count_ones(mask);
        }
        if (lane_id() == 0) words.rows = found;
    }
    block_sync();
    const u32 found = words.rows;
    if (found == 0) return false;
    auto* const sums = reinterpret_cast<Vec16*>(nvl_at<u8>(p.nvl, s, p.ll.sums) + nvl_slot(p, epoch, p.nvl.rank, t) * 2 * p.hidden);
    const auto* const x = reinterpret_cast<const Vec16*>(in.x);
    charge_copy(2ull * p.hidden);
    for (u32 v = me; v < vectors; v += step) {
        Sum8 sum = {};
        constexpr u32 kAbreast = 4;  // rows whose loads do not wait for each other
        for (u32 k = 0; k < found; k += kAbreast) {
            Vec16 part[kAbreast] = {};
            RDMAKIT_UNROLL
            for (u32 i = 0; i < kAbreast; ++i) {
                if (k + i < found) part[i] = load_stream(x + static_cast<u64>(words.row[k + i]) * vectors + v);
            }
            RDMAKIT_UNROLL
            for (u32 i = 0; i < kAbreast; ++i) {
                if (k + i < found) add_scaled_bf16(sum, part[i], words.weight[k + i]);
            }
        }
        sums[v] = to_bf16(sum);
    }
    return true;
}

RDMAKIT_DEVICE void nvl_send_sums(const NvlLl& p, const NvlLlCombineInput& in, const NvlLists& lists, NvlRow& words, u64 epoch) {
    const NvlShare share = nvl_share(lists, p.nvl.ranks, static_cast<u32>(block_id()), static_cast<u32>(blocks_in_grid()));
    u32 s = 0;
    for (u32 m = share.begin; m < share.end; ++m) {
        while (m >= lists.first[s + 1]) ++s;
        const u32 t = m - lists.first[s];
        const bool sent = nvl_send_sum(p, in, words, s, t, epoch);
        block_sync();
        if (!sent || block_rank() != 0) continue;
        store_release<Scope::sys>(nvl_at<u64>(p.nvl, s, p.ll.summed) + nvl_slot(p, epoch, p.nvl.rank, t), epoch);
    }
}

// Where ranks can be masked: behind all sums of all blocks, a word that says so, to those whose tokens they are. All threads.
RDMAKIT_DEVICE void nvl_tell_complete(const NvlLl& p, NvlLists& lists, u64 epoch) {
    if (!nvl_all_sent(p.nvl, 1, &lists.last)) return;
    for (u32 s = static_cast<u32>(block_rank()); s < p.nvl.ranks; s += static_cast<u32>(block_size())) {
        if (!nvl_masked(p.nvl, s)) nvl_tell(p.nvl, p.ll.complete, s, epoch << 32);
    }
}
// Where ranks can be masked: whose sums are all here, or will never be. Each thread waits for some ranks; the block has to
// meet behind it.
RDMAKIT_DEVICE Status nvl_await_complete(const NvlLl& p, const NvlLlCombineInput& in, NvlRow& words, u64 epoch) {
    Status status = Status::ok;
    const u32 step = static_cast<u32>(block_size());
    for (u32 r = static_cast<u32>(block_rank()); r < p.nvl.ranks && status == Status::ok; r += step) {
        u32 said = 0;
        status = nvl_clocked(block_id() == 0 ? in.waits : nullptr, r, [&] {
            return nvl_verdict(p.nvl, NvlVerdict::complete, nvl_at<u64>(p.nvl, p.nvl.rank, p.ll.complete) + r, r, epoch,
                               "a rank's sums", &said);
        });
        if (status == Status::ok) fetch_or<Scope::cta>(&words.present, 1u << r);
        if (status == Status::absent) status = Status::ok;
    }
    return status;
}

RDMAKIT_DEVICE Status nvl_receive_sums(const NvlLl& p, const NvlLlCombineInput& in, NvlLists& lists, NvlRow& words, u64 epoch) {
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    if (p.nvl.masks != nullptr) {
        if (me == 0) words.present = 0;
        block_sync();
        if (!nvl_all_ok(&lists.failed, nvl_await_complete(p, in, words, epoch))) return Status::aborted;
    }
    for (u32 t = static_cast<u32>(block_id()); t < in.tokens; t += static_cast<u32>(blocks_in_grid())) {
        if (me == 0) words.ranks = words.came = 0;
        block_sync();
        nvl_read_choices(p, in.topk + static_cast<u64>(t) * p.topk, words);
        block_sync();
        u32 mask = words.ranks & words.present;
        Status status = Status::ok;
        for (u32 r = me; r < p.nvl.ranks && status == Status::ok; r += step) {
            if ((mask >> r & 1) == 0) continue;
            const u64* const word = nvl_at<u64>(p.nvl, p.nvl.rank, p.ll.summed) + nvl_slot(p, epoch, r, t);
            if (p.nvl.masks != nullptr) {  // all sums that will ever come are here
                if (*word == epoch) fetch_or<Scope::cta>(&words.came, 1u << r);
                continue;
            }
            u64 seen = 0;
            status = nvl_clocked(in.waits, r, [&] {
                return wait_until<Scope::sys>(word, [epoch](u64 v) { return v == epoch; }, p.nvl.watch,
                                              Subject{"a sum of experts' rows", epoch, 0, r, 0}, &seen);
            });
        }
        if (!nvl_all_ok(&lists.failed, status)) return Status::aborted;
        if (p.nvl.masks != nullptr) mask = words.came;
        charge_copy(2ull * p.hidden);
        for (u32 v = me; v < p.hidden / 8; v += step) {
            Sum8 sum = {};
            for (u32 r = 0; r < p.nvl.ranks; ++r) {
                if ((mask >> r & 1) == 0) continue;
                const u8* const sums = nvl_at<u8>(p.nvl, p.nvl.rank, p.ll.sums) + nvl_slot(p, epoch, r, t) * 2 * p.hidden;
                add_bf16(sum, load_stream(reinterpret_cast<const Vec16*>(sums) + v));
            }
            store_stream(reinterpret_cast<Vec16*>(in.out + static_cast<u64>(t) * 2 * p.hidden) + v, to_bf16(sum));
        }
        block_sync();
    }
    return Status::ok;
}

// Any number of blocks that are resident together.
RDMAKIT_NAMED_KERNEL RDMAKIT_LAUNCH_BOUNDS(512, 2) combine_nvl_ll(RDMAKIT_GRID_CONSTANT NvlLl p, RDMAKIT_GRID_CONSTANT NvlLlCombineInput in) {
    RDMAKIT_SHARED(NvlLists, lists);
    RDMAKIT_SHARED(NvlRow, words);
    if (!layout_matches(p.nvl.layout_version, p.nvl.watch, "NvlRank of another layout version")) return;
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size()), blocks = static_cast<u32>(blocks_in_grid());
    const u64 sending = nvl_epoch(p.nvl, NvlKind::ll_combine_send), receiving = nvl_epoch(p.nvl, NvlKind::ll_combine_receive);
    nvl_free(p, p.ll.combined, receiving - 1);
    if (me == 0) {
        lists.failed = 0;
        words.present = ~0u;
    }
    block_sync();
    bool ok = true;
    if ((in.halves & kLlSend) != 0) {
        Status status = nvl_room(p, p.ll.combined, sending);
        ok = nvl_all_ok(&lists.failed, status);
        nvl_look_around(p, words);
        for (u32 d = static_cast<u32>(block_id()); d < p.nvl.ranks && ok; d += blocks) {
            if ((words.present >> d & 1) == 0) continue;
            nvl_send_list<float>(p, d, p.ll.weights, p.ll.weighed, sending, in.tokens, [&in](u32 i) { return in.weights[i]; });
        }
        for (u32 s = me; s < p.nvl.ranks && ok && status == Status::ok; s += step) {
            status = nvl_clocked(block_id() == 0 ? in.waits : nullptr, s, [&] {
                return nvl_list_came(p, p.ll.weighed, NvlVerdict::weighed, sending, s, "a rank's weights", &lists.tokens[s]);
            });
        }
        ok = nvl_all_ok(&lists.failed, status);
        if (me == 0) nvl_add_up(lists, p.nvl.ranks);
        block_sync();
        if (ok) nvl_send_sums(p, in, lists, words, sending);
        if (ok && p.nvl.masks != nullptr) nvl_tell_complete(p, lists, sending);
    }
    if ((in.halves & kLlReceive) != 0) ok = ok && nvl_receive_sums(p, in, lists, words, receiving) == Status::ok;
    if (!nvl_last_quietly(p.nvl, NvlKind::ll_combine_send)) return;
    nvl_ll_end(p.nvl, in.halves, NvlKind::ll_combine_send, sending, NvlKind::ll_combine_receive, receiving);
}
}  // namespace rdmakit
