// rdmakit/hca_respond.cuh — the receiving side, in the hands of the warp that serves the sender: what a request may do, and
// doing it.
// Layer: hca (leans on hca_complete, hca_move, hca_atomic). As rdmakit/emu/hca/responder.cpp and receive.cpp; IBTA vol. 1
// §9.7. There is no network: a request is answered at once, or its receiver is not ready.
#pragma once
#include "hca_atomic.cuh"
#include "hca_complete.cuh"
#include "hca_move.cuh"

namespace rdmakit {

enum class Reply : u32 { done = 0, not_ready = 1, refused = 2 };
struct Answer {
    Reply reply;
    Syndrome syndrome;
};

RDMAKIT_DEVICE bool is_atomic(u32 opcode) {
    return opcode >= static_cast<u32>(Opcode::cmp_swap) && opcode <= static_cast<u32>(Opcode::masked_fetch_add);
}
RDMAKIT_DEVICE bool is_read(u32 opcode) { return opcode == static_cast<u32>(Opcode::read); }
RDMAKIT_DEVICE bool is_send(u32 opcode) {
    return opcode == static_cast<u32>(Opcode::send) || opcode == static_cast<u32>(Opcode::send_imm);
}
// NOP and DUMP never leave the device.
RDMAKIT_DEVICE bool is_local(u32 opcode) {
    return opcode == static_cast<u32>(Opcode::nop) || opcode == static_cast<u32>(Opcode::dump);
}
RDMAKIT_DEVICE u32 needed_access(u32 opcode) {
    if (is_send(opcode)) return 0;
    return is_atomic(opcode) ? kKeyRemoteAtomic : is_read(opcode) ? kKeyRemoteRead : kKeyRemoteWrite;
}

// The responder goes to the error state. What it had posted to send is flushed now, or by whoever serves it at the moment.
RDMAKIT_NOINLINE Answer refuse_request(HcaQp& peer, Syndrome nak, u32 event, const Watch& watch, bool has_respond = false) {
    const bool first = state_of(peer) != HcaQpState::error;
    if (first) set_error(peer);
    if (first && (has_respond || take_respond(peer, watch))) {
        if (lane_id() == 0) peer.receive_events |= event;
        flush_receives(peer, watch);
        if (!has_respond) end_turn(&peer.respond);
    }
    if (first) {
        if (lane_id() == 0) store_release<Scope::sys>(peer.attend, 1u);
        if (try_turn_and_tell(&peer.turn)) {
            Serving theirs(peer, watch);
            flush_sends(theirs);
            theirs.write_back();
            end_turn(&peer.turn);
        }
    }
    return {Reply::refused, nak};
}

// ---- receive queues ---------------------------------------------------------------------------------------------------
// Has peer.respond, as the next two.
RDMAKIT_NOINLINE Answer receive_ready(HcaQp& peer, const Watch& watch) {
    const u32 available = warp_broadcast(receives_available(peer));
    if (peer.max_recv_sge != 0 && available > 1u << peer.log_rq)  // the record is further ahead than the ring is long
        return refuse_request(peer, Syndrome::remote_op, kHcaQpFatal, watch, true);
    if (available != 0) return {Reply::done, Syndrome::none};
    if (lane_id() == 0) ++peer.not_ready;
    return {Reply::not_ready, Syndrome::none};
}
RDMAKIT_NOINLINE Answer refuse_receive(HcaQp& peer, Syndrome local, Syndrome nak, const Watch& watch) {
    const ErrorCqe cqe = error_cqe(CqeOpcode::responder_error, peer.qpn, 0, peer.user_index,
                                   static_cast<u32>(peer.rq_consumed) & 0xffff, local);
    const Pushed pushed = push_cqe(*peer.recv_cq, cqe, watch);
    if (lane_id() == 0) {
        ++peer.rq_consumed;
        ++peer.receive_errors;
        peer.receive_cqes += pushed == Pushed::yes ? 1 : 0;
    }
    warp_sync();
    return refuse_request(peer, nak, pushed == Pushed::yes ? 0 : kHcaQpFatal, watch, true);
}
RDMAKIT_NOINLINE Answer consume_receive(HcaQp& peer, const DecodedWqe& wqe, u32 source_qpn, const Watch& watch) {
    const Opcode opcode = static_cast<Opcode>(wqe.opcode);
    const CqeOpcode said = opcode == Opcode::write_imm ? CqeOpcode::responder_write_imm
                           : opcode == Opcode::send_imm ? CqeOpcode::responder_send_imm : CqeOpcode::responder_send;
    const Cqe cqe = responder_cqe(said, peer.qpn, source_qpn, peer.user_index, static_cast<u32>(peer.rq_consumed) & 0xffff,
                                  static_cast<u32>(wqe.bytes), opcode == Opcode::send ? 0 : wqe.imm,
                                  (wqe.fm_ce_se & kSolicited) != 0, time_ns());
    const Pushed pushed = push_cqe(*peer.recv_cq, cqe, watch);
    if (lane_id() == 0) {
        ++peer.rq_consumed;
        ++peer.receive_wqes;
        peer.receive_cqes += pushed == Pushed::yes ? 1 : 0;
    }
    warp_sync();
    if (pushed == Pushed::yes) return {Reply::done, Syndrome::none};
    return refuse_request(peer, Syndrome::remote_op, pushed == Pushed::died ? kHcaQpFatal | kHcaCqError : kHcaQpFatal, watch, true);
}

// Where a SEND goes: does the receive WQE allow it, and is there room? Nothing is written yet.
RDMAKIT_NOINLINE Answer check_receive(HcaQp& peer, u64 bytes, const Watch& watch) {
    ReceiveRuns list(peer, bytes);
    while (list.next().bytes != 0) {}
    if (list.fault) return refuse_receive(peer, Syndrome::local_protection, Syndrome::remote_op, watch);
    if (list.left != 0) return refuse_receive(peer, Syndrome::local_length, Syndrome::remote_invalid_request, watch);
    return {Reply::done, Syndrome::none};
}
// A message that consumes a receive WQE: `place` puts its payload where it belongs when the WQE is there.
template <class Place> RDMAKIT_DEVICE Answer with_receive(Serving& s, const DecodedWqe& wqe, Place place) {
    HcaQp& peer = *s.qp.peer;
    if (!take_respond(peer, s.watch)) return {Reply::refused, Syndrome::remote_op};
    Answer answer = receive_ready(peer, s.watch);
    if (answer.reply == Reply::done && is_send(wqe.opcode)) answer = check_receive(peer, wqe.bytes, s.watch);
    if (answer.reply == Reply::done) {
        place();
        answer = consume_receive(peer, wqe, s.qp.qpn, s.watch);
    }
    end_turn(&peer.respond);
    return answer;
}

// ---- the requests -------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE Answer respond_write(Serving& s, const DecodedWqe& wqe) {
    HcaQp& peer = *s.qp.peer;
    KeyCheck check{KeyFault::none, 0};  // a zero-length WRITE skips the rkey check, as IBTA asks of responders
    if (wqe.bytes != 0) check = check_key(s.qp.peer_keys, wqe.rkey, wqe.raddr, wqe.bytes, kKeyRemoteWrite, peer.pd);
    if (check.fault != KeyFault::none) return refuse_request(peer, Syndrome::remote_access, kHcaAccessError, s.watch);
    const auto place = [&] {
        const OneRun target{Run{reinterpret_cast<u8*>(check.memory), wqe.bytes}};
        move_runs(LocalRuns(s.qp, wqe, 0), target, wqe.bytes, peer.in_order != 0);
    };
    if (static_cast<Opcode>(wqe.opcode) == Opcode::write_imm) return with_receive(s, wqe, place);
    place();
    return {Reply::done, Syndrome::none};
}
RDMAKIT_DEVICE Answer respond_read(Serving& s, const DecodedWqe& wqe) {
    if (wqe.bytes == 0) return {Reply::done, Syndrome::none};
    const KeyCheck check = check_key(s.qp.peer_keys, wqe.rkey, wqe.raddr, wqe.bytes, kKeyRemoteRead, s.qp.peer->pd);
    if (check.fault != KeyFault::none) return refuse_request(*s.qp.peer, Syndrome::remote_access, kHcaAccessError, s.watch);
    const OneRun source{Run{reinterpret_cast<u8*>(check.memory), wqe.bytes}};
    move_runs(source, LocalRuns(s.qp, wqe, kKeyLocalWrite), wqe.bytes, s.qp.in_order != 0);
    return {Reply::done, Syndrome::none};
}

