// choices.hpp — every decision that a schedule consists of, by whom it is made: chance, priorities, a list, or all in turn.
//
// A decision is a number below the count of possibilities; 0 is always the calm one (go on with the same agent, read the
// newest value, lose nothing), so a schedule is the list of its decisions, an empty list is the calmest run, and a failing
// schedule is made smaller by putting zeros in it.
//
// Leans on random. Sources: Burckhardt et al., "A Randomized Scheduler with Probabilistic Guarantees" (PCT); Musuvathi and
// Qadeer, "Partial-Order Reduction for Context-Bounded State Exploration" (happens-before hashes as states); Emmi, Qadeer and
// Rakamaric, "Delay-Bounded Scheduling" (the bound on switches).
#pragma once
#include <unordered_map>
#include <vector>

#include "../run/random.hpp"

namespace rdmakit::emu {

enum class Search : u32 {
    random = 0,      // a fresh mixture of habits each schedule
    pct = 1,         // priorities, with a few points at which the runner falls behind all others
    list = 2,        // given decisions, then calm
    exhaustive = 3,  // depth first, all of them
    mixed = 4,       // one of the first two, as the seed says
};
enum class ChoiceKind : u32 { agent = 0, value = 1, fault = 2, other = 3 };

class Choices {
  public:
    // Before each schedule. `seed`: of this one.
    void begin_random(u64 seed, double steps_expected, bool faults);
    void begin_pct(u64 seed, double steps_expected, u32 depth);
    void begin_list(std::vector<u32> decisions);
    void begin_exhaustive();
    // Exhaustive: to the next schedule; false when there is none.
    bool advance();

    // Who goes on? `units` names those who can, units[0] the one that does if nothing is chosen: who was running, else who is
    // next in line. Another's turn is a switch in the sense of the bound.
    u32 pick_agent(const u32* units, u32 count);
    // Asked before the units are counted: true when the running one stays in any case, and that is the decision.
    bool stays();
    u32 choose(ChoiceKind kind, u32 count);
    bool fault(double probability);
    // A state that was explored before, with as much of the bounds left: the rest of this schedule would show nothing new.
    // `units`: as pick_agent will be asked.
    bool seen(u64 state, const u32* units, u32 count);

    Search search() const { return search_; }
    const std::vector<u32>& trail() const { return trail_; }
    u64 decisions() const { return trail_.size(); }
    // Bounds of an exhaustive search, which say what "all" means; 0: none.
    u32 stale_bound = 0, switch_bound = 0, fault_bound = 0;
    u64 states() const { return seen_.size(); }
    void start_over() {
        seen_.clear();
        path_.clear();
    }

  private:
    u32 decide(u32 value, u32 count);

    struct Node {
        u32 chosen, count;
    };
    Search search_ = Search::random;
    Random random_{0};
    double p_switch_ = 0.5, p_stale_ = 0.5, fault_weight_ = 1;
    std::vector<u32> trail_, given_;
    // PCT
    std::unordered_map<u32, u64> priority_;
    std::vector<u64> change_points_;
    u64 points_ = 0, lowest_ = 0;
    // exhaustive
    std::vector<Node> path_;
    struct Spent {
        u32 stale, switches, faults;
        bool within(const Spent& other) const {
            return stale <= other.stale && switches <= other.switches && faults <= other.faults;
        }
    };
    std::unordered_map<u64, Spent> seen_;  // the least of the bounds that was spent before each state
    u32 stale_ = 0, switches_ = 0, faults_ = 0;
};

}  // namespace rdmakit::emu
