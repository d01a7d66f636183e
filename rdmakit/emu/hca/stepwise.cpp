// stepwise.cpp — the same life of a WQE with every leg a step of its own, taken in any order that the hardware allows:
//
//   bell         the register write reaches the HCA, which reads the doorbell record
//   issue        the next WQE is fetched, checked, its payload read; the request is on the wire
//   arrive       the responder executes it: in order, or, on out-of-order queue pairs, WRITEs in any order and everything
//                else behind all that was sent before it (man mlx5dv_create_qp, MLX5DV_QP_CREATE_OOO_DP)
//   double       its second copy arrives, if the network has doubled it: late, but not of another connection
//   place        a write becomes visible: in order of execution, or, into relaxed-ordering MRs, in any order but not
//                past an atomic or a completion (man ibv_reg_mr)
//   acknowledge  the response is back, its data lands, the CQE is written: in order
//
// An acknowledgement says "executed", not "visible". Who takes which step is the scheduler's choice; without one, chance.
// Leans on flight.hpp, requester.cpp, responder.cpp; explore/weak_memory.hpp where loads may be stale.
#include "flight.hpp"

#include <cstring>

#include "../explore/weak_memory.hpp"
#include "hca.hpp"
#include "memory_region.hpp"
#include "port.hpp"

namespace rdmakit::emu {
namespace {
constexpr u32 kMaxInFlight = 16;  // requests of one queue pair on the wire at once
constexpr u64 kOrderedLine = 128; // what stays whole and in order where data is in order at all (man ibv_query_qp_data_in_order)

bool is_write(const DecodedWqe& wqe) { return wqe.opcode == static_cast<u32>(Opcode::write); }
}  // namespace

// ---- agents: who a queue pair is to the memory model -----------------------------------------------------------------
void Hca::introduce(QueuePair& qp) {
    Flight& flight = *qp.flight;
    if (flight.run == environment_.run_number()) return;
    flight.run = environment_.run_number();
    flight.requester = environment_.add_agent(*this, qp.info.qpn, true);
    flight.responder = environment_.add_agent(*this, qp.info.qpn, false);
    flight.base = 0;
}
u32 Hca::read_record(QueuePair& qp, const u32* record, bool as_requester) {
    if (weak_ == nullptr) return swap_bytes(__atomic_load_n(record, __ATOMIC_ACQUIRE));
    introduce(qp);
    u32 value = 0;
    const u32 agent = as_requester ? qp.flight->requester : qp.flight->responder;
    weak_->dma_read(agent, &value, record, sizeof value, "reads the doorbell record", Order::acquire);
    return swap_bytes(value);
}
void Hca::fetch(QueuePair& qp, u64 bb, u64 count) {
    if (weak_ == nullptr) return;
    introduce(qp);
    for (u64 i = 0; i < count; ++i) {
        const u64 at = ((bb + i) & (qp.sq_entries() - 1)) * kWqebb;
        weak_->dma_read(qp.flight->requester, qp.flight->shadow.data() + at, static_cast<u8*>(qp.info.create.sq_buffer) + at,
                        kWqebb, "fetches a WQE", Order::relaxed);
    }
}
void Hca::list(QueuePair& qp) {
    if (!qp.flight->listed) moving_.push_back(&qp);
    qp.flight->listed = true;
    announce();
}

// ---- what can be done next ----------------------------------------------------------------------------------------------
bool Hca::may_issue(const QueuePair& qp) const {
    const Flight& flight = *qp.flight;
    if (!qp.has_work() || flight.requests.size() >= kMaxInFlight) return false;
    // The fence bits of the WQE at hand; what it really says is looked at when it is fetched.
    const Vec16 ctrl = load_ds(SendRing{static_cast<const u8*>(qp.info.create.sq_buffer), qp.sq.log_bbs}, qp.issued, 0);
    const u32 mode = swap_bytes(ctrl.w[2]) & kFenceMode, opcode = swap_bytes(ctrl.w[0]) & 0xff;
    u32 reads = 0;
    for (const Request& r : flight.requests) {
        if (r.outcome.kind == Outcome::refused) return false;  // nothing is sent past a WQE that failed here
        reads += is_read_or_atomic(r.wqe.opcode);
    }
    if (mode == kStrongOrder && !flight.requests.empty()) return false;
    if ((mode == kReadAtomicFence || mode == kFence) && reads != 0) return false;
    return !is_read_or_atomic(opcode) || reads < larger(1u, qp.info.attr.max_rd_atomic);
}

// `index`: of the request among those on the wire.
bool Hca::may_arrive(const QueuePair& qp, u32 index) const {
    const Flight& flight = *qp.flight;
    const Request& request = flight.requests[index];
    if (request.arrived) return false;
    // Nobody sends one for ever that is not the first: a schedule could choose nothing else.
    if (index != 0 && request.losses_behind > qp.info.attr.retry_cnt) return false;
    if (!stays_at_home(request.wqe.opcode) && qp.tx_port == 0) return false;
    const QueuePair* responder = qp.peer.hca ? qp.peer.hca->find_qp(qp.info.attr.dest_qp_num) : nullptr;
    const bool any_order = many_paths(qp);
    for (u32 i = 0; i < index; ++i) {
        const Request& earlier = flight.requests[i];
        if (!earlier.arrived && !(any_order && is_write(request.wqe))) return false;
        if (earlier.arrived && earlier.outcome.kind == Outcome::refused) return false;  // nobody answers behind a NAK
    }
    if (request.waits_for_receive && responder && responder->receives_available() == 0) return false;
    // An atomic is executed in memory behind every earlier write, and a READ reads behind them.
    return !is_read_or_atomic(request.wqe.opcode) || !responder || !responder->flight || responder->flight->placements.empty();
}
bool Hca::may_place(const QueuePair& qp, u32 index) const {
    const std::vector<Placement>& queue = qp.flight->placements;
    if (index == 0) return true;
    if (!queue[index].relaxed) return false;
    for (u32 i = 0; i < index; ++i) {
        if (queue[i].cq != nullptr || !queue[i].relaxed) return false;
    }
    return true;
}
// What a queue pair can do if nothing else comes: count its attempts, and fail when they are used up.
bool Hca::must_give_up(const QueuePair& qp, u32 index) const {
    const Request& request = qp.flight->requests[index];
    if (request.arrived || index != 0) return false;
    if (qp.tx_port == 0 && !stays_at_home(request.wqe.opcode)) return qp.info.attr.timeout != 0;
    const QueuePair* responder = qp.peer.hca ? qp.peer.hca->find_qp(qp.info.attr.dest_qp_num) : nullptr;
    return request.waits_for_receive && qp.info.attr.rnr_retry != 7 && responder && responder->receives_available() == 0;
}

void Hca::next_steps(std::vector<HcaStep>& out) {
    std::size_t kept = 0;
    for (QueuePair* qp : moving_) {
        Flight& flight = *qp->flight;
        const std::size_t before = out.size();
        for (u32 i = 0; i < flight.placements.size(); ++i) {
            if (may_place(*qp, i)) out.push_back({HcaStep::place, qp, i});
        }
        if (qp->state() != QpState::err && qp->state() != QpState::reset && !flight.requests.empty() && flight.requests[0].arrived)
            out.push_back({HcaStep::acknowledge, qp, 0});
        for (u32 i = 0; i < flight.requests.size(); ++i) {
            if (may_arrive(*qp, i)) out.push_back({HcaStep::arrive, qp, i});
            else if (must_give_up(*qp, i)) out.push_back({HcaStep::give_up, qp, i});
        }
        for (u32 i = 0; i < flight.doubles.size(); ++i) out.push_back({HcaStep::receive_double, qp, i});
        if (may_issue(*qp)) out.push_back({HcaStep::issue, qp, 0});
        if (!flight.bells.empty()) out.push_back({HcaStep::bell, qp, 0});
        const bool quiet = flight.bells.empty() && flight.requests.empty() && flight.placements.empty() &&
                           flight.doubles.empty() && !qp->has_work();
        if (quiet && out.size() == before) flight.listed = false;
        else moving_[kept++] = qp;
    }
    moving_.resize(kept);
}
u32 Hca::agent_of(const HcaStep& step) {
    introduce(*step.qp);
    if (step.kind == HcaStep::place) return step.qp->flight->responder;
    if (step.kind == HcaStep::arrive || step.kind == HcaStep::receive_double) {
        QueuePair* responder = step.qp->peer.hca ? step.qp->peer.hca->find_qp(step.qp->info.attr.dest_qp_num) : nullptr;
        if (responder && responder->flight) {
            step.qp->peer.hca->introduce(*responder);
            return responder->flight->responder;
        }
    }
    return step.qp->flight->requester;
}

void Hca::take(const HcaStep& step) {
    copy_payload_ = environment_.copy_payload();
    introduce(*step.qp);
    switch (step.kind) {
        case HcaStep::bell: take_bell(*step.qp); break;
        case HcaStep::issue: issue_request(*step.qp); break;
        case HcaStep::arrive: arrive_request(*step.qp, step.index); break;
        case HcaStep::receive_double: receive_double(*step.qp, step.index); break;
        case HcaStep::place: make_visible(*step.qp, step.index); break;
        case HcaStep::acknowledge: acknowledge_request(*step.qp); break;
        case HcaStep::give_up: {
            Request& request = step.qp->flight->requests[step.index];
            const bool receiver = request.waits_for_receive;
            if (weak_ != nullptr) weak_->note(step.qp->flight->requester, "waits in vain", step.qp->info.qpn, request.wqe.index);
            if (++(receiver ? request.refusals : request.losses) >
                (receiver ? step.qp->info.attr.rnr_retry : step.qp->info.attr.retry_cnt)) {
                fail(*step.qp, request.wqe, receiver ? Syndrome::rnr_retry_exceeded : Syndrome::transport_retry_exceeded);
            }
            break;
        }
    }
}

// Without a scheduler that chooses: some steps, by chance.
u32 Hca::work_stepwise(u32 budget) {
    announced_ = true;
    std::vector<HcaStep> steps;
    u32 done = 0;
    for (; done < budget; ++done) {
        steps.clear();
        next_steps(steps);
        if (steps.empty()) break;
        take(steps[environment_.random(steps.size())]);
    }
    announced_ = !steps.empty();
    if (announced_) environment_.ready(*this);
    return done;
}

// ---- bell, issue ----------------------------------------------------------------------------------------------------------
void Hca::rung(QueuePair& qp, u64 value) {
    qp.flight->bells.push_back({value, environment_.published()});
    list(qp);
}

void Hca::take_bell(QueuePair& qp) {
    const Bell bell = qp.flight->bells.front();
    qp.flight->bells.erase(qp.flight->bells.begin());
    if (weak_ != nullptr) {
        weak_->note(qp.flight->requester, "takes the doorbell", qp.info.qpn, bell.value);
        weak_->learn(qp.flight->requester, bell.clock);
    }
    ring_send(qp, bell.value);
}

void Hca::issue_request(QueuePair& qp) {
    fetch(qp, qp.issued, 1);
    const u64 bbs = larger(1u, wqebbs(swap_bytes(load_ds(qp.sq, qp.issued, 0).w[1]) & kMaxDs));
    if (bbs > 1) fetch(qp, qp.issued + 1, smaller(bbs, qp.producer - qp.issued) - 1);
    Transfer transfer;
    Request request;
    const Syndrome fault = begin(qp, transfer);
    request.wqe = transfer.wqe;
    if (weak_ != nullptr) {
        weak_->note(qp.flight->requester, "sends", qp.info.qpn, transfer.wqe.index, transfer.wqe.opcode);
    }
    if (fault != Syndrome::none) {
        request.outcome = {Outcome::refused, fault};
        request.arrived = true;  // its error waits for what was sent before it
    } else if (stays_at_home(transfer.wqe.opcode)) {
        request.arrived = true;
    } else if (!is_read_or_atomic(transfer.wqe.opcode) && copies(transfer.wqe.bytes)) {
        request.data.resize(transfer.wqe.bytes);
        u64 at = 0;
        for (u32 i = 0; i < transfer.local.count; ++i) {
            const Piece& piece = transfer.local.piece[i];
            const u8* const shadow = qp.flight->shadow.data();
            const bool inside = piece.at >= shadow && piece.at < shadow + qp.flight->shadow.size();
            if (weak_ == nullptr || inside) std::memcpy(request.data.data() + at, piece.at, piece.bytes);
            else weak_->dma_read(qp.flight->requester, request.data.data() + at, piece.at, piece.bytes, "reads payload", Order::relaxed);
            at += piece.bytes;
        }
    }
    if (weak_ != nullptr) request.clock = weak_->snapshot(qp.flight->requester);
    request.psn = transfer.psn;
    take_up(qp, transfer.wqe);
    qp.flight->requests.push_back(std::move(request));
}

// ---- arrive ---------------------------------------------------------------------------------------------------------------
void Hca::arrive_request(QueuePair& qp, u32 index) {
    Flight& flight = *qp.flight;
    Hca* const peer = qp.peer.hca;
    QueuePair* const responder = peer ? peer->find_qp(qp.info.attr.dest_qp_num) : nullptr;
    Request& request = flight.requests[index];
    Transfer transfer;
    transfer.wqe = request.wqe;
    transfer.psn = request.psn;
    transfer.local.add(request.data.data(), request.data.size());
    if (responder && responder->flight) {
        peer->introduce(*responder);
        if (weak_ != nullptr) {
            weak_->learn(responder->flight->responder, request.clock);
            weak_->note(responder->flight->responder, "executes", qp.info.qpn, request.wqe.index, request.wqe.opcode);
        }
        peer->arriving_ = &request;
    }
    const u32 epoch = qp.epoch;
    const Outcome outcome = depart(qp, transfer) ? deliver(qp, transfer) : Outcome{Outcome::lost};
    if (peer) peer->arriving_ = nullptr;
    if (qp.epoch != epoch) return;  // its own request took it to ERR
    switch (outcome.kind) {
        case Outcome::done:
        case Outcome::refused: break;
        case Outcome::early: return;
        case Outcome::not_ready:
            ++qp.info.counters.rnr_naks_received;
            request.waits_for_receive = true;
            if (qp.info.attr.rnr_retry != 7 && ++request.refusals > qp.info.attr.rnr_retry)
                fail(qp, request.wqe, Syndrome::rnr_retry_exceeded);
            return;
        default:  // a packet or its answer is lost: it is sent again, until there have been too many attempts
            if (qp.info.attr.timeout == 0 && outcome.kind == Outcome::lost && !environment_.faults_on) return;
            if (weak_ != nullptr) weak_->note(flight.requester, "hears no answer; sends again", qp.info.qpn, request.wqe.index);
            ++qp.info.counters.retries;
            ++counters_.retries;
            // The timer is that of the first request that is not acknowledged.
            if (index != 0) ++request.losses_behind;
            else if (++request.losses > qp.info.attr.retry_cnt)
                fail(qp, request.wqe, Syndrome::transport_retry_exceeded);
            return;
    }
    request.arrived = true;
    request.outcome = outcome;
    if (outcome.kind != Outcome::done || !responder || !responder->flight) return;
    if (weak_ == nullptr) {
        if (outcome.memory != nullptr && copies(request.wqe.bytes))
            request.answer.assign(outcome.memory, outcome.memory + request.wqe.bytes);
    } else {
        const u32 agent = responder->flight->responder;
        if (outcome.memory != nullptr && copies(request.wqe.bytes)) {
            request.answer.resize(request.wqe.bytes);
            weak_->dma_read(agent, request.answer.data(), outcome.memory, request.wqe.bytes, "reads for a READ", Order::relaxed);
        }
        // Data comes back with all that the responder has placed; an acknowledgement only says that the request came.
        request.answer_clock = is_read_or_atomic(request.wqe.opcode) ? weak_->snapshot(agent) : request.clock;
    }
    if (!environment_.happens(FaultKind::duplicate, qp.info.qpn)) return;
    flight.doubles.push_back({request.wqe, request.data, request.clock, request.psn, transfer.port});
    if (weak_ != nullptr) weak_->note(flight.requester, "is doubled on the way", qp.info.qpn, request.wqe.index);
}

// The second copy: whatever the responder makes of it, nobody waits for an answer any more.
void Hca::receive_double(QueuePair& qp, u32 index) {
    Flight& flight = *qp.flight;
    const Double copy = std::move(flight.doubles[index]);
    flight.doubles.erase(flight.doubles.begin() + index);
    Hca* const peer = qp.peer.hca;
    QueuePair* const responder = peer ? peer->find_qp(qp.info.attr.dest_qp_num) : nullptr;
    if (!responder || !responder->flight) return;
    peer->introduce(*responder);
    Request request;
    request.wqe = copy.wqe;
    request.clock = copy.clock;
    Transfer transfer;
    transfer.wqe = copy.wqe;
    transfer.psn = copy.psn;
    transfer.port = copy.port;
    transfer.local.add(const_cast<u8*>(copy.data.data()), copy.data.size());
    if (weak_ != nullptr) {
        weak_->note(responder->flight->responder, "receives again", qp.info.qpn, copy.wqe.index, copy.wqe.opcode);
    }
    peer->arriving_ = &request;
    deliver(qp, transfer);
    peer->arriving_ = nullptr;
}

// ---- place ----------------------------------------------------------------------------------------------------------------
// A write that has been executed: at once where legs are no steps of their own, else behind the others.
void Hca::queue_write(QueuePair& qp, const Pieces& from, const Pieces& to, u64 bytes, u32 rkey) {
    if (!stepwise_) {
        copy_pieces(from, to, bytes, environment_);
        return;
    }
    MrInfo mr;
    const bool relaxed = rkey != 0 && query_mr(rkey, &mr).ok() && (mr.access & kAccessRelaxedOrdering) != 0;
    std::vector<u8> data(bytes);
    gather_pieces(from, data.data(), bytes);
    u64 at = 0;
    for (u32 i = 0; i < to.count && at < bytes; ++i) {
        const u64 run = smaller(to.piece[i].bytes, bytes - at);
        const bool by_lines = qp.info.create.out_of_order && environment_.data_in_order();
        for (u64 done = 0; done < run;) {
            const u64 address = reinterpret_cast<u64>(to.piece[i].at) + done;
            const u64 part = by_lines ? smaller(run - done, kOrderedLine - address % kOrderedLine) : run;
            Placement p;
            p.to = to.piece[i].at + done;
            p.bytes.assign(data.begin() + static_cast<std::ptrdiff_t>(at + done), data.begin() + static_cast<std::ptrdiff_t>(at + done + part));
            p.relaxed = relaxed;
            if (weak_ != nullptr) p.clock = arriving_ != nullptr ? arriving_->clock : 0;
            qp.flight->placements.push_back(std::move(p));
            done += part;
        }
        at += run;
    }
    list(qp);
}
void Hca::complete_later(QueuePair& qp, CompletionQueue& cq, const void* cqe, const u8* preceding) {
    Placement p;
    p.cq = &cq;
    p.bytes.resize(kCqe + (preceding ? 64 : 0));
    std::memcpy(p.bytes.data(), cqe, kCqe);
    if (preceding) std::memcpy(p.bytes.data() + kCqe, preceding, 64);
    qp.flight->placements.push_back(std::move(p));
    list(qp);
}

void Hca::make_visible(QueuePair& qp, u32 index) {
    Flight& flight = *qp.flight;
    const Placement p = std::move(flight.placements[index]);
    flight.placements.erase(flight.placements.begin() + static_cast<std::ptrdiff_t>(index));
    if (p.cq != nullptr) {
        const u8* const preceding = p.bytes.size() > kCqe ? p.bytes.data() + kCqe : nullptr;
        const bool pushed = push_now(qp, *p.cq, p.bytes.data(), preceding, flight.responder);
        if (weak_ != nullptr) flight.base = weak_->snapshot(flight.responder);
        if (pushed) return;
        report(AsyncEventType::qp_fatal, qp.info.qpn);
        enter_error(qp);
        return;
    }
    if (weak_ == nullptr) {
        std::memcpy(p.to, p.bytes.data(), p.bytes.size());
        environment_.memory_written(p.to, p.bytes.size());
        return;
    }
    if (p.relaxed) {
        weak_->dma_write(flight.responder, p.to, p.bytes.data(), p.bytes.size(), weak_->both(flight.base, p.clock), "places payload");
        weak_->snapshot(flight.responder);  // a step of its own, which later ones do not hand on
    } else if (environment_.data_in_order()) {
        weak_->dma_write(flight.responder, p.to, p.bytes.data(), p.bytes.size(), WeakMemory::kOwn, "places payload");
    } else {
        const ClockRef before = weak_->snapshot(flight.responder);
        weak_->dma_write(flight.responder, p.to, p.bytes.data(), p.bytes.size(), before, "places payload");
        weak_->snapshot(flight.responder);
    }
    environment_.memory_written(p.to, p.bytes.size());
}

// ---- acknowledge ----------------------------------------------------------------------------------------------------------
void Hca::acknowledge_request(QueuePair& qp) {
    Flight& flight = *qp.flight;
    Request request = std::move(flight.requests.front());
    flight.requests.erase(flight.requests.begin());
    if (weak_ != nullptr) {
        weak_->learn(flight.requester, request.answer_clock);
        weak_->note(flight.requester, "is acknowledged", qp.info.qpn, request.wqe.index, request.wqe.opcode);
    }
    Outcome outcome = request.outcome;
    Transfer transfer;
    transfer.wqe = request.wqe;
    if (is_read_or_atomic(request.wqe.opcode) && outcome.kind == Outcome::done) {
        const Syndrome fault = map_local(qp, transfer);  // the landing place must still be there
        if (fault != Syndrome::none) outcome = {Outcome::refused, fault};
        else if (!request.answer.empty()) outcome.memory = request.answer.data();
    }
    finish(qp, transfer, outcome);
    drained(qp);
}
// What an answer carries, where the WQE says.
void Hca::bring_home(QueuePair& qp, const Pieces& from, const Pieces& to, u64 bytes) {
    if (weak_ == nullptr) {
        copy_pieces(from, to, bytes, environment_);
        return;
    }
    std::vector<u8> data(bytes);
    gather_pieces(from, data.data(), bytes);
    u64 at = 0;
    for (u32 i = 0; i < to.count && at < bytes; ++i) {
        const u64 run = smaller(to.piece[i].bytes, bytes - at);
        weak_->dma_write(qp.flight->requester, to.piece[i].at, data.data() + at, run, WeakMemory::kOwn, "lands an answer");
        environment_.memory_written(to.piece[i].at, run);
        at += run;
    }
}

}  // namespace rdmakit::emu
