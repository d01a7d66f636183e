// shared_receive_queue.hpp — receive WQEs that several queue pairs draw from.
// Leans on attributes.hpp and cuda/rdmakit/wqe.cuh. WQEs form a list: a segment of 16 bytes in front of the scatter entries
// names the next one (struct mlx5_wqe_srq_next_seg, mlx5dv.h); software posts along that list and counts in the record's
// first word (rdma-core providers/mlx5/srq.c). Untimed and timed; exploration has none.
#pragma once
#include "attributes.hpp"
#include "rdmakit/hca.cuh"

namespace rdmakit::emu {

struct SharedReceiveQueue {
    static constexpr u32 kLinkBytes = 16, kNextIndexAt = 2;

    SrqAttr attr;
    u32 srqn = 0;
    u32 head = 0;   // the next WQE to be taken
    u32 taken = 0;  // ever
    u32 limit = 0;  // an event when fewer are left; 0: none, or it has been told
    u32 users = 0;

    u32 available() const {
        const u32 ahead = (swap_bytes(__atomic_load_n(attr.dbrec, __ATOMIC_ACQUIRE)) - taken) & 0xffff;
        return ahead <= 0x8000 ? ahead : 0;
    }
    const u8* wqe() const {
        return static_cast<const u8*>(attr.buffer) + static_cast<u64>(head) * attr.stride;
    }
    u32 max_sge() const { return (attr.stride - kLinkBytes) / static_cast<u32>(sizeof(DataSeg)); }
    void take() {
        const u8* const link = wqe() + kNextIndexAt;
        head = (static_cast<u32>(link[0]) << 8 | link[1]) & ((1u << attr.log_wqes) - 1);
        ++taken;
    }
};

}  // namespace rdmakit::emu