constexpr u32 kAtomicTries = 1u << 20;  // others got in between so many times: something is wrong
// One lane. The new value in one step, whatever else changes the word meanwhile; true if it came to that.
template <class T> RDMAKIT_DEVICE bool update_word(T* at, bool add, const DecodedWqe& wqe, u64* old) {
    if (add && wqe.operands.compare_mask == 0) {
        *old = fetch_add<Scope::sys>(at, static_cast<T>(wqe.operands.swap_add));
        return true;
    }
    T seen = load_relaxed<Scope::sys>(at);
    for (u32 i = 0; i < kAtomicTries; ++i) {
        const T next = static_cast<T>(atomic_result(add, sizeof(T), seen, wqe.operands));
        const T was = compare_swap<Scope::sys>(at, seen, next);
        *old = was;
        if (was == seen) return true;
        seen = was;
    }
    return false;
}
RDMAKIT_NOINLINE Answer respond_atomic(Serving& s, const DecodedWqe& wqe) {
    HcaQp& peer = *s.qp.peer;
    const u32 width = wqe.atomic_width;
    if (wqe.raddr % width != 0) return refuse_request(peer, Syndrome::remote_invalid_request, kHcaRequestError, s.watch);
    const KeyCheck check = check_key(s.qp.peer_keys, wqe.rkey, wqe.raddr, width, kKeyRemoteAtomic, peer.pd);
    if (check.fault != KeyFault::none) return refuse_request(peer, Syndrome::remote_access, kHcaAccessError, s.watch);
    // An iova may be aligned where its memory is not; no GPU has an atomic for that.
    if (check.memory % width != 0) return refuse_request(peer, Syndrome::remote_invalid_request, kHcaRequestError, s.watch);
    const Opcode opcode = static_cast<Opcode>(wqe.opcode);
    const bool add = opcode == Opcode::fetch_add || opcode == Opcode::masked_fetch_add;
    u64 old = 0;
    bool made = true;
    if (lane_id() == 0) {
        made = width == 4 ? update_word(reinterpret_cast<u32*>(check.memory), add, wqe, &old)
                          : update_word(reinterpret_cast<u64*>(check.memory), add, wqe, &old);
        // Of 8 bytes in the machine's order (atomic_req_8B_endianness_mode), of 4 always big endian.
        u64 result = width == 4 ? swap_bytes(static_cast<u32>(old)) : old;
        const Run landing = LocalRuns(s.qp, wqe, kKeyLocalWrite).next();
        if (landing.bytes == width) move_few(landing.at, reinterpret_cast<const u8*>(&result), width);
    }
    ++s.atomics;
    return {warp_broadcast(made ? 1u : 0u) != 0 ? Reply::done : Reply::refused, Syndrome::remote_op};
}

