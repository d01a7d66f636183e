// receive.cpp — receive WQEs: SENDs scattered into them, immediates that consume them.
// Leans on hca_cqe.cuh. rdma-core providers/mlx5/qp.c mlx5_post_recv: a scatter list ends with {0, lkey 0x100}.
#include "../explore/weak_memory.hpp"
#include "flight.hpp"
#include "hca.hpp"
#include "memory_region.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

// Is a receive WQE there? If not, the outcome says what to answer.
bool Hca::receive_ready(QueuePair& qp, Outcome& outcome) {
    const u32 available =
        qp.srq  ? qp.srq->available()
        : qp.rq ? qp.receives_available(read_record(qp, &qp.info.create.dbrec[kDbrecReceive], false))
                : 0;
    const u32 most = qp.srq ? 1u << qp.srq->attr.log_wqes : qp.rq_mask + 1;
    if (available > most) {  // the record is further ahead than the ring is long
        report(AsyncEventType::qp_fatal, qp.info.qpn);
        enter_error(qp);
        outcome = {Outcome::refused, Syndrome::remote_op};
        return false;
    }
    if (available != 0 && !environment_.happens(FaultKind::rnr, qp.info.attr.dest_qp_num)) return true;
    ++counters_.rnr_naks;
    outcome = {Outcome::not_ready, Syndrome::none, qp.info.attr.min_rnr_timer};
    return false;
}

// The message does not fit its receive WQE: error CQEs on both sides.
Outcome Hca::refuse_receive(QueuePair& qp, Syndrome local, Syndrome nak) {
    ++counters_.errors;
    ++qp.info.counters.errors;
    const u32 of = qp.srq ? qp.srq->srqn : qp.info.create.user_index;
    const ErrorCqe cqe = error_cqe(CqeOpcode::responder_error, qp.info.qpn, 0, of, take_receive(qp), local);
    if (!push_cqe(qp, *qp.recv_cq, &cqe, nullptr)) report(AsyncEventType::qp_fatal, qp.info.qpn);
    enter_error(qp);
    return {Outcome::refused, nak};
}

Outcome Hca::consume_receive(QueuePair& qp, const DecodedWqe& wqe, u32 source_qpn, CqeOpcode opcode,
                             const Pieces* scattered) {
    if (!late_writes_.empty()) land(qp.info.qpn);  // a completion ensures that all data before it is visible
    const u32 imm = opcode == CqeOpcode::responder_send ? 0 : wqe.imm;
    const u32 of = qp.srq ? qp.srq->srqn : qp.info.create.user_index;
    Cqe cqe = responder_cqe(opcode, qp.info.qpn, source_qpn, of, take_receive(qp), static_cast<u32>(wqe.bytes), imm,
                            wqe.fm_ce_se & kSolicited, environment_.now_ps() / 1000);
    u8 preceding[64] = {};
    u32 scatter = 0;
    if (scattered) {
        scatter = scatter_flag(wqe.bytes, qp.recv_cq->info.cqe_bytes);
        gather_pieces(*scattered, scatter == kCqeScatter32 ? reinterpret_cast<u8*>(&cqe) : preceding, wqe.bytes);
        cqe.op_own |= static_cast<u8>(scatter);
    }
    ++qp.info.counters.receive_wqes;
    if (push_cqe(qp, *qp.recv_cq, &cqe, scatter == kCqeScatter64 ? preceding : nullptr)) return {};
    report(AsyncEventType::qp_fatal, qp.info.qpn);
    enter_error(qp);
    return {Outcome::refused, Syndrome::remote_op};
}

Outcome Hca::send(QueuePair& qp, Transfer& transfer, QueuePair& source) {
    const DecodedWqe& wqe = transfer.wqe;
    Outcome outcome;
    if (!receive_ready(qp, outcome)) return outcome;

    Pieces target;
    u64 left = wqe.bytes;
    const u8* list = qp.srq ? qp.srq->wqe() + SharedReceiveQueue::kLinkBytes
                            : qp.rq + static_cast<u64>(static_cast<u32>(qp.rq_consumed) & qp.rq_mask) * qp.rq_stride;
    const u32 entries = qp.srq ? qp.srq->max_sge() : qp.info.create.max_recv_sge;
    std::vector<u8> fetched;
    if (weak_ != nullptr) {
        fetched.resize(qp.rq_stride);
        weak_->dma_read(qp.flight->responder, fetched.data(), list, qp.rq_stride, "fetches a receive WQE", Order::relaxed);
        list = fetched.data();
    }
    for (u32 i = 0; i < entries && left != 0; ++i) {
        const DataSeg& entry = reinterpret_cast<const DataSeg*>(list)[i];
        const u32 lkey = swap_bytes(entry.lkey);
        if (lkey == kInvalidLkey) break;
        const u32 count = swap_bytes(entry.byte_count) & ~kInlineFlag;
        const u64 room = count ? count : 1ull << 31;  // byte count 0 stands for 2 GiB
        const u64 run = smaller(room, left);
        const KeyCheck check = check_key(memory_->table(), lkey, swap_bytes(entry.addr), run, kKeyLocalWrite,
                                         qp.info.create.pd);
        if (check.fault != KeyFault::none)
            return refuse_receive(qp, Syndrome::local_protection, Syndrome::remote_op);
        target.add(reinterpret_cast<void*>(check.memory), run);
        left -= run;
    }
    if (left != 0) return refuse_receive(qp, Syndrome::local_length, Syndrome::remote_invalid_request);

    const bool to_cqe =
        qp.info.create.scatter_to_cqe_responder && scatter_flag(wqe.bytes, qp.recv_cq->info.cqe_bytes) != 0;
    if (!to_cqe && copies(wqe.bytes)) queue_write(qp, transfer.local, target, wqe.bytes, 0);
    qp.info.counters.rcv_payload += wqe.bytes;
    return consume_receive(qp, wqe, source.info.qpn,
                           wqe.opcode == static_cast<u32>(Opcode::send_imm) ? CqeOpcode::responder_send_imm
                                                                            : CqeOpcode::responder_send,
                           to_cqe ? &transfer.local : nullptr);
}

}  // namespace rdmakit::emu
