// explorer.cpp — see explorer.hpp.
#include "explorer.hpp"

#include <cstring>

namespace rdmakit::emu {

Explorer::Explorer(World& world) : world_(world) { world_.keep_launches(true); }

void Explorer::expect(const void* address, const void* bytes, u64 count) {
    const auto* from = static_cast<const u8*>(bytes);
    expectations_.push_back({static_cast<const u8*>(address), std::vector<u8>(from, from + count)});
}

void Explorer::ready() {
    hcas_.clear();
    for (u32 i = 0; i < world_.hca_count(); ++i) hcas_.push_back(world_.hca(i)->save());
}

void Explorer::put_back() {
    world_.undo_run();
    for (u32 i = 0; i < world_.hca_count(); ++i) world_.hca(i)->restore(*hcas_[i]);
}

Judged Explorer::run(const Schedule& schedule) {
    put_back();
    Choices& choices = exploration().choices;
    Random habits(schedule.seed ^ 0x5851f42d4c957f2dull);
    const u64 habit = habits.below(8);  // of a mixed search: five in eight are random
    switch (schedule.search) {
        case Search::mixed:
            if (habit < 5) choices.begin_random(schedule.seed, schedule.steps_expected, schedule.faults);
            else choices.begin_pct(schedule.seed, schedule.steps_expected, static_cast<u32>(habit - 3));
            break;
        case Search::random: choices.begin_random(schedule.seed, schedule.steps_expected, schedule.faults); break;
        case Search::pct: choices.begin_pct(schedule.seed, schedule.steps_expected, schedule.depth); break;
        case Search::list: choices.begin_list(schedule.decisions); break;
        case Search::exhaustive: choices.begin_exhaustive(); break;
    }
    Judged judged;
    const RunOutcome outcome = world_.run_kept();
    judged.verdict = judge(outcome, judged);
    judged.hash = exploration().memory.hash();
    judged.decisions = choices.decisions();
    return judged;
}

Verdict Explorer::judge(RunOutcome outcome, Judged& judged) {
    if (outcome == RunOutcome::interrupted) return Verdict::held;
    if (exploration().pruned) return Verdict::pruned;
    if (outcome == RunOutcome::failed) return Verdict::faulted;
    for (const u32* report : reports_) {
        if (report[1] != 0) return Verdict::reported;
    }
    const bool hung = outcome == RunOutcome::hung;
    if (hung && !may_end_early_) return Verdict::hung;
    for (std::size_t i = 0; !hung && i < expectations_.size(); ++i) {
        if (std::memcmp(expectations_[i].address, expectations_[i].bytes.data(), expectations_[i].bytes.size()) == 0) continue;
        judged.detail = i;
        return Verdict::wrong;
    }
    if (check != nullptr && !check(check_argument)) return Verdict::refused;
    return races_fail_ && exploration().memory.race() != nullptr ? Verdict::raced : Verdict::held;
}

Totals Explorer::explore(const Schedule& first, u64 count) {
    Totals totals;
    Schedule schedule = first;
    const bool exhaustive = schedule.search == Search::exhaustive;
    for (u64 i = 0; i < count; ++i) {
        if (exhaustive) {
            if (begun_ && !exploration().choices.advance()) {
                totals.done = true;
                break;
            }
            begun_ = true;
        }
        schedule.seed = first.seed + i;
        totals.last = run(schedule);
        ++totals.schedules;
        totals.stale_loads += exploration().memory.stale_loads();
        if (totals.last.verdict == Verdict::pruned) {
            ++totals.pruned;
            continue;
        }
        if (distinct_.insert(totals.last.hash).second) ++totals.distinct;
        if (totals.last.verdict != Verdict::held) {
            ++totals.failures;
            totals.first_failing_seed = schedule.seed;
            break;
        }
        if (world_.interrupted()) break;
    }
    return totals;
}

void Explorer::start_over() {
    begun_ = false;
    distinct_.clear();
    exploration().choices.start_over();
}

}  // namespace rdmakit::emu
