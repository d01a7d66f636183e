// rdmakit/bulk.cuh — bulk copies between global and shared memory (TMA without tensor maps), with waits that end and say why.
// Layer: atom (leans on atom_bulk, report). One thread of a warp issues, commits and waits for groups; anybody may wait for
// an mbarrier.
//
//   in    mbarrier_init, block_sync;  fetch(to, from, bytes, barrier), mbarrier_wait(barrier, parity) by all who read
//   out   fill, proxy_fence by all who filled, block_sync;  bulk_store, bulk_commit; bulk_wait_read before it is filled
//         anew, bulk_wait before anybody is told of it
#pragma once
#include "atom_bulk.cuh"
#include "report.cuh"

namespace rdmakit {

constexpr bool kBulkCopies = RDMAKIT_BULK != 0;

// False, and reported, where there are none: ask before the first.
RDMAKIT_DEVICE bool check_bulk(const Watch& watch, Site site = Site::here()) {
    if constexpr (kBulkCopies) return true;
    fail(watch, Status::bad_argument, Subject{"bulk copies on a GPU older than sm_90, which has none", 900, 0, 0, 0}, 0, 0, 0, 0, 0, site);
    return false;
}

// Waits until the phase of this parity is complete: everything that was to arrive has, and is visible.
RDMAKIT_DEVICE Status mbarrier_wait(const Mbarrier* barrier, u32 parity, const Watch& watch, const Subject& who,
                                    Site site = Site::here(), Site place = Site::here()) {
    for (Spin spin(watch);;) {
        u64 word = 0;
        const bool complete = mbarrier_test(barrier, parity, &word);
        if (holds(complete, place)) return Status::ok;
        if (!spin.pause(who, site, Seen<u64>{&barrier->state, word})) return spin.status();
    }
}

// Arrives for the calling thread and copies `bytes` into shared memory; the phase completes no sooner than they are there.
RDMAKIT_DEVICE void fetch(void* to_shared, const void* from_global, u32 bytes, Mbarrier* barrier, Site site = Site::here()) {
    mbarrier_arrive_expect(barrier, bytes);
    bulk_load(to_shared, from_global, bytes, barrier, site);
}

}  // namespace rdmakit
