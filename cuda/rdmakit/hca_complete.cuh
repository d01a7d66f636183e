// rdmakit/hca_complete.cuh — how an HCA of warps ends work: completion entries, the error state, flushing.
// Layer: hca (leans on hca_cqe, hca_wqe, hca_state). All lanes call; the same rules as rdmakit/emu/hca/flush.cpp and
// completion_queue.cpp, which say where they come from.
#pragma once
#include "hca_cqe.cuh"
#include "hca_state.cuh"
#include "hca_wqe.cuh"

namespace rdmakit {

// All lanes: the peer's server may change it at any time, so it is read once for all of them.
RDMAKIT_DEVICE HcaQpState state_of(const HcaQp& qp) {
    return static_cast<HcaQpState>(warp_broadcast(static_cast<u32>(load_relaxed<Scope::sys>(&qp.state))));
}

// A queue pair's sending side while a warp has its turn: indices and counts stay in registers until the end.
struct Serving {
    HcaQp& qp;
    const Watch& watch;
    u64 producer, completed;
    HcaQpState state;  // as it was at the beginning, and what this warp makes of it: another's news comes with `attend`
    bool peer_listens = false;  // known to
    u64 send_wqes = 0, send_bbs = 0, atomics = 0, cqes = 0, errors = 0, flushed = 0, sent = 0, fetched = 0;
    u32 events = 0;

