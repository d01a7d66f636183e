// rdmakit/hca_move.cuh — payload between runs of memory, moved by a warp: local segments, receive lists, straight ranges.
// Layer: hca (leans on hca_state, hca_wqe). The "wire" is plain loads and stores to memory of this or a peer GPU, or the host's.
// Small words are written by ordered stores of their own width, since somebody may poll them: a NIC's write of an aligned
// word is never seen in halves.
#pragma once
#include "hca_state.cuh"
#include "hca_wqe.cuh"

namespace rdmakit {

constexpr u64 kFewBytes = 16;  // up to here one lane writes, with ordered stores

template <class T> RDMAKIT_DEVICE bool is_aligned(const void* p) { return reinterpret_cast<u64>(p) % sizeof(T) == 0; }
// A word from any address, by the widest loads that its alignment allows.
template <class T> RDMAKIT_DEVICE T load_unaligned(const u8* from) {
    if (is_aligned<T>(from)) return *reinterpret_cast<const T*>(from);
    T value = 0;
    if (sizeof(T) == 8 && is_aligned<u32>(from)) {
        const u32* const half = reinterpret_cast<const u32*>(from);
        return static_cast<T>(half[0] | (static_cast<u64>(half[1]) << 32));
    }
    for (u32 i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | (static_cast<T>(from[i]) << (8 * i)));
    return value;
}
// Bytes that fit no word; whoever watches the line is told.
RDMAKIT_DEVICE void store_byte(u8* to, u8 value) {
    *to = value;
#if !RDMAKIT_GPU
    cpu::written(to, 1);
#endif
}

// One lane; up to kFewBytes bytes that have been read.
RDMAKIT_DEVICE void store_few(u8* to, u64 low, u64 high, u32 bytes) {
    while (bytes != 0) {
        u32 n = 1;
        if (bytes >= 8 && is_aligned<u64>(to)) {
            n = 8;
            store_relaxed<Scope::sys>(reinterpret_cast<u64*>(to), low);
        } else if (bytes >= 4 && is_aligned<u32>(to)) {
            n = 4;
            store_relaxed<Scope::sys>(reinterpret_cast<u32*>(to), static_cast<u32>(low));
        } else {
            store_byte(to, static_cast<u8>(low));
        }
        to += n;
        bytes -= n;
        low = n == 8 ? high : (low >> (8 * n)) | (high << (64 - 8 * n));
        high = n == 8 ? 0 : high >> (8 * n);
    }
}
// One lane; up to kFewBytes bytes. All is read before anything is written: the runs may overlap.
RDMAKIT_NOINLINE void move_few(u8* to, const u8* from, u32 bytes) {
    u64 low = 0, high = 0;
    if (bytes == 8) {
        low = load_unaligned<u64>(from);
    } else {
        for (u32 i = 0; i < bytes; ++i) (i < 8 ? low : high) |= static_cast<u64>(from[i]) << (8 * (i % 8));
    }
    store_few(to, low, high, bytes);
}

#if RDMAKIT_GPU
// The middle of a run: `to` is a multiple of 16.
RDMAKIT_DEVICE void move_vectors(u8* to, const u8* from, u64 vectors) {
    if (is_aligned<Vec16>(from)) {
        warp_copy(to, from, 16 * vectors);
        return;
    }
    for (u64 i = static_cast<u64>(lane_id()); i < vectors; i += kLanes) {
        const u64 a = load_unaligned<u64>(from + 16 * i), b = load_unaligned<u64>(from + 16 * i + 8);
        const Vec16 v{{static_cast<u32>(a), static_cast<u32>(a >> 32), static_cast<u32>(b), static_cast<u32>(b >> 32)}};
        store_stream(reinterpret_cast<Vec16*>(to) + i, v);
    }
}
#endif
// All lanes, whole words at aligned addresses: the last word of each 128-byte line waits for all others, so that whoever
// acquires it sees the line (ibv_query_qp_data_in_order, ALIGNED_128_BYTES; more than that it promises not).
RDMAKIT_DEVICE void move_in_order(u8* to, const u8* from, u64 bytes) {
    u64* const target = reinterpret_cast<u64*>(to);
    const u64* const source = reinterpret_cast<const u64*>(from);
    const auto last_of_line = [&](u64 i) { return (reinterpret_cast<u64>(target + i) & 127) == 120; };
    const u64 lane = static_cast<u64>(lane_id());
    for (u64 i = lane; i < bytes / 8; i += kLanes) {
        if (!last_of_line(i)) target[i] = source[i];
    }
    warp_sync();
    fence<Scope::sys>();
    for (u64 i = lane; i < bytes / 8; i += kLanes) {
        if (last_of_line(i)) store_relaxed<Scope::sys>(target + i, source[i]);
    }
}
// One lane, as memmove, in accesses of T.
template <class T> RDMAKIT_DEVICE void move_each(u8* to, const u8* from, u64 bytes) {
    const bool up = to <= from;
    const u64 count = bytes / sizeof(T);
    for (u64 k = 0; k < count; ++k) {
        const u64 i = up ? k : count - 1 - k;
        reinterpret_cast<T*>(to)[i] = reinterpret_cast<const T*>(from)[i];
    }
}

// All lanes; any alignment. Plain stores but for a few bytes.
RDMAKIT_NOINLINE void warp_move(u8* to, const u8* from, u64 bytes, [[maybe_unused]] bool in_order) {
    if (bytes <= kFewBytes) {
        if (lane_id() == 0) move_few(to, from, static_cast<u32>(bytes));
        return;
    }
    [[maybe_unused]] const bool words = is_aligned<u64>(to) && is_aligned<u64>(from) && bytes % 8 == 0;
    [[maybe_unused]] const bool overlap = to < from + bytes && from < to + bytes;
#if RDMAKIT_GPU || RDMAKIT_POLICY == RDMAKIT_EXPLORE
    if (in_order && words && !overlap) {
        move_in_order(to, from, bytes);
        return;
    }
#endif
#if RDMAKIT_GPU
    if (overlap) {
        if (lane_id() == 0) move_each<u8>(to, from, bytes);
        return;
    }
    const u64 head = -reinterpret_cast<u64>(to) & 15;
    const u64 vectors = (bytes - head) / 16, tail = (bytes - head) % 16;
    if (lane_id() == 0) move_few(to, from, static_cast<u32>(head));
    move_vectors(to + head, from + head, vectors);
    if (lane_id() == 0) move_few(to + bytes - tail, from + bytes - tail, static_cast<u32>(tail));
#else
    if (lane_id() != 0) return;
    charge_copy(bytes);
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    if (words) move_each<u64>(to, from, bytes);
    else move_each<u8>(to, from, bytes);
#else
    if (payload_moves(bytes)) std::memmove(to, from, bytes);
#endif
    cpu::written(to, bytes);
#endif
}

// ---- runs, one after the other --------------------------------------------------------------------------------------
struct Run {
    u8* at;
    u64 bytes;  // 0: no more
};

struct OneRun {
    Run run;
    RDMAKIT_DEVICE Run next() {
        const Run found = run;
        run.bytes = 0;
        return found;
    }
};

// The local segments of a WQE. The ring's bytes are not trusted to be what they were when the WQE was decoded: a kernel
// may overwrite a WQE that is under way, and gets garbage or an early end, but no wild access.
struct LocalRuns {
    const HcaQp& qp;
    const DecodedWqe& wqe;
    u32 access;
    u32 at;
    Run rest;
    bool fault;  // a key refuses

