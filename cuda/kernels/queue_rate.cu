// queue_rate.cu — how many WQEs a second kernels post: warps that post, and beside them sinks that check and complete
// (hca_sink.cuh). Of each 1 + posters warps the first is a queue pair's sink, the others post to it.
#include <rdmakit/hca_sink.cuh>
#include <rdmakit/post.cuh>

RDMAKIT_KERNEL queue_rate(const rdmakit::QpHandle* qps, rdmakit::HcaSink* sinks, unsigned queue_pairs, unsigned posters,
                          unsigned batch, unsigned long long wqes) {
    using namespace rdmakit;
    const u32 warp = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    const u32 queue = warp / (1 + posters), role = warp % (1 + posters);
    if (queue >= queue_pairs) return;
    const QpHandle& qp = qps[queue];
    if (!check_handle(qp)) return;
    if (role == 0) {
        run_sink(sinks[queue], qp.watch);
        return;
    }
    // One reservation, one publication, one doorbell at most for `batch` WQEs: the words that all share are touched so rarely.
    for (u64 first = static_cast<u64>(role - 1) * batch; first < wqes; first += static_cast<u64>(posters) * batch) {
        const u32 n = static_cast<u32>(smaller<u64>(batch, wqes - first));
        u64 base = kNoSlot;
        if (lane_id() == 0) base = reserve(qp, n);
        base = warp_broadcast(base);
        if (base == kNoSlot) return;
        warp_sync();
        for (u32 i = static_cast<u32>(lane_id()); i < n; i += kLanes) {
            write_rdma(qp, base + i, Opcode::write, qp.sink_address, 1, qp.sink_address, qp.sink_lkey, 8, i + 1 == n ? kCqUpdate : 0);
        }
        if (by_lane_zero([&] { return publish(qp, base, n); }) != Status::ok) return;
    }
    if (lane_id() == 0) quiet(qp);
}
