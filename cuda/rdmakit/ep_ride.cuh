// rdmakit/ep_ride.cuh — an operation whose own grid holds the HCA that answers its doorbells: no second kernel has to be resident
// beside it, and the HCA ends with it.
// Layer: ep (leans on ep, hca_engine).
#pragma once
#include "ep.cuh"
#include "hca_engine.cuh"

namespace rdmakit {

// The first `workers` blocks work and leave; those behind them serve until all have left and nothing is left to do. `hca.leavers`
// counts over all operations: nobody has to zero `hca.left` between them. All threads of all blocks call it.
template <class Work> RDMAKIT_DEVICE void with_riders(const HcaHandle& hca, u32 workers, Work work) {
    const u32 block = static_cast<u32>(block_id());
    if (block < workers) {
        work();
        hca_leave(hca.left);
        return;
    }
    const u32 warps = static_cast<u32>(warps_in_block());
    const u32 riders = static_cast<u32>(blocks_in_grid()) - workers;
    hca_serve(hca, static_cast<u32>(warp_id()) * riders + (block - workers), riders * warps);
}

}  // namespace rdmakit
