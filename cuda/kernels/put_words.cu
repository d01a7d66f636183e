// put_words.cu — many small WRITEs: the message rate of the whole path, from reservation to completion. Word i of the
// source goes to word i of the peer, each as a WRITE of its own with a CQE of its own. Each warp takes batches of
// `batch` words in turn: one reservation, one publication, one doorbell.
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>

RDMAKIT_KERNEL put_words(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                         unsigned long long words, unsigned batch) {
    using namespace rdmakit;
    const QpHandle& qp = *handle;
    if (!check_handle(qp)) return;
    const u64 warps = static_cast<u64>(warps_in_block()) * blocks_in_grid();
    const u64 warp = static_cast<u64>(block_id()) * warps_in_block() + warp_id();
    for (u64 first = warp * batch; first < words; first += warps * batch) {
        const u32 n = static_cast<u32>(smaller<u64>(batch, words - first));
        u64 base = kNoSlot;
        if (lane_id() == 0) base = reserve(qp, n);
        base = warp_broadcast(base);
        if (base == kNoSlot) return;
        for (u32 i = static_cast<u32>(lane_id()); i < n; i += kLanes) {
            const u64 at = 8 * (first + i);
            write_rdma(qp, base + i, Opcode::write, to.address + at, to.key, from.address + at, from.key, 8, kCqUpdate);
        }
        warp_sync();
        u32 status = 0;
        if (lane_id() == 0) status = static_cast<u32>(publish(qp, base, n));
        if (warp_broadcast(status) != 0) return;
    }
    if (lane_id() == 0) quiet(qp);
}
