// remote.cpp — untimed: a request leaves for another process, is executed there, and its answer comes back.
// Leans on remote.hpp and on the steps of requester.cpp and sequence.cpp, which are the same for a peer close by.
//
// Several requests of a queue pair are under way. The wire keeps their order and loses none, so answers come in order too;
// when one says that its request has to be sent again, so have all behind it (go back N), and answers to those carry tickets
// that nobody waits for.
#include "remote.hpp"

#include "hca.hpp"
#include "memory_region.hpp"
#include "port.hpp"

namespace rdmakit::emu {
namespace {

constexpr std::size_t kMostAway = 64;
constexpr u64 kMostBytesAway = 1 << 20;  // beyond the first request

}  // namespace

bool Hca::is_remote(const QueuePair& qp) const {
    return qp.peer.hca != nullptr && environment_.elsewhere(qp.info.attr.dest_qp_num);
}

// May `wqe` not follow yet what is under way?
bool Hca::must_wait(const QueuePair& qp, const DecodedWqe& wqe) const {
    if (stays_at_home(wqe.opcode) || qp.away.size() >= kMostAway) return true;
    u64 bytes = wqe.bytes;
    u32 reads = 0;
    for (const AwayRequest& request : qp.away) {
        bytes += request.wqe.bytes;
        reads += is_read_or_atomic(request.wqe.opcode);
    }
    // A fence waits for earlier READs and atomics, strong ordering for everything.
    const u32 ordering = wqe.fm_ce_se & kFenceMode;
    const bool fenced = ordering == kReadAtomicFence || ordering == kFence;
    return bytes > kMostBytesAway || ordering == kStrongOrder || (reads != 0 && fenced) ||
           (is_read_or_atomic(wqe.opcode) && reads >= qp.info.attr.max_rd_atomic);
}

void Hca::send_away(QueuePair& qp, Transfer& transfer) {
    const DecodedWqe& wqe = transfer.wqe;
    RemoteRequest request;
    request.wqe = wqe;
    request.source_qpn = qp.info.qpn;
    request.dest_qpn = qp.info.attr.dest_qp_num;
    request.ticket = ++qp.last_ticket;
    request.psn = transfer.psn;
    request.mtu_shift = qp.mtu_shift;
    request.header_octets = qp.header_octets;
    request.connection = qp.connection;
    request.ib_port = qp.peer.port;
    request.home_port = qp.info.attr.port_num;
    request.out_of_order = qp.info.create.out_of_order;
    std::vector<u8> data(is_read_or_atomic(wqe.opcode) ? 0 : wqe.bytes);
    gather_pieces(transfer.local, data.data(), data.size());
    const bool left = depart(qp, transfer);
    request.sent_from = transfer.port;
    qp.away.push_back({request.ticket, transfer.psn, wqe});
    take_up(qp, wqe);
    if (!left || !environment_.carry(*this, *qp.peer.hca, request, data)) {
        if (qp.away.size() == 1)
            send_again(qp, false);
        else
            qp.away_blocked = true;  // what is before it comes to the same, and says so first
    }
}

// Everything from the first request that is under way.
void Hca::send_again(QueuePair& qp, bool receiver_not_ready) {
    const AwayRequest first = qp.away.front();
    qp.away.clear();
    qp.away_blocked = false;
    qp.issued = first.wqe.bb;
    qp.next_psn = first.psn;
    stall(qp, first.wqe, receiver_not_ready);
}

void Hca::unanswered(u32 qpn) {
    QueuePair* const qp = find_qp(qpn);
    if (qp != nullptr && !qp->away.empty()) send_again(*qp, false);
}

// As the responder. What a READ returns is copied to `data`.
RemoteAnswer Hca::serve(const RemoteRequest& request, std::vector<u8>& data, Hca& from) {
    RemoteAnswer answer;
    answer.qpn = request.source_qpn;
    answer.ticket = request.ticket;
    answer.outcome.kind = Outcome::lost;
    const u32 in = ports_->receiving_port(request.sent_from, request.ib_port);
    if (in == 0) return answer;
    ports_->count_rcv(in, request_packets(request.wqe, request.mtu_shift, request.header_octets));
    QueuePair* const responder = find_qp(request.dest_qpn);
    if (responder == nullptr || responder->tx_port == 0) return answer;

    QueuePair source;  // of the requester, what the responder's side looks at
    source.info.qpn = request.source_qpn;
    source.info.create.out_of_order = request.out_of_order;
    source.mtu_shift = request.mtu_shift;
    source.connection = request.connection;
    Transfer transfer;
    transfer.wqe = request.wqe;
    transfer.psn = request.psn;
    transfer.port = request.sent_from;
    transfer.local.add(data.data(), data.size());
    const u32 out = responder->tx_port, overhead = responder->header_octets;
    const Outcome outcome = respond(*responder, transfer, from, source);
    data.clear();
    if (outcome.kind == Outcome::lost || outcome.kind == Outcome::early) return answer;
    if (outcome.kind == Outcome::done && outcome.memory != nullptr)
        data.assign(outcome.memory, outcome.memory + request.wqe.bytes);
    answer.packets = response_packets(request.wqe, request.mtu_shift, overhead, outcome.kind == Outcome::done);
    ports_->count_xmit(out, answer.packets);
    answer.outcome = outcome;
    answer.outcome.memory = nullptr;
    answer.sent_from = out;
    answer.home_port = request.home_port;
    return answer;
}

void Hca::answered(const RemoteAnswer& answer, std::vector<u8>& data) {
    Outcome outcome = answer.outcome;
    if (outcome.kind != Outcome::lost) {  // it comes in by a port, whoever still waits for it
        const u32 back = ports_->receiving_port(answer.sent_from, answer.home_port);
        if (back == 0) {
            ++counters_.responses_lost;
            outcome.kind = Outcome::lost;
        } else {
            ports_->count_rcv(back, answer.packets);
        }
    }
    QueuePair* const found = find_qp(answer.qpn);
    if (found == nullptr || found->away.empty() || found->away.front().ticket != answer.ticket) return;
    QueuePair& qp = *found;
    Transfer transfer;
    transfer.wqe = qp.away.front().wqe;
    const DecodedWqe& wqe = transfer.wqe;
    if (outcome.kind != Outcome::done && outcome.kind != Outcome::refused) {
        send_again(qp, outcome.kind == Outcome::not_ready);
        return;
    }
    qp.away.pop_front();
    qp.away_blocked = false;
    if (outcome.kind == Outcome::done && is_read_or_atomic(wqe.opcode)) {
        // Keys may have gone since the request left.
        const Syndrome fault = wqe.atomic_width == 0 && data.size() != wqe.bytes ? Syndrome::bad_response
                                                                                : map_local(qp, transfer);
        if (fault != Syndrome::none) {
            fail(qp, wqe, fault);
            return;
        }
        outcome.memory = data.data();
    }
    finish(qp, transfer, outcome);
    drained(qp);
    if (qp.has_work()) enqueue(qp);
}

}  // namespace rdmakit::emu
