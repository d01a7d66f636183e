// rdmakit/hca_engine.cuh — an HCA made of warps: they look at doorbells, fetch WQEs, execute them in order, write CQEs.
// Layer: hca (leans on hca_respond). For GPUs without a NIC: the CTAs of hca_serve run beside an operation's kernels, or some
// CTAs of its own grid call hca_serve() and the others hca_leave() when they are done. It ends when it is not needed any
// more, or has found nothing to do for as long as its watch says: a kernel without end would stop the whole device.
//
// What it shares with the CPU engine (rdmakit/emu/hca) is hca.cuh; it has neither packets nor time nor faults.
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
        order_after_payload();
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
    const Pushed pushed = push_cqe(*s.qp.send_cq, cqe, s.watch);
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
// Whatever it has to do. True if it had anything.
RDMAKIT_NOINLINE bool serve_qp(const HcaHandle& hca, u32 index, bool last_chance) {
    HcaQp& qp = hca.qps[index];
    if (!layout_matches(qp.layout_version, hca.watch, "HcaQp of another layout version")) return false;
    if (!try_turn(&qp.turn)) return false;
    // Loads that need not wait for each other, the acquire last: each costs a round trip by itself.
    u64 heard = load_relaxed<Scope::sys>(&hca.heard[index]);
    u32 attend = load_relaxed<Scope::sys>(&hca.attend[index]);
    Serving s(qp, hca.watch);
    const u64 value = warp_broadcast(load_acquire<Scope::sys>(&hca.registers[index]));
    heard = warp_broadcast(heard);
    attend = warp_broadcast(attend);
    warp_sync();
    if (lane_id() == 0) {
        if (value != heard) store_relaxed<Scope::sys>(&hca.heard[index], value);
        if (attend != 0) store_relaxed<Scope::sys>(&hca.attend[index], 0u);
    }
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
    end_turn(&qp.turn);
    return s.completed != before || value != heard;
}

// ---- all of them ------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE u32 hca_groups(const HcaHandle& hca) { return ceil_div(hca.count, kHcaGroup); }

// One look at a group of queue pairs; serves those that have something to do. True if any had. `turn` says with which to
// begin, so that several warps take different ones.
RDMAKIT_DEVICE bool hca_look(const HcaHandle& hca, u32 group, u32 turn, bool last_chance) {
    const u32 first = group * kHcaGroup;
    const u32 count = smaller(hca.count - first, kHcaGroup);
    const u32 wanted = lanes_that(count, [&](u32 i) {
        const u64 value = load_relaxed<Scope::sys>(&hca.registers[first + i]);
        const u64 heard = load_relaxed<Scope::sys>(&hca.heard[first + i]);
        return value != heard || load_relaxed<Scope::sys>(&hca.attend[first + i]) != 0;
    });
    bool worked = false;
    for (u32 k = 0; k < count && wanted != 0; ++k) {
        const u32 i = (k + 4 * turn) % count;
        if ((wanted >> i & 1) != 0 && serve_qp(hca, first + i, last_chance)) worked = true;
    }
    return worked;
}

#if !RDMAKIT_GPU
// Parks until something may have changed since a look that found nothing: a register, the word of those who have ended, the
// receive record that a stalled sender waits for, the turn of a queue pair that another warp is serving. With more of those
// than a fibre can watch, it comes back at once.
inline bool hca_park(const HcaHandle& hca, u32 group, u32 left, Spin& spin, const Subject& who, Site site) {
    constexpr u32 kLine = kHcaGroup / 2;
    const u32 first = group * kHcaGroup;
    u64 heard[kHcaGroup];
    const HcaQp* waiting = nullptr;
    u32 stalled = 0;
    for (u32 i = 0; i < kHcaGroup; ++i) {
        heard[i] = load_relaxed<Scope::sys>(&hca.heard[first + i]);
        if (first + i >= hca.count) continue;
        const bool attend = load_relaxed<Scope::sys>(&hca.attend[first + i]) != 0;
        const u32* const turn = &hca.qps[first + i].turn;
        if (attend || load_relaxed<Scope::sys>(&hca.registers[first + i]) != heard[i]) {
            if (load_relaxed<Scope::sys>(turn) != 0) return spin.pause(who, site, Seen<u32>{hca.left, left}, Seen<u32>{turn, 1u});
        }
        if (!attend) continue;
        ++stalled;
        waiting = hca.qps[first + i].peer;
    }
    if (stalled > 1 || (stalled == 1 && waiting == nullptr)) {
        sleep_ns(100);
        return true;
    }
    const SeenLine near{&hca.registers[first], heard, kLine}, far{&hca.registers[first + kLine], heard + kLine, kLine};
    const Seen<u32> ended{hca.left, left};
    if (stalled == 0) return spin.pause(who, site, ended, near, far);
    const Seen<u32> record{&waiting->dbrec[kDbrecReceive], swap_bytes(static_cast<u32>(waiting->rq_consumed) & 0xffff)};
    return spin.pause(who, site, ended, near, far, record);
}
#endif

// Serves until `leavers` kernels have called hca_leave and nothing is left to do. Every warp of the blocks that take part
// calls it: `warp` of `warps`. Several may look at the same queue pairs; each is served by one at a time.
RDMAKIT_DEVICE void hca_serve(const HcaHandle& hca, u32 warp, u32 warps, Site site = Site::here()) {
    if (!layout_matches(hca.layout_version, hca.watch, "HcaHandle of another layout version", site) || hca.count == 0) return;
    const u32 groups = hca_groups(hca);
    const u32 mine = warp % groups;
    const Subject who{"a doorbell, or the end of the kernels that ring", hca.leavers, 0, 0, 0};
    for (Spin spin(hca.watch);;) {
        const u32 left = warp_broadcast(load_acquire<Scope::sys>(hca.left));  // before the look, which then sees all that they rang
        const bool over = left >= hca.leavers;
        warp_sync();
        bool worked = false;
        for (u32 group = mine; group < groups; group += warps) worked |= hca_look(hca, group, warp / groups, over);
        if (worked) {
            spin = Spin(hca.watch);
            continue;
        }
        if (over) return;
        u32 more = 0;
        if (lane_id() == 0) {
#if RDMAKIT_GPU
            more = spin.pause(who, site, Seen<u32>{hca.left, left}) ? 1 : 0;
#else
            if (warps < groups) sleep_ns(100);  // more registers than one fibre can watch
            more = warps < groups || hca_park(hca, mine, left, spin, who, site) ? 1 : 0;
#endif
        }
        if (warp_broadcast(more) == 0) return;
    }
}

// All that this kernel's block has rung for is to be served: called once by all threads of each block that counts as a leaver.
RDMAKIT_DEVICE void hca_leave(u32* left) {
    block_sync();
    if (block_rank() == 0) {
        fence<Scope::sys>();
        fetch_add<Scope::sys>(left, 1u);
    }
}

}  // namespace rdmakit
