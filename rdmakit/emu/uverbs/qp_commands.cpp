// qp_commands.cpp — queue pairs: created over the rings that libmlx5 has allocated, taken through their states.
// Leans on open_device.hpp.
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kMaxInline = 512;
constexpr u32 kQpTypeRc = 2;
constexpr u32 kBfregsOfPage = 4;  // MLX5_BFREGS_PER_UAR
constexpr u32 kNoBfreg = 1u << 31;  // MLX5_IB_INVALID_BFREG
constexpr u32 kSlowestRate = 2, kLastRate = 23;  // IB_RATE_2_5_GBPS, IB_RATE_800_GBPS

}  // namespace

int OpenDevice::create_qp(Command& in, bool extended) {
    ib_uverbs_ex_create_qp asked = {};
    std::size_t core_size = sizeof asked;
    if (extended) {
        asked = in.take<ib_uverbs_ex_create_qp>();
        if (asked.create_flags != 0 || asked.comp_mask != 0) return EOPNOTSUPP;
    } else {
        const auto legacy = in.take<ib_uverbs_create_qp>();
        // The extended form has the same members from the user handle to is_srq, without the response's address.
        std::memcpy(&asked, &legacy.user_handle, offsetof(ib_uverbs_ex_create_qp, reserved));
        core_size = sizeof legacy;
    }
    const auto driver = in.take_driver<mlx5_ib_create_qp>(core_size);
    if (asked.qp_type != kQpTypeRc) return EOPNOTSUPP;
    if (asked.is_srq && srqs_.count(asked.srq_handle) == 0) return EINVAL;
    if (pds_.count(asked.pd_handle) == 0 || cqs_.count(asked.send_cq_handle) == 0 ||
        cqs_.count(asked.recv_cq_handle) == 0)
        return EINVAL;
    constexpr u32 kKnownFlags = MLX5_QP_FLAG_SCATTER_CQE | MLX5_QP_FLAG_BFREG_INDEX | MLX5_QP_FLAG_ALLOW_SCATTER_CQE |
                                MLX5_QP_FLAG_UAR_PAGE_INDEX;
    if (driver.flags & ~kKnownFlags) return EOPNOTSUPP;
    if (driver.sq_wqe_count == 0 || (driver.sq_wqe_count & (driver.sq_wqe_count - 1)) != 0) return EINVAL;

    QpAttr attr;
    attr.pd = asked.pd_handle;
    attr.send_cq = asked.send_cq_handle;
    attr.recv_cq = asked.recv_cq_handle;
    attr.srq = asked.is_srq ? asked.srq_handle : 0;
    attr.log_sq_bbs = log2_ceil(driver.sq_wqe_count);
    attr.max_inline = std::max(asked.max_inline_data, kMaxInline);
    attr.sq_sig_all = asked.sq_sig_all != 0;
    const bool scatter = driver.flags & MLX5_QP_FLAG_SCATTER_CQE;
    attr.scatter_to_cqe_responder = scatter;
    attr.scatter_to_cqe_requester = scatter && (attr.sq_sig_all || (driver.flags & MLX5_QP_FLAG_ALLOW_SCATTER_CQE));
    u8* const buffer = reinterpret_cast<u8*>(driver.buf_addr);
    std::size_t rq_bytes = 0;
    if (driver.rq_wqe_count != 0) {
        attr.log_rq_wqes = log2_ceil(driver.rq_wqe_count);
        attr.max_recv_sge = (1u << driver.rq_wqe_shift) / sizeof(DataSeg);
        attr.rq_buffer = buffer;
        rq_bytes = std::size_t{driver.rq_wqe_count} << driver.rq_wqe_shift;
        if (Hca::rq_stride_bytes(attr.max_recv_sge) != 1u << driver.rq_wqe_shift) return EINVAL;
    }
    attr.sq_buffer = buffer + rq_bytes;  // behind the receive ring (rdma-core providers/mlx5/verbs.c mlx5_alloc_qp_buf)
    attr.dbrec = reinterpret_cast<u32*>(driver.db_addr);
    if (buffer == nullptr || attr.dbrec == nullptr) return EFAULT;

    QpRecord record;
    record.user_handle = asked.user_handle;
    const UarPage* page = nullptr;
    if (driver.flags & MLX5_QP_FLAG_UAR_PAGE_INDEX) {
        page = uars_.find(driver.bfreg_index);
        if (page == nullptr) return EINVAL;
        record.bfreg = kNoBfreg;
    } else {
        // bfreg 0 takes plain doorbells only; the others in turn, as mlx5_ib spreads queue pairs over them.
        const u32 next = bfregs_ > 1 ? 1 + next_bfreg_++ % (bfregs_ - 1) : 0;
        record.bfreg = driver.flags & MLX5_QP_FLAG_BFREG_INDEX ? driver.bfreg_index : next;
        page = uars_.numbered(record.bfreg / kBfregsPerUar);
        if (page == nullptr) return ENOMEM;
    }
    attr.uar = page->index;
    u32 qpn = 0;
    if (const Status status = hca_->create_qp(attr, &qpn); !status.ok()) return status.code;
    Machine::here().add_qp(hca_, qpn, page->page);
    record.max_send_wr = asked.max_send_wr;
    record.max_recv_wr = asked.max_recv_wr;
    record.max_send_sge = asked.max_send_sge;
    record.max_recv_sge = asked.max_recv_sge;
    record.max_inline = asked.max_inline_data;
    qps_[qpn] = record;

    ib_uverbs_create_qp_resp core = {};
    core.qp_handle = core.qpn = qpn;
    core.max_send_wr = asked.max_send_wr;
    core.max_recv_wr = asked.max_recv_wr;
    core.max_send_sge = asked.max_send_sge;
    core.max_recv_sge = asked.max_recv_sge;
    core.max_inline_data = asked.max_inline_data;
    mlx5_ib_create_qp_resp driver_out = {};
    // libmlx5 counts the fast path's registers of each page as well (mlx5_ib's adjust_bfregn; providers/mlx5/mlx5.c).
    driver_out.bfreg_index = record.bfreg == kNoBfreg || driver.flags & MLX5_QP_FLAG_BFREG_INDEX
                                 ? record.bfreg
                                 : record.bfreg / kBfregsPerUar * kBfregsOfPage + record.bfreg % kBfregsPerUar;
    if (extended) {
        ib_uverbs_ex_create_qp_resp out = {};
        out.base = core;
        out.response_length = static_cast<u32>(sizeof out);
        in.give(out);
        in.give_driver(driver_out, sizeof out);
    } else {
        in.give(core);
        in.give_driver(driver_out, sizeof core);
    }
    return 0;
}

