// ah_commands.cpp — address handles: made by libmlx5 for the Ethernet address that the kernel resolves a GID to.
// Leans on open_device.hpp. rdma/mlx5-abi.h mlx5_ib_create_ah_resp; kernel drivers/infiniband/hw/mlx5/ah.c.
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>

#include <cerrno>
#include <cstring>

#include "open_device.hpp"

namespace rdmakit::uverbs {

int OpenDevice::create_ah(Command& in) {
    const auto asked = in.take<ib_uverbs_create_ah>();
    if (pds_.count(asked.pd_handle) == 0) return EINVAL;
    const u32 port = asked.attr.port_num;
    if (port < 1 || port > hca_->ib_ports()) return EINVAL;
    mlx5_ib_create_ah_resp driver = {};
    if (hca_->config().roce) {
        if (asked.attr.is_global == 0 || Machine::here().gid(hca_, port, asked.attr.grh.sgid_index) == nullptr) return EINVAL;
        Gid gid;
        std::memcpy(gid.raw, asked.attr.grh.dgid, sizeof gid.raw);
        if (!Machine::here().resolve(gid, driver.dmac)) return EHOSTUNREACH;
    }
    driver.response_length = static_cast<u32>(sizeof driver);
    const ib_uverbs_create_ah_resp core = {++next_ah_};
    ahs_[core.ah_handle] = true;
    in.give(core);
    in.give_driver(driver, sizeof core);
    return 0;
}

int OpenDevice::destroy_ah(Command& in) { return ahs_.erase(in.take<ib_uverbs_destroy_ah>().ah_handle) != 0 ? 0 : EINVAL; }

}  // namespace rdmakit::uverbs
