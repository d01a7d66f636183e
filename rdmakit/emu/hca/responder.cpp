// responder.cpp — the receiving side of an RC queue pair: what a request may do, and doing it.
// Leans on hca_key.cuh and hca_atomic.cuh; sequence.cpp says whether it is its turn, SENDs and immediates go on in
// receive.cpp. IBTA vol. 1 §9.7.
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

Outcome Hca::execute(QueuePair& qp, Transfer& transfer, QueuePair& source) {
    const DecodedWqe& wqe = transfer.wqe;
    const u32 needed = needed_access(wqe.opcode);
    if ((qp.info.attr.qp_access_flags & needed) != needed ||
        (is_read_or_atomic(wqe.opcode) && qp.info.attr.max_dest_rd_atomic == 0))
        return refuse_request(qp, Syndrome::remote_invalid_request, AsyncEventType::qp_request_error);
    const bool writes = needed == kAccessRemoteWrite;
    // What a partial SEND has brought lies where nobody may look yet: it is placed when all of it is there.
    if (transfer.arriving != ~0u && !writes && transfer.arriving < psns_of(wqe, source.mtu_shift))
        return {Outcome::lost};
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
        target.add(reinterpret_cast<void*>(check.memory), wqe.bytes);
    }
    const bool immediate = wqe.opcode == static_cast<u32>(Opcode::write_imm);
    const u32 shift = source.mtu_shift;
    const u32 packets = psns_of(wqe, shift);
    const bool whole = transfer.arriving >= packets;
    u32 end = smaller(transfer.arriving, packets);
    Outcome outcome;
    const bool ready = !whole || !immediate || receive_ready(qp, outcome);
    // Only the last packet of a WRITE_IMM needs a receive WQE: what came before it has been placed by then.
    if (!ready) end = packets - 1;
    if (!ready && outcome.kind == Outcome::refused) return outcome;
    const u64 from = static_cast<u64>(transfer.taken) << shift;
    const u64 to = end == packets ? wqe.bytes : static_cast<u64>(end) << shift;
    if (from < to) {
        place(qp, wqe, transfer.local, target, from, to);
        qp.info.counters.rcv_payload += to - from;
    }
    transfer.taken = larger(transfer.taken, end);
    if (!whole) return {Outcome::lost};
    if (!ready || !immediate) return outcome;
    return consume_receive(qp, wqe, source.info.qpn, CqeOpcode::responder_write_imm, nullptr);
}

// Bytes [from, to) of a WRITE. What was taken before stays as it is: a packet is executed once.
void Hca::place(QueuePair& qp, const DecodedWqe& wqe, const Pieces& local, const Pieces& target, u64 from, u64 to) {
    if (!copies(wqe.bytes)) return;
    if (stepwise_) {
        queue_write(qp, without_first(local, from), without_first(target, from), to - from, wqe.rkey);
        return;
    }
    if (from == 0) {
        if (!environment_.faults_on || !write_later(qp, wqe.rkey, local, target.piece[0].at, to))
            copy_pieces(local, target, to, environment_);
        return;
    }
    const Pieces rest = without_first(local, from), there = without_first(target, from);
    if (!write_later(qp, wqe.rkey, rest, there.piece[0].at, to - from))
        copy_pieces(rest, there, to - from, environment_);
}

// The data itself is copied when the response lands; until then only its place is known.
Outcome Hca::read(QueuePair& qp, const DecodedWqe& wqe) {
    if (wqe.bytes == 0) return {};
    if (!late_writes_.empty()) land(qp.info.qpn);
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
    if (!late_writes_.empty()) land(qp.info.qpn);  // none of its writes is passed by an atomic
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
