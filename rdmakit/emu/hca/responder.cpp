// responder.cpp — the receiving side of an RC queue pair: what a request may do, and doing it.
// Leans on hca_key.cuh and hca_atomic.cuh; SENDs and immediates go on in receive.cpp. IBTA vol. 1 §9.7.
#include <cstring>

#include "../explore/weak_memory.hpp"
#include "flight.hpp"
#include "hca.hpp"
#include "memory_region.hpp"
#include "port.hpp"

namespace rdmakit::emu {

namespace {
// Which of the QP's qp_access_flags an opcode needs; SENDs need none.
u32 needed_access(u32 opcode) {
    switch (static_cast<Opcode>(opcode)) {
        case Opcode::write:
        case Opcode::write_imm: return kAccessRemoteWrite;
        case Opcode::read: return kAccessRemoteRead;
        case Opcode::send:
        case Opcode::send_imm: return 0;
        default: return kAccessRemoteAtomic;
    }
}
}  // namespace

// A request that the responder must not execute: it tells its own side by an event, goes to ERR, and sends a NAK.
Outcome Hca::refuse_request(QueuePair& qp, Syndrome nak, AsyncEventType event) {
    report(event, qp.info.qpn, static_cast<u32>(nak));
    enter_error(qp);
    return {Outcome::refused, nak};
}

Outcome Hca::respond(QueuePair& qp, Transfer& transfer, Hca& from, QueuePair& source) {
    const bool listening = qp.state() == QpState::rtr || qp.state() == QpState::rts || qp.state() == QpState::sqd;
    // A request from another connection, or of another PSN than expected, is not answered as if it were the right one.
    if (!listening || qp.peer.hca != &from || qp.info.attr.dest_qp_num != source.info.qpn ||
        qp.expected_psn != source.next_psn)
        return {Outcome::lost};
    if (qp.state() == QpState::rtr && !qp.communicated) {
        qp.communicated = true;
        report(AsyncEventType::communication_established, qp.info.qpn);
    }
    const DecodedWqe& wqe = transfer.wqe;
    const Outcome outcome = execute(qp, transfer, source);
    if (outcome.kind != Outcome::done) return outcome;
    // A READ takes as many PSNs as its response has packets.
    const u64 packets = message_packets(wqe.atomic_width ? 0 : wqe.bytes, source.mtu_shift, 0, 0).count;
    source.next_psn = static_cast<u32>(source.next_psn + packets) & 0xffffff;
    qp.expected_psn = static_cast<u32>(qp.expected_psn + packets) & 0xffffff;
    return outcome;
}

Outcome Hca::execute(QueuePair& qp, Transfer& transfer, QueuePair& source) {
    const DecodedWqe& wqe = transfer.wqe;
    const u32 needed = needed_access(wqe.opcode);
    if ((qp.info.attr.qp_access_flags & needed) != needed ||
        (is_read_or_atomic(wqe.opcode) && qp.info.attr.max_dest_rd_atomic == 0))
        return refuse_request(qp, Syndrome::remote_invalid_request, AsyncEventType::qp_request_error);
    switch (static_cast<Opcode>(wqe.opcode)) {
        case Opcode::write:
        case Opcode::write_imm: return write(qp, transfer, source);
        case Opcode::read: return read(qp, wqe);
        case Opcode::send:
        case Opcode::send_imm: return send(qp, transfer, source);
        default: return atomic(qp, wqe);
    }
}

Outcome Hca::write(QueuePair& qp, Transfer& transfer, QueuePair& source) {
    const DecodedWqe& wqe = transfer.wqe;
    Pieces target;
    if (wqe.bytes != 0) {  // a zero-length WRITE skips the rkey check, as IBTA asks of responders
        const KeyCheck check =
            check_key(memory_->table(), wqe.rkey, wqe.raddr, wqe.bytes, kKeyRemoteWrite, qp.info.create.pd);
        if (check.fault != KeyFault::none)
            return refuse_request(qp, Syndrome::remote_access, AsyncEventType::qp_access_error);
        // What came through before a packet was lost is there already.
        const u64 there = arriving_ ? arriving_->placed : 0;
        target.add(reinterpret_cast<u8*>(check.memory) + there, wqe.bytes - there);
    }
    const bool immediate = wqe.opcode == static_cast<u32>(Opcode::write_imm);
    u64 placed = wqe.bytes;
    Outcome outcome;
    const bool ready = !immediate || receive_ready(qp, outcome);
    // Only the last packet of a WRITE_IMM needs a receive WQE: what came before it has been placed by then.
    if (!ready) placed = wqe.bytes == 0 ? 0 : (wqe.bytes - 1) >> source.mtu_shift << source.mtu_shift;
    if (!ready && outcome.kind == Outcome::refused) return outcome;
    const u64 there = arriving_ ? arriving_->placed : 0;
    if (placed > there && copies(wqe.bytes)) land(qp, transfer.local, target, placed - there, wqe.rkey);
    if (!ready) return outcome;
    qp.info.counters.rcv_payload += wqe.bytes;
    if (!immediate) return {};
    return consume_receive(qp, wqe, source.info.qpn, CqeOpcode::responder_write_imm, nullptr);
}

// The data itself is copied when the response lands; until then only its place is known.
Outcome Hca::read(QueuePair& qp, const DecodedWqe& wqe) {
    if (wqe.bytes == 0) return {};
    const KeyCheck check =
        check_key(memory_->table(), wqe.rkey, wqe.raddr, wqe.bytes, kKeyRemoteRead, qp.info.create.pd);
    if (check.fault != KeyFault::none)
        return refuse_request(qp, Syndrome::remote_access, AsyncEventType::qp_access_error);
    qp.info.counters.xmit_payload += wqe.bytes;
    return {Outcome::done, Syndrome::none, 0, reinterpret_cast<u8*>(check.memory)};
}

Outcome Hca::atomic(QueuePair& qp, const DecodedWqe& wqe) {
    const u32 width = wqe.atomic_width;
    if (wqe.raddr % width != 0)
        return refuse_request(qp, Syndrome::remote_invalid_request, AsyncEventType::qp_request_error);
    const KeyCheck check =
        check_key(memory_->table(), wqe.rkey, wqe.raddr, width, kKeyRemoteAtomic, qp.info.create.pd);
    if (check.fault != KeyFault::none)
        return refuse_request(qp, Syndrome::remote_access, AsyncEventType::qp_access_error);
    u8* const at = reinterpret_cast<u8*>(check.memory);
    const bool add = wqe.opcode == static_cast<u32>(Opcode::fetch_add) ||
                     wqe.opcode == static_cast<u32>(Opcode::masked_fetch_add);
    const auto next = [&](u64 value) { return atomic_result(add, width, value, wqe.operands); };
    u64 old = 0;
    if (weak_ != nullptr) {
        old = weak_->dma_update(qp.flight->responder, at, width, next, "executes an atomic");
        qp.flight->base = weak_->snapshot(qp.flight->responder);  // later writes do not pass it
    } else {
        std::memcpy(&old, at, width);  // little endian: the low bytes; an iova may be aligned where its memory is not
        const u64 result = next(old);
        std::memcpy(at, &result, width);
    }
    environment_.memory_written(at, width);
    return {Outcome::done, Syndrome::none, old};
}

}  // namespace rdmakit::emu
