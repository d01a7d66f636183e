#include "kernel.hpp"

#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace rdmakit::uverbs {
namespace {

constexpr u32 kPage = 4096;
constexpr u32 kBfregsPerUar = 2;  // of four in a page, those that are no fast path (MLX5_NUM_NON_FP_BFREGS_PER_UAR)
constexpr u32 kBfregBytes = 512;
// libmlx5 counts the fast path's registers as well (mlx5_ib's adjust_bfregn; providers/mlx5/mlx5.c, bfs of a page).
constexpr u32 kBfregsOfPage = 4;
constexpr u32 libmlx5_bfreg(u32 bfreg) { return bfreg / kBfregsPerUar * kBfregsOfPage + bfreg % kBfregsPerUar; }
constexpr u32 kMaxInline = 512, kMaxSge = 30;
constexpr u32 kQpTypeRc = 2;
constexpr u32 kCompVectors = 1;
constexpr u32 kAccessMwBind = 1u << 4;  // allowed on a region; windows themselves are not offered

// ConnectX-7, whose identity sysfs shows as well.
constexpr u32 kVendor = 0x02c9, kPart = 4129;

bool all_mapped(u64 start, u64 length) {
    const u64 first = start & ~u64{kPage - 1}, last = (start + length + kPage - 1) & ~u64{kPage - 1};
    u8 in_core[256];
    for (u64 at = first; at < last; at += sizeof in_core * kPage) {
        const u64 bytes = std::min<u64>(last - at, sizeof in_core * kPage);
        if (mincore(reinterpret_cast<void*>(at), bytes, in_core) != 0) return false;
    }
    return true;
}

u32 log2_ceil(u32 value) {
    u32 log = 0;
    while ((1u << log) < value) ++log;
    return log;
}

}  // namespace

// A command's bytes: the core's request, behind it the driver's; and where the answers go, each cut to its room.
struct OpenDevice::In {
    const u8* request;
    std::size_t request_size;
    const u8* driver;
    std::size_t driver_size;
    u8* response;
    std::size_t response_size;
    u8* driver_response;
    std::size_t driver_response_size;

    template <class T>
    T take() const {
        T value = {};
        std::memcpy(&value, request, std::min(sizeof value, request_size));
        return value;
    }
    template <class T>
    T take_driver(std::size_t core_size) const {
        T value = {};
        if (driver != nullptr) {
            std::memcpy(&value, driver, std::min(sizeof value, driver_size));
        } else if (request_size > core_size) {
            std::memcpy(&value, request + core_size, std::min(sizeof value, request_size - core_size));
        }
        return value;
    }
    template <class T>
    void give(const T& value) const {
        if (response != nullptr) std::memcpy(response, &value, std::min(sizeof value, response_size));
    }
    template <class T>
    void give_driver(const T& value, std::size_t core_size) const {
        if (driver_response != nullptr) {
            std::memcpy(driver_response, &value, std::min(sizeof value, driver_response_size));
        } else if (response != nullptr && response_size > core_size) {
            std::memcpy(response + core_size, &value, std::min(sizeof value, response_size - core_size));
        }
    }
};

OpenDevice::~OpenDevice() {
    Machine& machine = Machine::here();
    const std::lock_guard<std::recursive_mutex> hold(machine.lock());
    machine.forget(this);
    for (const auto& [qpn, record] : qps_) {
        machine.remove_qp(hca_, qpn);
        hca_->destroy_qp(qpn);
    }
    for (const auto& [cqn, record] : cqs_) {
        machine.remove_cq(hca_, cqn);
        hca_->destroy_cq(cqn);
    }
    for (const auto& [key, live] : mrs_) hca_->dereg_mr(key);
    for (const auto& [pd, live] : pds_) hca_->dealloc_pd(pd);
}