int OpenDevice::modify_qp(Command& in) {
    const auto asked = in.take<ib_uverbs_ex_modify_qp>().base;
    if (qps_.count(asked.qp_handle) == 0) return EINVAL;
    // The kernel has alternate paths between InfiniBand ports alone (core/verbs.c _ib_modify_qp), and a device without
    // `apm` among its capabilities none at all. What firmware says to a migration state without a path is not known.
    if (asked.attr_mask & kQpAttrAltPath) return EINVAL;
    if ((asked.attr_mask & kQpAttrPathMigState) && asked.path_mig_state != 0) return EINVAL;
    // mlx5_ib takes the next slower rate that the device has (hw/mlx5/qp.c, mlx5r_ib_rate): this one has none
    // (stat_rate_support 0), so every rate becomes the port's, and a query says so.
    const u32 rate = asked.dest.static_rate;
    if ((asked.attr_mask & kQpAttrAv) && rate != 0 && (rate < kSlowestRate || rate > kLastRate)) return EINVAL;
    QpModify attr;
    attr.qp_state = static_cast<QpState>(asked.qp_state);
    attr.cur_qp_state = static_cast<QpState>(asked.cur_qp_state);
    attr.path_mtu = asked.path_mtu;
    attr.qp_access_flags = asked.qp_access_flags;
    attr.pkey_index = asked.pkey_index;
    attr.port_num = asked.port_num;
    std::memcpy(attr.ah.dgid.raw, asked.dest.dgid, sizeof attr.ah.dgid.raw);
    attr.ah.dlid = asked.dest.dlid;
    attr.ah.flow_label = asked.dest.flow_label;
    attr.ah.sgid_index = asked.dest.sgid_index;
    attr.ah.hop_limit = asked.dest.hop_limit;
    attr.ah.traffic_class = asked.dest.traffic_class;
    attr.ah.sl = asked.dest.sl;
    // Of a RoCE address the kernel keeps no path bits (include/rdma/ib_verbs.h rdma_ah_set_path_bits).
    attr.ah.src_path_bits = hca_->config().roce ? 0 : asked.dest.src_path_bits & 0x7fu;
    attr.ah.is_global = asked.dest.is_global != 0;
    attr.ah.port_num = asked.dest.port_num;
    attr.dest_qp_num = asked.dest_qp_num;
    attr.rq_psn = asked.rq_psn;
    attr.sq_psn = asked.sq_psn;
    attr.max_rd_atomic = asked.max_rd_atomic;
    attr.max_dest_rd_atomic = asked.max_dest_rd_atomic;
    attr.min_rnr_timer = asked.min_rnr_timer;
    attr.timeout = asked.timeout;
    attr.retry_cnt = asked.retry_cnt;
    attr.rnr_retry = asked.rnr_retry;
    attr.en_sqd_async_notify = asked.en_sqd_async_notify != 0;
    return hca_->modify_qp(asked.qp_handle, attr, asked.attr_mask).code;
}

