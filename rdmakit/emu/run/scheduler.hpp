// scheduler.hpp — decides who runs next: fibres of kernels, HCAs with work, events in virtual time. One OS thread; all
// chance comes from the seed, so the same seed gives the same run.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "../explore/exploration.hpp"
#include "endless.hpp"
#include "event_queue.hpp"
#include "random.hpp"
#include "rdmakit/cost.cuh"
#include "watch.hpp"

namespace rdmakit::emu {

enum class Policy : u32 { fast = RDMAKIT_FAST, timed = RDMAKIT_TIMED, explore = RDMAKIT_EXPLORE };

// Something else than a fibre that makes progress when asked to: an HCA. Untimed policies only.
class WorkSource {
  public:
    virtual ~WorkSource() = default;
    virtual void work(u32 budget) = 0;
    // Explore: one step at a time. Appends who could take each, the calmest first; takes one of those last told.
    virtual void steps(std::vector<u32>& agents) = 0;
    virtual void take(u32 index) = 0;
};

// Told when a fibre ends or goes wrong.
class FibreOwner {
  public:
    virtual ~FibreOwner() = default;
    virtual void run_fibre(Fibre& fibre) = 0;       // the kernel call, on the fibre's own stack
    virtual void fibre_finished(Fibre& fibre) = 0;  // on the scheduler's stack
    virtual void fibre_faulted(Fibre& fibre, const std::string& why) = 0;
};

struct SchedulerCounters {
    u64 switches = 0, parks = 0, wakes = 0, events = 0, stale_loads = 0, sweeps = 0;
};

class Scheduler {
  public:
    Scheduler(Policy policy, u64 seed, FibreOwner& owner);
    Scheduler(const Scheduler&) = delete;
    Scheduler& operator=(const Scheduler&) = delete;

    // ---- fibres
    Fibre* create_fibre();                 // nullptr when memory is exhausted; not ready yet
    void make_ready(Fibre& fibre);
    void retire(Fibre& fibre);             // a finished one: its stack may be used again
    void kill(Fibre& fibre);               // one in any state but running
    // Called on the running fibre's stack: gives the processor away until somebody makes the fibre ready again.
    void block_current(Fibre& fibre, FibreState state);
    [[noreturn]] void fail_current(Fibre& fibre, std::string why);

    // ---- the rest of the world
    void add_work(WorkSource& source);     // at most once each until work() is called
    void forget_work(WorkSource& source);
    void at(u64 when_ps, void (*fn)(void*, u64), void* object, u64 arg);
    void written(const void* address, u64 bytes);
    u64 now_ps() const { return current_ != nullptr ? current_->clock_ps : now_ps_; }
    u64 random(u64 bound) { return random_.below(bound); }
    Policy policy() const { return policy_; }

    // Runs until nothing can go on. Fibres may still be parked then: parked() lists them, and after time_out_parked()
    // another run() lets each report that its time is up.
    void run();
    // Asked now and then while run() runs; true makes it return early.
    bool (*interrupt)(void*) = nullptr;
    void* interrupt_argument = nullptr;
    // Asked every few thousand steps; true makes run() return as if nothing could go on.
    bool (*going_nowhere)(void*) = nullptr;
    // Asked when a fibre polls and polls: whether somebody outside may still write what it looks for.
    bool (*others_may_write)(void*) = nullptr;
    void* world = nullptr;
    bool interrupted() const { return interrupted_; }
    const std::vector<Fibre*>& parked() const { return parked_; }
    void time_out_parked();
    // Ends the longest wait of those that may end for nothing (WaitNote::may_end): whoever has waited longest is through
    // first, since all wait alike. False when there is none.
    bool expire_first();
    u64 progress() const { return progress_; }
    const SchedulerCounters& counters() const { return counters_; }

