// befall.cpp — a world's faults: taking a plan, and letting its single events happen. See world.hpp and mishaps.hpp.
#include <algorithm>

#include "world.hpp"

namespace rdmakit::emu {

void World::set_faults(const WorldFaults& faults) {
    faults_ = faults;
    chance_.follow(faults.plan);
    mishaps_ = faults.mishaps;
    messages_ = 0;
    const auto by_messages = [](const Mishap& m) { return m.after_messages != kNever; };
    faults_on = faults.plan.any() || actions_.counts_messages || std::any_of(mishaps_.begin(), mishaps_.end(), by_messages);
    for (u32 rank = 0; rank < config_.gpus; ++rank) {
        if (!launcher_.dead(rank)) launcher_.revive(rank);
    }
    for (const Straggler& slow : faults.stragglers) {
        launcher_.make_mortal(slow.rank);
        launcher_.slow_down(slow.rank, slow.factor);
    }
    // A rank looks at its own clock; everything else happens to an HCA.
    const auto own_clock = [](const Mishap& m) { return m.kind == MishapKind::rank_dies && m.when_ps != kNever; };
    for (const Mishap& m : mishaps_) {
        if (m.kind == MishapKind::rank_dies) launcher_.make_mortal(m.subject);
        if (own_clock(m)) launcher_.doom(m.subject, m.when_ps);
    }
    mishaps_.erase(std::remove_if(mishaps_.begin(), mishaps_.end(), own_clock), mishaps_.end());
    plan_next_mishap();
}

std::vector<u32> World::dead_ranks() const {
    std::vector<u32> dead;
    for (u32 rank = 0; rank < config_.gpus; ++rank) {
        if (launcher_.dead(rank)) dead.push_back(rank);
    }
    return dead;
}

void World::plan_next_mishap() {
    next_mishap_ps_ = next_mishap_message_ = kNever;
    for (const Mishap& m : mishaps_) {
        next_mishap_ps_ = std::min(next_mishap_ps_, m.when_ps);
        next_mishap_message_ = std::min(next_mishap_message_, m.after_messages);
    }
    set_alarm();
}

// ---- time-outs of HCAs
void World::timer(u64 when_ps, void (*fn)(void*, u64), void* object, u64 arg, bool (*wanted)(void*, u64)) {
    timers_.push_back(Timer{when_ps, timers_set_++, fn, object, arg, wanted});
    std::push_heap(timers_.begin(), timers_.end(), Timer::later);
    set_alarm();
}

void World::set_alarm() {
    wake_ps_ = next_mishap_ps_;
    if (!timers_.empty()) wake_ps_ = std::min(wake_ps_, timers_.front().when_ps);
}

void World::look_at_the_clock() {
    const u64 now = now_ps();
    if (now >= next_mishap_ps_) mishap_is_due();
    fire_timers(now);
}

// Hands the scheduler those that are due, and the unwanted ones before them. With `until_ps` at kNever: up to and with
// the first that is wanted. False if none was.
bool World::fire_timers(u64 until_ps) {
    bool fired = false;
    while (!timers_.empty() && !(fired && until_ps == kNever)) {
        const Timer timer = timers_.front();
        const bool wanted = timer.wanted(timer.object, timer.arg);
        if (wanted && until_ps != kNever && timer.when_ps > until_ps) break;
        std::pop_heap(timers_.begin(), timers_.end(), Timer::later);
        timers_.pop_back();
        fired |= wanted;
        launcher_.scheduler().at(wanted ? timer.when_ps : now_ps(), timer.fn, timer.object, timer.arg);
    }
    set_alarm();
    return fired;
}

void World::mishap_is_due() {
    if (mishap_due_) return;
    mishap_due_ = true;
    if (!timed()) return;  // HcaWork::work looks
    launcher_.scheduler().at(now_ps(), [](void* world, u64) { static_cast<World*>(world)->befall(); }, this, 0);
}

void World::befall() {
    mishap_due_ = false;
    const u64 now = now_ps();
    const auto due = [&](const Mishap& m) { return (timed() && m.when_ps <= now) || m.after_messages <= messages_; };
    // In the order of the plan's times: a port that went down and came up again meanwhile is up.
    std::vector<Mishap> happening;
    for (const Mishap& m : mishaps_) {
        if (due(m)) happening.push_back(m);
    }
    mishaps_.erase(std::remove_if(mishaps_.begin(), mishaps_.end(), due), mishaps_.end());
    plan_next_mishap();
    std::stable_sort(happening.begin(), happening.end(), [](const Mishap& a, const Mishap& b) {
        return std::min(a.when_ps, a.after_messages) < std::min(b.when_ps, b.after_messages);
    });
    for (const Mishap& m : happening) befall(m);
}

void World::befall(const Mishap& m) {
    ++mishaps_happened_[static_cast<u32>(m.kind)];
    if (m.kind == MishapKind::rank_dies) {
        launcher_.doom(m.subject, 0);
        return;
    }
    if (m.subject >= hca_count()) return;
    if (m.kind == MishapKind::qp_error)
        hcas_[m.subject]->break_qp(m.number);
    else
        hcas_[m.subject]->set_port_up(m.number, m.kind == MishapKind::port_up);
}

}  // namespace rdmakit::emu