int OpenDevice::query_qp(Command& in) {
    const auto asked = in.take<ib_uverbs_query_qp>();
    const auto found = qps_.find(asked.qp_handle);
    QpInfo info;
    if (found == qps_.end() || !hca_->query_qp(asked.qp_handle, &info).ok()) return EINVAL;
    const QpModify& attr = info.attr;
    ib_uverbs_query_qp_resp out = {};
    std::memcpy(out.dest.dgid, attr.ah.dgid.raw, sizeof out.dest.dgid);
    out.dest.dlid = static_cast<u16>(attr.ah.dlid);
    out.dest.flow_label = attr.ah.flow_label;
    out.dest.sgid_index = static_cast<u8>(attr.ah.sgid_index);
    out.dest.hop_limit = static_cast<u8>(attr.ah.hop_limit);
    out.dest.traffic_class = static_cast<u8>(attr.ah.traffic_class);
    out.dest.sl = static_cast<u8>(attr.ah.sl);
    out.dest.src_path_bits = static_cast<u8>(attr.ah.src_path_bits);
    out.dest.is_global = attr.ah.is_global;
    out.dest.port_num = static_cast<u8>(attr.ah.port_num);
    out.max_send_wr = found->second.max_send_wr;
    out.max_recv_wr = found->second.max_recv_wr;
    out.max_send_sge = found->second.max_send_sge;
    out.max_recv_sge = found->second.max_recv_sge;
    out.max_inline_data = found->second.max_inline;
    out.rq_psn = attr.rq_psn;
    out.sq_psn = attr.sq_psn;
    out.dest_qp_num = attr.dest_qp_num;
    out.qp_access_flags = attr.qp_access_flags;
    out.pkey_index = static_cast<u16>(attr.pkey_index);
    out.qp_state = out.cur_qp_state = static_cast<u8>(info.state);
    out.path_mtu = static_cast<u8>(attr.path_mtu);
    out.max_rd_atomic = static_cast<u8>(attr.max_rd_atomic);
    out.max_dest_rd_atomic = static_cast<u8>(attr.max_dest_rd_atomic);
    out.min_rnr_timer = static_cast<u8>(attr.min_rnr_timer);
    out.port_num = static_cast<u8>(attr.port_num);
    out.timeout = static_cast<u8>(attr.timeout);
    out.retry_cnt = static_cast<u8>(attr.retry_cnt);
    out.rnr_retry = static_cast<u8>(attr.rnr_retry);
    out.sq_sig_all = info.create.sq_sig_all;
    in.give(out);
    return 0;
}

int OpenDevice::destroy_qp(Command& in) {
    const u32 qpn = in.take<ib_uverbs_destroy_qp>().qp_handle;
    const auto found = qps_.find(qpn);
    if (found == qps_.end()) return EINVAL;
    if (const Status status = hca_->destroy_qp(qpn); !status.ok()) return status.code;
    Machine::here().remove_qp(hca_, qpn);
    ib_uverbs_destroy_qp_resp out = {};
    if (async_) async_->take_back(found->second.events.get());
    out.events_reported = *found->second.events;
    qps_.erase(found);
    in.give(out);
    return 0;
}

}  // namespace rdmakit::uverbs
