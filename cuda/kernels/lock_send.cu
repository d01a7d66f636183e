// lock_send.cu — the sending ends of many sequence locks: one warp each, as many transfers under way as the window has
// slots. The strategy is the handle's own.
#include <rdmakit/lock_send.cuh>

// A piece of the source buffer: offset a multiple of 8, length in bytes.
struct LockTransfer {
    unsigned long long offset;
    unsigned length;
    unsigned reserved;
};

// Lock k sends transfers[k * count + i] as ticket first[k] + i. It begins with the first ticket that it has not sent, so
// the same launch goes on where an earlier one stopped.
RDMAKIT_KERNEL lock_send(const rdmakit::LockSender* locks, unsigned lock_count, const unsigned long long* first,
                         unsigned count, const LockTransfer* transfers, const unsigned char* source) {
    using namespace rdmakit;
    const u32 k = static_cast<u32>(block_id() * warps_in_block() + warp_id());
    if (k >= lock_count || !check_handle(locks[k])) return;
    const LockSender& lock = locks[k];
    const u64 begin = first[k], end = begin + count;
    if (comes_after(begin, *lock.next)) {  // else tickets without transfers would be sent
        fail(lock.qp.watch, Status::bad_argument, about(lock.qp, "transfers that begin after the next ticket", *lock.next), begin,
             begin, 0, 0, 0, Site::here());
        return;
    }
    for (u64 ticket = *lock.next; ticket < end; ++ticket) {  // lanes meet in send before lane 0 moves it on
        const LockTransfer& transfer = transfers[static_cast<u64>(k) * count + (ticket - begin)];
        if (send(lock, ticket, source + transfer.offset, transfer.length) != Status::ok) return;
    }
    finish(lock);
}
