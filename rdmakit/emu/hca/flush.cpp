// flush.cpp — the error state: everything posted, and everything still to be posted, completes with syndrome 0x05.
// Leans on hca_cqe.cuh. Unsignalled WQEs complete too (mlx5 completion mode "CQE on error only"): size CQs for it.
#include "flight.hpp"
#include "hca.hpp"
#include "port.hpp"

namespace rdmakit::emu {

void Hca::enter_error(QueuePair& qp) {
    if (qp.state() == QpState::err) return;
    qp.info.state = QpState::err;
    ports_->remove(qp);
    qp.stalled = false;
    qp.away.clear();
    qp.away_blocked = false;
    ++qp.epoch;  // responses under way find nobody
    if (qp.timed) qp.timed->restart(qp.completed);
    if (qp.flight) qp.flight->requests.clear();
    flush_sends(qp);
    flush_receives(qp);
}

void Hca::break_qp(u32 ordinal) {
    QueuePair* qp = ordinal < qps_.size() ? qps_[ordinal].get() : nullptr;
    if (!qp || qp->state() == QpState::reset || qp->state() == QpState::err) return;
    report(AsyncEventType::qp_fatal, qp->info.qpn);
    enter_error(*qp);
}

void Hca::flush_sends(QueuePair& qp) {
    while (qp.completed < qp.producer) {
        fetch(qp, qp.completed, 1);
        const Vec16 ctrl = load_ds(qp.sq, qp.completed, 0);
        const u32 opcode = swap_bytes(ctrl.w[0]) & 0xff;
        const u64 bbs = larger(1u, wqebbs(swap_bytes(ctrl.w[1]) & 0x3f));
        const ErrorCqe cqe =
            error_cqe(CqeOpcode::requester_error, qp.info.qpn, opcode, qp.info.create.user_index,
                      static_cast<u32>(qp.completed) & 0xffff, Syndrome::flushed);
        qp.completed = smaller(qp.completed + bbs, qp.producer);
        ++counters_.flushed;
        ++qp.info.counters.flushed;
        if (!push_cqe(qp, *qp.send_cq, &cqe, nullptr)) qp.completed = qp.producer;  // a dead CQ: nobody to tell
    }
    qp.issued = qp.completed;
}

void Hca::flush_receives(QueuePair& qp) {
    if (qp.srq) {  // its WQEs are everybody's
        report(AsyncEventType::last_wqe_reached, qp.info.qpn);
        return;
    }
    const u32 posted = qp.receives_available();
    const u32 there = smaller(posted, qp.rq_mask + 1);
    for (u32 i = 0; i < there; ++i) {
        const ErrorCqe cqe = error_cqe(CqeOpcode::responder_error, qp.info.qpn, 0, qp.info.create.user_index,
                                       static_cast<u32>(qp.rq_consumed + i) & 0xffff, Syndrome::flushed);
        ++counters_.flushed;
        ++qp.info.counters.flushed;
        if (!push_cqe(qp, *qp.recv_cq, &cqe, nullptr)) break;
    }
    qp.rq_consumed += posted;
}

}  // namespace rdmakit::emu
