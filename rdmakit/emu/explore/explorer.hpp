// explorer.hpp — many schedules of one scenario: put everything back, choose anew, run, judge.
// The scenario is a world that was set up and the launches queued in it; what its memory has to hold in the end is given
// as bytes. Leans on run/world.hpp.
#pragma once
#include "../run/world.hpp"

namespace rdmakit::emu {

enum class Verdict : u32 {
    held = 0,
    pruned = 1,    // exhaustive: the rest of it was seen before
    hung = 2,      // launches that cannot go on
    faulted = 3,   // device code trapped, or ran into memory that is not there
    reported = 4,  // device code gave up, with a report
    wrong = 5,     // memory does not hold what it should
    raced = 6,     // accesses ordered by luck: a latent race
    refused = 7,   // the scenario's own check said no
};

struct Schedule {
    Search search = Search::random;
    u64 seed = 0;
    u32 depth = 3;                // pct: priority change points + 1
    double steps_expected = 100;  // pct
    std::vector<u32> decisions;   // list
    bool faults = true;
};

struct Judged {
    Verdict verdict = Verdict::held;
    u64 hash = 0, decisions = 0;
    u64 detail = 0;  // wrong: the index of the expectation; faulted: none
};

struct Totals {
    u64 schedules = 0, pruned = 0, distinct = 0, stale_loads = 0, failures = 0;
    u64 first_failing_seed = 0;
    bool done = false;  // exhaustive: nothing is left
    Judged last;
};

class Explorer {
  public:
    explicit Explorer(World& world);

    // Set-up: launches are kept, not started; expectations; report records.
    void expect(const void* address, const void* bytes, u64 count);
    void watch_report(const void* report) { reports_.push_back(static_cast<const u32*>(report)); }
    void ready();  // everything is as each schedule shall find it
    // Called after a schedule that held so far; false: it is refused.
    bool (*check)(void*) = nullptr;
    void* check_argument = nullptr;

    Judged run(const Schedule& schedule);
    // Up to `count` schedules from `first.seed` on; stops at the first failure, or when asked to.
    Totals explore(const Schedule& first, u64 count);
    // Exhaustive searches go on where they stopped.
    Exploration& exploration() { return *world_.exploration(); }
    World& world() { return world_; }
    void latent_races_fail(bool on) { races_fail_ = on; }
    // Launches that cannot go on are no failure; what memory holds then, the check looks at alone.
    void may_end_early(bool on) { may_end_early_ = on; }
    void start_over();  // exhaustive: forget what was seen

  private:
    void put_back();
    Verdict judge(RunOutcome outcome, Judged& judged);

    World& world_;
    std::vector<std::shared_ptr<const HcaSnapshot>> hcas_;
    struct Expectation {
        const u8* address;
        std::vector<u8> bytes;
    };
    std::vector<Expectation> expectations_;
    std::vector<const u32*> reports_;
    std::unordered_set<u64> distinct_;
    bool races_fail_ = true, may_end_early_ = false, begun_ = false;
};

}  // namespace rdmakit::emu
