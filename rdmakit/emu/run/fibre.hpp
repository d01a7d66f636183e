// fibre.hpp — one instruction stream of a kernel: a stack whose top holds what device code sees (cpu::Thread) and what
// the scheduler keeps of it.
#pragma once
#include <cstddef>
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

class Scheduler;
struct Block;
struct Fibre;

constexpr int kMaxWatched = 5;

struct Watcher {
    const void* address = nullptr;
    u64 seen = 0;
    u32 bytes = 0;
    Fibre* fibre = nullptr;
    Watcher* next = nullptr;   // in its list
    Watcher** link = nullptr;  // what points at it there
};

enum class FibreState : u8 { ready, running, parked, at_barrier, in_gather, finished };

// What each switch touches lies together in front: four cache lines with Thread.
struct Fibre : cpu::Thread {
    Scheduler* scheduler;
    Block* block;
    void* stack_pointer;
    FibreState state;
    bool timed_out;
    bool timer_armed;
    bool has_section;         // its kernel has raw __shared__ variables
    u8 watcher_count;
    bool looked_at;           // with the next five: see endless.hpp
    u32 warp_in_block;
    u64 progress_seen;
    u32 turns, turns_alone, meetings;
    u32 parked_index;
    u32 steps_left;           // of Scheduler::steps
    u64 step_ps;
    const void* preempted_at;
    u64 number;               // in order of creation: what reports and orderings use, never the address
    u64 parked_since;         // a count of parks
    u64 deadline_ps;
    Fibre* next_in_group;     // barrier list, gather list
    void* gather;             // the group it takes part in
    u32 agent;                // Explore: who it is to the memory model
    cpu::WaitNote note;
    Watcher watchers[kMaxWatched];
};
static_assert(sizeof(Fibre) <= cpu::kThreadReserve, "Fibre and Thread share the top of the stack");

// Stacks, aligned to their size (that is how cpu::self() finds Thread), reused, with a guard page below each as long
// as the kernel's limit on mappings allows.
class StackPool {
  public:
    StackPool() = default;
    ~StackPool();
    StackPool(const StackPool&) = delete;
    StackPool& operator=(const StackPool&) = delete;

    Fibre* take();  // nullptr when memory is exhausted; the Fibre is zeroed
    void give_back(Fibre* fibre) { free_.push_back(fibre); }
    static void* stack_top(Fibre* fibre) { return fibre; }
    static bool owns_guard(const Fibre* fibre, const void* address);

  private:
    bool grow();
    struct Slab {
        void* memory;
        std::size_t bytes;
    };
    std::vector<Slab> slabs_;
    std::vector<Fibre*> free_;
    std::size_t guarded_ = 0;
};

}  // namespace rdmakit::emu
