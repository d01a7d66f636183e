// lock_receive.cu — the receiving ends of many sequence locks: one warp each, which copies what arrives or sums it up, and
// signs it off.
#include <rdmakit/lock_receive.cuh>

// What becomes of the transfers of one lock: row i of `out` (null: none), and their lengths and sums of 8-byte words.
struct LockRows {
    unsigned long long first;
    unsigned char* out;
    unsigned long long stride;
    unsigned* lengths;
    unsigned long long* sums;

    template <rdmakit::Strategy S> RDMAKIT_DEVICE void take(const rdmakit::LockReceiver& lock, const rdmakit::Arrival& arrival) {
        using namespace rdmakit;
        const u64 row = arrival.ticket - first;
        if (out != nullptr) {
            copy_payload<S>(lock, arrival, out + row * stride);
        } else {
            const u64 sum = sum_payload<S>(lock, arrival);
            if (lane_id() == 0) sums[row] = sum;
        }
        if (lane_id() == 0) lengths[row] = arrival.length;
    }
};

// Lock k delivers tickets first[k] … first[k] + count − 1, from the first that it has not signed off, into rows
// k * count + i of `stride` bytes, a multiple of 8. Without `out` it adds up each transfer's words instead.
RDMAKIT_KERNEL lock_receive(const rdmakit::LockReceiver* locks, unsigned lock_count, const unsigned long long* first,
                            unsigned count, unsigned char* out, unsigned long long stride, unsigned* lengths,
                            unsigned long long* sums) {
    using namespace rdmakit;
    const u32 k = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    if (k >= lock_count || !check_handle(locks[k])) return;
    const LockReceiver& lock = locks[k];
    if (out != nullptr && stride < lock.max_payload) {
        refuse(lock, Status::bad_argument, "rows shorter than a payload", lock.max_payload, stride, 0, Site::here());
        return;
    }
    const u64 begin = first[k], end = begin + count, row = static_cast<u64>(k) * count;
    if (comes_after(begin, lock.state->signed_off)) {
        refuse(lock, Status::bad_argument, "rows that begin after the next ticket", lock.state->signed_off, begin, begin,
               Site::here());
        return;
    }
    LockRows rows{begin, out == nullptr ? nullptr : out + row * stride, stride, lengths + row,
                  sums == nullptr ? nullptr : sums + row};
    for (u64 ticket = lock.state->signed_off; ticket < end; ++ticket) {  // lanes meet before lane 0 moves it on
        if (deliver(lock, ticket, rows) != Status::ok) return;
    }
    finish(lock);
}
