// memory_commands.cpp — protection domains and memory regions.
// Leans on open_device.hpp.
#include <fcntl.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5-abi.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kAccessMwBind = 1u << 4;  // allowed on a region; windows themselves are not offered

// Bits that a device may take no notice of (IB_ACCESS_OPTIONAL), but for relaxed ordering, which this one knows.
constexpr u32 kOptional = 0x3ff00000 & ~kAccessRelaxedOrdering;

// mincore knows addresses that a GPU's driver has reserved, say, and nobody can read; the kernel would pin none of them.
bool readable(u64 at) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return true;  // out of descriptors: no reason to refuse memory
    const bool taken = write(ends[1], reinterpret_cast<void*>(at), 1) == 1;
    const bool fault = !taken && errno == EFAULT;
    close(ends[0]);
    close(ends[1]);
    return !fault;
}

bool all_mapped(u64 start, u64 length) {
    const u64 first = start & ~u64{kPage - 1}, last = (start + length + kPage - 1) & ~u64{kPage - 1};
    u8 in_core[256];
    for (u64 at = first; at < last; at += sizeof in_core * kPage) {
        const u64 bytes = std::min<u64>(last - at, sizeof in_core * kPage);
        if (mincore(reinterpret_cast<void*>(at), bytes, in_core) != 0) return false;
    }
    return readable(first) && readable(last - 1);
}

}  // namespace

u32 allowed_access(u32 access_flags) { return access_flags & ~(kAccessMwBind | kOptional); }

int OpenDevice::alloc_pd(Command& in) {
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

int OpenDevice::dealloc_pd(Command& in) {
    const u32 pd = in.take<ib_uverbs_dealloc_pd>().pd_handle;
    if (pds_.count(pd) == 0) return EINVAL;
    const Status status = hca_->dealloc_pd(pd);
    if (status.ok()) pds_.erase(pd);
    return status.code;
}

int OpenDevice::reg_mr(Command& in) {
    const auto asked = in.take<ib_uverbs_reg_mr>();
    if (pds_.count(asked.pd_handle) == 0) return EINVAL;
    if ((asked.start & (kPage - 1)) != (asked.hca_va & (kPage - 1))) return EINVAL;
    if (asked.length != 0 && !all_mapped(asked.start, asked.length)) return EFAULT;
    u32 key = 0;
    const Status status = hca_->reg_mr_iova(asked.pd_handle, reinterpret_cast<void*>(asked.start), asked.length,
                                            asked.hca_va, allowed_access(asked.access_flags), &key);
    if (!status.ok()) return status.code;
    mrs_[key] = key;
    ib_uverbs_reg_mr_resp out = {};
    out.mr_handle = out.lkey = out.rkey = key;
    in.give(out);
    return 0;
}

int OpenDevice::dereg_mr(Command& in) {
    const auto found = mrs_.find(in.take<ib_uverbs_dereg_mr>().mr_handle);
    if (found == mrs_.end()) return EINVAL;
    const u32 handle = found->first, key = found->second;
    mrs_.erase(found);
    const int error = hca_->dereg_mr(key).code;
    forget_mapped(handle);
    return error;
}

// The handle stays; the key stays unless it is for other memory (kernel mlx5_ib_rereg_user_mr).
int OpenDevice::rereg_mr(Command& in) {
    const auto asked = in.take<ib_uverbs_rereg_mr>();
    constexpr u32 kTranslation = 1, kPd = 2, kAccess = 4;  // IB_MR_REREG_*
    const auto found = mrs_.find(asked.mr_handle);
    MrInfo info;
    if (found == mrs_.end() || !hca_->query_mr(found->second, &info).ok()) return EINVAL;
    if (asked.flags == 0 || (asked.flags & ~(kTranslation | kPd | kAccess)) != 0) return EINVAL;
    if (asked.flags & kTranslation) {
        if ((asked.start & (kPage - 1)) != (asked.hca_va & (kPage - 1))) return EINVAL;
        if (!all_mapped(asked.start, asked.length)) return EFAULT;
        info.memory = reinterpret_cast<void*>(asked.start);
        info.length = asked.length;
        info.iova = asked.hca_va;
    }
    if (asked.flags & kPd) {
        if (pds_.count(asked.pd_handle) == 0) return EINVAL;
        info.pd = asked.pd_handle;
    }
    if (asked.flags & kAccess) info.access = allowed_access(asked.access_flags);
    u32 key = found->second;
    const Status status = asked.flags & kTranslation
                              ? hca_->rereg_mr_iova(key, info.pd, info.memory, info.length, info.iova, info.access, &key)
                              : hca_->change_mr(key, info.pd, info.access);
    if (!status.ok()) return status.code;
    found->second = key;
    ib_uverbs_rereg_mr_resp out = {};
    out.lkey = out.rkey = key;
    in.give(out);
    return 0;
}

}  // namespace rdmakit::uverbs
