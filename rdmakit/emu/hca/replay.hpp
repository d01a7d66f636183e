// replay.hpp — packet sequence numbers, and what a responder remembers so that a request which comes again does its work
// once. Leans on config.cuh. IBTA vol. 1 §9.4.5 (atomics' saved results), §9.7.5.1 (duplicates).
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

constexpr u32 kPsnMask = 0xffffff;

inline u32 psn_after(u32 psn, u64 packets) { return static_cast<u32>(psn + packets) & kPsnMask; }
// How far `psn` is ahead of `of`, in 24 bits; negative behind it.
inline i32 psn_ahead(u32 psn, u32 of) { return static_cast<i32>((psn - of) << 8) >> 8; }

// Results of the last atomics. As many as a device lets be outstanding (HcaConfig::max_rd_atomic) are enough: a request
// that is older was acknowledged, and its requester does not ask again.
class ReplayRecord {
  public:
    static constexpr u32 kKept = 16;
    void remember(u32 psn, u64 old) { kept_[count_++ % kKept] = Saved{psn, old}; }
    const u64* find(u32 psn) const {
        for (u64 i = count_; i != 0 && count_ - i < kKept; --i)
            if (kept_[(i - 1) % kKept].psn == psn) return &kept_[(i - 1) % kKept].old;
        return nullptr;
    }
    void clear() { count_ = 0; }

  private:
    struct Saved {
        u32 psn;
        u64 old;
    };
    u64 count_ = 0;
    Saved kept_[kKept] = {};
};

// Out-of-order QPs: WRITEs that were executed before what precedes them.
class EarlyRecord {
  public:
    void add(u32 psn, u32 packets) { taken_.push_back({psn, packets}); }
    bool has(u32 psn) const {
        for (const Taken& t : taken_)
            if (t.psn == psn) return true;
        return false;
    }
    // If the message at `psn` was taken: forgets it and returns its packets. Otherwise 0.
    u32 absorb(u32 psn) {
        for (Taken& t : taken_) {
            if (t.psn != psn) continue;
            const u32 packets = t.packets;
            t = taken_.back();
            taken_.pop_back();
            return packets;
        }
        return 0;
    }
    bool empty() const { return taken_.empty(); }
    void clear() { taken_.clear(); }

  private:
    struct Taken {
        u32 psn, packets;
    };
    std::vector<Taken> taken_;
};

}  // namespace rdmakit::emu
