// timed.cpp — the same steps with a clock between them: doorbell, port, wire, then in_flight.cpp and recovery.cpp.
// Leans on timing.hpp for the numbers and on requester.cpp and responder.cpp for what happens. One event a message and
// direction, not a packet; a port sends whole messages in turn.
#include "event_pool.hpp"
#include "hca.hpp"
#include "link.hpp"

namespace rdmakit::emu {

void Hca::schedule(u64 when_ps, EventKind kind, u32 qpn, u64 index, u32 epoch, u64 value) {
    environment_.at(when_ps, &Hca::on_event, this, events_->put(Event{kind, qpn, epoch, index, value}));
}

void Hca::on_event(void* object, u64 slot) {
    Hca& hca = *static_cast<Hca*>(object);
    const Event event = hca.events_->take(slot);
    hca.copy_payload_ = hca.environment_.copy_payload();
    if (event.kind == EventKind::tick) {
        hca.transmit(static_cast<u32>(event.index));
        return;
    }
    if (event.kind == EventKind::landing) {
        hca.land(0, event.index);
        return;
    }
    QueuePair* qp = hca.find_qp(event.qpn);
    if (!qp) return;
    if (event.kind == EventKind::doorbell) {
        hca.ring_send(*qp, event.value);
        return;
    }
    if (event.epoch != qp->epoch) return;
    switch (event.kind) {
        case EventKind::arrival: return hca.arrive(*qp, event.index);
        case EventKind::duplicate: return hca.arrive_again(*qp, event.index);
        case EventKind::response: return hca.acknowledge(*qp, event.index, event.value);
        case EventKind::negative: return hca.sent_again_from(*qp, event.index, static_cast<u32>(event.value));
        default: return hca.resend(*qp, event.index, event.value != 0);
    }
}

void Hca::wake_port(u32 number, u64 when_ps) {
    Port& port = ports_->at(number);
    if (port.tick_pending) return;
    port.tick_pending = true;
    schedule(when_ps, EventKind::tick, 0, number, 0, 0);
}

// Gives the port messages, a QP at a time in turn, until it is busy for a while.
void Hca::transmit(u32 number) {
    Port& port = ports_->at(number);
    port.tick_pending = false;
    const u64 now = environment_.now_ps();
    const u64 enough = now + config_.timing.port_lookahead_ps;
    while (larger(port.tx_free_ps, wqe_free_ps_) <= enough) {
        QueuePair* qp = ports_->dequeue(number);
        if (!qp) return;
        if (qp->has_work()) issue(*qp, port);
        if (qp->has_work()) ports_->enqueue(*qp);
    }
    if (port.first) wake_port(number, larger(port.tx_free_ps, wqe_free_ps_) - config_.timing.port_lookahead_ps / 2);
}

void Hca::issue(QueuePair& qp, Port& port) {
    TimedQueue& timed = *qp.timed;
    const HcaTiming& timing = config_.timing;
    const u64 now = environment_.now_ps();
    Transfer transfer;
    const Syndrome fault = begin(qp, transfer);
    const DecodedWqe& wqe = transfer.wqe;
    if (fault == Syndrome::none) {
        // A fence waits for earlier READs and atomics, strong ordering for everything.
        const u32 ordering = wqe.fm_ce_se & kFenceMode;
        const bool fenced = (ordering == kReadAtomicFence || ordering == kFence) && timed.reads_in_flight != 0;
        const bool ordered = ordering == kStrongOrder && qp.completed != qp.issued;
        const bool too_many =
            is_read_or_atomic(wqe.opcode) && timed.reads_in_flight >= qp.info.attr.max_rd_atomic;
        // With several paths an atomic is not sent before all that precedes it is acknowledged: one round trip more, as
        // observed on multi-path NICs. What follows it is not held back by it.
        const bool alone = wqe.atomic_width != 0 && qp.completed != qp.issued && many_paths(qp);
        if (fenced || ordered || too_many || alone) {
            timed.blocked = true;
            return;
        }
    }
    InFlight& slot = timed.slots[qp.issued & (qp.sq_entries() - 1)];
    slot.wqe = wqe;
    slot.wqe.fault = fault;
    slot.outcome = {};
    slot.sent_ps = now;
    slot.failed_locally = fault != Syndrome::none;
    slot.executed = slot.held = slot.answered = false;
    slot.psn = transfer.psn;
    slot.port = slot.first = 0;
    if (slot.failed_locally)
        qp.issued = smaller(qp.issued + wqe.bbs, qp.producer);
    else
        take_up(qp, wqe);
    if (slot.failed_locally) {
        timed.blocked = timed.local_error = true;  // its error waits for what was sent before it
        advance(qp);
        return;
    }
    if (is_read_or_atomic(wqe.opcode)) ++timed.reads_in_flight;

    // A NAK of sequence may have acknowledged the first packets of a message: they are not sent again.
    const i32 acknowledged = psn_ahead(timed.acknowledged_psn, transfer.psn);
    if (acknowledged > 0 && static_cast<u32>(acknowledged) < psns_of(wqe, qp.mtu_shift) && !is_read_or_atomic(wqe.opcode))
        transfer.first = slot.first = static_cast<u32>(acknowledged);
    const Packets packets = request_part(wqe, qp.mtu_shift, qp.header_octets, transfer.first, ~0u);
    const u64 taken_up = occupy(wqe_free_ps_, now, timing.wqe_gap_ps);
    u64 start = larger(taken_up, timed.next_issue_ps);
    timed.next_issue_ps = start + timing.qp_wqe_gap_ps;
    const bool up = depart(qp, transfer);
    slot.port = transfer.port;
    if (packets.count == 0) {
        timed.last_arrival_ps = larger(timed.last_arrival_ps, start + (wqe.bytes ? timing.payload_fetch_ps : 0));
        schedule(timed.last_arrival_ps, EventKind::arrival, qp.info.qpn, wqe.bb, qp.epoch, 0);
        return;
    }
    const u64 wire = serialization_ps(timing, packets);
    const bool gathers = packets.payload != 0;
    // The port is taken for as long as it sends; when exactly may be later, for a QP slower than its port.
    port.counters.xmit_busy_ps += wire;
    const u64 sent = larger(occupy(port.tx_free_ps, now, wire),
                            start + (gathers ? timing.payload_fetch_ps : 0) + wire);
    u64 there = sent + timing.wire_latency_ps;
    Hca* const peer = qp.peer.hca;
    const u32 in = up && peer ? peer->ports_->receiving_port(qp.tx_port, qp.peer.port) : 0;
    // Incast: whoever sends to that port shares its one link.
    if (in != 0) there = occupy(peer->ports_->at(in).rx_free_ps, there - wire, wire);
    there += timing.placement_ps;
    if (environment_.faults_on) {
        there += environment_.port_skew_ps(qp.tx_port);
        if (environment_.fault(FaultKind::delay, qp.info.qpn)) there += environment_.fault_delay_ps(FaultKind::delay);
        // Adaptive routing: of the paths between two out-of-order QPs one is longer than the other.
        if (many_paths(qp) && environment_.fault(FaultKind::path, qp.info.qpn)) {
            there += environment_.fault_delay_ps(FaultKind::path);
            schedule(there, EventKind::arrival, qp.info.qpn, wqe.bb, qp.epoch, 0);
            return;
        }
    }
    // One path keeps the order.
    timed.last_arrival_ps = larger(timed.last_arrival_ps, there);
    schedule(timed.last_arrival_ps, EventKind::arrival, qp.info.qpn, wqe.bb, qp.epoch, 0);
}

}  // namespace rdmakit::emu
