// timed.cpp — the same steps with a clock between them: doorbell, port, wire, responder, wire, completion.
// Leans on timing.hpp for the numbers and on requester.cpp and responder.cpp for what happens. One event a message and
// direction, not a packet; a port sends whole messages in turn.
#include "event_pool.hpp"
#include "hca.hpp"
#include "memory_region.hpp"
#include "port.hpp"

namespace rdmakit::emu {

namespace {
// The 5-bit timer code of an RNR NAK, in units of 10 µs (IBTA vol. 1 table 45).
constexpr u32 kRnrTimer10us[32] = {65536, 1,   2,   3,   4,   6,    8,    12,   16,   24,   32,
                                   48,    64,  96,  128, 192, 256,  384,  512,  768,  1024, 1536,
                                   2048,  3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};
constexpr u64 kTimeoutUnitPs = 4'096'000;  // 4.096 µs

u64 serialization_ps(const HcaTiming& timing, const Packets& packets) {
    const u64 octets = packets.octets + packets.count * timing.wire_bytes_per_packet;
    // In 64 bits a message of 20 MB would overflow.
    const unsigned __int128 scaled = static_cast<unsigned __int128>(octets) * 1'000'000'000'000ull;
    return static_cast<u64>(scaled / timing.port_bytes_per_second);
}

// Takes the link from `earliest` on, for `length`; returns when the last byte has passed.
u64 occupy(u64& free_ps, u64 earliest, u64 length) {
    free_ps = larger(free_ps, earliest) + length;
    return free_ps;
}

constexpr u32 fence_mode(u32 mode) { return mode & (7u << 5); }
}  // namespace

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
    QueuePair* qp = hca.find_qp(event.qpn);
    if (!qp) return;
    if (event.kind == EventKind::doorbell) {
        hca.ring_send(*qp, event.value);
        return;
    }
    if (event.epoch != qp->epoch) return;
    if (event.kind == EventKind::arrival) hca.arrive(*qp, event.index);
    if (event.kind == EventKind::response) hca.acknowledge(*qp, event.index);
    if (event.kind == EventKind::resend) hca.resend(*qp, event.value != 0);
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
        const u32 ordering = fence_mode(wqe.fm_ce_se);
        const bool fenced = (ordering == kReadAtomicFence || ordering == kFence) && timed.reads_in_flight != 0;
        const bool ordered = ordering == kStrongOrder && qp.completed != qp.issued;
        const bool too_many =
            is_read_or_atomic(wqe.opcode) && timed.reads_in_flight >= qp.info.attr.max_rd_atomic;
        if (fenced || ordered || too_many) {
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
    qp.issued = smaller(qp.issued + wqe.bbs, qp.producer);
    if (slot.failed_locally) {
        timed.blocked = timed.local_error = true;  // its error waits for what was sent before it
        advance(qp);
        return;
    }
    if (is_read_or_atomic(wqe.opcode)) ++timed.reads_in_flight;

    const Packets packets = request_packets(wqe, qp.mtu_shift, qp.header_octets);
    const u64 taken_up = occupy(wqe_free_ps_, now, timing.wqe_gap_ps);
    u64 start = larger(taken_up, timed.next_issue_ps);
    timed.next_issue_ps = start + timing.qp_wqe_gap_ps;
    const bool up = depart(qp, wqe);
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
    timed.last_arrival_ps = larger(timed.last_arrival_ps, there + timing.placement_ps);
    schedule(timed.last_arrival_ps, EventKind::arrival, qp.info.qpn, wqe.bb, qp.epoch, 0);
}

void Hca::arrive(QueuePair& qp, u64 index) {
    TimedQueue& timed = *qp.timed;
    if (index != timed.arrived) return;  // an earlier one was not taken: go back N (NAK sequence error)
    InFlight& slot = timed.slots[index & (qp.sq_entries() - 1)];
    Transfer transfer;
    transfer.wqe = slot.wqe;
    const Syndrome fault = map_local(qp, transfer);  // a region may have gone since the WQE was issued
    const u32 epoch = qp.epoch;
    slot.outcome = fault != Syndrome::none ? Outcome{Outcome::refused, fault} : deliver(qp, transfer);
    if (qp.epoch != epoch) return;
    const u64 now = environment_.now_ps();
    if (slot.outcome.kind == Outcome::lost) {
        if (qp.info.attr.timeout == 0) return;  // no time-out: waits for ever
        const u64 expires = slot.sent_ps + (kTimeoutUnitPs << qp.info.attr.timeout);
        schedule(larger(larger(expires, now), timed.last_ack_ps), EventKind::resend, qp.info.qpn, index, epoch, 0);
        return;
    }
    const u64 back = respond_at(qp, slot.wqe, slot.outcome);
    timed.last_ack_ps = larger(timed.last_ack_ps, back);
    if (slot.outcome.kind == Outcome::not_ready) {
        ++qp.info.counters.rnr_naks_received;
        const u64 pause = kRnrTimer10us[slot.outcome.old & 31] * 10'000'000ull;
        schedule(timed.last_ack_ps + pause, EventKind::resend, qp.info.qpn, index, epoch, 1);
        return;
    }
    timed.arrived = index + slot.wqe.bbs;
    schedule(timed.last_ack_ps, EventKind::response, qp.info.qpn, index, epoch, 0);
}

// When the response has come back and its CQE can be seen.
u64 Hca::respond_at(const QueuePair& qp, const DecodedWqe& wqe, const Outcome& outcome) {
    const HcaTiming& timing = config_.timing;
    const u64 now = environment_.now_ps();
    Hca* const peer = qp.peer.hca;
    const QueuePair* responder = peer ? peer->find_qp(qp.info.attr.dest_qp_num) : nullptr;
    if (request_packets(wqe, qp.mtu_shift, 0).count == 0 || !responder || responder->tx_port == 0)
        return now + timing.completion_ps;
    const Packets packets =
        response_packets(wqe, qp.mtu_shift, responder->header_octets, outcome.kind == Outcome::done);
    const u64 wire = serialization_ps(peer->config_.timing, packets);
    Port& out = peer->ports_->at(responder->tx_port);
    out.counters.xmit_busy_ps += wire;
    const u64 sent = occupy(out.tx_free_ps, now + (packets.payload ? timing.payload_fetch_ps : 0), wire);
    return sent + timing.wire_latency_ps + timing.completion_ps;
}

void Hca::acknowledge(QueuePair& qp, u64 index) {
    TimedQueue& timed = *qp.timed;
    const InFlight& slot = timed.slots[index & (qp.sq_entries() - 1)];
    Transfer transfer;
    transfer.wqe = slot.wqe;
    Outcome outcome = slot.outcome;
    if (is_read_or_atomic(slot.wqe.opcode)) {
        --timed.reads_in_flight;
        // The landing place, and what a READ reads, must still be there.
        const Syndrome fault = map_local(qp, transfer);
        if (fault != Syndrome::none && outcome.kind == Outcome::done) outcome = {Outcome::refused, fault};
        if (outcome.kind == Outcome::done && outcome.memory) {
            QueuePair* responder = qp.peer.hca->find_qp(qp.info.attr.dest_qp_num);
            const KeyCheck check =
                responder ? check_key(qp.peer.hca->memory_->table(), slot.wqe.rkey, slot.wqe.raddr, slot.wqe.bytes,
                                      kKeyRemoteRead, responder->info.create.pd)
                          : KeyCheck{KeyFault::unknown, 0};
            if (check.fault != KeyFault::none) outcome = {Outcome::refused, Syndrome::remote_access};
        }
    }
    finish(qp, transfer, outcome);
    advance(qp);
}

// Go back N: everything from the first WQE that was not taken is sent again.
void Hca::resend(QueuePair& qp, bool receiver_not_ready) {
    const bool for_ever = receiver_not_ready && qp.info.attr.rnr_retry == 7;
    if (!for_ever && !may_retry(qp, receiver_not_ready)) {
        const InFlight& head = qp.timed->slots[qp.completed & (qp.sq_entries() - 1)];
        fail(qp, head.wqe,
             receiver_not_ready ? Syndrome::rnr_retry_exceeded : Syndrome::transport_retry_exceeded);
        return;
    }
    ++qp.epoch;
    qp.issued = qp.completed;
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
    if (qp.has_work()) enqueue(qp);
}

}  // namespace rdmakit::emu