    RDMAKIT_DEVICE LocalRuns(const HcaQp& of, const DecodedWqe& decoded, u32 need)
        : qp(of), wqe(decoded), access(need), at(decoded.first_segment), rest{nullptr, 0}, fault(false) {}
    RDMAKIT_DEVICE Run next() {
        if (rest.bytes != 0) {
            const Run found = rest;
            rest.bytes = 0;
            return found;
        }
        while (at < wqe.ds && !fault) {
            const SendRing ring{qp.sq, qp.log_sq};
            const LocalSegment segment = local_segment(ring, wqe, at);
            const u32 here = at;
            at += segment.ds;
            if (segment.inline_ds == 0) {
                const KeyCheck check = check_key(qp.keys, segment.lkey, segment.addr, segment.bytes, access, qp.pd);
                fault = check.fault != KeyFault::none;
                if (!fault) return Run{reinterpret_cast<u8*>(check.memory), segment.bytes};
            } else if (segment.ds > wqe.ds - here) {
                fault = true;
            } else if (segment.bytes != 0) {
                u8* const base = const_cast<u8*>(qp.sq);
                u8* const start = const_cast<u8*>(ring_ds(ring, wqe.bb, here)) + sizeof(InlineSeg);
                const u64 to_end = static_cast<u64>(base + (static_cast<u64>(kWqebb) << qp.log_sq) - start);
                const u64 first = smaller<u64>(segment.bytes, to_end);
                rest = Run{base, segment.bytes - first};
                return Run{start, first};
            }
        }
        return Run{nullptr, 0};
    }
};

// Where a receive WQE wants a message. Ends with {0, kInvalidLkey}, or after as many entries as the WQE has room for.
struct ReceiveRuns {
    const HcaQp& qp;
    const Vec16* list;
    u64 left;
    u32 i;
    bool fault;

    RDMAKIT_DEVICE ReceiveRuns(const HcaQp& of, u64 bytes)
        : qp(of), list(nullptr), left(bytes), i(0), fault(false) {
        const u64 slot = of.rq_consumed & ((1ull << of.log_rq) - 1);
        list = reinterpret_cast<const Vec16*>(of.rq + slot * of.rq_stride);
    }
    RDMAKIT_DEVICE Run next() {
        if (left == 0 || i == qp.max_recv_sge) return Run{nullptr, 0};
        const Vec16 entry = list[i++];
        const u32 lkey = swap_bytes(entry.w[1]);
        if (lkey == kInvalidLkey) {
            i = qp.max_recv_sge;
            return Run{nullptr, 0};
        }
        const u32 count = swap_bytes(entry.w[0]) & ~kInlineFlag;
        const u64 room = count != 0 ? count : 1ull << 31;  // byte count 0 stands for 2 GiB
        const u64 bytes = smaller(room, left);
        const KeyCheck check = check_key(qp.keys, lkey, word64(entry, 2), bytes, kKeyLocalWrite, qp.pd);
        fault = check.fault != KeyFault::none;
        if (fault) return Run{nullptr, 0};
        left -= bytes;
        return Run{reinterpret_cast<u8*>(check.memory), bytes};
    }
};

// All lanes. Later runs may read what earlier ones have written, as when a WQE names the same memory twice.
template <class From, class To> RDMAKIT_DEVICE void move_runs(From from, To to, u64 bytes, bool in_order) {
    Run a{nullptr, 0}, b{nullptr, 0};
    while (bytes != 0) {
        if (a.bytes == 0) a = from.next();
        if (b.bytes == 0) b = to.next();
        const u64 n = smaller(bytes, smaller(a.bytes, b.bytes));
        if (n == 0) return;
        warp_move(b.at, a.at, n, in_order);
        warp_sync();
        a = Run{a.at + n, a.bytes - n};
        b = Run{b.at + n, b.bytes - n};
        bytes -= n;
    }
}

}  // namespace rdmakit
