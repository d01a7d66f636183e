// nvl_barrier.cu — all ranks that are not masked meet: what each has written is visible to all behind it.
#include <rdmakit/nvl_mask.cuh>

// One block.
RDMAKIT_KERNEL nvl_barrier(RDMAKIT_GRID_CONSTANT rdmakit::NvlRank nvl) {
    using namespace rdmakit;
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version")) return;
    const u64 epoch = nvl_epoch(nvl, NvlKind::barrier);
    const u32 me = static_cast<u32>(block_rank()), step = static_cast<u32>(block_size());
    block_sync();
    for (u32 r = me; r < nvl.ranks; r += step) {
        if (!nvl_masked(nvl, r)) nvl_tell(nvl, nvl.at.barrier, r, epoch);
    }
    for (u32 r = me; r < nvl.ranks; r += step) {
        const Status status = nvl_answers(nvl, nvl.at.barrier, r, epoch, "a rank at a barrier");
        if (status != Status::ok && status != Status::absent) break;
    }
    nvl_end(nvl, NvlKind::barrier, epoch);
}
