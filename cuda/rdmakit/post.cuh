// rdmakit/post.cuh — fills one WQE of each kind at an index that the caller has reserved and will publish.
// Layer: queue (leans on queue). Each function is called by one thread; `flags` are those of fm_ce_se (kCqUpdate, …).
// A WQE of two basic blocks wraps with the ring: each 16-byte segment is placed by its own basic block.
#pragma once
#include "queue.cuh"

namespace rdmakit {

RDMAKIT_DEVICE void store_at(const QpHandle& qp, u64 index, u32 ds, const Vec16& segment) {
    store_segment(sq_slot(qp, index + ds / kDsPerBb) + (ds % kDsPerBb) * kDs, segment);
}
RDMAKIT_DEVICE Vec16 control(const QpHandle& qp, u64 index, Opcode opcode, u32 opmod, u32 ds, u32 flags, u32 imm = 0) {
    return ctrl_segment(opcode, opmod, static_cast<u32>(index), qp.qpn, ds, flags, imm);
}

// WRITE, WRITE_IMM (with imm), READ: one remote range, one local.
RDMAKIT_DEVICE void write_rdma(const QpHandle& qp, u64 index, Opcode opcode, u64 raddr, u32 rkey, u64 laddr, u32 lkey,
                               u32 bytes, u32 flags, u32 imm = 0) {
    const bool empty = bytes == 0;  // a data segment of 0 would mean 2 GiB
    store_at(qp, index, 0, control(qp, index, opcode, 0, empty ? 2 : 3, flags, imm));
    store_at(qp, index, 1, remote_segment(raddr, rkey));
    if (!empty) store_at(qp, index, 2, data_segment(laddr, bytes, lkey));
}
// Up to 12 bytes of payload travel in the WQE itself: one inline header word and three words of data.
RDMAKIT_DEVICE void write_inline(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, const u32 (&words)[3], u32 bytes,
                                 u32 flags) {
    store_at(qp, index, 0, control(qp, index, Opcode::write, 0, 3, flags));
    store_at(qp, index, 1, remote_segment(raddr, rkey));
    store_at(qp, index, 2, Vec16{{swap_bytes(bytes | kInlineFlag), words[0], words[1], words[2]}});
}
// SEND, SEND_IMM.
RDMAKIT_DEVICE void write_send(const QpHandle& qp, u64 index, Opcode opcode, u64 laddr, u32 lkey, u32 bytes, u32 flags,
                               u32 imm = 0) {
    const bool empty = bytes == 0;
    store_at(qp, index, 0, control(qp, index, opcode, 0, empty ? 1 : 2, flags, imm));
    if (!empty) store_at(qp, index, 1, data_segment(laddr, bytes, lkey));
}

// Atomics leave the old value in the handle's sink.
RDMAKIT_DEVICE void write_atomic(const QpHandle& qp, u64 index, Opcode opcode, u32 opmod, u64 raddr, u32 rkey,
                                 const Vec16& operands, u32 bytes, u32 flags) {
    store_at(qp, index, 0, control(qp, index, opcode, opmod, 4, flags));
    store_at(qp, index, 1, remote_segment(raddr, rkey));
    store_at(qp, index, 2, operands);
    store_at(qp, index, 3, data_segment(qp.sink_address, bytes, qp.sink_lkey));
}
RDMAKIT_DEVICE void write_fetch_add(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u64 value, u32 flags) {
    write_atomic(qp, index, Opcode::fetch_add, 0, raddr, rkey, atomic_segment(value, 0), 8, flags);
}
RDMAKIT_DEVICE void write_cmp_swap(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u64 swap, u64 compare, u32 flags) {
    write_atomic(qp, index, Opcode::cmp_swap, 0, raddr, rkey, atomic_segment(swap, compare), 8, flags);
}
// Carries do not cross the bits set in `boundary`: 0 adds plainly, all ones is XOR.
RDMAKIT_DEVICE void write_masked_fetch_add4(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u32 add, u32 boundary,
                                            u32 flags) {
    write_atomic(qp, index, Opcode::masked_fetch_add, kOpmodMasked4, raddr, rkey, masked_fetch_add4_segment(add, boundary), 4,
                 flags);
}
RDMAKIT_DEVICE void write_masked_fetch_add8(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u64 add, u64 boundary,
                                            u32 flags) {
    write_atomic(qp, index, Opcode::masked_fetch_add, kOpmodMasked8, raddr, rkey, pair64(add, boundary), 8, flags);
}
RDMAKIT_DEVICE void write_masked_cmp_swap4(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u32 swap, u32 compare,
                                           u32 swap_mask, u32 compare_mask, u32 flags) {
    write_atomic(qp, index, Opcode::masked_cmp_swap, kOpmodMasked4, raddr, rkey,
                 masked_cmp_swap4_segment(swap, compare, swap_mask, compare_mask), 4, flags);
}
// Two basic blocks: reserve(qp, 2). compare_mask 0 sets the bits of swap_mask unconditionally.
RDMAKIT_DEVICE void write_masked_cmp_swap8(const QpHandle& qp, u64 index, u64 raddr, u32 rkey, u64 swap, u64 compare,
                                           u64 swap_mask, u64 compare_mask, u32 flags) {
    store_at(qp, index, 0, control(qp, index, Opcode::masked_cmp_swap, kOpmodMasked8, 5, flags));
    store_at(qp, index, 1, remote_segment(raddr, rkey));
    store_at(qp, index, 2, pair64(swap, compare));
    store_at(qp, index, 3, pair64(swap_mask, compare_mask));
    store_at(qp, index, 4, data_segment(qp.sink_address, 8, qp.sink_lkey));
}

// Nothing, but with a place in the order of completions.
RDMAKIT_DEVICE void write_nop(const QpHandle& qp, u64 index, u32 flags) {
    store_at(qp, index, 0, control(qp, index, Opcode::nop, 0, 1, flags));
}
// Reads local memory and drops it: on GPUs whose NIC writes are not ordered, what flushes them.
RDMAKIT_DEVICE void write_dump(const QpHandle& qp, u64 index, u64 laddr, u32 lkey, u32 bytes, u32 flags) {
    store_at(qp, index, 0, control(qp, index, Opcode::dump, 0, 2, flags));
    store_at(qp, index, 1, data_segment(laddr, bytes, lkey));
}

}  // namespace rdmakit
