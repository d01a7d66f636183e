// trace.hpp — what happened when, for a timeline: marks of device code and of HCAs, kept only while somebody asked for them.
// Leans on config.cuh. Times in picoseconds of virtual time.
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

// Those below `wire` are device code's (cuda/rdmakit/queue.cuh, report.cuh); the rest are an HCA's.
enum class TraceKind : u32 {
    reserved = cpu::kMarkReserved,
    published = cpu::kMarkPublished,
    record = cpu::kMarkRecord,
    doorbell = cpu::kMarkDoorbell,
    seen = cpu::kMarkSeen,
    fetched = 16,   // the HCA has read the record: index is what it may execute up to
    wire = 17,      // from `when` to `until`, by `port`
    arrived = 18,   // executed at the responder
    completed = 19, // its CQE can be seen
};

struct TraceEvent {
    u64 when_ps, until_ps, index, bytes;
    u32 kind, unit;    // unit: GPU, or number of the HCA
    u32 qpn, port;     // port: of an HCA; of device code the warp in its grid
};

class Trace {
  public:
    void start(u64 most) { on_ = true, most_ = most, events_.clear(), left_out_ = 0; }
    void stop() { on_ = false; }
    bool on() const { return on_; }
    void add(const TraceEvent& event) {
        if (events_.size() < most_) events_.push_back(event);
        else ++left_out_;
    }
    const std::vector<TraceEvent>& events() const { return events_; }
    u64 left_out() const { return left_out_; }

  private:
    bool on_ = false;
    u64 most_ = 0, left_out_ = 0;
    std::vector<TraceEvent> events_;
};

}  // namespace rdmakit::emu
