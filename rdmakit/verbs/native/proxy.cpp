#include "proxy.hpp"

#include <sched.h>
#include <time.h>

#include <cerrno>
#include <cstring>

namespace rdmakit::verbs {
namespace {

constexpr u32 kSpins = 2000, kQuiet = 20'000;  // looks without news, before the thread naps, and naps longer
constexpr long kNapNs = 2'000, kLongNapNs = 50'000;
constexpr u32 kMaxSegments = kMaxDs;
constexpr u64 kReceive = 1ull << 63;  // of a wr_id; below it the free-running index
constexpr u32 kWcWithImm = 1u << 1;
constexpr u32 kWcRecvWriteImm = 129;

// enum ibv_wc_status → syndrome, the inverse of rdma-core providers/mlx5/cq.c
Syndrome syndrome_of(u32 status) {
    switch (status) {
        case 1: return Syndrome::local_length;
        case 4: return Syndrome::local_protection;
        case 5: return Syndrome::flushed;
        case 6: return Syndrome::mw_bind;
        case 7: return Syndrome::bad_response;
        case 8: return Syndrome::local_access;
        case 9: return Syndrome::remote_invalid_request;
        case 10: return Syndrome::remote_access;
        case 11: return Syndrome::remote_op;
        case 12: return Syndrome::transport_retry_exceeded;
        case 13: return Syndrome::rnr_retry_exceeded;
        case 16: return Syndrome::remote_aborted;
        default: return Syndrome::local_qp_op;
    }
}

int verbs_opcode(u32 opcode) {
    switch (static_cast<Opcode>(opcode)) {
        case Opcode::nop:
        case Opcode::write: return kWrWrite;
        case Opcode::write_imm: return kWrWriteImm;
        case Opcode::send: return kWrSend;
        case Opcode::send_imm: return kWrSendImm;
        case Opcode::read: return kWrRead;
        case Opcode::cmp_swap: return kWrCmpSwap;
        case Opcode::fetch_add: return kWrFetchAdd;
        default: return -1;
    }
}

u32 record(const u32* word) { return swap_bytes(__atomic_load_n(word, __ATOMIC_ACQUIRE)) & 0xffff; }

// The local segments as a gather list, or as one of bytes that travel inside. False: some of both.
bool gather(const ProxyQp& qp, const DecodedWqe& wqe, SendWr& wr, Sge* sges, u8* inlined) {
    u32 bytes = 0, count = 0;
    if (static_cast<Opcode>(wqe.opcode) == Opcode::nop) return true;
    for (u32 at = wqe.first_segment; at < wqe.ds;) {
        const LocalSegment segment = local_segment(qp.sq, wqe, at);
        if (segment.inline_ds != 0) {
            for (u32 i = 0; i < segment.bytes; ++i, ++bytes) {
                const u32 offset = 4 + i;
                inlined[bytes] = ring_ds(qp.sq, wqe.bb, at + offset / kDs)[offset % kDs];
            }
        } else {
            sges[count++] = {segment.addr, segment.bytes, segment.lkey};
        }
        at += segment.ds;
    }
    if (bytes != 0) {
        if (count != 0) return false;
        sges[count++] = {reinterpret_cast<uint64_t>(inlined), bytes, 0};
        wr.send_flags |= kSendInline;
    }
    wr.num_sge = static_cast<int>(count);
    return true;
}

}  // namespace

void ProxyCq::push(const void* cqe) {
    if (dead) return;
    const u32 consumed = swap_bytes(__atomic_load_n(&dbrec[0], __ATOMIC_ACQUIRE)) & 0xffffff;
    if (!collapsed && !overrun_ignore && ((produced - consumed) & 0xffffff) >= (1u << log_entries)) {
        dead = true;
        return;
    }
    u8* const entry = ring + cqe_slot(produced, log_entries, collapsed) * cqe_bytes + (cqe_bytes - kCqe);
    std::memcpy(entry, cqe, kCqe - 1);
    const u8 op_own = static_cast<const u8*>(cqe)[kCqe - 1];
    const u8 owned = static_cast<u8>(op_own | cqe_owner(produced, log_entries, collapsed));
    __atomic_store_n(entry + kCqe - 1, owned, __ATOMIC_RELEASE);
    ++produced;
}

bool Proxy::add_cq(u32 cqn, ProxyCq cq) {
    const std::lock_guard<std::mutex> hold(mutex_);
    return cqs_.emplace(cqn, std::make_unique<ProxyCq>(std::move(cq))).second;
}

bool Proxy::add_qp(u32 qpn, ProxyQp qp) {
    const std::lock_guard<std::mutex> hold(mutex_);
    return qps_.emplace(qpn, std::make_unique<ProxyQp>(std::move(qp))).second;
}

void Proxy::remove_cq(u32 cqn) {
    if (!of_this_process()) return;  // the thread of the parent may have held the lock
    const std::lock_guard<std::mutex> hold(mutex_);
    cqs_.erase(cqn);
}

void Proxy::remove_qp(u32 qpn) {
    if (!of_this_process()) return;
    const std::lock_guard<std::mutex> hold(mutex_);
    qps_.erase(qpn);
}

ProxyCq* Proxy::find_cq(u32 cqn) {
    const std::lock_guard<std::mutex> hold(mutex_);
    const auto found = cqs_.find(cqn);
    return found == cqs_.end() ? nullptr : found->second.get();
}

bool Proxy::cq_is_dead(u32 cqn) {
    const ProxyCq* cq = find_cq(cqn);
    return cq != nullptr && cq->dead;
}

void Proxy::reset_qp(u32 qpn) {
    const std::lock_guard<std::mutex> hold(mutex_);
    const auto found = qps_.find(qpn);
    if (found != qps_.end()) found->second->sent = found->second->received = 0;
}

bool Proxy::progress() {
    const std::lock_guard<std::mutex> hold(mutex_);
    bool moved = false;
    for (auto& [qpn, qp] : qps_) {
        moved |= receive(*qp);
        moved |= send(*qp);
    }
    for (auto& [cqn, cq] : cqs_) moved |= take(*cq);
    return moved;
}

void Proxy::start() {
    if (thread_ || !of_this_process()) return;
    stopping_.store(false);
    thread_ = std::make_unique<std::thread>([this] { run(); });
}

void Proxy::stop() {
    if (!thread_) return;
    if (of_this_process()) {
        stopping_.store(true);
        thread_->join();
        thread_.reset();
    } else {
        static_cast<void>(thread_.release());  // there is nothing to join
    }
}

void Proxy::run() {
    for (u32 idle = 0; !stopping_.load(std::memory_order_relaxed);) {
        idle = progress() ? 0 : idle + 1;
        if (idle < kSpins) {
            if (idle != 0) sched_yield();
            continue;
        }
        const timespec nap{0, idle < kQuiet ? kNapNs : kLongNapNs};
        nanosleep(&nap, nullptr);
    }
}

bool Proxy::send(ProxyQp& qp) {
    const u64 producer = widen_index(qp.sent, record(&qp.dbrec[1]));
    const u64 before = qp.sent;
    while (qp.sent < producer) {
        const DecodedWqe wqe = decode_wqe(qp.sq, qp.sent, producer - qp.sent, qp.box->get()->qp_num);
        const int opcode = verbs_opcode(wqe.opcode);
        SendWr wr = {};
        Sge sges[kMaxSegments];
        u8 inlined[kMaxDs * kDs];
        if (wqe.fault != Syndrome::none || opcode < 0 || !gather(qp, wqe, wr, sges, inlined)) {
            refuse(qp, wqe, wqe.fault != Syndrome::none ? wqe.fault : Syndrome::local_qp_op);
            qp.sent = smaller(qp.sent + wqe.bbs, producer);
            continue;
        }
        wr.wr_id = wqe.bb;
        wr.sg_list = sges;
        wr.opcode = opcode;
        wr.imm_data = wqe.imm;
        if (wants_cqe(wqe, qp.sq_sig_all)) wr.send_flags |= kSendSignaled;
        if (wqe.fm_ce_se & kSolicited) wr.send_flags |= kSendSolicited;
        if (wqe.fm_ce_se & kFenceMode & ~kSmallFence) wr.send_flags |= kSendFence;
        if (wqe.atomic_width != 0) {
            const bool add = opcode == kWrFetchAdd;
            wr.wr.atomic.remote_addr = wqe.raddr;
            wr.wr.atomic.compare_add = add ? wqe.operands.swap_add : wqe.operands.compare;
            wr.wr.atomic.swap = add ? 0 : wqe.operands.swap_add;
            wr.wr.atomic.rkey = wqe.rkey;
        } else {
            wr.wr.rdma.remote_addr = wqe.raddr;
            wr.wr.rdma.rkey = wqe.rkey;
        }
        SendWr* bad = nullptr;
        const int error = qp.box->get()->context->ops.post_send(qp.box->get(), &wr, &bad);
        if (error == ENOMEM || error == EAGAIN) break;  // its own queue is full: completions make room
        if (error != 0) refuse(qp, wqe, Syndrome::local_qp_op);
        qp.sent = smaller(qp.sent + wqe.bbs, producer);
    }
    return qp.sent != before;
}

// The WQE fails at home, and the queue pair with it; what follows is flushed by the device.
void Proxy::refuse(ProxyQp& qp, const DecodedWqe& wqe, Syndrome syndrome) {
    const ErrorCqe cqe =
        error_cqe(CqeOpcode::requester_error, qp.box->get()->qp_num, wqe.opcode, 0, wqe.index, syndrome);
    qp.send_cq->push(&cqe);
    QpAttr attr = {};
    attr.qp_state = 6;  // IBV_QPS_ERR
    std::string why;
    library(&why)->modify_qp(qp.box->get(), &attr, 1);
}

bool Proxy::receive(ProxyQp& qp) {
    if (qp.rq == nullptr) return false;
    const u64 before = qp.received, producer = widen_index(qp.received, record(&qp.dbrec[0]));
    for (; qp.received < producer; ++qp.received) {
        const u64 slot = qp.received & ((1ull << qp.log_rq) - 1);
        const u8* const wqe = qp.rq + slot * qp.rq_stride;
        Sge sges[kMaxSegments];
        int count = 0;
        for (u32 at = 0; at + kDs <= qp.rq_stride && count < static_cast<int>(kMaxSegments); at += kDs) {
            DataSeg segment;
            std::memcpy(&segment, wqe + at, sizeof segment);
            const u32 lkey = swap_bytes(segment.lkey), bytes = swap_bytes(segment.byte_count);
            if (lkey == kInvalidLkey && bytes == 0) break;
            sges[count++] = {swap_bytes(segment.addr), bytes, lkey};
        }
        RecvWr wr = {kReceive | qp.received, nullptr, sges, count}, *bad = nullptr;
        if (qp.box->get()->context->ops.post_recv(qp.box->get(), &wr, &bad) != 0) break;  // full, or still in RESET
    }
    return qp.received != before;
}

bool Proxy::take(ProxyCq& cq) {
    Wc entries[16];
    bool moved = false;
    for (;;) {
        const int count = cq.box->get()->context->ops.poll_cq(cq.box->get(), 16, entries);
        for (int i = 0; i < count; ++i) complete(entries[i], cq);
        moved |= count > 0;
        if (count < 16) return moved;
    }
}

void Proxy::complete(const Wc& wc, ProxyCq& cq) {
    const auto found = qps_.find(wc.qp_num);
    if (found == qps_.end()) return;
    const ProxyQp& qp = *found->second;
    const u64 index = wc.wr_id & ~kReceive;
    if (wc.wr_id & kReceive) {
        if (wc.status != 0) {
            const ErrorCqe cqe = error_cqe(CqeOpcode::responder_error, wc.qp_num, 0, 0, static_cast<u32>(index),
                                           syndrome_of(wc.status));
            cq.push(&cqe);
            return;
        }
        const bool imm = wc.wc_flags & kWcWithImm;
        const CqeOpcode opcode = wc.opcode == kWcRecvWriteImm ? CqeOpcode::responder_write_imm
                                 : imm                        ? CqeOpcode::responder_send_imm
                                                              : CqeOpcode::responder_send;
        const Cqe cqe = responder_cqe(opcode, wc.qp_num, wc.src_qp, 0, static_cast<u32>(index), wc.byte_len,
                                      imm ? wc.imm_data : 0, false, 0);
        cq.push(&cqe);
        return;
    }
    const DecodedWqe wqe = decode_wqe(qp.sq, index, kMaxDs, wc.qp_num);
    if (wc.status != 0) {
        ErrorCqe cqe =
            error_cqe(CqeOpcode::requester_error, wc.qp_num, wqe.opcode, 0, wqe.index, syndrome_of(wc.status));
        cqe.vendor_syndrome = static_cast<u8>(wc.vendor_err);
        cq.push(&cqe);
        return;
    }
    const bool brings = wqe.atomic_width != 0 || static_cast<Opcode>(wqe.opcode) == Opcode::read;
    const Cqe cqe =
        requester_cqe(wc.qp_num, wqe.opcode, wqe.index, brings ? static_cast<u32>(wqe.bytes) : 0, 0);
    cq.push(&cqe);
}

}  // namespace rdmakit::verbs
