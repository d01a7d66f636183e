// explored.cpp — the scheduler under the policy Explore: every step is somebody's choice (explore/choices.hpp), and before
// each ordered access of device code others may go first.
#include <algorithm>

#include "scheduler.hpp"

namespace rdmakit::emu {
namespace {
// A fibre that goes on so often without waiting polls something; if others can run, they do.
constexpr u32 kAloneAtMost = 512;
}  // namespace

void Scheduler::settle() {
    void* p = nullptr;
    u32 bytes = 0;
    if (exploration_ != nullptr && exploration_->settle(&p, &bytes) && bytes != 0) written(p, bytes);
}

void Scheduler::raw(Fibre& fibre, void* p, u32 bytes, u32 kind, const void* pc) {
    settle();
    // The way into the runner is none of the program's steps: how often it is taken depends on budgets, not on values.
    if (static_cast<u64>(static_cast<const u8*>(p) - reinterpret_cast<const u8*>(fibre.api)) < sizeof *fibre.api) return;
    if (kind >= cpu::kRawVolatileRead) point(fibre);
    else if (--fibre.budget <= 0) yield(fibre);
    exploration_->raw(fibre.agent, p, bytes, kind, pc);
}

// Everybody who can take a step: `first`, if given, then HCAs, then fibres in the order in which they became ready.
void Scheduler::gather_units(Fibre* first) {
    units_.clear();
    unit_agents_.clear();
    const auto add = [this](Fibre* fibre) {
        units_.push_back({fibre, nullptr, 0});
        unit_agents_.push_back(fibre->agent);
    };
    if (first != nullptr) add(first);
    for (WorkSource* source : sources_) {  // they stay in the list: whether one has something to do shows each time
        const std::size_t before = unit_agents_.size();
        source->steps(unit_agents_);
        for (std::size_t i = before; i < unit_agents_.size(); ++i) {
            units_.push_back({nullptr, source, static_cast<u32>(i - before)});
        }
    }
    for (Fibre* fibre : ready_) {
        if (fibre != first) add(fibre);
    }
}

void Scheduler::end_if_endless(Fibre& fibre) {
    if (exploration_ == nullptr || !endless_.idle(progress_, exploration_->memory.changes())) return;
    polls_for_ever_ = true;
    make_ready(fibre);
    block_current(fibre, FibreState::ready);
}

// Going on is part of the state, here or in go_on: what a fibre does next may leave no trace in memory (a doorbell).
void Scheduler::point(Fibre& fibre) {
    if (stays_at(fibre)) exploration_->memory.passed(fibre.agent);
}

// False if others went first.
bool Scheduler::stays_at(Fibre& fibre) {
    ++steps_;
    Choices& choices = exploration_->choices;
    end_if_endless(fibre);
    const bool may_stay = ++alone_ <= kAloneAtMost;
    if (may_stay && choices.stays()) return true;
    gather_units(may_stay ? &fibre : nullptr);
    if (units_.empty()) {
        alone_ = 0;
        return true;
    }
    if (choices.seen(exploration_->memory.state(), unit_agents_.data(), static_cast<u32>(units_.size()))) {
        exploration_->pruned = true;
        make_ready(fibre);
        block_current(fibre, FibreState::ready);
        return false;
    }
    const u32 pick = choices.pick_agent(unit_agents_.data(), static_cast<u32>(units_.size()));
    if (units_[pick].fibre == &fibre) return true;
    picked_ = pick;
    make_ready(fibre);
    block_current(fibre, FibreState::ready);
    return false;
}

void Scheduler::go_on(u32 pick) {
    alone_ = 0;
    const Unit unit = units_[pick];
    if (unit.fibre != nullptr) {
        ready_.erase(std::find(ready_.begin(), ready_.end(), unit.fibre));
        exploration_->memory.passed(unit.fibre->agent);
        resume(*unit.fibre);
        return;
    }
    ++progress_;
    unit.source->take(unit.step);
}

bool Scheduler::step_explored() {
    if (exploration_->pruned) return false;
    if (picked_ == kNobody) {
        gather_units(nullptr);
        if (units_.empty()) return false;
        if (exploration_->choices.seen(exploration_->memory.state(), unit_agents_.data(), static_cast<u32>(units_.size()))) {
            exploration_->pruned = true;
            return false;
        }
        picked_ = exploration_->choices.pick_agent(unit_agents_.data(), static_cast<u32>(units_.size()));
    }
    const u32 pick = picked_;
    picked_ = kNobody;
    go_on(pick);
    return true;
}

void Scheduler::end_run(bool undo) {
    if (exploration_ == nullptr) return;
    settle();
    counters_.stale_loads += exploration_->memory.stale_loads();
    exploration_->memory.reset(undo);
    exploration_->pruned = exploration_->updating = false;
    endless_.start_over();
    polls_for_ever_ = false;
    ++exploration_->run;
    if (undo) {
        sources_.clear();
        fibres_created_ = 0;
    }
    picked_ = kNobody;
    alone_ = 0;
}

}  // namespace rdmakit::emu