RDMAKIT_DEVICE Answer respond(Serving& s, const DecodedWqe& wqe) {
    HcaQp* const peer = s.qp.peer;
    // Once a service: a peer that goes to the error state meanwhile might as well have done so a moment later.
    if (!s.peer_listens && peer != nullptr) {
        const HcaQpState state = state_of(*peer);
        s.peer_listens = (state == HcaQpState::rtr || state == HcaQpState::rts || state == HcaQpState::sqd) && peer->peer == &s.qp;
    }
    // Nobody answers: without a network to come up again, all retries would end like the first.
    if (!s.peer_listens) return {Reply::refused, Syndrome::transport_retry_exceeded};
    const u32 needed = needed_access(wqe.opcode);
    const bool reads = is_read(wqe.opcode) || is_atomic(wqe.opcode);
    if ((peer->access & needed) != needed || (reads && peer->max_dest_rd_atomic == 0))
        return refuse_request(*peer, Syndrome::remote_invalid_request, kHcaRequestError, s.watch);
    if (is_atomic(wqe.opcode)) return respond_atomic(s, wqe);
    if (is_read(wqe.opcode)) return respond_read(s, wqe);
    if (!is_send(wqe.opcode)) return respond_write(s, wqe);
    return with_receive(s, wqe, [&] { move_runs(LocalRuns(s.qp, wqe, 0), ReceiveRuns(*peer, wqe.bytes), wqe.bytes, false); });
}

}  // namespace rdmakit
