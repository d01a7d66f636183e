// srq_commands.cpp — shared receive queues.
// Leans on open_device.hpp. libmlx5 links the list before it creates the queue (rdma-core providers/mlx5/srq.c).
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>

#include <algorithm>
#include <cerrno>

#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kLink = 16, kEntry = 16, kShortest = 32;
constexpr u32 kBasic = 0;                       // IB_SRQT_BASIC
constexpr u32 kMaxWr = 1u << 0, kLimit = 1u << 1;  // IB_SRQ_MAX_WR, IB_SRQ_LIMIT

}  // namespace

int OpenDevice::create_srq(Command& in, bool extended) {
    ib_uverbs_create_srq asked = {};
    std::size_t core_size = sizeof asked;
    if (extended) {
        const auto more = in.take<ib_uverbs_create_xsrq>();
        if (more.srq_type != kBasic) return EOPNOTSUPP;
        asked.user_handle = more.user_handle;
        asked.pd_handle = more.pd_handle;
        asked.max_wr = more.max_wr;
        asked.max_sge = more.max_sge;
        asked.srq_limit = more.srq_limit;
        core_size = sizeof more;
    } else {
        asked = in.take<ib_uverbs_create_srq>();
    }
    const auto driver = in.take_driver<mlx5_ib_create_srq>(core_size);
    if (pds_.count(asked.pd_handle) == 0 || asked.max_wr == 0 || asked.max_wr >= 1u << hca_->config().max_log_rq_wqes ||
        asked.max_sge > hca_->config().max_recv_sge)
        return EINVAL;
    if (driver.buf_addr == 0 || driver.db_addr == 0) return EFAULT;
    SrqAttr attr;
    attr.pd = asked.pd_handle;
    attr.log_wqes = log2_ceil(asked.max_wr + 1);
    attr.stride = 1u << log2_ceil(std::max(kShortest, kLink + asked.max_sge * kEntry));
    attr.limit = asked.srq_limit;
    attr.buffer = reinterpret_cast<void*>(driver.buf_addr);
    attr.dbrec = reinterpret_cast<u32*>(driver.db_addr);
    u32 srqn = 0;
    if (const Status status = hca_->create_srq(attr, &srqn); !status.ok()) return status.code;
    SrqRecord& record = srqs_[srqn];
    record.user_handle = asked.user_handle;
    record.max_wr = (1u << attr.log_wqes) - 1;
    record.max_sge = (attr.stride - kLink) / kEntry;
    ib_uverbs_create_srq_resp out = {};
    out.srq_handle = out.srqn = srqn;
    out.max_wr = record.max_wr;
    out.max_sge = record.max_sge;
    mlx5_ib_create_srq_resp driver_out = {};
    driver_out.srqn = srqn;
    in.give(out);
    in.give_driver(driver_out, sizeof out);
    return 0;
}

int OpenDevice::modify_srq(Command& in) {
    const auto asked = in.take<ib_uverbs_modify_srq>();
    if (srqs_.count(asked.srq_handle) == 0) return EINVAL;
    if (asked.attr_mask & kMaxWr) return EINVAL;  // as mlx5_ib_modify_srq
    return asked.attr_mask & kLimit ? hca_->set_srq_limit(asked.srq_handle, asked.srq_limit).code : 0;
}

int OpenDevice::query_srq(Command& in) {
    const u32 srqn = in.take<ib_uverbs_query_srq>().srq_handle;
    const auto found = srqs_.find(srqn);
    if (found == srqs_.end()) return EINVAL;
    ib_uverbs_query_srq_resp out = {};
    out.max_wr = found->second.max_wr;
    out.max_sge = found->second.max_sge;
    out.srq_limit = hca_->srq_limit(srqn);
    in.give(out);
    return 0;
}

int OpenDevice::destroy_srq(Command& in) {
    const u32 srqn = in.take<ib_uverbs_destroy_srq>().srq_handle;
    const auto found = srqs_.find(srqn);
    if (found == srqs_.end()) return EINVAL;
    if (const Status status = hca_->destroy_srq(srqn); !status.ok()) return status.code;
    ib_uverbs_destroy_srq_resp out = {};
    if (async_) async_->take_back(found->second.events.get());
    out.events_reported = *found->second.events;
    srqs_.erase(found);
    in.give(out);
    return 0;
}

}  // namespace rdmakit::uverbs
