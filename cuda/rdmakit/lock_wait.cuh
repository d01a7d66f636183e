// rdmakit/lock_wait.cuh — waiting for the signal of one ticket: at a tail, a flag, a CQ, or the data's own lines.
// Layer: signal (leans on lock). Each function is called by one thread.
#pragma once
#include "lock.cuh"

namespace rdmakit {

template <class Word> RDMAKIT_NOINLINE Status wait_tail(const LockReceiver& lock, u64 ticket, Site site) {
    Word tail = 0;
    const auto passed = [ticket](Word v) {  // a window is far smaller than half of what the narrower word counts
        const Word ahead = v - static_cast<Word>(ticket);
        return ahead != 0 && ahead >> (8 * sizeof(Word) - 1) == 0;
    };
    return wait_until<Scope::sys>(reinterpret_cast<const Word*>(lock.signal), passed, lock.qp.watch,
                                  about(lock.qp, "the tail to pass the next ticket", ticket + 1), &tail, site);
}

// A flag of this ticket but another epoch was left by the connection before: not a signal yet. It is told by trying the
// epochs that there have been, of which no more than kEpochsTold are.
constexpr u32 kEpochsTold = 16;
RDMAKIT_DEVICE bool of_earlier_epoch(const LockReceiver& lock, u64 ticket, u32 print) {
    for (u32 back = 1; back <= kEpochsTold && back < lock.epoch; ++back) {
        if (print == signal_fingerprint(lock.sender_qpn, lock.epoch - back, ticket)) return true;
    }
    return false;
}
RDMAKIT_NOINLINE Status wait_flag(const LockReceiver& lock, u64 ticket, Site site) {
    const u64* const flag = reinterpret_cast<const u64*>(lock.signal) + (ticket & (lock.slots - 1));
    const u32 print = signal_fingerprint(lock.sender_qpn, lock.epoch, ticket);
    Subject who = about(lock.qp, "the flag of the next ticket", ticket);
    for (Spin spin(lock.qp.watch);;) {
        const u64 word = load_acquire<Scope::sys>(flag);
        const u64 seen = widen_ticket(static_cast<u32>(word), ticket);
        const u32 mark = static_cast<u32>(word >> 32);
        if (holds(seen == ticket && mark == print)) return Status::ok;
        if (!holds(!comes_after(seen, ticket))) return refuse(lock, Status::gap, "a flag of a later ticket", ticket, seen, ticket, site);
        if (!holds(seen != ticket || of_earlier_epoch(lock, ticket, mark))) {
            return refuse(lock, Status::wrong_fingerprint, "a flag that its fingerprint does not fit", print, mark, ticket, site);
        }
        if (seen == ticket) who.late = Status::stale_epoch;
        if (!spin.pause(who, site, Seen<u64>{flag, word})) return spin.status();
    }
}

// The receive CQ's next entry. Its receive WQE had no room for data, needs none, and is posted again by moving the
// doorbell record on: the ring's bytes never change (rdma-core mlx5_post_recv; receive queues have no register).
RDMAKIT_NOINLINE Status wait_immediate(const LockReceiver& lock, u64 ticket, Site site) {
    LockState& state = *lock.state;
    const u64 consumer = state.consumer;
    const u32* const cqe = reinterpret_cast<const u32*>(cqe_address(lock.receive_cq, consumer));
    const Subject who = about(lock.qp, "the completion of the next ticket", ticket);
    for (Spin spin(lock.qp.watch);;) {
        const CqeTail tail{load_acquire<Scope::sys>(cqe_tail_address(lock.receive_cq, consumer))};
        if (holds(cqe_ready(tail.op_own(), consumer, lock.receive_cq.log_entries))) {
            const bool failed = tail.is_error();
            if (holds(!failed)) break;
            const u32 error = cqe[13];  // bytes 52..55: vendor syndrome, syndrome at the end
            return fail(lock.qp.watch, Status::completion_error, who, 0, tail.counter(), 0, error >> 24, (error >> 16) & 0xff,
                        site);
        }
        if (!spin.pause(who, site, Seen<u32>{cqe_tail_address(lock.receive_cq, consumer), tail.raw})) return spin.status();
    }
    const u32 imm = swap_bytes(cqe[9]);  // byte 36
    state.consumer = consumer + 1;
    store_relaxed<Scope::sys>(&lock.receive_cq.dbrec[kDbrecSetCi], swap_bytes(static_cast<u32>((consumer + 1) & 0xffffff)));
    state.receives += 1;
    store_relaxed<Scope::sys>(lock.receive_dbrec, swap_bytes(static_cast<u32>(state.receives & 0xffff)));
    const u64 seen = widen_ticket(static_cast<u16>(imm), ticket);
    if (!holds(!comes_after(seen, ticket))) return refuse(lock, Status::gap, "an immediate of a later ticket", ticket, seen, ticket, site);
    if (!holds(!comes_after(ticket, seen))) return refuse(lock, Status::repeated, "an immediate of an older ticket", ticket, seen, ticket, site);
    const u32 print = signal_fingerprint(lock.sender_qpn, lock.epoch, ticket) >> 16;
    if (!holds(imm >> 16 == print)) {
        return refuse(lock, Status::wrong_fingerprint, "an immediate that its fingerprint does not fit", print, imm >> 16, ticket,
                      site);
    }
    return Status::ok;
}

// ---- eager: each line by a lane of its own -------------------------------------------------------------------------------
// `length` is the transfer's, which line 0 itself tells. What does not fit the stamp is not there yet: an older lap's, an
// older epoch's or, with checksums, a line of which some sectors have not landed.
RDMAKIT_NOINLINE Status wait_line(const LockReceiver& lock, u64 ticket, u32 line, u32 length, Site site) {
    const u64* const words = reinterpret_cast<const u64*>(slot_at(lock, ticket) + line * kLineBytes);
    const u64* const stamp = words + kLineWords;
    Subject who = about(lock.qp, "the stamp of a line", ticket);
    for (Spin spin(lock.qp.watch);;) {
        const u64 word = load_acquire<Scope::sys>(stamp);
        const u64 seen = widen_ticket(static_cast<u32>(word), ticket);
        if (!holds(!comes_after(seen, ticket))) return refuse(lock, Status::gap, "a stamp of a later ticket", ticket, seen, ticket, site);
        if (seen != ticket) {
            if (!spin.pause(who, site, Seen<u64>{stamp, word})) return spin.status();
            continue;
        }
        // Loads that may race with the NIC: what they say counts only if the stamp agrees.
        const u32 count = has_crc(lock) ? kLineWords : line == 0 ? kHeaderWords : 0;
        u64 data[kLineWords + 1] = {};
        {
            const Abreast in_flight(4);  // they do not wait for each other
            for (u32 i = 0; i < count; ++i) data[i] = load_relaxed<Scope::sys>(words + i);
        }
        const u32 bytes = line == 0 ? static_cast<u32>(data[1]) : length;
        const u32 crc = has_crc(lock) ? crc32c_line(data) : 0;
        const u32 print = line_fingerprint(lock.sender_qpn, lock.epoch, ticket, bytes, line, crc);
        if (holds(static_cast<u32>(word >> 32) == print)) return Status::ok;
        const bool stale = line == 0 && data[0] == ticket && static_cast<u32>(data[2]) < lock.epoch;
        who.late = stale ? Status::stale_epoch : Status::wrong_fingerprint;
        data[kLineWords] = word;
        const bool goes_on =
            has_crc(lock) ? spin.pause(who, site, SeenLine{words, data, 8}, SeenLine{words + 8, data + 8, 8})
            : line == 0   ? spin.pause(who, site, Seen<u64>{stamp, word}, Seen<u64>{words + 1, data[1]})
                          : spin.pause(who, site, Seen<u64>{stamp, word});
        if (!goes_on) return spin.status();
    }
}

}  // namespace rdmakit
