// rdmakit/lock_send.cuh — the sending end of a sequence lock: fill a slot, post its data and its signal.
// Layer: signal (leans on lock, post).
#pragma once
#include "lock.cuh"

namespace rdmakit {

// ---- the staging slot: all lanes write ---------------------------------------------------------------------------------
RDMAKIT_DEVICE LockHeader make_header(const LockSender& lock, u64 ticket, u32 length, u32 crc) {
    const u32 print = fingerprint(lock.qp.qpn, lock.epoch, ticket, length, crc);
    return LockHeader{ticket, length, print, lock.epoch, crc, lock.qp.qpn, 0};
}
// Header, then the payload in one piece.
RDMAKIT_NOINLINE void fill_whole(const LockSender& lock, u64 ticket, const u8* payload, u32 length) {
    u8* const slot = lock.staging + slot_offset(lock, ticket);
    const u32 crc = has_crc(lock) ? payload_crc(payload, length) : 0;
    if (lane_id() == 0) *reinterpret_cast<LockHeader*>(slot) = make_header(lock, ticket, length, crc);
    for (u32 i = static_cast<u32>(lane_id()); i < ceil_div(length, 8u); i += kLanes) {
        store_word(slot + kLockHeaderBytes, length, i, word_at(payload, length, i));
    }
}
// Header and payload cut into lines of 120 bytes, each with a stamp behind it.
RDMAKIT_NOINLINE void fill_lines(const LockSender& lock, u64 ticket, const u8* payload, u32 length) {
    const LockHeader header = make_header(lock, ticket, length, 0);
    for (u32 line = static_cast<u32>(lane_id()); line < eager_lines(length); line += kLanes) {
        u64* const to = reinterpret_cast<u64*>(lock.staging + slot_offset(lock, ticket) + line * kLineBytes);
        u64 words[kLineWords];
        for (u32 i = 0; i < kLineWords; ++i) {
            const u32 word = line * kLineWords + i;
            words[i] = word < kHeaderWords ? reinterpret_cast<const u64*>(&header)[word]
                                           : word_at(payload, length, word - kHeaderWords);
            to[i] = words[i];
        }
        const u32 crc = has_crc(lock) ? crc32c_line(words) : 0;
        to[kLineWords] = stamp_word(ticket, line_fingerprint(lock.qp.qpn, lock.epoch, ticket, length, line, crc));
    }
}

// ---- the work requests: one thread -------------------------------------------------------------------------------------
RDMAKIT_DEVICE void write_slot(const LockSender& lock, u64 index, Opcode opcode, u64 ticket, u32 bytes, Signalled signalled,
                               u32 imm = 0) {
    const u64 at = slot_offset(lock, ticket);
    write_rdma(lock.qp, index, opcode, lock.ring.address + at, lock.ring.key, reinterpret_cast<u64>(lock.staging) + at,
               lock.staging_lkey, bytes, static_cast<u32>(signalled), imm);
}
RDMAKIT_DEVICE void write_tail(const LockSender& lock, const QpHandle& qp, u64 index) {
    if ((lock.flags & kLockNarrowTail) != 0) {
        write_masked_fetch_add4(qp, index, lock.signal.address, lock.signal.key, 1, 0, kCqUpdate);
    } else {
        write_fetch_add(qp, index, lock.signal.address, lock.signal.key, 1, kCqUpdate);
    }
}
RDMAKIT_DEVICE void write_flag(const LockSender& lock, u64 index, u64 ticket) {
    const u32 words[3] = {static_cast<u32>(ticket), signal_fingerprint(lock.qp.qpn, lock.epoch, ticket), 0};
    write_inline(lock.qp, index, lock.signal.address + 8 * (ticket & (lock.slots - 1)), lock.signal.key, words, 8, kCqUpdate);
}
// Out of line, since six strategies would repeat them nine times: a call is nothing beside a doorbell.
RDMAKIT_NOINLINE u64 begin_post(const QpHandle& qp, u32 bbs, Site site) { return reserve(qp, bbs, site); }
RDMAKIT_NOINLINE Status end_post(const QpHandle& qp, u64 base, u32 bbs, Site site) { return publish(qp, base, bbs, site); }
// Reserves `bbs` basic blocks, lets `fill` write the WQEs there, and publishes them.
template <class Fill>
RDMAKIT_DEVICE Status post(const QpHandle& qp, u32 bbs, Site site, Fill fill, u64* end = nullptr) {
    const u64 base = begin_post(qp, bbs, site);
    if (base == kNoSlot) return Status::aborted;
    fill(base);
    if (end != nullptr) *end = base + bbs;
    return end_post(qp, base, bbs, site);
}

template <Strategy S> RDMAKIT_NOINLINE Status post_slot(const LockSender& lock, u64 ticket, u32 length, Site site) {
    const u32 bytes = slot_message(S, length);
    const QpHandle& qp = lock.qp;
    if constexpr (S == Strategy::amo || S == Strategy::write) {
        return post(qp, 2, site, [&](u64 index) {
            write_slot(lock, index, Opcode::write, ticket, bytes, Signalled::no);
            if constexpr (S == Strategy::amo) write_tail(lock, qp, index + 1);
            else write_flag(lock, index + 1, ticket);
        });
    } else if constexpr (S == Strategy::imm) {
        const u32 imm = immediate_of(ticket, signal_fingerprint(qp.qpn, lock.epoch, ticket));
        return post(qp, 1, site, [&](u64 index) {
            write_slot(lock, index, Opcode::write_imm, ticket, bytes, Signalled::yes, imm);
        });
    } else {
        u64 end = 0;
        const Status data = post(qp, 1, site, [&](u64 index) {
            write_slot(lock, index, Opcode::write, ticket, bytes, Signalled::yes);
        }, &end);
        if (S == Strategy::eager || data != Status::ok) return data;
        if constexpr (S == Strategy::cqe) {
            const Status done = wait_completed(qp, end, "completion of the data", site);
            return done != Status::ok ? done : post(qp, 1, site, [&](u64 index) { write_flag(lock, index, ticket); });
        } else {
            return post(lock.signal_qp, 1, site, [&](u64 index) { write_tail(lock, lock.signal_qp, index); });
        }
    }
}

// ---- all lanes ---------------------------------------------------------------------------------------------------------
// Sends `length` bytes as `ticket`, the one after the last. `payload` is 8-byte aligned and may be reused at once.
// Returns when posted: up to W transfers are under way.
template <Strategy S>
RDMAKIT_DEVICE Status send(const LockSender& lock, u64 ticket, const u8* payload, u32 length, Site site = Site::here()) {
    const Status room = by_lane_zero([&] {
        if (!holds(length <= lock.max_payload)) {
            return fail(lock.qp.watch, Status::bad_argument, about(lock.qp, "a payload longer than a slot", lock.max_payload),
                        length, ticket, 0, 0, 0, site);
        }
        return wait_window(lock, ticket, site);
    });
    if (room != Status::ok) return room;
    charge_copy(length);
    if constexpr (S == Strategy::eager) fill_lines(lock, ticket, payload, length);
    else fill_whole(lock, ticket, payload, length);
    return by_lane_zero([&] {
        const Status status = post_slot<S>(lock, ticket, length, site);
        if (status == Status::ok) *lock.next = ticket + 1;
        return status;
    });
}
// The same, by the strategy that the handle names.
RDMAKIT_DEVICE Status send(const LockSender& lock, u64 ticket, const u8* payload, u32 length, Site site = Site::here()) {
    switch (lock.strategy) {
        case Strategy::amo: return send<Strategy::amo>(lock, ticket, payload, length, site);
        case Strategy::imm: return send<Strategy::imm>(lock, ticket, payload, length, site);
        case Strategy::eager: return send<Strategy::eager>(lock, ticket, payload, length, site);
        case Strategy::write: return send<Strategy::write>(lock, ticket, payload, length, site);
        case Strategy::cqe: return send<Strategy::cqe>(lock, ticket, payload, length, site);
        case Strategy::split: return send<Strategy::split>(lock, ticket, payload, length, site);
    }
    return Status::bad_argument;
}
// All that was sent is complete at this end: errors of the queue pairs show here at the latest.
RDMAKIT_NOINLINE Status finish(const LockSender& lock, Site site = Site::here()) {
    return by_lane_zero([&] {
        const Status data = quiet(lock.qp, site);
        return data != Status::ok || lock.strategy != Strategy::split ? data : quiet(lock.signal_qp, site);
    });
}

}  // namespace rdmakit
