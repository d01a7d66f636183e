// event_pool.hpp — what the timed HCA has asked the clock to wake it for. Slots are reused: no allocation per WQE.
// Leans on config.cuh.
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

enum class EventKind : u32 {
    doorbell,     // value: what was written; index: 1 if the host's thread is to ring
    proxy,        // the host's thread goes on behind a fence
    egress,       // index: a WQE whose request is in front of the receiver's port; value: when its last byte will be
    turn,         // a queue pair slower than its port may send again
    tick,         // index: a port that may take more
    arrival,      // index: basic block of the WQE whose request has reached the responder
    response,     // index: the same, its ACK, NAK or data is back; value: all before this was executed
    duplicate,    // index: the same request comes again
    negative,     // index: a NAK of sequence is back, all before this was executed; value: the PSN expected
    resend,       // value: 1 after an RNR NAK, 0 after a time-out; index: the WQE that waits
    landing,      // index: number of a late write
};

struct Event {
    EventKind kind;
    u32 qpn, epoch;
    u64 index, value;
};

class EventPool {
  public:
    u64 put(const Event& event) {
        if (free_.empty()) {
            events_.push_back(event);
            return events_.size() - 1;
        }
        const u64 slot = free_.back();
        free_.pop_back();
        events_[slot] = event;
        return slot;
    }
    const Event& look(u64 slot) const { return events_[slot]; }
    Event take(u64 slot) {
        free_.push_back(slot);
        return events_[slot];
    }

  private:
    std::vector<Event> events_;
    std::vector<u64> free_;
};

}  // namespace rdmakit::emu
