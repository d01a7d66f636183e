// mortals.hpp — ranks that die and ranks that are slow: a launcher that steps between their kernels and the scheduler.
// Leans on launch.hpp. Kernels of healthy ranks never come by here.
#pragma once
#include <unordered_map>

#include "launch.hpp"

namespace rdmakit::emu {

class MortalLauncher final : public Launcher {
  public:
    using Launcher::Launcher;

    // What happens to a rank happens to the kernels that begin after it was made mortal.
    void make_mortal(u32 rank) { fate(rank).mortal = true; }
    // Its kernels stop at their next primitive that the scheduler sees; when their clocks read dies_ps, or now (0).
    void doom(u32 rank, u64 dies_ps) { fate(rank).dies_ps = dies_ps; }
    void revive(u32 rank) {
        if (rank < fates_.size()) fates_[rank] = Fate{};
    }
    // Primitives cost `factor` times as much; without a clock, the rank runs one turn in so many.
    void slow_down(u32 rank, u32 factor) { fate(rank).factor = factor; }
    bool dead(u32 rank) const { return rank < fates_.size() && fates_[rank].died; }
    u64 deaths() const { return deaths_; }
    u64 died_ps(u32 rank) const { return fates_[rank].died_ps; }

    void run_fibre(Fibre& fibre) override;

  private:
    static constexpr u64 kLivesOn = ~0ull;
    struct Fate {
        u64 dies_ps = kLivesOn, died_ps = 0;
        u32 factor = 1;
        bool mortal = false, died = false;
    };
    Fate& fate(u32 rank) {
        if (rank >= fates_.size()) fates_.resize(rank + 1);
        return fates_[rank];
    }
    static MortalLauncher& of(cpu::Thread* t) {
        return *static_cast<MortalLauncher*>(static_cast<Fibre*>(t)->scheduler->owner());
    }
    void before(Fibre& fibre);
    void after(Fibre& fibre);
    static const cpu::RunnerApi* mortal_api();

    std::vector<Fate> fates_;
    u64 deaths_ = 0;
    std::unordered_map<const Fibre*, u64> charged_ps_;  // of slow ranks' fibres: the clock up to which they have paid
};

}  // namespace rdmakit::emu
