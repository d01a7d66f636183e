// clocks.hpp — vector clocks: what an agent knows of the others' steps, and frozen copies that travel with messages.
// An agent is one observer of memory: a stream of device instructions, one side of a queue pair, or the host.
// Leans on config.cuh. Source: Lamport 1978, Mattern 1989; epochs as in FastTrack (Flanagan and Freund 2009).
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

using ClockRef = u32;  // a frozen clock; 0: one that knows nothing

// A clock that grows: entries that are not there are 0.
class Clock {
  public:
    u32 of(u32 agent) const { return agent < ticks_.size() ? ticks_[agent] : 0; }
    void raise(u32 agent, u32 tick) {
        if (agent >= ticks_.size()) ticks_.resize(agent + 1, 0);
        if (ticks_[agent] < tick) ticks_[agent] = tick;
    }
    void join(const u32* ticks, u32 count) {
        if (count > ticks_.size()) ticks_.resize(count, 0);
        for (u32 i = 0; i < count; ++i) {
            if (ticks_[i] < ticks[i]) ticks_[i] = ticks[i];
        }
    }
    void join(const Clock& other) { join(other.ticks_.data(), static_cast<u32>(other.ticks_.size())); }
    void clear() { ticks_.clear(); }
    bool empty() const { return ticks_.empty(); }
    const std::vector<u32>& ticks() const { return ticks_; }

  private:
    std::vector<u32> ticks_;
};

// Frozen clocks, one behind the other in one block of memory that is emptied as a whole.
class FrozenClocks {
  public:
    FrozenClocks() { clear(); }
    void clear() { words_.assign(1, 0); }
    ClockRef freeze(const Clock& clock) {
        const auto at = static_cast<ClockRef>(words_.size());
        words_.push_back(static_cast<u32>(clock.ticks().size()));
        words_.insert(words_.end(), clock.ticks().begin(), clock.ticks().end());
        return at;
    }
    void join_into(Clock& clock, ClockRef ref) const {
        if (ref != 0) clock.join(words_.data() + ref + 1, words_[ref]);
    }

  private:
    std::vector<u32> words_;
};

}  // namespace rdmakit::emu
