// rdmakit/hca_state.cuh — what an HCA that is made of warps keeps: its queue pairs, their CQs, who may work on what.
// Layer: hca (leans on hca_key, report). PODs that the host fills in (rdmakit/emu/cta_layout.py has the same offsets). The host
// changes them while no kernel runs; kernels change what stands behind "while serving".
#pragma once
#include "hca_key.cuh"
#include "report.cuh"

namespace rdmakit {

enum class HcaQpState : u32 { reset = 0, init = 1, rtr = 2, rts = 3, sqd = 4, sqe = 5, error = 6 };  // enum ibv_qp_state

// Who has the last word on how far a send queue was posted; numbered as the CPU engine's (rdmakit/emu/hca/attributes.hpp).
enum class HcaDoorbell : u32 { dbrec = 1, register_value = 2, no_dbr = 3 };

struct HcaCq {
    u8* entries;
    u32* dbrec;            // [kDbrecSetCi]
    u32 cqn;
    u32 log_entries;
    u32 log_stride;        // 6 or 7
    u32 collapsed;
    u32 overrun_ignore;
    u32 shared;            // several warps may complete to it at once: they take `turn`
    alignas(64) u64 produced;  // while serving
    u64 room;              // entries below this index are the consumer's to lose: what the record said when last looked at
    u64 overwritten;
    u32 turn;
    u32 dead;              // overrun
};

// Asynchronous events, as bits; the host takes them after a run.
constexpr u32 kHcaCqError = 1u << 0;
constexpr u32 kHcaQpFatal = 1u << 1;
constexpr u32 kHcaRequestError = 1u << 2;
constexpr u32 kHcaAccessError = 1u << 3;

struct HcaQp {
    u32 layout_version;
    u32 qpn;
    const u8* sq;
    const u8* rq;
    u32* dbrec;            // [kDbrecReceive], [kDbrecSend]
    HcaCq* send_cq;
    HcaCq* recv_cq;
    HcaQp* peer;           // null: its address leads nowhere in this world
    u32* attend;           // its own word of HcaHandle::attend
    KeyTable keys, peer_keys;
    u32 log_sq;
    u32 log_rq;            // meaningful with max_recv_sge
    u32 rq_stride;
    u32 max_recv_sge;      // 0: no receive queue
    u32 pd;
    u32 access;            // what the peer may do, as kKey* bits
    HcaDoorbell doorbell;
    u32 sq_sig_all;
    u32 user_index;
    u32 max_rd_atomic, max_dest_rd_atomic;
    u32 rnr_retry;         // 7: for ever
    u32 in_order;          // bytes of an aligned 128-byte line become visible in ascending order
    u32 same_gpu;          // 1: who takes its CQEs, and who reads what it places at its peer, is of the GPU of the warps that serve
    // While serving. Of whoever has `turn`: the sending side.
    alignas(128) u32 turn;
    HcaQpState state;      // the peer's server may set it to error
    u64 producer, completed;   // basic blocks, never wrapping
    u64 doorbells, ignored;
    u64 send_wqes, send_bbs, atomics;
    u64 cqes, errors, flushed;
    u64 sent_bytes, fetched_bytes;
    u32 events;
    // Of whoever has `respond`: the receiving side.
    alignas(128) u32 respond;
    u32 receive_events;
    u64 rq_consumed;
    u64 receive_wqes, receive_cqes, receive_errors, receive_flushed, not_ready;
};

// The queue pairs that one kernel serves: those of a device. Registers, and what is known of each, lie side by side, so that a
// warp sees at one look whether there is work.
struct HcaHandle {
    u32 layout_version;
    u32 count;             // queue pairs
    HcaQp* qps;
    const u64* registers;  // doorbells: in memory, unlike at a NIC, one for each queue pair, or a later store would hide an earlier
    u64* heard;            // value that was last acted upon
    u32* attend;           // 1: look at it although nobody rang
    u32* left;             // kernels that have ended: with the last of `leavers` there is nobody left to ring
    u32 leavers;
    u32 reserved;
    Watch watch;
};
constexpr u32 kHcaGroup = 16;  // queue pairs that one warp looks at: two lines of registers. The arrays are padded to it

// The idiom of submit() (queue.cuh): who finds it taken leaves, and the holder learns by the exchange that puts it back
// of everything that happened before the attempt. So it has to look once more.
RDMAKIT_DEVICE bool try_turn(u32* word) {
    u32 taken = 0;
    if (lane_id() == 0) taken = exchange_acquire<Scope::sys>(word, 1u);
    return warp_broadcast(taken) == 0;
}
// The same for who has something to tell the holder: a release, which costs a fence.
RDMAKIT_DEVICE bool try_turn_and_tell(u32* word) {
    u32 taken = 0;
    warp_sync();
    if (lane_id() == 0) taken = exchange<Scope::sys>(word, 1u);
    return warp_broadcast(taken) == 0;
}
RDMAKIT_DEVICE void end_turn(u32* word) {
    warp_sync();
    if (lane_id() == 0) exchange<Scope::sys>(word, 0u);
    warp_sync();
}
// One lane's, for what takes no longer than a few accesses. False: it took too long, which has been reported.
RDMAKIT_NOINLINE bool wait_turn(u32* word, const Watch& watch, const Subject& who, Site site = Site::here()) {
    for (Spin spin(watch); exchange<Scope::sys>(word, 1u) != 0;) {
        if (!spin.pause(who, site, Seen<u32>{word, 1u})) return false;
    }
    return true;
}

// Bit i: wants(i), for i below count (32 at most). The lanes ask side by side.
template <class Wants> RDMAKIT_DEVICE u32 lanes_that(u32 count, Wants wants) {
    if constexpr (kLanes == 1) {
        u32 mask = 0;
        for (u32 i = 0; i < count; ++i) mask |= (wants(i) ? 1u : 0u) << i;
        return mask;
    } else {
        const u32 lane = static_cast<u32>(lane_id());
        return warp_ballot(lane < count && wants(lane));
    }
}

}  // namespace rdmakit
