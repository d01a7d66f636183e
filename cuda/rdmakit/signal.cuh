// rdmakit/signal.cuh — puts, and signals that cannot overtake them: data and signal share one QP, and the NIC's own
// ordering is the lock.
// Layer: signal (leans on post, queue). Each function is called by one thread; many may call at once on one QP.
//
// A *strong* signal says: every earlier put on this QP to this peer is visible. An 8-byte FETCH_ADD on the QP of the
// data is one in every mode that the project knows: an RC responder executes it after earlier WRITEs, relaxed ordering
// does not let WRITEs be passed by it (man ibv_reg_mr), and out-of-order QPs execute atomics after all earlier
// messages (man mlx5dv_create_qp, MLX5DV_QP_CREATE_OOO_DP).
#pragma once
#include "post.cuh"

namespace rdmakit {

struct RemoteMemory {
    u64 address;
    u32 key;
};
struct LocalMemory {
    u64 address;
    u32 key;
};
RDMAKIT_DEVICE RemoteMemory operator+(const RemoteMemory& m, u64 bytes) { return {m.address + bytes, m.key}; }
RDMAKIT_DEVICE LocalMemory operator+(const LocalMemory& m, u64 bytes) { return {m.address + bytes, m.key}; }

// Whether a WQE asks for a CQE when it succeeds; failures always have one.
enum class Signalled : u32 { no = 0, yes = kCqUpdate };

RDMAKIT_DEVICE u32 writes_for(u64 bytes) { return bytes == 0 ? 1 : static_cast<u32>(ceil_div<u64>(bytes, kMaxWrite)); }

// Fills the WRITEs of one put at `index`; only the last asks for a CQE, if `last` says so.
RDMAKIT_DEVICE u64 fill_put(const QpHandle& qp, u64 index, const RemoteMemory& to, const LocalMemory& from, u64 bytes,
                            Signalled last) {
    const u32 n = writes_for(bytes);
    for (u32 i = 0; i < n; ++i) {
        const u64 done = static_cast<u64>(i) * kMaxWrite;
        const u32 part = static_cast<u32>(smaller<u64>(bytes - done, kMaxWrite));
        write_rdma(qp, index + i, Opcode::write, to.address + done, to.key, from.address + done, from.key, part,
                   i + 1 == n ? static_cast<u32>(last) : 0);
    }
    return index + n;
}

// Writes bytes to the peer. The payload may be other threads' work if they have met this one at a barrier since. Returns
// once posted; *end, if given, is the index to wait_completed() for before the source
// may be reused.
RDMAKIT_DEVICE Status put(const QpHandle& qp, const RemoteMemory& to, const LocalMemory& from, u64 bytes,
                          u64* end = nullptr, Site site = Site::here()) {
    const u32 n = writes_for(bytes);
    const u64 base = reserve(qp, n, site);
    if (base == kNoSlot) return Status::aborted;
    fill_put(qp, base, to, from, bytes, Signalled::yes);
    if (end != nullptr) *end = base + n;
    return publish(qp, base, n, site);
}

// A put and, behind it on the same QP, a strong signal: `add` is added to the peer's 64-bit word.
RDMAKIT_DEVICE Status put_signal(const QpHandle& qp, const RemoteMemory& to, const LocalMemory& from, u64 bytes,
                                 const RemoteMemory& word, u64 add, u64* end = nullptr, Site site = Site::here()) {
    const u32 n = writes_for(bytes) + 1;
    const u64 base = reserve(qp, n, site);
    if (base == kNoSlot) return Status::aborted;
    const u64 next = fill_put(qp, base, to, from, bytes, Signalled::no);
    write_fetch_add(qp, next, word.address, word.key, add, kCqUpdate);
    if (end != nullptr) *end = base + n;
    return publish(qp, base, n, site);
}

// A strong signal alone: for all that was put on this QP before.
RDMAKIT_DEVICE Status signal(const QpHandle& qp, const RemoteMemory& word, u64 add, Site site = Site::here()) {
    const u64 base = reserve(qp, 1, site);
    if (base == kNoSlot) return Status::aborted;
    write_fetch_add(qp, base, word.address, word.key, add, kCqUpdate);
    return publish(qp, base, 1, site);
}

// Sets the peer's 64-bit word, payload inside the WQE. Not a strong signal: a plain WRITE.
RDMAKIT_DEVICE Status put_word(const QpHandle& qp, const RemoteMemory& word, u64 value, Site site = Site::here()) {
    const u64 base = reserve(qp, 1, site);
    if (base == kNoSlot) return Status::aborted;
    const u32 words[3] = {static_cast<u32>(value), static_cast<u32>(value >> 32), 0};
    write_inline(qp, base, word.address, word.key, words, 8, kCqUpdate);
    return publish(qp, base, 1, site);
}

// Waits until the word has reached `least`. The acquire makes everything visible that the signal was strong for.
RDMAKIT_DEVICE Status wait_signal(const u64* word, u64 least, const Watch& watch, const Subject& who, u64* value,
                                  Site site = Site::here(), Site place = Site::here()) {
    const Status status = wait_until<Scope::sys>(word, [least](u64 v) { return v >= least; }, watch, who, value, site, place);
    if (status == Status::ok) RDMAKIT_MARK(kMarkSeen, who.qpn, least);
    return status;
}

}  // namespace rdmakit