int OpenDevice::command(const u8* bytes, std::size_t size) {
    ib_uverbs_cmd_hdr header;
    if (size < sizeof header) return EINVAL;
    std::memcpy(&header, bytes, sizeof header);
    const bool extended = header.command & IB_USER_VERBS_CMD_FLAG_EXTENDED;
    const u32 number = header.command & IB_USER_VERBS_CMD_COMMAND_MASK;
    In in = {};
    if (extended) {
        ib_uverbs_ex_cmd_hdr more;
        if (size < sizeof header + sizeof more) return EINVAL;
        std::memcpy(&more, bytes + sizeof header, sizeof more);
        in.request = bytes + sizeof header + sizeof more;
        in.request_size = header.in_words * 8u;
        in.driver = in.request + in.request_size;
        in.driver_size = more.provider_in_words * 8u;
        in.response = reinterpret_cast<u8*>(more.response);
        in.response_size = header.out_words * 8u;
        in.driver_response = in.response != nullptr ? in.response + in.response_size : nullptr;
        in.driver_response_size = more.provider_out_words * 8u;
        if (sizeof header + sizeof more + in.request_size + in.driver_size > size) return EINVAL;
    } else {
        if (header.in_words * 4u != size) return EINVAL;
        in.request = bytes + sizeof header;
        in.request_size = size - sizeof header;
        u64 response = 0;
        if (header.out_words != 0 && in.request_size >= sizeof response)
            std::memcpy(&response, in.request, sizeof response);
        in.response = reinterpret_cast<u8*>(response);
        in.response_size = header.out_words * 4u;
    }
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    if (extended) {
        switch (number) {
            case IB_USER_VERBS_CMD_QUERY_DEVICE: return query_device(in, true);
            case IB_USER_VERBS_CMD_CREATE_CQ: return create_cq(in, true);
            case IB_USER_VERBS_CMD_CREATE_QP: return create_qp(in, true);
            case IB_USER_VERBS_CMD_MODIFY_QP: return modify_qp(in);
            default: return EOPNOTSUPP;
        }
    }
    switch (number) {
        case IB_USER_VERBS_CMD_GET_CONTEXT: return get_context(in);
        case IB_USER_VERBS_CMD_QUERY_DEVICE: return query_device(in, false);
        case IB_USER_VERBS_CMD_QUERY_PORT: return query_port(in);
        case IB_USER_VERBS_CMD_ALLOC_PD: return alloc_pd(in);
        case IB_USER_VERBS_CMD_DEALLOC_PD: return dealloc_pd(in);
        case IB_USER_VERBS_CMD_REG_MR: return reg_mr(in);
        case IB_USER_VERBS_CMD_DEREG_MR: return dereg_mr(in);
        case IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL: return create_channel(in);
        case IB_USER_VERBS_CMD_CREATE_CQ: return create_cq(in, false);
        case IB_USER_VERBS_CMD_DESTROY_CQ: return destroy_cq(in);
        case IB_USER_VERBS_CMD_CREATE_QP: return create_qp(in, false);
        case IB_USER_VERBS_CMD_MODIFY_QP: return modify_qp(in);
        case IB_USER_VERBS_CMD_QUERY_QP: return query_qp(in);
        case IB_USER_VERBS_CMD_DESTROY_QP: return destroy_qp(in);
        default: return EOPNOTSUPP;
    }
}

