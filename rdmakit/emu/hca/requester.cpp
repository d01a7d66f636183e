// requester.cpp — the sending side of an RC queue pair: from a posted WQE to a request, and from its response to a CQE.
// Leans on hca_wqe.cuh for decoding and on responder.cpp at the other end.
#include <cstring>

#include "hca.hpp"
#include "memory_region.hpp"
#include "port.hpp"

namespace rdmakit::emu {

// Finds the memory behind each local segment. Bytes of the ring are not trusted to be what they were when the WQE was
// decoded: a kernel may overwrite a WQE that is still under way, and gets an error, or garbage, but no wild access.
Syndrome Hca::map_local(const QueuePair& qp, Transfer& transfer) const {
    const DecodedWqe& wqe = transfer.wqe;
    const KeyTable keys = memory_->table();
    const u32 access = is_read_or_atomic(wqe.opcode) ? kKeyLocalWrite : 0;
    transfer.local.count = 0;
    for (u32 at = wqe.first_segment; at < wqe.ds;) {
        const LocalSegment segment = local_segment(qp.sq, wqe, at);
        if (segment.inline_ds != 0) {
            if (segment.ds > wqe.ds - at) return Syndrome::local_qp_op;
            u8* const start = const_cast<u8*>(ring_ds(qp.sq, wqe.bb, at)) + sizeof(InlineSeg);
            u8* const base = const_cast<u8*>(qp.sq.base);
            const u64 to_end = static_cast<u64>(base + (static_cast<u64>(kWqebb) << qp.sq.log_bbs) - start);
            const u64 first = smaller<u64>(segment.bytes, to_end);
            transfer.local.add(start, first);
            transfer.local.add(base, segment.bytes - first);
        } else {
            const KeyCheck check =
                check_key(keys, segment.lkey, segment.addr, segment.bytes, access, qp.info.create.pd);
            if (check.fault != KeyFault::none) return Syndrome::local_protection;
            transfer.local.add(reinterpret_cast<void*>(check.memory), segment.bytes);
        }
        at += segment.ds;
    }
    return Syndrome::none;
}

// Everything that the requester can refuse by itself, before a packet leaves.
Syndrome Hca::begin(QueuePair& qp, Transfer& transfer) {
    transfer.psn = qp.next_psn;
    transfer.wqe = decode_wqe(qp.sq, qp.issued, qp.producer - qp.issued, qp.info.qpn);
    if (transfer.wqe.fault != Syndrome::none) return transfer.wqe.fault;
    if (is_read_or_atomic(transfer.wqe.opcode) && qp.info.attr.max_rd_atomic == 0) return Syndrome::local_qp_op;
    return map_local(qp, transfer);
}

// Untimed: one WQE from beginning to end.
void Hca::step(QueuePair& qp) {
    Transfer transfer;
    const Syndrome fault = begin(qp, transfer);
    if (!qp.away.empty() && (fault != Syndrome::none || must_wait(qp, transfer.wqe))) {
        qp.away_blocked = true;  // completions stay in order
        return;
    }
    if (fault != Syndrome::none) {
        fail(qp, transfer.wqe, fault);
        return;
    }
    if (is_remote(qp) && !stays_at_home(transfer.wqe.opcode)) {
        send_away(qp, transfer);
        return;
    }
    const u32 epoch = qp.epoch;
    const Outcome outcome = depart(qp, transfer) ? deliver(qp, transfer) : Outcome{Outcome::lost};
    if (qp.epoch != epoch) return;  // connected to itself, and its own request took it to ERR: already flushed
    if (outcome.kind == Outcome::done && environment_.happens(FaultKind::duplicate, qp.info.qpn)) deliver(qp, transfer);
    if (outcome.kind != Outcome::done && outcome.kind != Outcome::refused) {
        stall(qp, transfer.wqe, outcome.kind == Outcome::not_ready);
        return;
    }
    take_up(qp, transfer.wqe);
    finish(qp, transfer, outcome);
}

// The WQE is under way: the next one has the PSNs behind it.
void Hca::take_up(QueuePair& qp, const DecodedWqe& wqe) {
    qp.issued = smaller(qp.issued + wqe.bbs, qp.producer);
    qp.next_psn = psn_after(qp.next_psn, psns_of(wqe, qp.mtu_shift));
}

// The request leaves by the QP's port; false if none is up.
bool Hca::depart(QueuePair& qp, Transfer& transfer) {
    const Packets request = request_part(transfer.wqe, qp.mtu_shift, qp.header_octets, transfer.first, ~0u);
    transfer.port = qp.tx_port;
    if (request.count == 0) return true;  // NOP and DUMP stay at home
    if (qp.tx_port == 0) return false;
    ports_->count_xmit(qp.tx_port, request);
    qp.info.counters.xmit_packets += request.count;
    if (environment_.faults_on) environment_.message_left(*this, qp.info.qpn);
    return true;
}

// How much of the request survives the way. A wrong ICRC is noticed, and counted, by the one who drops the packet.
void Hca::survive(QueuePair& qp, Transfer& transfer, Hca& peer, u32 packets) {
    const u64 sent = packets - transfer.first;
    const u64 whole = environment_.unharmed(FaultKind::loss, qp.info.qpn, sent);
    const u64 intact = environment_.unharmed(FaultKind::corrupt, qp.info.qpn, whole);
    if (intact == sent) return;
    ++counters_.packets_lost;
    if (intact < whole) ++peer.counters_.rx_icrc_encapsulated;
    transfer.arriving = transfer.first + static_cast<u32>(intact);
}

// The request comes in at the peer and is executed there; its response comes back.
Outcome Hca::deliver(QueuePair& qp, Transfer& transfer) {
    const DecodedWqe& wqe = transfer.wqe;
    if (stays_at_home(wqe.opcode)) return {};
    const u32 packets = is_read_or_atomic(wqe.opcode) ? 1 : psns_of(wqe, qp.mtu_shift);
    Hca* const peer = qp.peer.hca;
    const bool up = peer && transfer.port && ports_->at(transfer.port).up;
    const u32 in = up ? peer->ports_->receiving_port(transfer.port, qp.peer.port) : 0;
    if (in == 0) return {Outcome::lost};
    transfer.arriving = ~0u;
    if (environment_.faults_on) survive(qp, transfer, *peer, packets);
    peer->ports_->count_rcv(in, request_part(wqe, qp.mtu_shift, qp.header_octets, transfer.first, transfer.arriving));
    if (transfer.arriving <= transfer.first && packets - transfer.first == 1) return {Outcome::lost};
    QueuePair* const responder = peer->find_qp(qp.info.attr.dest_qp_num);
    if (!responder || responder->tx_port == 0) return {Outcome::lost};
    const u32 out = responder->tx_port;
    if (peer != this) peer->copy_payload_ = copy_payload_;
    const Outcome outcome = peer->respond(*responder, transfer, *this, qp);
    if (outcome.kind == Outcome::lost || outcome.kind == Outcome::early) return outcome;
    const Packets response =
        response_packets(wqe, qp.mtu_shift, responder->header_octets, outcome.kind == Outcome::done);
    peer->ports_->count_xmit(out, response);
    const u32 back = ports_->receiving_port(out, qp.info.attr.port_num);
    if (back == 0 || environment_.happens(FaultKind::ack_lost, qp.info.qpn)) {
        ++counters_.responses_lost;
        return {outcome.kind == Outcome::done ? Outcome::unanswered : Outcome::lost};
    }
    ports_->count_rcv(back, response);
    return outcome;
}

// The response is here: lands what it carries and completes the WQE.
void Hca::finish(QueuePair& qp, Transfer& transfer, const Outcome& outcome) {
    const DecodedWqe& wqe = transfer.wqe;
    if (outcome.kind == Outcome::refused) {
        fail(qp, wqe, outcome.syndrome);
        return;
    }
    const bool signalled = wants_cqe(wqe, qp.info.create.sq_sig_all);
    u8 value[8];
    Pieces source;
    if (wqe.atomic_width != 0) {
        // Results inside a CQE are big endian, 4-byte ones always are, 8-byte ones in memory as the device is set.
        const bool to_cqe = signalled && qp.info.create.scatter_to_cqe_requester;
        if (wqe.atomic_width == 4) {
            const u32 old = swap_bytes(static_cast<u32>(outcome.old));
            std::memcpy(value, &old, 4);
        } else {
            const u64 old = to_cqe || !config_.atomic_8b_host_endian ? swap_bytes(outcome.old) : outcome.old;
            std::memcpy(value, &old, 8);
        }
        source.add(value, wqe.atomic_width);
    } else if (wqe.opcode == static_cast<u32>(Opcode::read)) {
        source.add(outcome.memory, wqe.bytes);
    }

    u32 scatter = 0;
    if (source.count != 0) {
        if (signalled && qp.info.create.scatter_to_cqe_requester)
            scatter = scatter_flag(wqe.bytes, qp.send_cq->info.cqe_bytes);
        if (!scatter && copies(wqe.bytes)) bring_home(qp, source, transfer.local, wqe.bytes);
        qp.info.counters.rcv_payload += wqe.bytes;
    } else {
        qp.info.counters.xmit_payload += wqe.bytes;
    }

    qp.completed = wqe.bb + wqe.bbs;
    qp.rnr_tries = qp.timeouts = 0;
    ++qp.info.counters.send_wqes;
    qp.info.counters.send_bbs += wqe.bbs;
    ++counters_.wqes;
    if (wqe.atomic_width != 0) ++counters_.atomics;
    if (!signalled) return;
    u8 preceding[64] = {};
    Cqe cqe = requester_cqe(qp.info.qpn, wqe.opcode, wqe.index, static_cast<u32>(wqe.bytes),
                            environment_.now_ps() / 1000);
    if (scatter) {
        gather_pieces(source, scatter == kCqeScatter32 ? reinterpret_cast<u8*>(&cqe) : preceding, wqe.bytes);
        cqe.op_own |= static_cast<u8>(scatter);
    }
    if (!push_cqe(qp, *qp.send_cq, &cqe, scatter == kCqeScatter64 ? preceding : nullptr)) {
        report(AsyncEventType::qp_fatal, qp.info.qpn);
        enter_error(qp);
    }
}

// The WQE fails: a CQE that says why, whether or not it asked for one, and the end of the queue pair.
void Hca::fail(QueuePair& qp, const DecodedWqe& wqe, Syndrome syndrome) {
    ++counters_.errors;
    ++qp.info.counters.errors;
    qp.completed = smaller(wqe.bb + wqe.bbs, qp.producer);
    const ErrorCqe cqe = error_cqe(CqeOpcode::requester_error, qp.info.qpn, wqe.opcode, qp.info.create.user_index,
                                   wqe.index, syndrome);
    if (!push_cqe(qp, *qp.send_cq, &cqe, nullptr)) report(AsyncEventType::qp_fatal, qp.info.qpn);
    enter_error(qp);
}

}  // namespace rdmakit::emu
