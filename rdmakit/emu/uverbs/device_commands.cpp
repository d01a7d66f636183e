// device_commands.cpp — what a device says of itself, the context that libmlx5 opens, and its UAR pages.
// Leans on open_device.hpp. rdma/mlx5-abi.h.
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kBfregBytes = 512;
constexpr u32 kMaxSge = 30;

// ConnectX-7, whose identity sysfs shows as well.
constexpr u32 kVendor = 0x02c9, kPart = 4129;

}  // namespace

int OpenDevice::get_context(Command& in) {
    if (async_) return EINVAL;
    ib_uverbs_get_context_resp core = {};
    if (const int error = open_context(in, sizeof(ib_uverbs_get_context), sizeof core)) return error;
    async_ = EventFile::create();
    if (!async_) return EMFILE;
    core.async_fd = static_cast<u32>(async_->fd());
    core.num_comp_vectors = kCompVectors;
    in.give(core);
    return 0;
}

mlx5_ib_alloc_ucontext_resp OpenDevice::describe_context() const {
    const HcaConfig& config = hca_->config();
    mlx5_ib_alloc_ucontext_resp driver = {};
    driver.qp_tab_size = 1u << 18;
    driver.bf_reg_size = kBfregBytes;
    driver.tot_bfregs = dynamic_uars_ ? 0 : bfregs_;
    driver.cache_line_size = 64;
    driver.max_sq_desc_sz = 1024;
    driver.max_rq_desc_sz = 512;
    driver.max_send_wqebb = 1u << config.max_log_sq_bbs;
    driver.max_recv_wr = driver.max_srq_recv_wr = 1u << config.max_log_rq_wqes;
    driver.num_ports = static_cast<u16>(hca_->ib_ports());
    driver.response_length = static_cast<u32>(sizeof driver);
    driver.cmds_supp_uhw = MLX5_USER_CMDS_SUPP_UHW_QUERY_DEVICE | MLX5_USER_CMDS_SUPP_UHW_CREATE_AH;
    driver.log_uar_size = 12;
    driver.num_uars_per_page = 1;
    return driver;
}

int OpenDevice::open_context(Command& in, std::size_t core_request, std::size_t core_response) {
    if (opened_) return EINVAL;
    const auto asked = in.take_driver<mlx5_ib_alloc_ucontext_req_v2>(core_request);
    // libmlx5 that asks for UAR pages one by one has none numbered beforehand (kernel mlx5_ib_alloc_ucontext).
    const bool dynamic = asked.lib_caps & MLX5_LIB_CAP_DYN_UAR;
    bfregs_ = (asked.total_num_bfregs + kBfregsPerUar - 1) / kBfregsPerUar * kBfregsPerUar;
    // Firmware that gives no user contexts, if a test wants such (kernel mlx5_ib_devx_create).
    const char* const devx = std::getenv("RDMAKIT_UVERBS_DEVX");
    if (asked.flags & MLX5_IB_ALLOC_UCTX_DEVX && devx != nullptr && std::strcmp(devx, "off") == 0) return EINVAL;
    if (bfregs_ == 0 || asked.num_low_latency_bfregs > bfregs_ - 1) return EINVAL;
    dynamic_uars_ = dynamic;
    in.give_driver(describe_context(), core_response);
    if (asked.flags & MLX5_IB_ALLOC_UCTX_DEVX) devx_.allow();
    opened_ = true;
    Machine::here().listen(hca_, this);
    return 0;
}

void* OpenDevice::map(u64 offset) {
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    return uars_.map(offset);
}

int OpenDevice::query_device(Command& in, bool extended) {
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
    out.max_srq = 1u << 20;
    out.max_srq_wr = (1u << config.max_log_rq_wqes) - 1;
    out.max_srq_sge = kMaxSge;
    out.max_pkeys = 1;
    out.local_ca_ack_delay = 16;
    out.phys_port_cnt = static_cast<u8>(hca_->ib_ports());
    if (!extended) {
        in.give(out);
        return 0;
    }
    ib_uverbs_ex_query_device_resp more = {};
    more.base = out;
    more.max_dm_size = kDeviceMemory;
    more.response_length = static_cast<u32>(sizeof more);
    mlx5_ib_query_device_resp driver = {};
    driver.response_length = static_cast<u32>(std::min(sizeof driver, in.driver_response_size));
    in.give(more);
    in.give_driver(driver, sizeof more);
    return 0;
}

int OpenDevice::query_port(Command& in) {
    const auto asked = in.take<ib_uverbs_query_port>();
    if (asked.port_num < 1 || asked.port_num > hca_->ib_ports()) return EINVAL;
    const HcaConfig& config = hca_->config();
    ib_uverbs_query_port_resp out = {};
    const bool up = hca_->port_up(asked.port_num);
    out.max_msg_sz = 1u << 30;
    out.gid_tbl_len = kGidEntries;
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

}  // namespace rdmakit::uverbs
