// put_signal.cu — the smallest whole protocol: `put_and_signal` writes a buffer to the peer and, behind it on the same
// QP, adds 1 to its signal word; `wait_and_sum` waits for the signal and sums what came. `put_parts` sends parts, each
// with its signal, without waiting in between. `put_and_tell` and `put_when_told` say how their puts ended; `send_some` and
// `receive_into` are a SEND and the receive WQE that it finds.
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

// *found: what the last signal's word held before, which its completion vouches for; null: nobody waits for that.
RDMAKIT_KERNEL put_parts(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                         unsigned long long bytes, unsigned parts, rdmakit::RemoteMemory word, unsigned long long* found) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    const QpHandle& qp = *handle;
    for (u32 i = 0; i < parts; ++i) {
        if (put_signal(qp, to + i * bytes, from + i * bytes, bytes, word, 1) != Status::ok) return;
    }
    if (found != nullptr && quiet(qp) == Status::ok) *found = *reinterpret_cast<const u64*>(qp.sink_address);
}

RDMAKIT_KERNEL put_and_tell(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from,
                            unsigned long long bytes, unsigned times, unsigned* ended) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    for (u32 i = 0; i < times; ++i) put(*handle, to, from, bytes);
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

RDMAKIT_KERNEL send_some(const rdmakit::QpHandle* handle, rdmakit::LocalMemory from, unsigned bytes) {
    using namespace rdmakit;
    if (!check_handle(*handle) || thread_in_block() != 0 || block_id() != 0) return;
    const u64 index = reserve(*handle, 1);
    if (index == kNoSlot) return;
    write_send(*handle, index, Opcode::send, from.address, from.key, bytes, kCqUpdate);
    if (publish(*handle, index, 1) == Status::ok) quiet(*handle);
}
// The first receive WQE of an empty ring.
RDMAKIT_KERNEL receive_into(unsigned long long ring, unsigned* record, rdmakit::LocalMemory to, unsigned bytes) {
    using namespace rdmakit;
    if (thread_in_block() != 0 || block_id() != 0) return;
    store_segment(reinterpret_cast<void*>(ring), data_segment(to.address, bytes, to.key));
    store_release<Scope::sys>(record, swap_bytes(1u));
}