    RDMAKIT_DEVICE Serving(HcaQp& of, const Watch& w)
        : qp(of), watch(w), producer(of.producer), completed(of.completed), state(state_of(of)) {}
    RDMAKIT_DEVICE void write_back() const {
        if (lane_id() != 0) return;
        qp.producer = producer;
        qp.completed = completed;
        qp.send_wqes += send_wqes;
        qp.send_bbs += send_bbs;
        qp.atomics += atomics;
        qp.cqes += cqes;
        qp.errors += errors;
        qp.flushed += flushed;
        qp.sent_bytes += sent;
        qp.fetched_bytes += fetched;
        qp.events |= events;
    }
};

// Earlier WQEs' payload before what somebody may take for a signal: whoever acquires the later store sees the former.
// `same_gpu`: that is somebody of this GPU.
RDMAKIT_DEVICE void order_after_payload(bool same_gpu) {
    warp_sync();
    if (lane_id() == 0) {
        if (same_gpu) {
            fence<Scope::gpu>();
        } else {
            fence<Scope::sys>();
        }
    }
    warp_sync();
}

enum class Pushed : u32 { yes = 0, dead = 1, died = 2 };  // died: this entry found no room, and nobody asked to go on

// Room for one more entry. A collapsed CQ has one that is always overwritten.
RDMAKIT_DEVICE Pushed make_room(HcaCq& cq) {
    if (cq.dead != 0) return Pushed::dead;
    if (cq.collapsed != 0 || cq.produced < cq.room) return Pushed::yes;
    const u64 entries = 1ull << cq.log_entries;
    const u32 consumed = swap_bytes(load_relaxed<Scope::sys>(&cq.dbrec[kDbrecSetCi])) & 0xffffff;
    const u64 waiting = (cq.produced - consumed) & 0xffffff;
    if (waiting < entries) {
        cq.room = cq.produced + entries - waiting;
    } else if (cq.overrun_ignore != 0) {
        ++cq.overwritten;
    } else {
        cq.dead = 1;
        return Pushed::died;
    }
    return Pushed::yes;
}
// `words`: a Cqe or ErrorCqe whose owner bit is 0. The fence makes visible what its WQE has placed, and the entry's body; and
// it stands before whatever later WQEs place. `same_gpu`: who takes the entry is of this GPU.
RDMAKIT_DEVICE void write_cqe(HcaCq& cq, const u64 (&words)[8], bool same_gpu) {
    const bool collapsed = cq.collapsed != 0;
    u8* const entry = cq.entries + (cqe_slot(cq.produced, cq.log_entries, collapsed) << cq.log_stride);
    u8* const body = entry + (1ull << cq.log_stride) - kCqe;  // of a 128-byte entry the second half
    for (u32 i = 0; i < 3; ++i) {
        const u64 a = words[2 * i], b = words[2 * i + 1];
        const Vec16 v{{static_cast<u32>(a), static_cast<u32>(a >> 32), static_cast<u32>(b), static_cast<u32>(b >> 32)}};
        store_segment(body + 16 * i, v);
    }
    store_relaxed<Scope::sys>(reinterpret_cast<u64*>(body + 48), words[6]);
    *reinterpret_cast<u32*>(body + 56) = static_cast<u32>(words[7]);
    const u32 owner = cqe_owner(cq.produced, cq.log_entries, collapsed);
    if (same_gpu) {
        fence<Scope::gpu>();
    } else {
        fence<Scope::sys>();
    }
    store_relaxed<Scope::sys>(reinterpret_cast<u32*>(body + 60), static_cast<u32>(words[7] >> 32) | (owner << 24));
    ++cq.produced;
}
RDMAKIT_NOINLINE Pushed push_words(HcaCq& cq, const u64 (&words)[8], const Watch& watch, bool same_gpu) {
    warp_sync();
    Pushed pushed = Pushed::dead;
    if (lane_id() == 0) {
        const bool shared = cq.shared != 0;
        if (!shared || wait_turn(&cq.turn, watch, Subject{"its turn to write a CQE", 0, 0, 0, cq.cqn})) {
            pushed = make_room(cq);
            if (pushed == Pushed::yes) write_cqe(cq, words, same_gpu);
            if (shared) store_release<Scope::sys>(&cq.turn, 0u);
        }
    }
    warp_sync();
    return static_cast<Pushed>(warp_broadcast(static_cast<u32>(pushed)));
}
template <class Entry>
RDMAKIT_DEVICE Pushed push_cqe(HcaCq& cq, const Entry& entry, const Watch& watch, bool same_gpu = false) {
    u64 words[8];
    static_assert(sizeof(Entry) == sizeof(words), "CQE64");
    memcpy(words, &entry, sizeof(words));
    return push_words(cq, words, watch, same_gpu);
}

// ---- receives -------------------------------------------------------------------------------------------------------
// Receive WQEs that the record shows and that are not consumed; over the ring's size if the record makes no sense.
RDMAKIT_DEVICE u32 receives_available(const HcaQp& qp) {
    if (qp.max_recv_sge == 0) return 0;
    const u32 posted = swap_bytes(load_acquire<Scope::sys>(&qp.dbrec[kDbrecReceive]));
    const u32 ahead = (posted - static_cast<u32>(qp.rq_consumed)) & 0xffff;
    return ahead <= 0x8000 ? ahead : 0;
}
// Has `respond`. The queue pair is in the error state.
RDMAKIT_NOINLINE void flush_receives(HcaQp& qp, const Watch& watch) {
    const u32 posted = warp_broadcast(receives_available(qp));
    const u32 there = smaller(posted, 1u << qp.log_rq);
    const u64 first = qp.rq_consumed;
    u32 flushed = 0;
    for (; flushed < there; ++flushed) {
        const ErrorCqe cqe = error_cqe(CqeOpcode::responder_error, qp.qpn, 0, qp.user_index,
                                       static_cast<u32>(first + flushed) & 0xffff, Syndrome::flushed);
        if (push_cqe(*qp.recv_cq, cqe, watch) != Pushed::yes) break;
    }
    warp_sync();
    if (lane_id() == 0) {
        qp.rq_consumed = first + posted;
        qp.receive_flushed += flushed;
        qp.receive_cqes += flushed;
    }
    warp_sync();
}
RDMAKIT_NOINLINE bool take_respond(HcaQp& qp, const Watch& watch) {
    u32 taken = 0;
    if (lane_id() == 0) taken = wait_turn(&qp.respond, watch, Subject{"its turn at a receive queue", 0, qp.qpn, 0, 0}) ? 1 : 0;
    return warp_broadcast(taken) != 0;
}

// ---- errors ---------------------------------------------------------------------------------------------------------
// Has the turn. Everything posted completes with syndrome 0x05, unsignalled or not.
RDMAKIT_NOINLINE void flush_sends(Serving& s) {
    const SendRing ring{s.qp.sq, s.qp.log_sq};
    while (s.completed < s.producer) {
        const Vec16 ctrl = load_ds(ring, s.completed, 0);
        const u64 bbs = larger(1u, wqebbs(swap_bytes(ctrl.w[1]) & 0x3f));
        const ErrorCqe cqe = error_cqe(CqeOpcode::requester_error, s.qp.qpn, swap_bytes(ctrl.w[0]) & 0xff, s.qp.user_index,
                                       static_cast<u32>(s.completed) & 0xffff, Syndrome::flushed);
        s.completed = smaller(s.completed + bbs, s.producer);
        ++s.flushed;
        if (push_cqe(*s.qp.send_cq, cqe, s.watch) == Pushed::yes) ++s.cqes;
        else s.completed = s.producer;  // a dead CQ: nobody to tell
    }
}
RDMAKIT_DEVICE void set_error(HcaQp& qp) {
    if (lane_id() == 0) store_relaxed<Scope::sys>(&qp.state, HcaQpState::error);
    warp_sync();
}
// Has the turn. False: it was in the error state.
RDMAKIT_NOINLINE bool mark_error(Serving& s) {
    if (s.state == HcaQpState::error) return false;
    s.state = HcaQpState::error;
    set_error(s.qp);
    // Whoever serves the peer may know that this one listens.
    if (lane_id() == 0 && s.qp.peer != nullptr) store_release<Scope::sys>(s.qp.peer->attend, 1u);
    return true;
}
RDMAKIT_NOINLINE void flush_both(Serving& s) {
    flush_sends(s);
    if (!take_respond(s.qp, s.watch)) return;
    flush_receives(s.qp, s.watch);
    end_turn(&s.qp.respond);
}
RDMAKIT_DEVICE void enter_error(Serving& s) {
    if (mark_error(s)) flush_both(s);
}
// A completion that says why, whether or not it was asked for, and the end of the queue pair: which comes first, so that whoever
// has heard of the failure finds a queue pair that does not listen.
RDMAKIT_NOINLINE void fail(Serving& s, const DecodedWqe& wqe, Syndrome syndrome) {
    ++s.errors;
    s.completed = smaller(wqe.bb + wqe.bbs, s.producer);
    const bool fresh = mark_error(s);
    const ErrorCqe cqe = error_cqe(CqeOpcode::requester_error, s.qp.qpn, wqe.opcode, s.qp.user_index, wqe.index, syndrome);
    const Pushed pushed = push_cqe(*s.qp.send_cq, cqe, s.watch);
    if (pushed == Pushed::yes) ++s.cqes;
    else s.events |= kHcaQpFatal;
    if (pushed == Pushed::died) s.events |= kHcaCqError;
    if (fresh) flush_both(s);
}

}  // namespace rdmakit