// ---- context ----------------------------------------------------------------------------------------------------
int OpenDevice::get_context(In& in) {
    if (async_) return EINVAL;
    const auto asked = in.take_driver<mlx5_ib_alloc_ucontext_req_v2>(sizeof(ib_uverbs_get_context));
    if (asked.flags & MLX5_IB_ALLOC_UCTX_DEVX) return EINVAL;  // libmlx5 asks again without
    bfregs_ = (asked.total_num_bfregs + kBfregsPerUar - 1) / kBfregsPerUar * kBfregsPerUar;
    if (bfregs_ == 0 || asked.num_low_latency_bfregs > bfregs_ - 1) return EINVAL;

    async_ = EventFile::create();
    if (!async_) return EMFILE;
    ib_uverbs_get_context_resp core = {};
    core.async_fd = static_cast<u32>(async_->fd());
    core.num_comp_vectors = kCompVectors;
    const HcaConfig& config = hca_->config();
    mlx5_ib_alloc_ucontext_resp driver = {};
    driver.qp_tab_size = 1u << 18;
    driver.bf_reg_size = kBfregBytes;
    driver.tot_bfregs = bfregs_;
    driver.cache_line_size = 64;
    driver.max_sq_desc_sz = 1024;
    driver.max_rq_desc_sz = 512;
    driver.max_send_wqebb = 1u << config.max_log_sq_bbs;
    driver.max_recv_wr = 1u << config.max_log_rq_wqes;
    driver.num_ports = static_cast<u16>(hca_->ib_ports());
    driver.response_length = static_cast<u32>(sizeof driver);
    driver.log_uar_size = 12;
    driver.num_uars_per_page = 1;
    in.give(core);
    in.give_driver(driver, sizeof core);
    Machine::here().listen(hca_, this);
    return 0;
}

void* OpenDevice::uar(u32 index) {
    const auto known = uars_.find(index);
    if (known != uars_.end()) return known->second;
    UarPage page;
    if (!hca_->alloc_uar(&page).ok()) return nullptr;
    uars_[index] = page.page;
    uar_ids_[index] = page.index;
    Machine::here().watch(hca_, page.page);
    return page.page;
}

// The offset is the page's index with a command above it (rdma-core providers/mlx5/mlx5.c get_uar_mmap_offset).
void* OpenDevice::map(u64 offset) {
    const u64 page = offset / kPage, command = page >> 8 & 0xff;
    constexpr u64 kRegular = 0, kWriteCombining = 2, kUncached = 3;
    if (command != kRegular && command != kWriteCombining && command != kUncached) return nullptr;
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    return uar(static_cast<u32>(page & 0xff) | static_cast<u32>(page >> 16 & 0xff) << 8);
}

bool OpenDevice::owns(const void* page) const {
    for (const auto& [index, mapped] : uars_)
        if (mapped == page) return true;
    return false;
}

int OpenDevice::query_device(In& in, bool extended) {
    const HcaConfig& config = hca_->config();
    ib_uverbs_query_device_resp out = {};
    out.fw_ver = u64{28} << 32 | u64{39} << 16 | 1002;
    const u64 guid = 0x0200'0000'0000'0000ull | static_cast<u64>(config.name[std::strlen(config.name) - 1]);
    out.node_guid = out.sys_image_guid = swap_bytes(guid);
    out.max_mr_size = ~0ull;
    out.page_size_cap = ~u64{kPage - 1};
    out.vendor_id = kVendor;
    out.vendor_part_id = kPart;
    out.max_qp = config.max_qps;
    out.max_qp_wr = 1u << config.max_log_sq_bbs;
    out.max_sge = kMaxSge;
    out.max_sge_rd = kMaxSge;
    out.max_cq = 1u << 20;
    out.max_cqe = (1u << config.max_log_cqes) - 1;
    out.max_mr = config.max_mrs;
    out.max_pd = 1u << 20;
    out.max_qp_rd_atom = out.max_qp_init_rd_atom = config.max_rd_atomic;
    out.max_res_rd_atom = config.max_rd_atomic * config.max_qps;
    out.atomic_cap = 1;  // IB_ATOMIC_HCA
    out.max_pkeys = 1;
    out.local_ca_ack_delay = 16;
    out.phys_port_cnt = static_cast<u8>(hca_->ib_ports());
    if (!extended) {
        in.give(out);
        return 0;
    }
    ib_uverbs_ex_query_device_resp more = {};
    more.base = out;
    more.response_length = static_cast<u32>(sizeof more);
    mlx5_ib_query_device_resp driver = {};
    driver.response_length = static_cast<u32>(std::min(sizeof driver, in.driver_response_size));
    in.give(more);
    in.give_driver(driver, sizeof more);
    return 0;
}

