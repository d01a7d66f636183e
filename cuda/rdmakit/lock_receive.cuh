// rdmakit/lock_receive.cuh — the receiving end of a sequence lock: wait for a ticket's signal, judge what came, sign off.
// Layer: signal (leans on lock_wait).
#pragma once
#include "lock_wait.cuh"

namespace rdmakit {

// A transfer that has arrived and may be read until it is signed off.
struct Arrival {
    u64 ticket;
    u32 length;
};

// ---- all lanes -----------------------------------------------------------------------------------------------------------
// Word i of the payload of a transfer that has arrived, wherever its strategy put it.
template <Strategy S> RDMAKIT_DEVICE u64 payload_word(const LockReceiver& lock, const Arrival& arrival, u32 i) {
    const u8* const slot = slot_at(lock, arrival.ticket);
    if constexpr (S == Strategy::eager) {  // padded with zeros by the sender
        const u32 word = i + kHeaderWords;
        // What a checksum has vouched for, no acquire has: a plain load might still find an older line in L1.
        return load_relaxed<Scope::sys>(reinterpret_cast<const u64*>(slot) + word / kLineWords * (kLineWords + 1) + word % kLineWords);
    } else {
        return word_at(slot + kLockHeaderBytes, arrival.length, i);
    }
}
template <Strategy S> RDMAKIT_NOINLINE void copy_payload(const LockReceiver& lock, const Arrival& arrival, u8* to) {
    charge_copy(arrival.length);
    const Abreast charged(kChargedAlready);
    for (u32 i = static_cast<u32>(lane_id()); i < ceil_div(arrival.length, 8u); i += kLanes) {
        store_word(to, arrival.length, i, payload_word<S>(lock, arrival, i));
    }
}
// The sum of the payload's words.
template <Strategy S> RDMAKIT_NOINLINE u64 sum_payload(const LockReceiver& lock, const Arrival& arrival) {
    charge_copy(arrival.length);
    u64 sum = 0;
    {
        const Abreast charged(kChargedAlready);
        for (u32 i = static_cast<u32>(lane_id()); i < ceil_div(arrival.length, 8u); i += kLanes) {
            sum += payload_word<S>(lock, arrival, i);
        }
    }
    return warp_sum(sum);
}

// Waits until `ticket`, the first that is not signed off, is there and whole, and says how long it is.
template <Strategy S>
RDMAKIT_DEVICE Status receive(const LockReceiver& lock, u64 ticket, Arrival* arrival, Site site = Site::here()) {
    const Status there = by_lane_zero([&] {
        Status signal = Status::ok;
        if constexpr (S == Strategy::eager) return wait_line(lock, ticket, 0, 0, site);
        else if constexpr (S == Strategy::imm) signal = wait_immediate(lock, ticket, site);
        else if constexpr (S == Strategy::write || S == Strategy::cqe) signal = wait_flag(lock, ticket, site);
        else if ((lock.flags & kLockNarrowTail) != 0) signal = wait_tail<u32>(lock, ticket, site);
        else signal = wait_tail<u64>(lock, ticket, site);
        return signal != Status::ok ? signal : judge_header(lock, ticket, site);
    });
    if (there != Status::ok) return there;
    const LockHeader& header = *header_at(lock, ticket);
    if constexpr (S == Strategy::eager) {
        *arrival = Arrival{ticket, load_relaxed<Scope::sys>(&header.length)};  // as payload_word does
        Status mine = Status::ok;
        const Abreast lanes(kLanesAbreast);
        for (u32 line = 1 + static_cast<u32>(lane_id()); line < eager_lines(arrival->length); line += kLanes) {
            if (mine == Status::ok) mine = wait_line(lock, ticket, line, arrival->length, site);
        }
        const bool failed = warp_any(mine != Status::ok);
        warp_sync();  // a vote orders no memory: every lane may read what any lane has acquired
        return mine == Status::ok && failed ? Status::aborted : mine;
    } else {
        *arrival = Arrival{ticket, header.length};
        if (!has_crc(lock)) return Status::ok;
        const u32 crc = payload_crc(slot_at(lock, ticket) + kLockHeaderBytes, header.length);
        if (holds(crc == header.crc)) return Status::ok;
        return refuse(lock, Status::corrupt_payload, "a payload that its checksum does not fit", header.crc, crc, ticket, site);
    }
}

// Gives back all tickets below `end` that have been signed off.
RDMAKIT_NOINLINE Status give_back(const LockReceiver& lock, u64 end, Site site) {
    LockState& state = *lock.state;
    if (state.credited == end) return Status::ok;
    const Status status = signal(lock.qp, lock.credit, end - state.credited, site);
    if (status == Status::ok) state.credited = end;
    return status;
}
// The payload of `ticket` has been used: it will never be delivered again, and its slot may be filled anew.
RDMAKIT_DEVICE Status sign_off(const LockReceiver& lock, u64 ticket, Site site = Site::here()) {
    return by_lane_zero([&] {
        LockState& state = *lock.state;
        state.signed_off = ticket + 1;
        return ticket + 1 - state.credited < lock.credit_every ? Status::ok : give_back(lock, ticket + 1, site);
    });
}
// Gives back what sign_off has kept together, and waits until it is on its way.
RDMAKIT_NOINLINE Status finish(const LockReceiver& lock, Site site = Site::here()) {
    return by_lane_zero([&] {
        const Status status = give_back(lock, lock.state->signed_off, site);
        return status != Status::ok ? status : quiet(lock.qp, site);
    });
}

// Receives `ticket` by the strategy that the handle names, hands it to use.take<S>(lock, arrival) (all lanes), and signs
// it off.
template <Strategy S, class Use>
RDMAKIT_DEVICE Status deliver(const LockReceiver& lock, u64 ticket, Use& use, Site site = Site::here()) {
    Arrival arrival{};
    const Status status = receive<S>(lock, ticket, &arrival, site);
    if (status != Status::ok) return status;
    use.template take<S>(lock, arrival);
    return sign_off(lock, ticket, site);
}
template <class Use> RDMAKIT_DEVICE Status deliver(const LockReceiver& lock, u64 ticket, Use& use, Site site = Site::here()) {
    switch (lock.strategy) {
        case Strategy::amo: return deliver<Strategy::amo>(lock, ticket, use, site);
        case Strategy::imm: return deliver<Strategy::imm>(lock, ticket, use, site);
        case Strategy::eager: return deliver<Strategy::eager>(lock, ticket, use, site);
        case Strategy::write: return deliver<Strategy::write>(lock, ticket, use, site);
        case Strategy::cqe: return deliver<Strategy::cqe>(lock, ticket, use, site);
        case Strategy::split: return deliver<Strategy::split>(lock, ticket, use, site);
    }
    return Status::bad_argument;
}

}  // namespace rdmakit
