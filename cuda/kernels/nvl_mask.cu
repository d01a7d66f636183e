// nvl_mask.cu — the masks of a rank (nvl_mask.cuh), changed or read where they lie, in order with what is on the stream.
#include <rdmakit/nvl_mask.cuh>

namespace rdmakit {
struct NvlMaskInput {
    i32* out;                // [ranks]: 1 masked, 0 not; or null
    u32 rank, masked;        // without `out`: that rank is masked or not; all of them where there is no such rank
};
}  // namespace rdmakit

// One block.
RDMAKIT_KERNEL nvl_mask(RDMAKIT_GRID_CONSTANT rdmakit::NvlRank nvl, RDMAKIT_GRID_CONSTANT rdmakit::NvlMaskInput in) {
    using namespace rdmakit;
    if (!layout_matches(nvl.layout_version, nvl.watch, "NvlRank of another layout version")) return;
    const u32 step = static_cast<u32>(block_size());
    for (u32 r = static_cast<u32>(block_rank()); r < nvl.ranks; r += step) {
        if (in.out != nullptr) in.out[r] = nvl_masked(nvl, r) ? 1 : 0;
        else if (in.rank == r || in.rank >= nvl.ranks) nvl.masks->masked[r] = in.masked;
    }
}
