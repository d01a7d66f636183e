// mishaps.hpp — what befalls a world: dice for the faults of a plan, and single events at a time or after so many
// messages. Leans on hca/faults.hpp and random.hpp. Dice of their own: a plan does not disturb the schedule's.
#pragma once
#include <vector>

#include "../hca/faults.hpp"
#include "random.hpp"

namespace rdmakit::emu {

enum class MishapKind : u32 { port_down = 0, port_up = 1, qp_error = 2, rank_dies = 3 };
constexpr u32 kMishapKinds = 4;

struct Mishap {
    MishapKind kind;
    u32 subject;  // number of the HCA, or of the rank
    u32 number;   // port (1..), or which of the HCA's QPs in the order of creation
    // When: at the first event at or after this time, or as soon as so many messages have left. The other is kNever.
    u64 when_ps, after_messages;
};

struct Straggler {
    u32 rank, factor;
};

struct WorldFaults {
    FaultPlan plan;
    std::vector<Mishap> mishaps;
    std::vector<Straggler> stragglers;
};

// The plan's dice.
class Chance {
  public:
    explicit Chance(u64 seed) : random_(seed ^ 0x6661756c74730000ull) {}
    void follow(const FaultPlan& plan) {
        plan_ = plan;
        left_ = plan.budget;
    }
    const FaultPlan& plan() const { return plan_; }
    const FaultCounters& counters() const { return counters_; }

    bool strikes(FaultKind kind) {
        const u32 k = static_cast<u32>(kind);
        const u64 chance = plan_.per_billion[k];
        if (chance == 0 || (chance < kCertain && random_.below(kCertain) >= chance)) return false;
        if (!only_moves(kind)) {
            if (left_ == 0) return false;
            --left_;
        }
        ++counters_.happened[k];
        return true;
    }
    // For a scheduler that chooses by itself: how likely, and that it has chosen.
    double probability(FaultKind kind) const {
        const bool spent = left_ == 0 && !only_moves(kind);
        return spent ? 0.0 : static_cast<double>(plan_.per_billion[static_cast<u32>(kind)]) / static_cast<double>(kCertain);
    }
    bool happens(FaultKind kind, bool chosen) {
        if (!chosen) return false;
        if (!only_moves(kind)) --left_;
        ++counters_.happened[static_cast<u32>(kind)];
        return true;
    }
    // Uniform, at least a nanosecond.
    u64 delay_ps(FaultKind kind) {
        return 1000 + random_.below(plan_.delay_ps[static_cast<u32>(kind)] / 1000) * 1000;
    }

  private:
    Random random_;
    FaultPlan plan_;
    FaultCounters counters_;
    u64 left_ = ~0ull;
};

}  // namespace rdmakit::emu