int OpenDevice::query_port(In& in) {
    const auto asked = in.take<ib_uverbs_query_port>();
    if (asked.port_num < 1 || asked.port_num > hca_->ib_ports()) return EINVAL;
    const HcaConfig& config = hca_->config();
    ib_uverbs_query_port_resp out = {};
    const bool up = hca_->port_up(asked.port_num);
    out.max_msg_sz = 1u << 30;
    out.gid_tbl_len = 4;  // as the tree has
    out.pkey_tbl_len = 1;
    out.state = up ? 4 : 1;  // ACTIVE, DOWN
    out.max_mtu = 5;
    out.active_mtu = static_cast<u8>(config.active_mtu);
    out.max_vl_num = 1;
    out.active_width = 2;   // 4X
    out.active_speed = 64;  // HDR: 200 Gb/s
    out.phys_state = up ? 5 : 3;
    out.link_layer = config.roce ? 2 : 1;
    in.give(out);
    return 0;
}

// ---- PD, MR -----------------------------------------------------------------------------------------------------
int OpenDevice::alloc_pd(In& in) {
    u32 pd = 0;
    if (const Status status = hca_->alloc_pd(&pd); !status.ok()) return status.code;
    pds_[pd] = true;
    ib_uverbs_alloc_pd_resp core = {};
    core.pd_handle = pd;
    mlx5_ib_alloc_pd_resp driver = {};
    driver.pdn = pd;
    in.give(core);
    in.give_driver(driver, sizeof core);
    return 0;
}

int OpenDevice::dealloc_pd(In& in) {
    const u32 pd = in.take<ib_uverbs_dealloc_pd>().pd_handle;
    if (pds_.count(pd) == 0) return EINVAL;
    const Status status = hca_->dealloc_pd(pd);
    if (status.ok()) pds_.erase(pd);
    return status.code;
}

int OpenDevice::reg_mr(In& in) {
    const auto asked = in.take<ib_uverbs_reg_mr>();
    if (pds_.count(asked.pd_handle) == 0) return EINVAL;
    if ((asked.start & (kPage - 1)) != (asked.hca_va & (kPage - 1))) return EINVAL;
    if (asked.length != 0 && !all_mapped(asked.start, asked.length)) return EFAULT;
    u32 key = 0;
    const Status status = hca_->reg_mr_iova(asked.pd_handle, reinterpret_cast<void*>(asked.start), asked.length,
                                            asked.hca_va, asked.access_flags & ~kAccessMwBind, &key);
    if (!status.ok()) return status.code;
    mrs_[key] = true;
    ib_uverbs_reg_mr_resp out = {};
    out.mr_handle = out.lkey = out.rkey = key;
    in.give(out);
    return 0;
}

int OpenDevice::dereg_mr(In& in) {
    const u32 key = in.take<ib_uverbs_dereg_mr>().mr_handle;
    if (mrs_.erase(key) == 0) return EINVAL;
    return hca_->dereg_mr(key).code;
}

// ---- completion queues ------------------------------------------------------------------------------------------
int OpenDevice::create_channel(In& in) {
    const std::shared_ptr<EventFile> channel = EventFile::create();
    if (!channel) return EMFILE;
    ib_uverbs_create_comp_channel_resp out = {};
    out.fd = static_cast<u32>(channel->fd());
    in.give(out);
    return 0;
}

