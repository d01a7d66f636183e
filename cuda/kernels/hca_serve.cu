// hca_serve.cu — an HCA of warps beside an operation's kernels: hca_serve answers doorbells until all who ring have ended,
// which hca_leave says, launched behind each of them.
#include <rdmakit/hca_engine.cuh>

RDMAKIT_KERNEL hca_serve(const rdmakit::HcaHandle* handle) {
    using namespace rdmakit;
    const u32 warps = static_cast<u32>(warps_in_block() * blocks_in_grid());
    rdmakit::hca_serve(*handle, static_cast<u32>(block_id() * warps_in_block() + warp_id()), warps);
}

RDMAKIT_KERNEL hca_leave(unsigned* left) { rdmakit::hca_leave(left); }
