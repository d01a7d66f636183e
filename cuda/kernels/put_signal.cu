// put_signal.cu — the smallest whole protocol: `put_and_signal` writes a buffer to the peer and, behind it on the same
// QP, adds 1 to its signal word; `wait_and_sum` waits for the signal and sums what came. `put_twice` sends two halves, each
// with its signal, without waiting in between. `put_and_tell` and `put_when_told` say how their puts ended.
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>

RDMAKIT_KERNEL put_and_signal(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                              unsigned long long bytes, rdmakit::RemoteMemory word) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    if (put_signal(*handle, to, from, bytes, word, 1) == Status::ok) quiet(*handle);
}

RDMAKIT_KERNEL wait_and_sum(const unsigned long long* word, unsigned long long least, const unsigned* data, unsigned count,
                            unsigned long long* sum, rdmakit::Watch watch) {
    using namespace rdmakit;
    if (warp_id() != 0 || block_id() != 0) return;
    u32 status = 0;
    if (lane_id() == 0) {
        u64 seen = 0;
        status = static_cast<u32>(wait_signal(word, least, watch, Subject{"the peer's signal", least, 0, 0, 0}, &seen));
    }
    if (warp_broadcast(status) != 0) return;
    u64 mine = 0;
    for (u32 i = static_cast<u32>(lane_id()); i < count; i += kLanes) mine += data[i];
    mine = warp_sum(mine);
    if (lane_id() == 0) *sum = mine;
}

// *found: what the last signal's word held before, which its completion vouches for.
RDMAKIT_KERNEL put_twice(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                         unsigned long long half, rdmakit::RemoteMemory word, unsigned long long* found) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    const QpHandle& qp = *handle;
    for (u32 i = 0; i < 2; ++i) {
        if (put_signal(qp, to + i * half, from + i * half, half, word, 1) != Status::ok) return;
    }
    if (quiet(qp) == Status::ok) *found = *reinterpret_cast<const u64*>(qp.sink_address);
}

RDMAKIT_KERNEL put_and_tell(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                            unsigned long long bytes, unsigned* ended) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    put(*handle, to, from, bytes);
    const Status status = quiet(*handle);
    store_release<Scope::sys>(ended, 1 + static_cast<u32>(status));
}
RDMAKIT_KERNEL put_when_told(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                             unsigned long long bytes, const unsigned* told, unsigned* ended) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    u32 seen = 0;
    const Subject who{"how the peer's put ended", 1, handle->qpn, 0, 0};
    if (wait_until<Scope::sys>(told, [](u32 v) { return v != 0; }, handle->watch, who, &seen) != Status::ok) return;
    put(*handle, to, from, bytes);
    *ended = 1 + static_cast<u32>(quiet(*handle));
}
