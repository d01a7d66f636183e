// sequence.cpp — which requests a responder takes: the expected one, one that comes again, one that comes too early.
// Leans on replay.hpp; responder.cpp executes. IBTA vol. 1 §9.7.5.1 (sequence), man mlx5dv_create_qp (OOO_DP).
#include "hca.hpp"
#include "port.hpp"

namespace rdmakit::emu {

bool Hca::many_paths(const QueuePair& qp) const {
    if (!qp.info.create.out_of_order || !qp.peer.hca) return false;
    const QueuePair* responder = qp.peer.hca->find_qp(qp.info.attr.dest_qp_num);
    return responder && responder->info.create.out_of_order;
}

Outcome Hca::respond(QueuePair& qp, Transfer& transfer, Hca& from, QueuePair& source) {
    const bool listening = qp.state() == QpState::rtr || qp.state() == QpState::rts || qp.state() == QpState::sqd;
    // A request from another connection is not answered as if it were of this one.
    if (!listening || qp.peer.hca != &from || qp.info.attr.dest_qp_num != source.info.qpn) return {Outcome::lost};
    const u32 packets = psns_of(transfer.wqe, source.mtu_shift);
    const i32 ahead = psn_ahead(transfer.psn, qp.expected_psn);
    if (ahead > 0) return too_early(qp, transfer, source, packets);
    const u32 behind = static_cast<u32>(-ahead);
    // From before this connection, or of a peer that has begun anew while we have not: a ConnectX cannot tell that from
    // a duplicate and acknowledges what it does not execute. Here it is dropped, so that whoever sends it learns of it.
    if (behind > qp.taken_psns || (behind != 0 && qp.heard_connection != source.connection)) return {Outcome::lost};
    if (behind >= packets) return once_more(qp, transfer);
    if (qp.state() == QpState::rtr && !qp.communicated) {
        qp.communicated = true;
        report(AsyncEventType::communication_established, qp.info.qpn);
    }
    qp.heard_connection = source.connection;
    transfer.taken = behind;
    Outcome outcome{Outcome::lost};
    if (transfer.arriving > behind) {
        qp.sequence_error_sent = false;
        outcome = execute(qp, transfer, source);
        // An RNR NAK is a NAK too: what comes behind it is dropped in silence (IBTA vol. 1 §9.7.5.2.8).
        if (outcome.kind == Outcome::not_ready) qp.sequence_error_sent = true;
    }
    // What execute has taken of a message that is not complete, it says in `taken`.
    take_psns(qp, outcome.kind == Outcome::done ? packets - behind : transfer.taken - behind);
    if (outcome.kind == Outcome::done && transfer.wqe.atomic_width != 0) qp.replay.remember(transfer.psn, outcome.old);
    if (transfer.arriving < packets - 1) return sequence_error(qp);  // the packet behind the lost one is the first to tell
    return outcome;
}

// Said once, until what is missing has come.
Outcome Hca::sequence_error(QueuePair& qp) {
    ++counters_.out_of_sequence;
    if (qp.sequence_error_sent) return {Outcome::lost};
    qp.sequence_error_sent = true;
    return {Outcome::out_of_sequence, Syndrome::none, qp.expected_psn};
}

void Hca::take_psns(QueuePair& qp, u32 packets) {
    while (packets != 0) {
        qp.expected_psn = psn_after(qp.expected_psn, packets);
        qp.taken_psns += packets;
        packets = qp.early.empty() ? 0 : qp.early.absorb(qp.expected_psn);
    }
}

// The requester has not heard our answer, or the network has doubled its request. WRITEs and SENDs are acknowledged
// again and not executed, an atomic has its first result again, a READ reads anew.
Outcome Hca::once_more(QueuePair& qp, Transfer& transfer) {
    ++counters_.duplicate_request;
    if (transfer.wqe.opcode == static_cast<u32>(Opcode::read)) return read(qp, transfer.wqe);
    if (transfer.wqe.atomic_width == 0) return {};
    const u64* old = qp.replay.find(transfer.psn);
    if (!old) return {Outcome::lost};
    ++counters_.atomics_replayed;
    return {Outcome::done, Syndrome::none, *old};
}

// Something before it is missing. In order, that is an error of sequence. Out of order, a WRITE is executed at once,
// everything else when its turn comes.
Outcome Hca::too_early(QueuePair& qp, Transfer& transfer, QueuePair& source, u32 packets) {
    if (!qp.info.create.out_of_order || !source.info.create.out_of_order) return sequence_error(qp);
    if (qp.early.has(transfer.psn)) {
        ++counters_.duplicate_request;
        return {};
    }
    if (transfer.wqe.opcode != static_cast<u32>(Opcode::write)) return {Outcome::early};
    if (transfer.arriving < packets) return {Outcome::lost};
    transfer.taken = 0;
    const Outcome outcome = execute(qp, transfer, source);
    if (outcome.kind == Outcome::done) qp.early.add(transfer.psn, packets);
    return outcome;
}

}  // namespace rdmakit::emu
