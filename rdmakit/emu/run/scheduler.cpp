// scheduler.cpp — see scheduler.hpp.
#include "scheduler.hpp"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>

#include "context.hpp"
#include "fault.hpp"
#include "rdmakit/cost.cuh"

namespace rdmakit::emu {
namespace {
thread_local Scheduler* g_running = nullptr;
constexpr u64 kNever = std::numeric_limits<u64>::max();
constexpr u64 kLonelySlice = 20'000 * cost::kNanosecond;  // Timed: how long a fibre runs on when nothing else is due
constexpr u64 kStopSteps = 4096;                          // steps between looks at the clock for interrupt()
constexpr std::chrono::milliseconds kStopEvery{50};
}  // namespace

Scheduler::Scheduler(Policy policy, u64 seed, FibreOwner& owner) : policy_(policy), random_(seed), owner_(owner) {
    std::copy(std::begin(cost::kDefault), std::end(cost::kDefault), costs_);
    if (policy != Policy::explore) return;
    exploration_ = std::make_unique<Exploration>();
    exploration_->choices.begin_random(seed, 0, true);
}

Scheduler* Scheduler::running() { return g_running; }

// ---- fibres ---------------------------------------------------------------------------------------------------
Fibre* Scheduler::create_fibre() {
    Fibre* fibre = stacks_.take();
    if (fibre == nullptr) return nullptr;
    fibre->scheduler = this;
    fibre->watched = watch_.counters();
    fibre->costs = costs_;
    fibre->number = fibres_created_++;
    ++fibres_live_;
    fibre->clock_ps = now_ps();
    fibre->stack_pointer = prepare_stack(StackPool::stack_top(fibre), &Scheduler::fibre_main);
    return fibre;
}

void Scheduler::fibre_main() {
    Fibre& fibre = static_cast<Fibre&>(cpu::self());
    Scheduler& scheduler = *fibre.scheduler;
    scheduler.owner_.run_fibre(fibre);
    scheduler.settle();
    if (scheduler.exploration_ != nullptr) scheduler.exploration_->memory.passed(fibre.agent);
    scheduler.block_current(fibre, FibreState::finished);
}

void Scheduler::make_ready(Fibre& fibre) {
    fibre.state = FibreState::ready;
    if (policy_ == Policy::timed) {
        // One that gives way is still running: its stack will end near here.
        const void* stack = &fibre == current_ && !stepping_ ? __builtin_frame_address(0) : fibre.stack_pointer;
        push(DueEvent{fibre.clock_ps, DueEvent::kOfFibres, &fibre, {.stack = stack}, fibre.number});
    } else {
        ready_.push_back(&fibre);
    }
}

void Scheduler::retire(Fibre& fibre) {
    --fibres_live_;
    fibre.number = kNever;  // a timer that still knows it by its number finds nobody
    stacks_.give_back(&fibre);
}

void Scheduler::kill(Fibre& fibre) {
    if (fibre.state == FibreState::parked) {
        unwatch(fibre);
        unpark(fibre);
    }
    ready_.erase(std::remove(ready_.begin(), ready_.end(), &fibre), ready_.end());
    fibre.state = FibreState::finished;
    retire(fibre);
}

void Scheduler::block_current(Fibre& fibre, FibreState state) {
    fibre.state = state;
    if (state == FibreState::parked || state == FibreState::finished) ++progress_;
    rdmakit_switch_stack(&fibre.stack_pointer, scheduler_stack_);
}

void Scheduler::fault_current(Fibre& fibre, std::string why) {
    fault_ = std::move(why);
    block_current(fibre, FibreState::finished);
}
void Scheduler::fail_current(Fibre& fibre, std::string why) {
    fault_current(fibre, std::move(why));
    __builtin_unreachable();  // nobody resumes a finished fibre
}

void Scheduler::resume(Fibre& fibre) {
    ++counters_.switches;
    ++steps_;
    current_ = &fibre;
    fibre.budget = policy_ == Policy::timed ? 0 : fresh_budget();
    fibre.horizon_ps = events_.first_ps();
    if (fibre.steps_left != 0) {  // its stack is not needed for them
        stepping_ = true;
        const bool done = take_steps(fibre);
        stepping_ = false;
        if (!done) {
            current_ = nullptr;
            look_at(fibre);
            return;
        }
    }
    fibre.state = FibreState::running;
    rdmakit_switch_stack(&scheduler_stack_, fibre.stack_pointer);
    current_ = nullptr;
    if (polls_for_ever_) {
        polls_for_ever_ = false;
        owner_.fibre_faulted(fibre, "endless loop: it polls memory that nobody writes, and nothing else moves" + describe_place(fibre));
        return;
    }
    if (look_at(fibre) || fibre.state != FibreState::finished) return;
    if (fault_.empty()) {
        owner_.fibre_finished(fibre);
    } else {
        std::string why;
        std::swap(why, fault_);
        owner_.fibre_faulted(fibre, why);
    }
}

// If it is time for a look at it (endless.hpp): true if that was its end.
bool Scheduler::look_at(Fibre& fibre) {
    if (!fibre.looked_at) return false;
    fibre.looked_at = false;
    const char* why = fibre.state == FibreState::ready ? endless(fibre) : nullptr;
    if (why != nullptr) owner_.fibre_faulted(fibre, why + describe_place(fibre));
    return why != nullptr;
}

// Not null: the fibre that was looked at will never end, because … Where there is an outside, that has to have been given
// up, too; meanwhile it goes on, and whoever is parked beside the one that polls looks at its words.
const char* Scheduler::endless(Fibre& fibre) {
    const char* const why = endless_.look(fibre, progress_);
    if (others_may_write == nullptr || !endless_.due_outside()) return why;
    sweep();
    if (!others_may_write(world)) return why != nullptr || endless_.repeats() ? EndlessLoops::kPolls : nullptr;
    if (why != nullptr) endless_.forgive(fibre);
    return nullptr;
}

// ---- the rest of the world ------------------------------------------------------------------------------------
void Scheduler::add_work(WorkSource& source) {
    if (std::find(sources_.begin(), sources_.end(), &source) == sources_.end()) sources_.push_back(&source);
}
void Scheduler::forget_work(WorkSource& source) {
    sources_.erase(std::remove(sources_.begin(), sources_.end(), &source), sources_.end());
}

void Scheduler::push(DueEvent event) {
    // Equal times: calls in the order in which they were asked for, then fibres in an order that the seed decides.
    event.order = event.is_fibre() ? (random_.next() >> 1) | DueEvent::kOfFibres : sequence_++;
    if (current_ != nullptr && event.when_ps < current_->horizon_ps) current_->horizon_ps = event.when_ps;
    events_.push(event);
}

void Scheduler::at(u64 when_ps, void (*fn)(void*, u64), void* object, u64 arg) {
    push(DueEvent{std::max(when_ps, now_ps()), 0, object, {.call = fn}, arg});
}

void Scheduler::written(const void* address, u64 bytes) {
    if (bytes == 0) return;
    watch_.written(address, bytes, [this](Fibre* fibre) { wake(*fibre); });
}

void Scheduler::wake(Fibre& fibre) {
    if (fibre.state != FibreState::parked) return;
    ++counters_.wakes;
    ++progress_;
    unwatch(fibre);
    unpark(fibre);
    if (policy_ == Policy::timed) fibre.clock_ps = std::max(fibre.clock_ps, now_ps() + costs_[cost::kPoll]);
    make_ready(fibre);
}

void Scheduler::unpark(Fibre& fibre) {
    parked_.back()->parked_index = fibre.parked_index;
    parked_[fibre.parked_index] = parked_.back();
    parked_.pop_back();
}

void Scheduler::unwatch(Fibre& fibre) {
    for (int i = 0; i < fibre.watcher_count; ++i) watch_.remove(fibre.watchers[i]);
    fibre.watcher_count = 0;
}

// ---- primitives ------------------------------------------------------------------------------------------------
void Scheduler::yield(Fibre& fibre) { give_way(fibre, nullptr); }
void Scheduler::preempt(Fibre& fibre, const void* pc) { give_way(fibre, pc); }

namespace {
// A look compares whole stacks, and frames have slots that nobody writes: they shall not show what older calls left.
[[gnu::noinline]] void wipe_stack_below() {
    volatile u64 words[128];
    for (volatile u64& word : words) word = 0;
}
}  // namespace
void Scheduler::meet(Fibre& fibre) {
    if (exploration_ != nullptr || !endless_.meeting(fibre, progress_)) return;
    wipe_stack_below();
    stop_for_a_look(fibre);
}
[[gnu::noinline]] void Scheduler::stop_for_a_look(Fibre& fibre) {
    fibre.looked_at = true;
    fibre.preempted_at = nullptr;
    make_ready(fibre);
    block_current(fibre, FibreState::ready);
}

// Timed: false if nobody else comes before it. Else others go first, once the fibre is off the processor.
bool Scheduler::must_give_way(Fibre& fibre, const void* pc) {
    ++steps_;
    const bool look = endless_.turn(fibre, progress_);
    const u64 next = std::min(events_.first_ps(), timers_.empty() ? kNever : timers_.front().when_ps);
    if (next > fibre.clock_ps && !look) {
        fibre.horizon_ps = std::min(next, fibre.clock_ps + kLonelySlice);
        return false;
    }
    fibre.looked_at = look;
    fibre.preempted_at = pc;
    make_ready(fibre);
    return true;
}

// Takes those that are left; false: it had to give way, and goes on with them later.
bool Scheduler::take_steps(Fibre& fibre) {
    while (fibre.steps_left != 0) {
        --fibre.steps_left;
        fibre.clock_ps += fibre.step_ps;
        if (fibre.clock_ps > fibre.horizon_ps && must_give_way(fibre, nullptr)) return false;
    }
    return true;
}
void Scheduler::steps(Fibre& fibre, u64 cost_ps, u32 count) {
    fibre.step_ps = cost_ps >> fibre.abreast_log;
    fibre.steps_left = count;
    if (!take_steps(fibre)) block_current(fibre, FibreState::ready);
}

void Scheduler::give_way(Fibre& fibre, const void* pc) {
    if (policy_ == Policy::timed) {
        if (must_give_way(fibre, pc)) block_current(fibre, FibreState::ready);
        return;
    }
    ++steps_;
    const bool look = endless_.turn(fibre, progress_);
    if (exploration_ != nullptr) {
        if (exploration_->updating) {
            fibre.budget = fresh_budget();
            return;
        }
        settle();
        if (!look) {
            fibre.budget = fresh_budget();
            point(fibre);
            return;
        }
    }
    if (ready_.empty() && sources_.empty() && !look) {
        fibre.budget = fresh_budget();
        return;
    }
    fibre.looked_at = look;
    fibre.preempted_at = pc;
    make_ready(fibre);
    block_current(fibre, FibreState::ready);
}

bool Scheduler::park(Fibre& fibre, const cpu::Watched* list, int count, const cpu::WaitNote& note, u64 timeout_ns) {
    ++steps_;
    const int n = std::min(count, kMaxWatched);
    for (int i = 0; i < n; ++i) {
        if (exploration_ != nullptr && exploration_->memory.news(fibre.agent, list[i].address, list[i].bytes)) {
            exploration_->memory.take_news(fibre.agent, list[i].address, list[i].bytes);
            return true;
        }
        if (WatchTable::differs(list[i].address, list[i].bytes, list[i].seen)) return true;
    }
    for (int i = 0; i < n; ++i) {
        Watcher& w = fibre.watchers[i];
        w = Watcher{list[i].address, list[i].seen, list[i].bytes, &fibre, nullptr, nullptr};
        watch_.add(w);
    }
    fibre.watcher_count = static_cast<u8>(n);
    fibre.note = note;
    fibre.timed_out = false;
    fibre.parked_since = counters_.parks;
    fibre.parked_index = static_cast<u32>(parked_.size());
    parked_.push_back(&fibre);
    ++counters_.parks;
    if (policy_ == Policy::timed) {
        fibre.deadline_ps = fibre.clock_ps + std::min(timeout_ns, kNever / 4000) * 1000;
        if (!fibre.timer_armed) arm_timer(fibre);
    }
    alone_ = 0;
    block_current(fibre, FibreState::parked);
    if (exploration_ != nullptr && !fibre.timed_out) {
        for (int i = 0; i < n; ++i) exploration_->memory.take_news(fibre.agent, list[i].address, list[i].bytes);
    }
    return !fibre.timed_out;
}

// One timer a fibre, re-armed when it finds that the deadline has moved on.
void Scheduler::arm_timer(Fibre& fibre) {
    if (timers_.size() > 64 && timers_.size() > 4 * fibres_live_) {  // mostly of fibres that have ended
        const auto stale = [](const Timer& t) { return t.fibre->number != t.number; };
        timers_.erase(std::remove_if(timers_.begin(), timers_.end(), stale), timers_.end());
        std::make_heap(timers_.begin(), timers_.end(), timer_later);
    }
    fibre.timer_armed = true;
    timers_.push_back(Timer{fibre.deadline_ps, &fibre, fibre.number});
    std::push_heap(timers_.begin(), timers_.end(), timer_later);
}

void Scheduler::fire_timer() {
    std::pop_heap(timers_.begin(), timers_.end(), timer_later);
    const Timer timer = timers_.back();
    timers_.pop_back();
    Fibre& fibre = *timer.fibre;
    if (fibre.number != timer.number) return;
    fibre.timer_armed = false;
    if (fibre.state != FibreState::parked) return;
    if (timer.when_ps < fibre.deadline_ps) {
        arm_timer(fibre);
        return;
    }
    now_ps_ = std::max(now_ps_, timer.when_ps);
    fibre.timed_out = true;
    wake(fibre);
}

// ---- the loop --------------------------------------------------------------------------------------------------
bool Scheduler::step_untimed() {
    const u64 total = ready_.size() + sources_.size();
    if (total == 0) return false;
    const u64 pick = random_.below(total);
    if (pick < ready_.size()) {
        Fibre* fibre = ready_[pick];
        ready_[pick] = ready_.back();
        ready_.pop_back();
        resume(*fibre);
    } else {
        WorkSource* source = sources_[pick - ready_.size()];
        sources_[pick - ready_.size()] = sources_.back();
        sources_.pop_back();
        ++progress_;
        source->work(1 + static_cast<u32>(random_.below(256)));
    }
    return true;
}

namespace {
// Worlds of many ranks do not fit into caches, and each step wants another fibre's memory: it comes while others run.
void fetch_early(const DueEvent& event) {
    if (!event.is_fibre()) return;
    constexpr int kLine = 64, kFibreLines = 4, kStackLines = 6;
    const auto* fibre = static_cast<const char*>(event.object);
    for (int i = 0; i < kFibreLines; ++i) __builtin_prefetch(fibre + i * kLine, 1);
    const auto* stack = static_cast<const char*>(event.stack);
    for (int i = 0; i < kStackLines; ++i) __builtin_prefetch(stack + i * kLine, 1);
}
}  // namespace
bool Scheduler::step_timed() {
    if (events_.empty()) return false;  // nothing but time-outs ahead
    if (!timers_.empty() && timers_.front().when_ps < events_.first_ps()) {
        fire_timer();
        return true;
    }
    const DueEvent event = events_.pop();
    events_.look_ahead(fetch_early);
    now_ps_ = std::max(now_ps_, event.when_ps);
    ++counters_.events;
    if (!event.is_fibre()) {
        ++progress_;
        event.call(event.object, event.arg);
        return true;
    }
    Fibre& fibre = *static_cast<Fibre*>(event.object);
    if (fibre.number == event.arg && fibre.state == FibreState::ready) resume(fibre);
    return true;
}

// Raw stores of a user's kernel wake nobody: before calling it a hang, look at what every parked fibre watches.
bool Scheduler::sweep() {
    ++counters_.sweeps;
    const std::vector<Fibre*> parked = parked_;
    bool any = false;
    for (Fibre* fibre : parked) {
        for (int i = 0; i < fibre->watcher_count; ++i) {
            if (!WatchTable::changed(fibre->watchers[i])) continue;
            wake(*fibre);
            any = true;
            break;
        }
    }
    return any;
}

bool Scheduler::asked_to_stop() {
    const auto now = std::chrono::steady_clock::now();
    if (interrupt == nullptr || now - last_asked_ < kStopEvery) return false;
    last_asked_ = now;
    return interrupt(interrupt_argument);
}

void Scheduler::run() {
    Scheduler* const outer = g_running;
    g_running = this;
    interrupted_ = false;
    u64 steps = 0;
    do {
        while (policy_ == Policy::timed ? step_timed() : policy_ == Policy::explore ? step_explored() : step_untimed()) {
            if (++steps % kStopSteps != 0) continue;
            interrupted_ = asked_to_stop();
            if (interrupted_ || (going_nowhere != nullptr && going_nowhere(world))) {
                g_running = outer;
                return;
            }
        }
    } while (sweep());
    g_running = outer;
}

bool Scheduler::expire_first() {
    Fibre* first = nullptr;
    const auto since = [this](const Fibre& f) { return policy_ == Policy::timed ? f.deadline_ps : f.parked_since; };
    for (Fibre* fibre : parked_) {
        if (fibre->note.may_end && (first == nullptr || since(*fibre) < since(*first))) first = fibre;
    }
    if (first == nullptr) return false;
    first->timed_out = true;
    if (policy_ == Policy::timed) now_ps_ = std::max(now_ps_, first->deadline_ps);
    wake(*first);
    return true;
}

void Scheduler::time_out_parked() {
    const std::vector<Fibre*> parked = parked_;
    for (Fibre* fibre : parked) {
        fibre->timed_out = true;
        if (policy_ == Policy::timed) now_ps_ = std::max(now_ps_, fibre->deadline_ps);
        wake(*fibre);
    }
}

}  // namespace rdmakit::emu
