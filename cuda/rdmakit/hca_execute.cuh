// rdmakit/hca_execute.cuh — one queue pair in the hands of the warp that has its turn: its doorbell, its WQEs, one by one.
// Layer: hca (leans on hca_respond). All lanes call.
#pragma once
#include "hca_respond.cuh"

namespace rdmakit {

// ---- doorbells ------------------------------------------------------------------------------------------------------
// What a store to the register says of the send queue, as Hca::ring_send has it (rdmakit/emu/hca/doorbell.cpp).
RDMAKIT_NOINLINE void hear(Serving& s, u64 value) {
    HcaQp& qp = s.qp;
    const Doorbell bell = decode_doorbell(value);
    const HcaQpState state = s.state;
    const u64 entries = 1ull << qp.log_sq;
    const bool listening = state == HcaQpState::rts || state == HcaQpState::sqd || state == HcaQpState::sqe ||
                           state == HcaQpState::error;
    u64 target = s.producer;
    if (bell.qpn == qp.qpn && listening) {
        if (qp.doorbell != HcaDoorbell::dbrec) {
            target = widen_index(s.producer, doorbell_next_index(bell));
            // A sender that keeps `index & (entries - 1)` in its ctrl segments (mori) rings with a slot, not an index.
            const bool slot = bell.ds != 0 && bell.index < entries && target > s.completed + entries;
            if (slot && qp.doorbell == HcaDoorbell::register_value) target = s.producer;
        }
        if (qp.doorbell != HcaDoorbell::no_dbr) {
            const u32 record = swap_bytes(load_acquire<Scope::sys>(&qp.dbrec[kDbrecSend]));
            target = larger(target, widen_index(s.producer, record & 0xffff));
        }
    }
    target = warp_broadcast(target);
    if (lane_id() == 0) {
        ++qp.doorbells;
        if (target <= s.producer) ++qp.ignored;
    }
    if (target <= s.producer) return;
    if (target <= s.completed + entries) {
        s.producer = target;
        return;
    }
    // More was posted than the ring holds: what was overwritten cannot be known, so all that is there fails.
    s.producer = s.completed + entries;
    s.events |= kHcaQpFatal;
    if (s.state == HcaQpState::error) return;
    fail(s, decode_wqe(SendRing{qp.sq, qp.log_sq}, s.completed, entries, qp.qpn), Syndrome::local_qp_op);
}

// ---- one WQE ----------------------------------------------------------------------------------------------------------
// All that the sender's side can refuse by itself.
RDMAKIT_DEVICE Syndrome check_locally(const Serving& s, const DecodedWqe& wqe) {
    if (wqe.fault != Syndrome::none) return wqe.fault;
    const bool reads = is_read(wqe.opcode) || is_atomic(wqe.opcode);
    if (reads && s.qp.max_rd_atomic == 0) return Syndrome::local_qp_op;
    LocalRuns runs(s.qp, wqe, reads ? kKeyLocalWrite : 0);
    while (runs.next().bytes != 0) {}
    return runs.fault ? Syndrome::local_protection : Syndrome::none;
}

// False: its receiver is not ready, and it has to be tried again.
RDMAKIT_DEVICE bool execute_next(Serving& s, bool last_chance) {
    const DecodedWqe wqe = decode_wqe(SendRing{s.qp.sq, s.qp.log_sq}, s.completed, s.producer - s.completed, s.qp.qpn);
    const Syndrome fault = check_locally(s, wqe);
    if (fault != Syndrome::none) {
        fail(s, wqe, fault);
        return true;
    }
    Answer answer{Reply::done, Syndrome::none};
    if (!is_local(wqe.opcode)) {
        order_after_payload(s.qp.same_gpu != 0);
        answer = respond(s, wqe);
    }
    if (answer.reply == Reply::not_ready) {
        // Once nobody is left to post a receive, the retries of a sender that has any are used up.
        if (!last_chance || s.qp.rnr_retry == 7) return false;
        answer = {Reply::refused, Syndrome::rnr_retry_exceeded};
    }
    if (answer.reply == Reply::refused) {
        fail(s, wqe, answer.syndrome);
        return true;
    }
    s.completed = wqe.bb + wqe.bbs;
    ++s.send_wqes;
    s.send_bbs += wqe.bbs;
    (is_read(wqe.opcode) || is_atomic(wqe.opcode) ? s.fetched : s.sent) += wqe.bytes;
    if (!wants_cqe(wqe, s.qp.sq_sig_all != 0)) return true;
    const Cqe cqe = requester_cqe(s.qp.qpn, wqe.opcode, wqe.index, static_cast<u32>(wqe.bytes), time_ns());
    const Pushed pushed = push_cqe(*s.qp.send_cq, cqe, s.watch, s.qp.same_gpu != 0);
    if (pushed == Pushed::yes) {
        ++s.cqes;
        return true;
    }
    s.events |= pushed == Pushed::died ? kHcaQpFatal | kHcaCqError : kHcaQpFatal;
    enter_error(s);
    return true;
}

// Begins to fetch the next WQEs, all at once: decoding them one field after the other then finds them near.
RDMAKIT_DEVICE void touch_wqes([[maybe_unused]] const Serving& s) {
#if RDMAKIT_GPU
    constexpr u64 kSectors = kWqebb / 32;  // what L1 fetches at once
    const u64 sector = s.completed * kSectors + static_cast<u64>(lane_id());
    if (sector < s.producer * kSectors) touch(s.qp.sq + (sector & ((kSectors << s.qp.log_sq) - 1)) * 32);
#endif
}

// ---- one queue pair ---------------------------------------------------------------------------------------------------
// Whatever it has to do, for who has its turn. True if it had anything.
RDMAKIT_NOINLINE bool serve_turn(const HcaHandle& hca, u32 index, bool last_chance) {
    HcaQp& qp = hca.qps[index];
    // Loads that need not wait for each other, the acquire last: each costs a round trip by itself.
    u64 heard = load_relaxed<Scope::sys>(&hca.heard[index]);
    u32 attend = load_relaxed<Scope::sys>(&hca.attend[index]);
    const u64 value = warp_broadcast(load_acquire<Scope::sys>(&hca.registers[index]));
    heard = warp_broadcast(heard);
    attend = warp_broadcast(attend);
    warp_sync();
    if (lane_id() == 0) {
        if (value != heard) store_relaxed<Scope::sys>(&hca.heard[index], value);
        if (attend != 0) exchange_acquire<Scope::sys>(&hca.attend[index], 0u);  // and of what it was set for
    }
    warp_sync();
    Serving s(qp, hca.watch);
    const u64 before = s.completed;
    if (value != heard) hear(s, value);
    bool stalled = false;
    touch_wqes(s);
    while (!stalled && s.completed != s.producer && s.state == HcaQpState::rts) stalled = !execute_next(s, last_chance);
    if (s.state == HcaQpState::error) {
        flush_sends(s);
        if (take_respond(qp, hca.watch)) {
            flush_receives(qp, hca.watch);
            end_turn(&qp.respond);
        }
    }
    if (stalled && lane_id() == 0) store_relaxed<Scope::sys>(&hca.attend[index], 1u);
    s.write_back();
    warp_sync();
    return s.completed != before || value != heard;
}
RDMAKIT_DEVICE bool serve_qp(const HcaHandle& hca, u32 index, bool last_chance) {
    HcaQp& qp = hca.qps[index];
    if (!layout_matches(qp.layout_version, hca.watch, "HcaQp of another layout version")) return false;
    if (!try_turn(&qp.turn)) return false;
    const bool worked = serve_turn(hca, index, last_chance);
    end_turn(&qp.turn);
    return worked;
}

}  // namespace rdmakit