    // ---- primitives of device code (cpu::RunnerApi)
    void yield(Fibre& fibre);
    void steps(Fibre& fibre, u64 cost_ps, u32 count);  // see cpu::RunnerApi
    void meet(Fibre& fibre);  // before a collective: lanes that do nothing but meet never use up their budgets
    void preempt(Fibre& fibre, const void* pc);  // as yield, at an instruction of the kernel's own code
    bool park(Fibre& fibre, const cpu::Watched* list, int count, const cpu::WaitNote& note, u64 timeout_ns);
    // Explore: before each ordered access others may go first; a raw access or its end.
    void point(Fibre& fibre);
    void raw(Fibre& fibre, void* p, u32 bytes, u32 kind, const void* pc);
    void settle();
    bool stays_at(Fibre& fibre);
    void end_if_endless(Fibre& fibre);  // after so many accesses and meetings that changed nothing
    Exploration* exploration() const { return exploration_.get(); }
    void end_run(bool undo);  // Explore: nothing runs, everything is known to everybody; or all is as it was before

    // The scheduler that runs on this OS thread now, for the signal handler; its current fibre.
    static Scheduler* running();
    Fibre* current() const { return current_; }
    u64 steps() const { return steps_; }  // grows whenever a fibre gives way, waits or is resumed
    FibreOwner* owner() const { return &owner_; }
    void fault_current(Fibre& fibre, std::string why);  // from the signal handler's landing

    u64* costs() { return costs_; }  // Timed: by cost::Kind

  private:
    struct Timer {
        u64 when_ps;
        Fibre* fibre;
        u64 number;
    };
    static bool timer_later(const Timer& a, const Timer& b) {
        return a.when_ps != b.when_ps ? a.when_ps > b.when_ps : a.number > b.number;
    }
    void push(DueEvent event);
    void resume(Fibre& fibre);
    bool look_at(Fibre& fibre);
    bool take_steps(Fibre& fibre);
    bool must_give_way(Fibre& fibre, const void* pc);
    void wake(Fibre& fibre);
    void unwatch(Fibre& fibre);
    bool step_untimed();
    bool step_timed();
    bool step_explored();
    void gather_units(Fibre* first);
    void go_on(u32 unit);
    bool sweep();
    const char* endless(Fibre& fibre);
    void give_way(Fibre& fibre, const void* pc);
    void stop_for_a_look(Fibre& fibre);
    bool asked_to_stop();
    void arm_timer(Fibre& fibre);
    void fire_timer();
    void unpark(Fibre& fibre);
    i32 fresh_budget() { return policy_ == Policy::explore ? kRawBudget : 1 + static_cast<i32>(random_.below(64)); }
    static constexpr i32 kRawBudget = 64;  // Explore: raw accesses and basic blocks between looks
    static void fibre_main();

    Policy policy_;
    u64 costs_[cost::kKinds];
    Random random_;
    FibreOwner& owner_;
    StackPool stacks_;
    WatchTable watch_;
    std::unique_ptr<Exploration> exploration_;
    struct Unit {
        Fibre* fibre;
        WorkSource* source;
        u32 step;
    };
    std::vector<Unit> units_;
    std::vector<u32> unit_agents_;
    u32 picked_ = kNobody, alone_ = 0;  // alone_: points in a row at which the same fibre went on
    bool polls_for_ever_ = false;
    static constexpr u32 kNobody = ~0u;
    EndlessLoops endless_;
    std::vector<Fibre*> ready_;
    std::vector<Fibre*> parked_;
    std::vector<WorkSource*> sources_;
    EventQueue events_;
    std::vector<Timer> timers_;
    Fibre* current_ = nullptr;
    void* scheduler_stack_ = nullptr;
    u64 progress_ = 0;  // changes whenever a fibre parks, is woken or ends, or an HCA has worked: collectives alone are none
    bool interrupted_ = false, stepping_ = false;
    u64 steps_ = 0;
    std::chrono::steady_clock::time_point last_asked_;
    u64 now_ps_ = 0, sequence_ = 0, fibres_created_ = 0, fibres_live_ = 0;
    std::string fault_;
    SchedulerCounters counters_;
};

}  // namespace rdmakit::emu
