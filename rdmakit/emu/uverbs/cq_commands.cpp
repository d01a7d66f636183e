// cq_commands.cpp — completion channels and completion queues.
// Leans on open_device.hpp.
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>

#include <cerrno>

#include "open_device.hpp"

namespace rdmakit::uverbs {

int OpenDevice::create_channel(Command& in) {
    const std::shared_ptr<EventFile> channel = EventFile::create();
    if (!channel) return EMFILE;
    ib_uverbs_create_comp_channel_resp out = {};
    out.fd = static_cast<u32>(channel->fd());
    in.give(out);
    return 0;
}

int OpenDevice::create_cq(Command& in, bool extended) {
    ib_uverbs_ex_create_cq asked = {};
    std::size_t core_size = sizeof asked;
    if (extended) {
        asked = in.take<ib_uverbs_ex_create_cq>();
    } else {
        const auto legacy = in.take<ib_uverbs_create_cq>();
        asked.user_handle = legacy.user_handle;
        asked.cqe = legacy.cqe;
        asked.comp_vector = legacy.comp_vector;
        asked.comp_channel = legacy.comp_channel;
        core_size = sizeof(ib_uverbs_create_cq);
    }
    const auto driver = in.take_driver<mlx5_ib_create_cq>(core_size);
    if (driver.cqe_comp_en != 0) return EOPNOTSUPP;
    if (asked.comp_vector >= kCompVectors || asked.cqe == 0) return EINVAL;
    const std::shared_ptr<EventFile> channel = EventFile::at(asked.comp_channel);
    if (asked.comp_channel >= 0 && !channel) return EINVAL;
    CqAttr attr;
    attr.log_entries = log2_ceil(asked.cqe + 1);
    attr.cqe_bytes = driver.cqe_size;
    attr.overrun_ignore = asked.flags & 2;  // IB_UVERBS_CQ_FLAGS_IGNORE_OVERRUN
    attr.buffer = reinterpret_cast<void*>(driver.buf_addr);
    attr.dbrec = reinterpret_cast<u32*>(driver.db_addr);
    if (attr.buffer == nullptr || attr.dbrec == nullptr) return EFAULT;
    u32 cqn = 0;
    if (const Status status = hca_->create_cq(attr, &cqn); !status.ok()) return status.code;
    CqRecord& record = cqs_[cqn];
    record.user_handle = asked.user_handle;
    record.channel = channel;
    Machine::here().add_cq(hca_, cqn, attr.dbrec);
    mlx5_ib_create_cq_resp driver_out = {};
    driver_out.cqn = cqn;
    if (extended) {
        ib_uverbs_ex_create_cq_resp out = {};
        out.base.cq_handle = cqn;
        out.base.cqe = (1u << attr.log_entries) - 1;
        out.response_length = static_cast<u32>(sizeof out);
        in.give(out);
        in.give_driver(driver_out, sizeof out);
    } else {
        ib_uverbs_create_cq_resp out = {};
        out.cq_handle = cqn;
        out.cqe = (1u << attr.log_entries) - 1;
        in.give(out);
        in.give_driver(driver_out, sizeof out);
    }
    return 0;
}

int OpenDevice::destroy_cq(Command& in) {
    const u32 cqn = in.take<ib_uverbs_destroy_cq>().cq_handle;
    const auto found = cqs_.find(cqn);
    if (found == cqs_.end()) return EINVAL;
    if (const Status status = hca_->destroy_cq(cqn); !status.ok()) return status.code;
    Machine::here().remove_cq(hca_, cqn);
    ib_uverbs_destroy_cq_resp out = {};
    if (found->second.channel) found->second.channel->take_back(found->second.completions.get());
    if (async_) async_->take_back(found->second.errors.get());
    out.comp_events_reported = *found->second.completions;
    out.async_events_reported = *found->second.errors;
    cqs_.erase(found);
    in.give(out);
    return 0;
}

}  // namespace rdmakit::uverbs
