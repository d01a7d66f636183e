// rdmakit/hca_sink.cuh — an HCA that checks WQEs and throws them away: how fast can kernels post?
// Layer: hca (leans on hca_wqe, report). A warp takes all that a doorbell covers in steps of 32 lanes, reads the first eight
// bytes of each control segment, holds them against index, opcode and QPN, and moves the one entry of a collapsed CQ on.
// It trusts the register alone (HcaDoorbell::no_dbr) and knows WQEs of one basic block.
#pragma once
#include "hca_wqe.cuh"
#include "report.cuh"

namespace rdmakit {

struct HcaSink {
    u32 layout_version;
    u32 qpn;
    const u8* sq;
    const u64* doorbell;   // the register
    u32* cqe_tail;         // last word of the collapsed CQ's entry
    u32 log_sq;
    u32 opcode;            // that each WQE must have
    u64 until;             // basic blocks after which it ends
    u64 taken;             // while it runs, as the following
    u64 wrong;             // control segments that were not what they should be
    u64 sum;               // of 16-bit index, opcode and QPN as they were read
    u64 steps;             // doorbells that brought something: how many WQEs came at once
};

// What a control segment's first eight bytes say, summed, and whether it is what belongs at `bb`.
struct SinkCheck {
    u64 sum;
    bool right;
};
RDMAKIT_DEVICE SinkCheck check_control(u64 raw, u64 bb, const HcaSink& sink) {
    const u32 first = swap_bytes(static_cast<u32>(raw)), second = swap_bytes(static_cast<u32>(raw >> 32));
    const u32 index = (first >> 8) & 0xffff, opcode = first & 0xff, qpn = second >> 8;
    return {static_cast<u64>(index) + opcode + qpn,
            index == (static_cast<u32>(bb) & 0xffff) && opcode == sink.opcode && qpn == sink.qpn && first >> 24 == 0};
}

// All lanes. Ends when `until` basic blocks have come, or none for as long as the watch says.
RDMAKIT_DEVICE Status run_sink(HcaSink& sink, const Watch& watch, Site site = Site::here()) {
    constexpr u32 kAbreast = 4;  // loads of a lane that do not wait for each other
    if (!layout_matches(sink.layout_version, watch, "HcaSink of another layout version", site)) return Status::layout_mismatch;
    const u64 mask = (1ull << sink.log_sq) - 1, until = sink.until;
    u64 taken = sink.taken, sum = 0, wrong = 0, steps = 0;
    Status status = Status::ok;
    for (Spin spin(watch); taken < until && status == Status::ok;) {
        const u64 value = warp_broadcast(load_acquire<Scope::sys>(sink.doorbell));
        warp_sync();
        const u64 target = value == 0 ? taken : widen_index(taken, doorbell_next_index(decode_doorbell(value)));
        if (target <= taken) {
            u32 late = 0;
            const Subject who{"a doorbell", until, sink.qpn, 0, 0};
            if (lane_id() == 0) late = spin.pause(who, site, Seen<u64>{sink.doorbell, value}) ? 0 : static_cast<u32>(spin.status());
            status = static_cast<Status>(warp_broadcast(late));
            continue;
        }
        for (u64 bb = taken + static_cast<u64>(lane_id()); bb < target; bb += kAbreast * kLanes) {
            u64 raw[kAbreast];
            for (u32 k = 0; k < kAbreast; ++k) {
                const u64 at = smaller(bb + k * kLanes, target - 1);
                raw[k] = *reinterpret_cast<const u64*>(sink.sq + (at & mask) * kWqebb);
            }
            for (u32 k = 0; k < kAbreast; ++k) {
                if (bb + k * kLanes >= target) continue;
                const SinkCheck check = check_control(raw[k], bb + k * kLanes, sink);
                sum += check.sum;
                wrong += check.right ? 0 : 1;
            }
        }
        taken = target;
        ++steps;
        warp_sync();  // all have read: the release below gives their slots back
        if (lane_id() == 0) {
            const u32 counter = swap_bytes(static_cast<u16>(target - 1));
            store_release<Scope::gpu>(sink.cqe_tail, counter | (static_cast<u32>(CqeOpcode::requester) << 28));
        }
        spin = Spin(watch);
    }
    sum = warp_sum(sum);
    wrong = warp_sum(wrong);
    if (lane_id() == 0) {
        sink.taken = taken;
        sink.sum += sum;
        sink.wrong += wrong;
        sink.steps += steps;
    }
    return status;
}

}  // namespace rdmakit
