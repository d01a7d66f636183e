// timed.cpp — the same steps with a clock between them: doorbell, port, wire, then in_flight.cpp and recovery.cpp.
// Leans on timing.hpp for the numbers and on requester.cpp and responder.cpp for what happens. One event a message and
// direction, not a packet; a port sends whole messages in turn.
#include "event_pool.hpp"
#include "hca.hpp"
#include "link.hpp"

namespace rdmakit::emu {

namespace {
constexpr u64 kPatience = 500'000;  // of waiting in the network that is not worth an event
}

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
        if (event.index == 0 || !hca.config_.timing.proxy_fences) {
            hca.ring_send(*qp, event.value, event.index != 0);
        } else {
            TimedQueue& timed = *qp->timed;
            timed.asked = larger(timed.asked, widen_index(timed.asked, doorbell_next_index(decode_doorbell(event.value))));
            hca.proxy_posts(*qp);
        }
        return;
    }
    if (event.epoch != qp->epoch) return;
    switch (event.kind) {
        case EventKind::egress: return hca.egress(*qp, event.index, event.value);
        case EventKind::turn:
            qp->timed->turn_pending = false;
            if (qp->has_work()) hca.enqueue(*qp);
            return;
        case EventKind::proxy:
            qp->timed->proxy_pending = false;
            qp->timed->heard = larger(qp->timed->heard, event.index);
            return hca.proxy_posts(*qp);
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
    // When the port, the engine and PCIe can all take more: what waits for one of them has not left, and blocks nobody else's way.
    const auto free_ps = [&] {
        const u64 fetch = config_.timing.payload_fetch_ps;  // reads overlap: what counts is when the next may begin
        const u64 pcie = pcie_read_free_ps_ > fetch ? pcie_read_free_ps_ - fetch : 0;
        return larger(larger(port.tx_free_ps, wqe_free_ps_), pcie);
    };
    while (free_ps() <= enough) {
        QueuePair* qp = ports_->dequeue(number);
        if (!qp) return;
        TimedQueue& timed = *qp->timed;
        if (qp->has_work() && timed.next_issue_ps > enough) {  // slower than its port: others go first
            if (!timed.turn_pending) schedule(timed.next_issue_ps, EventKind::turn, qp->info.qpn, 0, qp->epoch, 0);
            timed.turn_pending = true;
            continue;
        }
        if (qp->has_work()) issue(*qp, port);
        if (qp->has_work()) ports_->enqueue(*qp);
    }
    if (port.first) wake_port(number, free_ps() - config_.timing.port_lookahead_ps / 2);
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
        const bool unanswered = timing.qp_window_bytes != 0 && timed.bytes_in_flight != 0 &&
                                timed.bytes_in_flight + wqe.bytes > timing.qp_window_bytes;
        // With several paths an atomic is not sent before all that precedes it is acknowledged: one round trip more, as
        // observed on multi-path NICs. What follows it is not held back by it.
        const bool alone = wqe.atomic_width != 0 && qp.completed != qp.issued && many_paths(qp);
        if (fenced || ordered || too_many || unanswered || alone) {
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
    timed.bytes_in_flight += wqe.bytes;

    // A NAK of sequence may have acknowledged the first packets of a message: they are not sent again.
    const i32 acknowledged = psn_ahead(timed.acknowledged_psn, transfer.psn);
    if (acknowledged > 0 && static_cast<u32>(acknowledged) < psns_of(wqe, qp.mtu_shift) && !is_read_or_atomic(wqe.opcode))
        transfer.first = slot.first = static_cast<u32>(acknowledged);
    const Packets packets = request_part(wqe, qp.mtu_shift, qp.header_octets, transfer.first, ~0u);
    const u64 taken_up = occupy(wqe_free_ps_, now, timing.wqe_gap_ps);
    counters_.wqe_busy_ps += timing.wqe_gap_ps;
    u64 start = larger(taken_up, timed.next_issue_ps);
    const u64 moving = timing.qp_bytes_per_second ? duration_ps(packets.payload, timing.qp_bytes_per_second) : 0;
    timed.next_issue_ps = start + larger(timing.qp_wqe_gap_ps, moving);
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
    u64 sent = larger(occupy(port.tx_free_ps, now, wire), start + (gathers ? timing.payload_fetch_ps : 0) + wire);
    if (gathers) sent = larger(sent, over_pcie(pcie_read_free_ps_, counters_.pcie_read_busy_ps, packets.payload,
                                               start + timing.payload_fetch_ps));
    if (environment_.tracing)
        environment_.mark(*this, Environment::Mark::wire, qp.info.qpn, qp.tx_port, wqe.bb, packets.payload, sent - wire, sent);
    Hca* const peer = qp.peer.hca;
    const u32 in = up && peer ? peer->ports_->receiving_port(qp.tx_port, qp.peer.port) : 0;
    const u64 there = sent + timing.wire_latency_ps;
    Network* const network = fabric_.network();
    if (in == 0 || network == nullptr) return come_in(qp, wqe, packets, in, there);
    const auto crossing = network->cross({config_.host, config_.nic, qp.tx_port}, {peer->config_.host, peer->config_.nic, in},
                                         qp.info.udp_source_port, packets.octets + packets.count * timing.wire_bytes_per_packet,
                                         there - wire, there);
    pause_until(port, crossing.paused_until_ps);
    // One that has waited in the network stands in front of its last port when it gets there, not now: others may come first.
    const bool delayed = crossing.first_ps > there - wire + kPatience || timed.last_egress_ps >= now;
    if (!delayed) return come_in(qp, wqe, packets, in, crossing.last_ps);
    timed.last_egress_ps = larger(timed.last_egress_ps, crossing.first_ps);
    schedule(timed.last_egress_ps, EventKind::egress, qp.info.qpn, wqe.bb, qp.epoch, crossing.last_ps);
}

// It has come out of the network, in front of the receiver's port.
void Hca::egress(QueuePair& qp, u64 index, u64 last_ps) {
    const InFlight& slot = qp.timed->slots[index & (qp.sq_entries() - 1)];
    const Packets packets = request_part(slot.wqe, qp.mtu_shift, qp.header_octets, slot.first, ~0u);
    Hca* const peer = qp.peer.hca;
    const u32 in = slot.port && peer ? peer->ports_->receiving_port(slot.port, qp.peer.port) : 0;
    come_in(qp, slot.wqe, packets, in, larger(last_ps, environment_.now_ps()));
}

// The last leg: the receiver's port, PCIe, memory. `in` 0: there is no port, and nobody will answer.
void Hca::come_in(QueuePair& qp, const DecodedWqe& wqe, const Packets& packets, u32 in, u64 last_ps) {
    TimedQueue& timed = *qp.timed;
    const HcaTiming& timing = config_.timing;
    Hca* const peer = qp.peer.hca;
    u64 there = last_ps;
    if (in != 0) {
        if (const Network* const network = fabric_.network()) {
            // A queue in front of that port, or of PCIe behind it, stops whoever feeds it.
            const u64 busy = larger(peer->ports_->at(in).rx_free_ps, peer->pcie_write_free_ps_);
            const u64 first = last_ps - serialization_ps(timing, packets);
            const u64 pause = busy > first ? network->pause_ps(busy - first, peer->config_.timing.port_bytes_per_second) : 0;
            if (pause != 0 && qp.tx_port != 0) pause_until(ports_->at(qp.tx_port), environment_.now_ps() + pause);
        }
        there = peer->take_in(in, packets, last_ps);
        if (wqe.atomic_width != 0 && peer->config_.timing.atomic_gap_ps != 0) {
            there = occupy(peer->atomic_free_ps_, there, peer->config_.timing.atomic_gap_ps);
            peer->counters_.atomic_busy_ps += peer->config_.timing.atomic_gap_ps;
        }
    }
    there += timing.placement_ps;
    const u32 port = qp.tx_port;
    if (environment_.faults_on) {
        there += environment_.port_skew_ps(port);
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

void Hca::pause_until(Port& port, u64 until_ps) {
    if (until_ps <= port.tx_free_ps) return;
    port.counters.paused_ps += until_ps - larger(port.tx_free_ps, environment_.now_ps());
    port.tx_free_ps = until_ps;
}

// Payload between NIC and GPU; when its last byte is across. No limit: no time.
u64 Hca::over_pcie(u64& free_ps, u64& busy_ps, u64 bytes, u64 first_ps) {
    if (config_.timing.pcie_bytes_per_second == 0) return 0;
    const u64 length = duration_ps(bytes, config_.timing.pcie_bytes_per_second);
    busy_ps += length;
    return occupy(free_ps, first_ps, length);
}

// Incast: whoever sends to that port shares its one link. Then the payload crosses PCIe.
u64 Hca::take_in(u32 in, const Packets& packets, u64 last_ps) {
    const u64 wire = serialization_ps(config_.timing, packets);
    Port& port = ports_->at(in);
    port.counters.rcv_busy_ps += wire;
    const u64 there = larger(occupy(port.rx_free_ps, last_ps - wire, wire), last_ps);
    if (packets.payload == 0) return there;
    return larger(there, over_pcie(pcie_write_free_ps_, counters_.pcie_write_busy_ps, packets.payload, there - wire));
}

}  // namespace rdmakit::emu
