// choices.cpp — see choices.hpp.
#include "choices.hpp"

#include <algorithm>

namespace rdmakit::emu {
namespace {
// Habits that a random schedule is made of: how often another agent goes on, how often a load is stale.
constexpr double kSwitchHabits[] = {0.5, 0.2, 0.05, 0.9};
constexpr double kStaleHabits[] = {0.5, 0.15, 0.0, 0.9};
double uniform(Random& random) { return static_cast<double>(random.next() >> 11) * 0x1.0p-53; }
}  // namespace

void Choices::begin_random(u64 seed, double, bool faults) {
    search_ = Search::random;
    random_ = Random(seed);
    trail_.clear();
    p_switch_ = kSwitchHabits[random_.below(4)];
    p_stale_ = kStaleHabits[random_.below(4)];
    fault_weight_ = !faults ? 0 : random_.below(4) == 0 ? 0.1 : 1.0;
    faults_ = 0;
}

void Choices::begin_pct(u64 seed, double steps_expected, u32 depth) {
    begin_random(seed, steps_expected, true);
    search_ = Search::pct;
    priority_.clear();
    change_points_.clear();
    points_ = 0;
    lowest_ = 1ull << 32;
    for (u32 i = 1; i < depth; ++i) change_points_.push_back(random_.below(static_cast<u64>(larger(steps_expected, 1.0))));
    std::sort(change_points_.begin(), change_points_.end(), std::greater<>());
}

void Choices::begin_list(std::vector<u32> decisions) {
    search_ = Search::list;
    given_ = std::move(decisions);
    trail_.clear();
    faults_ = 0;
}

void Choices::begin_exhaustive() {
    search_ = Search::exhaustive;
    trail_.clear();
    stale_ = switches_ = faults_ = 0;
}

bool Choices::advance() {
    while (!path_.empty() && path_.back().chosen + 1 == path_.back().count) path_.pop_back();
    if (path_.empty()) return false;
    ++path_.back().chosen;
    return true;
}

u32 Choices::decide(u32 value, u32 count) {
    if (search_ == Search::list) {
        value = trail_.size() < given_.size() ? smaller(given_[trail_.size()], count - 1) : 0;
    } else if (search_ == Search::exhaustive) {
        if (trail_.size() < path_.size()) {
            value = path_[trail_.size()].chosen;
        } else {
            path_.push_back({0, count});
            value = 0;
        }
    }
    trail_.push_back(value);
    return value;
}

bool Choices::stays() {
    if (search_ == Search::random) {
        if (uniform(random_) < p_switch_) return false;
        trail_.push_back(0);
        return true;
    }
    if (search_ == Search::list) {
        if (trail_.size() < given_.size() && given_[trail_.size()] != 0) return false;
        trail_.push_back(0);
        return true;
    }
    return false;
}

u32 Choices::pick_agent(const u32* units, u32 count) {
    switch (search_) {
        case Search::random: return decide(static_cast<u32>(random_.below(count)), count);
        case Search::pct: {
            for (u32 i = 0; i < count; ++i) {
                if (priority_.count(units[i]) == 0) priority_[units[i]] = (1ull << 32) + random_.next() / 4;
            }
            const auto best = [&] {
                u32 at = 0;
                for (u32 i = 1; i < count; ++i) {
                    if (priority_[units[i]] > priority_[units[at]]) at = i;
                }
                return at;
            };
            u32 at = best();
            ++points_;
            while (!change_points_.empty() && points_ > change_points_.back()) {
                change_points_.pop_back();
                priority_[units[at]] = --lowest_;
                at = best();
            }
            return decide(at, count);
        }
        case Search::list: return count == 1 ? decide(0, 1) : decide(0, count);
        case Search::mixed: break;  // never in force: begin chooses
        case Search::exhaustive: {
            const u32 allowed = switch_bound != 0 && switches_ >= switch_bound ? 1 : count;
            const u32 value = decide(0, allowed);
            switches_ += value != 0;
            return value;
        }
    }
    return 0;
}

u32 Choices::choose(ChoiceKind kind, u32 count) {
    if (count < 2) return 0;
    u32 value = 0;
    if (search_ == Search::random || search_ == Search::pct) {
        const double p = kind == ChoiceKind::value ? p_stale_ : 0.5;
        if (uniform(random_) < p) value = 1 + static_cast<u32>(random_.below(count - 1));
    }
    if (search_ == Search::exhaustive && kind == ChoiceKind::value && stale_bound != 0 && stale_ >= stale_bound) count = 1;
    value = decide(value, count);
    stale_ += kind == ChoiceKind::value && value != 0;
    return value;
}

bool Choices::fault(double probability) {
    if (probability <= 0 || (fault_bound != 0 && faults_ >= fault_bound)) return false;
    u32 value = 0;
    const double weighed = probability < 1 ? probability * fault_weight_ : 1;  // what always happens, always happens
    if (search_ == Search::random || search_ == Search::pct) value = uniform(random_) < weighed ? 1 : 0;
    value = decide(value, 2);
    faults_ += value;
    return value != 0;
}

bool Choices::seen(u64 state, const u32* units, u32 count) {
    if (search_ != Search::exhaustive || trail_.size() < path_.size()) return false;
    // With a bound on switches it makes a difference who is next in line.
    for (u32 i = 0; switch_bound != 0 && i < count; ++i) state = (state ^ (units[i] + 1ull)) * 0x9e3779b97f4a7c15ull;
    const Spent now{stale_bound != 0 ? stale_ : 0, switch_bound != 0 ? switches_ : 0, fault_bound != 0 ? faults_ : 0};
    const auto [at, fresh] = seen_.try_emplace(state, now);
    if (fresh) return false;
    if (at->second.within(now)) return true;
    if (now.within(at->second)) at->second = now;
    return false;
}

}  // namespace rdmakit::emu
