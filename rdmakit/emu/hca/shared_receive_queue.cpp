// shared_receive_queue.cpp — creating and destroying shared receive queues (man ibv_create_srq), and taking from them.
#include "shared_receive_queue.hpp"

#include <cerrno>

#include "hca.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

Status Hca::create_srq(const SrqAttr& attr, u32* srqn) {
    if (stepwise_) return refuse(EOPNOTSUPP, "exploration has no shared receive queues");
    if (attr.pd >= pds_.size() || !pds_[attr.pd].live) return refuse(EINVAL, "no PD %u", attr.pd);
    if (attr.log_wqes > config_.max_log_rq_wqes)
        return refuse(EINVAL, "shared receive queue of 2^%u WQEs: this device has at most 2^%u", attr.log_wqes,
                      config_.max_log_rq_wqes);
    if (attr.stride < 2 * SharedReceiveQueue::kLinkBytes || (attr.stride & (attr.stride - 1)) != 0 ||
        attr.stride > (config_.max_recv_sge + 1) * sizeof(DataSeg))
        return refuse(EINVAL, "a WQE of %u bytes: a power of two from 32 to %zu", attr.stride,
                      (config_.max_recv_sge + 1) * sizeof(DataSeg));
    if (attr.buffer == nullptr || attr.dbrec == nullptr || reinterpret_cast<u64>(attr.buffer) % 64 != 0 ||
        reinterpret_cast<u64>(attr.dbrec) % 4 != 0)
        return refuse(EINVAL, "the ring must be 64-byte and its doorbell record 4-byte aligned");
    auto srq = std::make_unique<SharedReceiveQueue>();
    srq->attr = attr;
    srq->limit = attr.limit;
    srq->srqn = static_cast<u32>(srqs_.size());
    *srqn = srq->srqn;
    ++pds_[attr.pd].users;
    srqs_.push_back(std::move(srq));
    return {};
}

Status Hca::destroy_srq(u32 srqn) {
    const SharedReceiveQueue* srq = find_srq(srqn);
    if (!srq) return refuse(EINVAL, "no SRQ 0x%x", srqn);
    if (srq->users) return refuse(EBUSY, "SRQ 0x%x is used by %u QPs: destroy them first", srqn, srq->users);
    --pds_[srq->attr.pd].users;
    srqs_[srqn].reset();
    return {};
}

Status Hca::set_srq_limit(u32 srqn, u32 limit) {
    SharedReceiveQueue* srq = find_srq(srqn);
    if (!srq) return refuse(EINVAL, "no SRQ 0x%x", srqn);
    if (limit > 1u << srq->attr.log_wqes) return refuse(EINVAL, "limit %u: the queue has %u WQEs", limit, 1u << srq->attr.log_wqes);
    srq->limit = limit;
    return {};
}

u32 Hca::srq_limit(u32 srqn) const {
    const SharedReceiveQueue* srq = find_srq(srqn);
    return srq ? srq->limit : 0;
}

// The receive WQE at the front is used up; returns the index that its CQE reports.
u32 Hca::take_receive(QueuePair& qp) {
    if (!qp.srq) return static_cast<u32>(qp.rq_consumed++) & 0xffff;
    const u32 index = qp.srq->head;
    qp.srq->take();
    ++qp.rq_consumed;
    if (qp.srq->limit != 0 && qp.srq->available() < qp.srq->limit) {
        qp.srq->limit = 0;
        report(AsyncEventType::srq_limit_reached, qp.srq->srqn);
    }
    return index;
}

}  // namespace rdmakit::emu
