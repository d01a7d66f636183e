// ring_words.cu — numbered slots through a ring with credits: `ring_send` fills slots and sends them a chunk at a time,
// `ring_receive` takes them out in order and gives credit back a chunk at a time.
#include <rdmakit/channel.cuh>

// One warp. Slot n carries payload_stride bytes from source + n * payload_stride, and as metadata its own number.
RDMAKIT_KERNEL ring_send(const rdmakit::ChannelHandle* handle, const unsigned long long* source, unsigned count) {
    using namespace rdmakit;
    const ChannelHandle& c = *handle;
    if (!check_handle(c.qp) || warp_id() != 0 || block_id() != 0) return;
    const u64 begin = *c.sent, end = begin + count;
    const u32 words = c.payload_stride / 8;
    for (u64 first = begin; first < end;) {
        const u64 last = smaller(end, (first | (c.chunk - 1)) + 1);  // a put stays inside one chunk
        if (by_lane_zero([&] { return wait_credit(c, last); }) != Status::ok) return;
        for (u64 n = first; n < last; ++n) {
            u64* const to = reinterpret_cast<u64*>(staging_payload(c, n));
            for (u32 i = static_cast<u32>(lane_id()); i < words; i += kLanes) to[i] = source[(n - begin) * words + i];
            if (lane_id() == 0) *reinterpret_cast<u64*>(staging_meta(c, n)) = n;
        }
        const u32 slots = static_cast<u32>(last - first);
        if (by_lane_zero([&] { return send_slots(c, first, slots); }) != Status::ok) return;
        first = last;
    }
    by_lane_zero([&] {
        *c.sent = end;
        return quiet(c.qp);
    });
}

// One warp. Payloads to `out` in the order of the slots, metadata to `numbers`.
RDMAKIT_KERNEL ring_receive(const rdmakit::ChannelHandle* handle, unsigned long long* out, unsigned long long* numbers,
                            unsigned count) {
    using namespace rdmakit;
    const ChannelHandle& c = *handle;
    if (!check_handle(c.qp) || warp_id() != 0 || block_id() != 0) return;
    const u64 begin = *c.received, end = begin + count;
    const u32 words = c.payload_stride / 8;
    for (u64 first = begin; first < end;) {
        const u64 last = smaller(end, (first | (c.chunk - 1)) + 1);
        for (u64 n = first; n < last; ++n) {
            if (by_lane_zero([&] { return wait_slot(c, n); }) != Status::ok) return;
            const u64* const from = reinterpret_cast<const u64*>(ring_payload(c, n));
            for (u32 i = static_cast<u32>(lane_id()); i < words; i += kLanes) out[(n - begin) * words + i] = from[i];
            if (lane_id() == 0) numbers[n - begin] = *reinterpret_cast<const u64*>(ring_meta(c, n));
        }
        if (by_lane_zero([&] { return return_credit(c, last - first); }) != Status::ok) return;
        first = last;
    }
    by_lane_zero([&] {
        *c.received = end;
        return quiet(c.qp);
    });
}
