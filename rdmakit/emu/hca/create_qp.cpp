// create_qp.cpp — making, destroying and describing queue pairs (man ibv_create_qp, ibv_destroy_qp, ibv_query_qp).
#include <cerrno>

#include <algorithm>

#include "flight.hpp"
#include "hca.hpp"
#include "port.hpp"
#include "qp_state.hpp"
#include "uar.hpp"

namespace rdmakit::emu {

namespace {
constexpr u32 kMaxInline = kMaxDs * kDs - sizeof(CtrlSeg) - sizeof(RemoteAddrSeg) - sizeof(InlineSeg);
}

// rdma-core providers/mlx5/verbs.c mlx5_calc_rq_size: scatter entries of 16 bytes, rounded up to a power of two.
u32 Hca::rq_stride_bytes(u32 max_recv_sge) {
    u32 stride = sizeof(DataSeg);
    while (stride < max_recv_sge * sizeof(DataSeg)) stride *= 2;
    return stride;
}

Status Hca::create_qp(const QpAttr& attr, u32* qpn) {
    if (attr.pd >= pds_.size() || !pds_[attr.pd].live) return refuse(EINVAL, "no PD %u", attr.pd);
    CompletionQueue* const send_cq = find_cq(attr.send_cq);
    CompletionQueue* const recv_cq = find_cq(attr.recv_cq);
    if (!send_cq || !recv_cq) return refuse(EINVAL, "no CQ 0x%x", send_cq ? attr.recv_cq : attr.send_cq);
    SharedReceiveQueue* const srq = attr.srq != 0 ? find_srq(attr.srq) : nullptr;
    if (attr.srq != 0 && !srq) return refuse(EINVAL, "no SRQ 0x%x", attr.srq);
    if (srq && attr.max_recv_sge != 0) return refuse(EINVAL, "a receive queue of its own besides SRQ 0x%x", attr.srq);
    if (attr.uar >= uars_.size() || !uars_[attr.uar]) return refuse(EINVAL, "no UAR page %u", attr.uar);
    if (attr.log_sq_bbs > config_.max_log_sq_bbs)
        return refuse(EINVAL, "send queue of 2^%u WQEBBs: this device has at most 2^%u", attr.log_sq_bbs,
                      config_.max_log_sq_bbs);
    if (attr.log_rq_wqes > config_.max_log_rq_wqes)
        return refuse(EINVAL, "receive queue of 2^%u WQEs: this device has at most 2^%u", attr.log_rq_wqes,
                      config_.max_log_rq_wqes);
    if (attr.max_recv_sge > config_.max_recv_sge)
        return refuse(EINVAL, "%u receive SGEs: this device has at most %u", attr.max_recv_sge, config_.max_recv_sge);
    if (attr.max_inline > kMaxInline)
        return refuse(EINVAL, "%u inline bytes: a WQE holds at most %u", attr.max_inline, kMaxInline);
    if (static_cast<u32>(attr.doorbell) > static_cast<u32>(DoorbellMode::no_dbr))
        return refuse(EINVAL, "doorbell mode %u is unknown", static_cast<u32>(attr.doorbell));
    if (reinterpret_cast<u64>(attr.sq_buffer) % kWqebb || reinterpret_cast<u64>(attr.rq_buffer) % kWqebb ||
        reinterpret_cast<u64>(attr.dbrec) % 8)
        return refuse(EINVAL, "queue buffers must be 64-byte and the doorbell record 8-byte aligned");
    if (live_qps_ >= config_.max_qps) return refuse(ENOMEM, "all %u QPs of this device are in use", config_.max_qps);
    if (qpn_base_ + qps_.size() > config_.last_qpn) return refuse(ENOMEM, "this device has given out all its QP numbers");

    auto qp = std::make_unique<QueuePair>();
    QpAttr& create = qp->info.create;
    create = attr;
    if (create.doorbell == DoorbellMode::device_default) create.doorbell = config_.doorbell;
    qp->rq_stride = rq_stride_bytes(attr.max_recv_sge);
    qp->info.rq_stride = qp->rq_stride;
    if (!create.sq_buffer) {
        qp->owned_sq = allocate_pages(static_cast<std::size_t>(kWqebb) << attr.log_sq_bbs);
        create.sq_buffer = qp->owned_sq.get();
    }
    if (!create.rq_buffer && attr.max_recv_sge != 0) {
        qp->owned_rq = allocate_pages(static_cast<std::size_t>(qp->rq_stride) << attr.log_rq_wqes);
        create.rq_buffer = qp->owned_rq.get();
    }
    if (!create.dbrec) {
        qp->owned_dbrec = allocate_pages(64);
        create.dbrec = static_cast<u32*>(qp->owned_dbrec.get());
    }
    if (!create.sq_buffer || !create.dbrec || (attr.max_recv_sge != 0 && !create.rq_buffer))
        return refuse(ENOMEM, "no memory for the queues of a QP");
    if (timed_) {
        qp->timed = std::make_unique<TimedQueue>();
        qp->timed->slots.make(1ull << attr.log_sq_bbs);
    }
    if (stepwise_) qp->flight = std::make_shared<Flight>();
    qp->sq = SendRing{static_cast<const u8*>(create.sq_buffer), attr.log_sq_bbs};
    if (attr.max_recv_sge != 0) {
        qp->rq = static_cast<const u8*>(create.rq_buffer);
        qp->rq_mask = (1u << attr.log_rq_wqes) - 1;
    }
    if (weak_ != nullptr) {  // decoded from what was fetched, which need not be the newest
        qp->flight->shadow.resize(static_cast<std::size_t>(kWqebb) << attr.log_sq_bbs);
        qp->sq.base = qp->flight->shadow.data();
    }
    qp->send_cq = send_cq;
    qp->recv_cq = recv_cq;
    qp->srq = srq;
    if (srq) ++srq->users;
    qp->uar_page = uars_[attr.uar]->page.get();
    qp->info.uar_register = static_cast<u8*>(uars_[attr.uar]->page.get()) + kUarDoorbellOffset;
    qp->info.qpn = qpn_base_ + static_cast<u32>(qps_.size());
    ++send_cq->info.users;
    ++recv_cq->info.users;
    ++uars_[attr.uar]->users;
    ++pds_[attr.pd].users;
    ++live_qps_;
    *qpn = qp->info.qpn;
    qps_.push_back(std::move(qp));
    return {};
}

Status Hca::destroy_qp(u32 qpn) {
    QueuePair* qp = find_qp(qpn);
    if (!qp) return refuse(EINVAL, "no QP 0x%x", qpn);
    ports_->remove(*qp);
    moving_.erase(std::remove(moving_.begin(), moving_.end(), qp), moving_.end());
    --qp->send_cq->info.users;
    --qp->recv_cq->info.users;
    if (qp->srq) --qp->srq->users;
    --uars_[qp->info.create.uar]->users;
    --pds_[qp->info.create.pd].users;
    --live_qps_;
    qps_[qpn - qpn_base_].reset();  // its number is not used again, so events under way find nobody
    return {};
}

Status Hca::query_qp(u32 qpn, QpInfo* info) const {
    const QueuePair* qp = find_qp(qpn);
    if (!qp) return refuse(EINVAL, "no QP 0x%x", qpn);
    *info = qp->info;
    info->sq_producer = qp->producer;
    info->sq_issued = qp->issued;
    info->sq_completed = qp->completed;
    info->rq_consumed = qp->rq_consumed;
    info->physical_port = qp->tx_port;
    info->attr.qp_state = qp->state();
    info->attr.cur_qp_state = qp->state();
    info->attr.sq_psn = qp->next_psn;
    info->attr.rq_psn = qp->expected_psn;
    return {};
}

}  // namespace rdmakit::emu
