// rdmakit/hca_wqe.cuh — from ring bytes to a checked request: WQE decoding, local segments, doorbell values.
// Layer: hca (leans on wqe, hca_atomic). Never reads outside the ring, whatever the bytes say: every access wraps at
// the ring's end, as the HCA's does (rdma-core providers/mlx5/qp.c mlx5_get_send_wqe, set_data_inl_seg).
#pragma once
#include "hca_atomic.cuh"
#include "wqe.cuh"

namespace rdmakit {

// ---- indices ---------------------------------------------------------------------------------------------------
// The free-running index whose low 16 bits are `value`, nearest to `reference`: at most half the range ahead of it.
RDMAKIT_DEVICE constexpr u64 widen_index(u64 reference, u32 value) {
    const u32 ahead = (value - static_cast<u32>(reference)) & 0xffff;
    return ahead <= 0x8000 ? reference + ahead : reference - (0x10000 - ahead);
}

// ---- doorbell register values ------------------------------------------------------------------------------------
struct Doorbell {
    u32 opmod, opcode, index, qpn, ds;
};
RDMAKIT_DEVICE Doorbell decode_doorbell(u64 value) {
    const u32 first = swap_bytes(static_cast<u32>(value));
    const u32 second = swap_bytes(static_cast<u32>(value >> 32));
    return Doorbell{first >> 24, first & 0xff, (first >> 8) & 0xffff, second >> 8, second & 0x3f};
}
// Index of the basic block after the last one posted. NVSHMEM's dialect says it outright, with ds 0; libmlx5's gives
// the last WQE's own index and size.
RDMAKIT_DEVICE u32 doorbell_next_index(const Doorbell& bell) { return (bell.index + wqebbs(bell.ds)) & 0xffff; }

// ---- rings -----------------------------------------------------------------------------------------------------
struct SendRing {
    const u8* base;
    u32 log_bbs;
};
RDMAKIT_DEVICE const u8* ring_ds(const SendRing& ring, u64 bb, u32 ds) {
    const u64 mask = (static_cast<u64>(kDsPerBb) << ring.log_bbs) - 1;
    return ring.base + ((bb * kDsPerBb + ds) & mask) * kDs;
}
RDMAKIT_DEVICE Vec16 load_ds(const SendRing& ring, u64 bb, u32 ds) {
    return *reinterpret_cast<const Vec16*>(ring_ds(ring, bb, ds));
}
RDMAKIT_DEVICE u64 word64(const Vec16& v, int first) {
    return (static_cast<u64>(swap_bytes(v.w[first])) << 32) | swap_bytes(v.w[first + 1]);
}

// ---- requests --------------------------------------------------------------------------------------------------
struct DecodedWqe {
    u64 bb;             // free-running index of its first basic block
    u64 raddr;
    AtomicOperands operands;
    u64 bytes;          // that its local segments hold
    u32 opcode, opmod, qpn, ds, bbs;
    u32 index;          // 16 bits, as a CQE reports it
    u32 fm_ce_se, rkey;
    u32 imm;            // as it stands in memory
    u32 first_segment;  // DS offset of the first local segment; ds if there is none
    u32 atomic_width;   // 4, 8, or 0 if this is no atomic
    Syndrome fault;     // none: well formed
};

// One local segment: memory under a key, or bytes inside the WQE.
struct LocalSegment {
    u64 addr;       // memory: address
    u32 bytes, lkey;
    u32 inline_ds;  // inline: DS offset of the segment, whose bytes begin 4 further; 0 for memory (0 is the ctrl's)
    u32 ds;         // its own size
};
RDMAKIT_DEVICE LocalSegment local_segment(const SendRing& ring, const DecodedWqe& wqe, u32 at) {
    const Vec16 v = load_ds(ring, wqe.bb, at);
    const u32 count = swap_bytes(v.w[0]);
    if (count & kInlineFlag) {
        const u32 bytes = count & ~kInlineFlag;
        return LocalSegment{0, bytes, 0, at, bytes / kDs + ceil_div(bytes % kDs + 4, kDs)};
    }
    return LocalSegment{word64(v, 2), count, swap_bytes(v.w[1]), 0, 1};
}

// What each opcode may hold, in DS; max_ds 0 means that the HCA does not execute it on an RC queue pair.
struct OpcodeShape {
    u32 min_ds, max_ds;
    bool remote, inlines, opmod;
};
RDMAKIT_DEVICE constexpr OpcodeShape opcode_shape(u32 opcode) {
    switch (static_cast<Opcode>(opcode)) {
        case Opcode::nop: return {1, kMaxDs, false, true, false};  // whatever follows the ctrl segment is not read
        case Opcode::write:
        case Opcode::write_imm: return {2, kMaxDs, true, true, false};
        case Opcode::send:
        case Opcode::send_imm: return {1, kMaxDs, false, true, false};
        case Opcode::read: return {2, kMaxDs, true, false, false};
        case Opcode::cmp_swap:
        case Opcode::fetch_add: return {4, 4, true, false, false};
        case Opcode::masked_cmp_swap: return {4, 5, true, false, true};
        case Opcode::masked_fetch_add: return {4, 4, true, false, true};
        case Opcode::dump: return {2, 2, false, false, false};
        case Opcode::send_inval: break;  // needs memory windows or fast registration, which this HCA has not
    }
    return {0, 0, false, false, false};
}

RDMAKIT_DEVICE DecodedWqe faulty(DecodedWqe wqe, Syndrome fault) {
    wqe.fault = fault;
    return wqe;
}

RDMAKIT_DEVICE void decode_atomic(const SendRing& ring, DecodedWqe& wqe) {
    const Opcode opcode = static_cast<Opcode>(wqe.opcode);
    const Vec16 v = load_ds(ring, wqe.bb, 2);
    const bool masked = opcode == Opcode::masked_cmp_swap || opcode == Opcode::masked_fetch_add;
    wqe.atomic_width = masked && wqe.opmod == kOpmodMasked4 ? 4 : 8;
    wqe.first_segment = 3;
    const bool add = opcode == Opcode::fetch_add || opcode == Opcode::masked_fetch_add;
    if (!masked) {
        // FETCH_ADD ignores the compare word; as a masked add it has no inner field boundary.
        wqe.operands = add ? AtomicOperands{word64(v, 0), 0, 0, 0}
                           : AtomicOperands{word64(v, 0), word64(v, 2), ~0ull, ~0ull};
    } else if (wqe.atomic_width == 4) {
        wqe.operands = add ? AtomicOperands{swap_bytes(v.w[0]), 0, 0, swap_bytes(v.w[1])}
                           : AtomicOperands{swap_bytes(v.w[0]), swap_bytes(v.w[1]), swap_bytes(v.w[2]),
                                            swap_bytes(v.w[3])};
    } else if (add) {
        wqe.operands = AtomicOperands{word64(v, 0), 0, 0, word64(v, 2)};
    } else {
        const Vec16 masks = load_ds(ring, wqe.bb, 3);  // the two-WQEBB form: data comes after both
        wqe.operands = AtomicOperands{word64(v, 0), word64(v, 2), word64(masks, 0), word64(masks, 2)};
        wqe.first_segment = 4;
    }
}

// Decodes the WQE at `bb` and checks all that can be seen in its bytes. `available` is how many basic blocks the
// doorbell covers from there. On a fault the fields decoded so far are right; bbs is 1 where the size is unknown.
RDMAKIT_DEVICE DecodedWqe decode_wqe(const SendRing& ring, u64 bb, u64 available, u32 qpn) {
    const Vec16 ctrl = load_ds(ring, bb, 0);
    const u32 first = swap_bytes(ctrl.w[0]), second = swap_bytes(ctrl.w[1]);
    DecodedWqe wqe = {};
    wqe.bb = bb;
    wqe.opcode = first & 0xff;
    wqe.opmod = first >> 24;
    wqe.index = static_cast<u32>(bb) & 0xffff;
    wqe.qpn = second >> 8;
    wqe.ds = second & 0x3f;
    wqe.fm_ce_se = ctrl.w[2] >> 24;
    wqe.imm = ctrl.w[3];
    wqe.bbs = wqe.ds ? wqebbs(wqe.ds) : 1;
    wqe.first_segment = wqe.ds;
    wqe.fault = Syndrome::none;

    const OpcodeShape shape = opcode_shape(wqe.opcode);
    const u32 index = (first >> 8) & 0xffff;
    const u32 slots = (1u << ring.log_bbs) - 1;
    if (wqe.ds < shape.min_ds || wqe.ds > shape.max_ds || wqe.ds == 0 || wqe.bbs > available || wqe.qpn != qpn ||
        (index != wqe.index && index != (wqe.index & slots)) || (!shape.opmod && wqe.opmod != 0))
        return faulty(wqe, Syndrome::local_qp_op);
    if (static_cast<Opcode>(wqe.opcode) == Opcode::nop) return wqe;

    wqe.first_segment = 1;
    if (shape.remote) {
        const Vec16 remote = load_ds(ring, bb, 1);
        wqe.raddr = word64(remote, 0);
        wqe.rkey = swap_bytes(remote.w[2]);
        wqe.first_segment = 2;
    }
    if (shape.min_ds == 4) {
        if (shape.opmod && wqe.opmod != kOpmodMasked4 && wqe.opmod != kOpmodMasked8)
            return faulty(wqe, Syndrome::local_qp_op);
        const bool wide = static_cast<Opcode>(wqe.opcode) == Opcode::masked_cmp_swap && wqe.opmod == kOpmodMasked8;
        if (wqe.ds != (wide ? 5u : 4u)) return faulty(wqe, Syndrome::local_qp_op);
        decode_atomic(ring, wqe);
    }

    for (u32 at = wqe.first_segment; at < wqe.ds;) {
        const LocalSegment segment = local_segment(ring, wqe, at);
        if (segment.inline_ds != 0 && (!shape.inlines || segment.ds > wqe.ds - at))
            return faulty(wqe, Syndrome::local_qp_op);
        // mlx5 reads byte count 0 as 2 GiB, which is over log_msg_max; senders leave empty segments out.
        if (segment.inline_ds == 0 && segment.bytes == 0) return faulty(wqe, Syndrome::local_length);
        wqe.bytes += segment.bytes;
        if (wqe.bytes > kMaxWrite) return faulty(wqe, Syndrome::local_length);
        at += segment.ds;
    }
    if (wqe.atomic_width != 0 && wqe.bytes != wqe.atomic_width) return faulty(wqe, Syndrome::local_length);
    return wqe;
}

RDMAKIT_DEVICE bool wants_cqe(const DecodedWqe& wqe, bool sq_sig_all) {
    return sq_sig_all || (wqe.fm_ce_se & (3u << 2)) == kCqUpdate;
}

}  // namespace rdmakit