int OpenDevice::create_cq(In& in, bool extended) {
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

int OpenDevice::destroy_cq(In& in) {
    const u32 cqn = in.take<ib_uverbs_destroy_cq>().cq_handle;
    const auto found = cqs_.find(cqn);
    if (found == cqs_.end()) return EINVAL;
    if (const Status status = hca_->destroy_cq(cqn); !status.ok()) return status.code;
    Machine::here().remove_cq(hca_, cqn);
    ib_uverbs_destroy_cq_resp out = {};
    if (found->second.channel) found->second.channel->take_back(found->second.completions.get());
    async_->take_back(found->second.errors.get());
    out.comp_events_reported = *found->second.completions;
    out.async_events_reported = *found->second.errors;
    cqs_.erase(found);
    in.give(out);
    return 0;
}

// ---- queue pairs ------------------------------------------------------------------------------------------------
int OpenDevice::create_qp(In& in, bool extended) {
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
    if (asked.qp_type != kQpTypeRc || asked.is_srq) return EOPNOTSUPP;
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
    if (driver.flags & MLX5_QP_FLAG_BFREG_INDEX) {
        record.bfreg = driver.bfreg_index;
    } else {
        // bfreg 0 takes plain doorbells only; the others in turn, as mlx5_ib spreads queue pairs over them.
        record.bfreg = bfregs_ > 1 ? 1 + next_bfreg_++ % (bfregs_ - 1) : 0;
    }
    const u32 page = record.bfreg / kBfregsPerUar;
    if (uar(page) == nullptr) return ENOMEM;
    attr.uar = uar_ids_[page];
    u32 qpn = 0;
    if (const Status status = hca_->create_qp(attr, &qpn); !status.ok()) return status.code;
    Machine::here().add_qp(hca_, qpn, uars_[page]);
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
    driver_out.bfreg_index = libmlx5_bfreg(record.bfreg);
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

int OpenDevice::modify_qp(In& in) {
    const auto asked = in.take<ib_uverbs_ex_modify_qp>().base;
    if (qps_.count(asked.qp_handle) == 0) return EINVAL;
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

int OpenDevice::query_qp(In& in) {
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

int OpenDevice::destroy_qp(In& in) {
    const u32 qpn = in.take<ib_uverbs_destroy_qp>().qp_handle;
    const auto found = qps_.find(qpn);
    if (found == qps_.end()) return EINVAL;
    if (const Status status = hca_->destroy_qp(qpn); !status.ok()) return status.code;
    Machine::here().remove_qp(hca_, qpn);
    ib_uverbs_destroy_qp_resp out = {};
    async_->take_back(found->second.events.get());
    out.events_reported = *found->second.events;
    qps_.erase(found);
    in.give(out);
    return 0;
}

// ---- events -----------------------------------------------------------------------------------------------------
void OpenDevice::event(AsyncEvent event) {
    if (event.type == AsyncEventType::completion) {
        const auto cq = cqs_.find(event.number);
        if (cq == cqs_.end() || !cq->second.channel) return;
        const ib_uverbs_comp_event_desc told = {cq->second.user_handle};
        const Count& count = cq->second.completions;
        cq->second.channel->push(&told, sizeof told, count.get(), count);
        return;
    }
    // enum ib_event_type of include/rdma/ib_verbs.h, which is libibverbs's ibv_event_type
    ib_uverbs_async_event_desc told = {};
    Count count = port_events_;
    const auto of_qp = [&](u32 type) {
        const auto qp = qps_.find(event.number);
        if (qp == qps_.end()) return false;
        told.element = qp->second.user_handle;
        told.event_type = type;
        count = qp->second.events;
        return true;
    };
    const auto of_cq = [&](u32 type) {
        const auto cq = cqs_.find(event.number);
        if (cq == cqs_.end()) return false;
        told.element = cq->second.user_handle;
        told.event_type = type;
        count = cq->second.errors;
        return true;
    };
    const auto of_port = [&](u32 type) {
        told.element = event.number;
        told.event_type = type;
        return true;
    };
    bool known = false;
    switch (event.type) {
        case AsyncEventType::cq_error: known = of_cq(0); break;
        case AsyncEventType::qp_fatal: known = of_qp(1); break;
        case AsyncEventType::qp_request_error: known = of_qp(2); break;
        case AsyncEventType::qp_access_error: known = of_qp(3); break;
        case AsyncEventType::communication_established: known = of_qp(4); break;
        case AsyncEventType::sq_drained: known = of_qp(5); break;
        case AsyncEventType::port_active: known = of_port(9); break;
        case AsyncEventType::port_error: known = of_port(10); break;
        case AsyncEventType::completion:
        case AsyncEventType::doorbell_split: break;
    }
    if (known) async_->push(&told, sizeof told, count.get(), count);
}

}  // namespace rdmakit::uverbs
