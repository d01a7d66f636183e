// faults.hpp — what can go wrong between a doorbell and a completion, and how often it is to.
// Leans on config.cuh. The environment decides whether a fault happens (a seeded plan, or a scheduler that tries both);
// the HCA knows what then follows. Only what the protocol of RC must survive is here: nothing changes bytes unnoticed.
#pragma once
#include "rdmakit/config.cuh"

namespace rdmakit::emu {

enum class FaultKind : u32 {
    loss = 0,       // a packet of a request vanishes
    corrupt,        // it arrives with a wrong ICRC and is dropped there: counted apart, otherwise a loss
    duplicate,      // a request arrives a second time, later
    ack_lost,       // a response (ACK, NAK, data of a READ, result of an atomic) vanishes
    delay,          // a message takes longer than the others
    path,           // adaptive routing: a message of an out-of-order QP takes another path than the one before it
    relaxed,        // a write to a relaxed-ordering MR becomes visible later than it arrived
    rnr,            // the receiver says "not ready" although a receive WQE is there
    doorbell_lost,  // the store to the register has no effect
    doorbell_late,  // it has its effect later
    cqe_late,       // the requester's completion is written later
};
constexpr u32 kFaultKinds = 11;

// These move events in time and break nothing: they use up no budget.
constexpr bool only_moves(FaultKind kind) {
    return kind == FaultKind::delay || kind == FaultKind::path || kind == FaultKind::relaxed;
}

constexpr u64 kCertain = 1'000'000'000;  // probability 1, in parts per billion

struct FaultPlan {
    u64 per_billion[kFaultKinds] = {};  // chance of each, per packet (loss, corrupt) or per event
    u64 delay_ps[kFaultKinds] = {};     // how long at most, of those that are about time
    u64 port_skew_ps = 0;               // what port 2 takes longer than port 1, always
    u64 budget = ~0ull;                 // at most so many faults in all

    bool any() const {
        for (const u64 chance : per_billion)
            if (chance != 0) return true;
        return port_skew_ps != 0;
    }
};

struct FaultCounters {
    u64 happened[kFaultKinds] = {};
    u64 total() const {
        u64 sum = 0;
        for (const u64 n : happened) sum += n;
        return sum;
    }
};

}  // namespace rdmakit::emu
