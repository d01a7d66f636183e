// rdmakit/lock.cuh — the in-QP sequence lock: a one-way channel of W slots from a sender to a receiver, each transfer
// with a ticket, signed off strictly in order. What the two ends know, the window between them, who refuses what.
// Layer: signal (leans on signal, lock_stamp). lock_send.cuh and lock_receive.cuh are the two ends.
//
//   ticket t lies in slot t % W. The sender may fill it once ticket t − W has been signed off: then the receiver has
//   used what lay there, hence the NIC has long read the sender's staging copy. Credits come back on the receiver's own
//   queue pair, as additions: two WRITEs of a head could land in either order (man ibv_reg_mr, relaxed ordering).
//
// Epochs: when a queue pair has failed, the host connects it anew under the next epoch, from the first ticket that was
// not signed off. Slots keep what they held. A header, flag or stamp of an older epoch has another fingerprint; the words
// that are added to, which have none, are others in each epoch.
#pragma once
#include "lock_stamp.cuh"
#include "signal.cuh"

namespace rdmakit {

constexpr u32 kLockCrc = 1u << 0;         // fingerprints cover a checksum of the payload
constexpr u32 kLockNarrowTail = 1u << 1;  // amo: a masked fetch-add of 4 bytes, and a tail of 32 bits

struct LockSender {
    u32 layout_version;
    Strategy strategy;
    u32 epoch;
    u32 flags;
    u32 slots;            // W, a power of two
    u32 slot_bytes;       // a multiple of 128
    u32 max_payload;
    u32 staging_lkey;
    u8* staging;          // slots × slot_bytes
    const u64* credit;    // tickets given back, as a ticket: those below credit + W may be sent
    u64* next;            // ticket of the next transfer
    RemoteMemory ring;    // the receiver's slots
    RemoteMemory signal;  // amo, split: the tail; write, cqe: a flag a slot
    QpHandle qp;
    QpHandle signal_qp;   // split alone
};

// What a receiver carries from one launch to the next.
struct LockState {
    u64 signed_off;       // every ticket below has been delivered, once, in order
    u64 credited;         // every ticket below has been given back to the sender
    u64 consumer;         // imm: index into the receive CQ
    u64 receives;         // imm: receive WQEs posted since the queue pair was connected
};

struct LockReceiver {
    u32 layout_version;
    Strategy strategy;
    u32 epoch;
    u32 flags;
    u32 slots;
    u32 slot_bytes;
    u32 max_payload;
    u32 sender_qpn;       // in every fingerprint
    const u8* ring;
    const u8* signal;
    LockState* state;
    RemoteMemory credit;
    u32* receive_dbrec;   // imm: the receive word of the doorbell record
    u32 credit_every;     // tickets signed off for one credit message, at most W / 2
    u32 reserved;
    CqHandle receive_cq;  // imm
    QpHandle qp;          // credits go out on it
};

template <class Lock> RDMAKIT_DEVICE u64 slot_offset(const Lock& lock, u64 ticket) {
    return (ticket & (lock.slots - 1)) * lock.slot_bytes;
}
template <class Lock> RDMAKIT_DEVICE bool has_crc(const Lock& lock) { return (lock.flags & kLockCrc) != 0; }
RDMAKIT_DEVICE const u8* slot_at(const LockReceiver& lock, u64 ticket) { return lock.ring + slot_offset(lock, ticket); }
RDMAKIT_DEVICE const LockHeader* header_at(const LockReceiver& lock, u64 ticket) {
    return reinterpret_cast<const LockHeader*>(slot_at(lock, ticket));
}
// Flags and immediates say who and which, not how long: they are told from another epoch's before the header is read.
RDMAKIT_DEVICE constexpr u32 signal_fingerprint(u32 qpn, u32 epoch, u64 ticket) {
    return fingerprint(qpn, epoch, ticket, ~0u, 0);
}

RDMAKIT_DEVICE bool check_handle(const LockSender& lock, Site site = Site::here()) {
    return layout_matches(lock.layout_version, lock.qp.watch, "LockSender of another layout version", site) &&
           check_handle(lock.qp, site) && (lock.strategy != Strategy::split || check_handle(lock.signal_qp, site));
}
RDMAKIT_DEVICE bool check_handle(const LockReceiver& lock, Site site = Site::here()) {
    return layout_matches(lock.layout_version, lock.qp.watch, "LockReceiver of another layout version", site) &&
           check_handle(lock.qp, site) &&
           (lock.strategy != Strategy::imm || layout_matches(lock.receive_cq.layout_version, lock.qp.watch,
                                                             "receive CqHandle of another layout version", site));
}

// One thread. Waits until the slot of `ticket` has been given back. Looks at its own completions meanwhile: a queue pair
// that has failed would else pass for a receiver that is slow.
RDMAKIT_NOINLINE Status wait_window(const LockSender& lock, u64 ticket, Site site = Site::here()) {
    const Subject who = about(lock.qp, "credit for the slot of the next ticket", ticket - lock.slots + 1);
    for (Spin spin(lock.qp.watch);;) {
        const u64 credit = load_acquire<Scope::sys>(lock.credit);
        if (holds(ticket - credit < lock.slots)) return Status::ok;
        Seen<u32> more{};
        poll_cq(lock.qp, &more);
        // This warp alone sends on the queue pair, so what has failed it has noted itself.
        const bool failed = (load_relaxed<Scope::cta>(&lock.qp.state->error) & kErrorFlag) != 0;
        if (!holds(!failed)) return completion_error(lock.qp, who, site);
        if (!spin.pause(who, site, Seen<u64>{lock.credit, credit}, more)) return spin.status();
    }
}

// One thread. Nothing is signed off from here on: the host reads why, and may reconnect under a new epoch.
RDMAKIT_DEVICE Status refuse(const LockReceiver& lock, Status why, const char* what, u64 expected, u64 seen, u64 ticket,
                             Site site) {
    return fail(lock.qp.watch, why, about(lock.qp, what, expected), seen, ticket, 0, 0, 0, site);
}

// One thread, once the signal for `ticket` has been seen: is what lies in its slot that transfer?
RDMAKIT_NOINLINE Status judge_header(const LockReceiver& lock, u64 ticket, Site site = Site::here()) {
    const LockHeader h = *header_at(lock, ticket);
    if (!holds(!comes_after(h.ticket, ticket))) {
        return refuse(lock, Status::gap, "a later ticket in its slot: one is missing", ticket, h.ticket, ticket, site);
    }
    if (!holds(!comes_after(ticket, h.ticket))) {
        return refuse(lock, Status::repeated, "an older ticket in its slot: repeated, or signalled too early", ticket,
                      h.ticket, ticket, site);
    }
    if (!holds(h.epoch == lock.epoch)) {
        return refuse(lock, Status::stale_epoch, "a transfer of another epoch", lock.epoch, h.epoch, ticket, site);
    }
    const u32 print = fingerprint(lock.sender_qpn, lock.epoch, ticket, h.length, h.crc);
    if (!holds(h.fingerprint == print)) {
        return refuse(lock, Status::wrong_fingerprint, "a header that its fingerprint does not fit", print, h.fingerprint,
                      ticket, site);
    }
    if (!holds(h.length <= lock.max_payload)) {
        return refuse(lock, Status::bad_argument, "a transfer longer than its slot", lock.max_payload, h.length, ticket, site);
    }
    return Status::ok;
}

}  // namespace rdmakit
