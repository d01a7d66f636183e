// retry.cpp — waiting for a receive WQE (RNR) or for a peer that does not answer, when no clock runs.
// Leans on requester.cpp, which calls stall. IBTA vol. 1 §9.7.5.2.8 (RNR NAK) and §9.9.2.1 (retry counters).
#include "hca.hpp"
#include "port.hpp"

namespace rdmakit::emu {

// Counts one more attempt; false if that is too many.
bool Hca::may_retry(QueuePair& qp, bool receiver_not_ready) {
    const QpModify& attr = qp.info.attr;
    if (receiver_not_ready ? attr.rnr_retry != 7 && qp.rnr_tries >= attr.rnr_retry : qp.timeouts >= attr.retry_cnt)
        return false;
    ++(receiver_not_ready ? qp.rnr_tries : qp.timeouts);
    ++qp.info.counters.retries;
    ++counters_.retries;
    return true;
}

// Is a receive WQE there, or nobody left who could post one?
bool Hca::worth_trying(const QueuePair& qp) const {
    const QueuePair* responder = qp.peer.hca->find_qp(qp.info.attr.dest_qp_num);
    const bool listening = responder && (responder->state() == QpState::rtr || responder->state() == QpState::rts ||
                                         responder->state() == QpState::sqd);
    return !listening || responder->receives_available() != 0;
}

void Hca::stall(QueuePair& qp, const DecodedWqe& wqe, bool receiver_not_ready) {
    if (receiver_not_ready) ++qp.info.counters.rnr_naks_received;
    // timeout 0 means no time-out at all (man ibv_modify_qp): such a QP waits for ever.
    const bool for_ever = receiver_not_ready ? qp.info.attr.rnr_retry == 7 : qp.info.attr.timeout == 0;
    if (!for_ever && !may_retry(qp, receiver_not_ready)) {
        fail(qp, wqe, receiver_not_ready ? Syndrome::rnr_retry_exceeded : Syndrome::transport_retry_exceeded);
        return;
    }
    qp.stalled = true;
    qp.stalled_on_receiver = receiver_not_ready;
    // An RNR NAK although a receive WQE is there (a fault): nobody will say that there is one, only the timer is left.
    // From another process nobody tells either.
    const bool until_told = for_ever && !is_remote(qp) && !(receiver_not_ready && worth_trying(qp));
    qp.turns_left =
        until_told ? 0 : larger(1u, receiver_not_ready ? config_.rnr_turns : config_.retry_turns);
    if (!qp.in_stalled_list) stalled_.push_back(qp.info.qpn);
    qp.in_stalled_list = true;
}

void Hca::resume(QueuePair& qp) {
    qp.stalled = false;
    if (qp.has_work()) enqueue(qp);
}

void Hca::turn_stalled() {
    std::size_t kept = 0;
    for (std::size_t i = 0; i < stalled_.size(); ++i) {
        QueuePair* const qp = find_qp(stalled_[i]);
        if (!qp) continue;
        if (qp->stalled && qp->stalled_on_receiver && !is_remote(*qp) && worth_trying(*qp)) qp->stalled = false;
        if (qp->stalled && qp->turns_left != 0 && --qp->turns_left == 0) qp->stalled = false;
        if (qp->stalled) {
            stalled_[kept++] = stalled_[i];
        } else {
            qp->in_stalled_list = false;
            if (qp->has_work()) ports_->enqueue(*qp);
        }
    }
    stalled_.resize(kept);
}

}  // namespace rdmakit::emu
