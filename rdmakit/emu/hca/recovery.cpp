// recovery.cpp — with a clock: when no good answer comes, and sending again. Go back N (IBTA vol. 1 §9.7.5.2, §9.9.2.1).
// Leans on retry.cpp for counting attempts.
#include "event_pool.hpp"
#include "hca.hpp"
#include "port.hpp"

namespace rdmakit::emu {

namespace {
constexpr u64 kTimeoutUnitPs = 4'096'000;  // 4.096 µs
}

// The retransmission timer of a message that got lost, or whose answer did.
void Hca::wait_for_answer(QueuePair& qp, u64 index) {
    if (qp.info.attr.timeout == 0) return;  // no time-out: waits for ever
    const TimedQueue& timed = *qp.timed;
    const u64 expires = timed.slots[index & (qp.sq_entries() - 1)].sent_ps + (kTimeoutUnitPs << qp.info.attr.timeout);
    const u64 when = larger(larger(expires, environment_.now_ps()), timed.last_ack_ps);
    const u64 slot = events_->put(Event{EventKind::resend, qp.info.qpn, qp.epoch, index, 0});
    environment_.timer(when, &Hca::on_event, this, slot, &Hca::still_waits);
}

bool Hca::still_waits(void* object, u64 slot) {
    Hca& hca = *static_cast<Hca*>(object);
    const Event& event = hca.events_->look(slot);
    const QueuePair* qp = hca.find_qp(event.qpn);
    return qp && qp->epoch == event.epoch && event.index >= qp->completed;
}

// A NAK of sequence: acknowledges what was executed, and names the packet that is missing.
void Hca::sent_again_from(QueuePair& qp, u64 through, u32 psn) {
    ++counters_.packet_seq_err;
    if (!acknowledge_through(qp, through)) return;
    if (psn_ahead(psn, qp.timed->acknowledged_psn) > 0) {
        qp.timed->acknowledged_psn = psn;
        qp.timeouts = 0;  // something new has come through
    }
    go_back(qp, false);
}

// A timer has expired. A later response may have acknowledged meanwhile what it was for.
void Hca::resend(QueuePair& qp, u64 index, bool receiver_not_ready) {
    if (index < qp.completed) return;
    if (!receiver_not_ready) ++counters_.local_ack_timeout_err;
    go_back(qp, receiver_not_ready);
}

// Everything from the first WQE that is not acknowledged is sent again.
void Hca::go_back(QueuePair& qp, bool receiver_not_ready) {
    if (qp.completed == qp.issued) return;
    const InFlight& head = qp.timed->slots[qp.completed & (qp.sq_entries() - 1)];
    const bool for_ever = receiver_not_ready && qp.info.attr.rnr_retry == 7;
    if (!for_ever && !may_retry(qp, receiver_not_ready)) {
        fail(qp, head.wqe,
             receiver_not_ready ? Syndrome::rnr_retry_exceeded : Syndrome::transport_retry_exceeded);
        return;
    }
    ++qp.epoch;
    qp.issued = qp.completed;
    qp.next_psn = head.psn;
    qp.timed->restart(qp.completed);
    if (qp.has_work()) enqueue(qp);
}

// After a completion, or a local error: what can go on now?
void Hca::advance(QueuePair& qp) {
    TimedQueue& timed = *qp.timed;
    if (qp.state() == QpState::err) return;
    if (qp.completed != qp.issued) {
        const InFlight& head = timed.slots[qp.completed & (qp.sq_entries() - 1)];
        if (head.failed_locally) {
            fail(qp, head.wqe, head.wqe.fault);
            return;
        }
        if (timed.local_error) return;  // a later one failed: nothing is sent past it, and its turn comes
    }
    timed.blocked = false;
    drained(qp);
    if (config_.timing.proxy_fences) proxy_goes_on(qp, qp.completed, environment_.now_ps());  // after a response was lost
    if (qp.has_work()) enqueue(qp);
}

}  // namespace rdmakit::emu
