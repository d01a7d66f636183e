// in_flight.cpp — a message under way, with a clock: its arrival at the responder, the answer, the completion.
// Leans on sequence.cpp for what the responder makes of it, and on recovery.cpp when no good answer comes.
#include "event_pool.hpp"
#include "hca.hpp"
#include "link.hpp"
#include "memory_region.hpp"

namespace rdmakit::emu {

namespace {
// The 5-bit timer code of an RNR NAK, in units of 10 µs (IBTA vol. 1 table 45).
constexpr u32 kRnrTimer10us[32] = {65536, 1,   2,   3,   4,   6,    8,    12,   16,   24,   32,
                                   48,    64,  96,  128, 192, 256,  384,  512,  768,  1024, 1536,
                                   2048,  3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152};

Transfer on_its_way(const InFlight& slot) {
    Transfer transfer;
    transfer.wqe = slot.wqe;
    transfer.psn = slot.psn;
    transfer.port = slot.port;
    transfer.first = slot.first;
    return transfer;
}
}  // namespace

void Hca::arrive(QueuePair& qp, u64 index) {
    InFlight& slot = qp.timed->slots[index & (qp.sq_entries() - 1)];
    slot.held = false;
    Transfer transfer = on_its_way(slot);
    const Syndrome fault = map_local(qp, transfer);  // a region may have gone since the WQE was issued
    const u32 epoch = qp.epoch;
    slot.outcome = fault != Syndrome::none ? Outcome{Outcome::refused, fault} : deliver(qp, transfer);
    if (qp.epoch != epoch) return;
    answer(qp, index, slot.outcome);
}

void Hca::answer(QueuePair& qp, u64 index, const Outcome& outcome) {
    TimedQueue& timed = *qp.timed;
    const DecodedWqe& wqe = timed.slots[index & (qp.sq_entries() - 1)].wqe;
    if (outcome.kind == Outcome::lost) return wait_for_answer(qp, index);
    if (outcome.kind == Outcome::early) {
        timed.slots[index & (qp.sq_entries() - 1)].held = true;
        return;
    }
    if (outcome.kind == Outcome::unanswered) {
        wait_for_answer(qp, index);
        executed(qp, index);
        return admit_held(qp);
    }
    timed.last_ack_ps = larger(timed.last_ack_ps, respond_at(qp, wqe, outcome));
    if (outcome.kind == Outcome::out_of_sequence) {
        schedule(timed.last_ack_ps, EventKind::negative, qp.info.qpn, timed.arrived, qp.epoch, outcome.old);
        return;
    }
    if (outcome.kind == Outcome::not_ready) {
        ++qp.info.counters.rnr_naks_received;
        const u64 pause = kRnrTimer10us[outcome.old & 31] * 10'000'000ull;
        schedule(timed.last_ack_ps + pause, EventKind::resend, qp.info.qpn, index, qp.epoch, 1);
        return;
    }
    if (environment_.happens(FaultKind::cqe_late, qp.info.qpn))
        timed.last_ack_ps += environment_.fault_delay_ps(FaultKind::cqe_late);
    if (outcome.kind == Outcome::done && environment_.happens(FaultKind::duplicate, qp.info.qpn))
        schedule(environment_.now_ps() + environment_.fault_delay_ps(FaultKind::duplicate), EventKind::duplicate,
                 qp.info.qpn, index, qp.epoch, 0);
    executed(qp, index);
    // It acknowledges all that the responder has executed in order, and nothing behind a gap.
    schedule(timed.last_ack_ps, EventKind::response, qp.info.qpn, index, qp.epoch, timed.arrived);
    // The thread sees a CQE before the GPU does, whom it tells.
    if (config_.timing.proxy_fences) proxy_goes_on(qp, timed.arrived, timed.last_ack_ps - config_.timing.proxy_poll_ps);
    admit_held(qp);
}

// The responder has done it.
void Hca::executed(QueuePair& qp, u64 index) {
    if (environment_.tracing)
        environment_.mark(*this, Environment::Mark::arrived, qp.info.qpn, qp.tx_port, index, 0, environment_.now_ps(),
                          environment_.now_ps());
    TimedQueue& timed = *qp.timed;
    const u64 mask = qp.sq_entries() - 1;
    timed.slots[index & mask].executed = true;
    while (timed.arrived != qp.issued && timed.slots[timed.arrived & mask].executed)
        timed.arrived += timed.slots[timed.arrived & mask].wqe.bbs;
}

// What was held back until then may be next.
void Hca::admit_held(QueuePair& qp) {
    const TimedQueue& timed = *qp.timed;
    if (timed.arrived != qp.issued && timed.slots[timed.arrived & (qp.sq_entries() - 1)].held) arrive(qp, timed.arrived);
}

// The network has doubled the request: it is the responder who must notice. Its second answer tells the requester
// nothing new.
void Hca::arrive_again(QueuePair& qp, u64 index) {
    const InFlight& slot = qp.timed->slots[index & (qp.sq_entries() - 1)];
    if (slot.wqe.bb != index || !slot.executed) return;  // the slot has been used again, or the WQE is sent anew
    Transfer transfer = on_its_way(slot);
    const Outcome outcome = deliver(qp, transfer);
    if (outcome.kind == Outcome::done) respond_at(qp, slot.wqe, outcome);
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
    const Network* const network = fabric_.network();
    const u64 farther = network == nullptr ? 0
                                           : network->extra_latency_ps({config_.host, config_.nic, larger(1u, qp.tx_port)},
                                                                       {peer->config_.host, peer->config_.nic, responder->tx_port});
    // A thread of the host that posts for the GPU also tells it of completions.
    const u64 relayed = timing.proxy_threads != 0 ? timing.proxy_poll_ps : 0;
    return sent + timing.wire_latency_ps + farther + timing.completion_ps + relayed;
}

// The response to `index` is back, and with it the word that everything before `through` was executed.
void Hca::acknowledge(QueuePair& qp, u64 index, u64 through) {
    if (index >= qp.completed) qp.timed->slots[index & (qp.sq_entries() - 1)].answered = true;
    if (acknowledge_through(qp, through)) advance(qp);
}

// False if the QP cannot go on as if nothing had happened.
bool Hca::acknowledge_through(QueuePair& qp, u64 through) {
    const u32 epoch = qp.epoch;
    while (qp.completed < through && qp.completed != qp.issued) {
        const InFlight& head = qp.timed->slots[qp.completed & (qp.sq_entries() - 1)];
        if (head.failed_locally) break;
        if (is_read_or_atomic(head.wqe.opcode) && !head.answered) {
            // A later response shows that this one, which carried something, is lost (IBTA §9.7.5.2.2: implied NAK).
            ++counters_.implied_nak_seq_err;
            go_back(qp, false);
            return false;
        }
        complete_head(qp);
        if (qp.epoch != epoch) return false;
    }
    return true;
}

void Hca::complete_head(QueuePair& qp) {
    TimedQueue& timed = *qp.timed;
    const InFlight& slot = timed.slots[qp.completed & (qp.sq_entries() - 1)];
    timed.bytes_in_flight -= slot.wqe.bytes;
    timed.acknowledged_psn = psn_after(slot.psn, psns_of(slot.wqe, qp.mtu_shift));
    Transfer transfer = on_its_way(slot);
    // WRITEs and SENDs whose own response was lost are known to be done all the same.
    Outcome outcome = slot.outcome.kind == Outcome::refused ? slot.outcome : Outcome{};
    if (is_read_or_atomic(slot.wqe.opcode)) {
        outcome = slot.outcome;
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
    if (environment_.tracing)
        environment_.mark(*this, Environment::Mark::completed, qp.info.qpn, slot.port, slot.wqe.bb, slot.wqe.bytes,
                          environment_.now_ps(), environment_.now_ps());
    finish(qp, transfer, outcome);
}

}  // namespace rdmakit::emu
