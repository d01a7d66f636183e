// fault.cpp — see fault.hpp.
#include "fault.hpp"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "launch.hpp"

namespace rdmakit::emu {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr std::size_t kAlternateStack = 64 * 1024;  // the fibre's own may be the one that overflowed
struct sigaction g_previous[4];

// An empty loop, `for (;;) {}`, has no place where g++ would look up. A timer on this thread's own CPU time does: when a
// fibre has run for kPatience ticks without one step that the scheduler saw, it is taken off its processor.
const int kTick = SIGRTMIN + 5;
constexpr int kPatience = 3;  // seconds of CPU time
struct sigaction g_previous_tick;
timer_t g_timer;  // of the thread whose guard came first; one world runs at a time in all but odd programs
bool g_ticking = false;
thread_local u64 t_steps_seen = 0;
thread_local int t_silent_ticks = 0;
int g_guards = 0;

struct Fault {
    int signal;
    void* address;
    void* instruction;
};
thread_local Fault t_fault;
thread_local std::unique_ptr<char[]> t_stack;

// Offsets of instructions in the module that holds the first of them.
std::string place_of(const void* const* instructions, int count) {
    Dl_info module;
    if (count == 0 || dladdr(instructions[0], &module) == 0 || module.dli_fname == nullptr) return "";
    std::string place = std::string(" [at ") + module.dli_fname + "+";
    for (int i = 0; i < count; ++i) {
        const auto offset = static_cast<const char*>(instructions[i]) - static_cast<const char*>(module.dli_fbase);
        char text[32];
        std::snprintf(text, sizeof text, i == 0 ? "0x%zx" : ",0x%zx", static_cast<std::size_t>(offset));
        place += text;
    }
    return place + "]";
}

std::string describe(const Fault& fault, const Fibre& fibre) {
    const void* const instruction = fault.instruction;
    char text[256];
    if (fault.signal == kTick) {
        return "endless loop: an empty one, that looks at nothing and calls nothing" + place_of(&instruction, 1);
    }
    if (fault.signal == SIGFPE) {
        std::snprintf(text, sizeof text, "arithmetic fault (division by zero?)");
    } else if (fault.signal == SIGILL) {
        std::snprintf(text, sizeof text, "illegal instruction (a trap, or code that was overwritten)");
    } else if (StackPool::owns_guard(&fibre, fault.address)) {
        std::snprintf(text, sizeof text, "stack overflow: a fibre has %llu KiB", cpu::kFibreBytes / 1024);
    } else {
        std::snprintf(text, sizeof text, "illegal access to address %p", fault.address);
    }
    return text + place_of(&instruction, 1);
}

// Runs on the fibre's stack, from its top: nothing below is needed any more.
void landing() {
    Scheduler* scheduler = Scheduler::running();
    Fibre& fibre = *scheduler->current();
    scheduler->fault_current(fibre, describe(t_fault, fibre));
}

struct Registers {
    std::uintptr_t sp, pc;
};
Registers registers_of(void* context) {
    auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    return {static_cast<std::uintptr_t>(machine->gregs[REG_RSP]), static_cast<std::uintptr_t>(machine->gregs[REG_RIP])};
#else
    return {static_cast<std::uintptr_t>(machine->sp), static_cast<std::uintptr_t>(machine->pc)};
#endif
}

// The fibre whose stack the interrupted code was on; null: Python's, or the scheduler's own.
Fibre* interrupted_fibre(std::uintptr_t sp) {
    Scheduler* scheduler = Scheduler::running();
    Fibre* fibre = scheduler != nullptr ? scheduler->current() : nullptr;
    const auto top = reinterpret_cast<std::uintptr_t>(fibre);
    return fibre != nullptr && sp <= top && sp + cpu::kFibreBytes > top - 4096 ? fibre : nullptr;
}

// Makes the handler return to landing(), at a place of the fibre's stack as if it had been called there.
void end_fibre(void* context, const Fibre& fibre, const Fault& fault) {
    t_fault = fault;
    const auto stack = (reinterpret_cast<std::uintptr_t>(&fibre) - 4096) & ~std::uintptr_t{15};
    auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    machine->gregs[REG_RSP] = static_cast<greg_t>(stack - 8);
    machine->gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(&landing));
#else
    machine->sp = stack;
    machine->pc = reinterpret_cast<std::uintptr_t>(&landing);
#endif
}

void on_signal(int signal, siginfo_t* info, void* context) {
    const Registers at = registers_of(context);
    if (const Fibre* fibre = interrupted_fibre(at.sp)) {
        end_fibre(context, *fibre, {signal, info->si_addr, reinterpret_cast<void*>(at.pc)});
        return;
    }
    for (int i = 0; i < 4; ++i) {
        if (kSignals[i] == signal) sigaction(signal, &g_previous[i], nullptr);  // and fault again
    }
}

void on_tick(int signal, siginfo_t*, void* context) {
    const Registers at = registers_of(context);
    const Fibre* fibre = interrupted_fibre(at.sp);
    const u64 steps = fibre != nullptr ? Scheduler::running()->steps() : 0;
    if (fibre == nullptr || steps != t_steps_seen) {
        t_steps_seen = steps;
        t_silent_ticks = 0;
        return;
    }
    if (++t_silent_ticks >= kPatience) end_fibre(context, *fibre, {signal, nullptr, reinterpret_cast<void*>(at.pc)});
}

}  // namespace

std::string describe_place(const Fibre& fibre) {
    constexpr int kMost = 8;
    const void* found[kMost];
    int count = 0;
    if (fibre.preempted_at != nullptr) found[count++] = static_cast<const char*>(fibre.preempted_at) - 1;
    // Return addresses into the kernel's module: of a primitive, of what called it.
    Dl_info kernel;
    if (dladdr(reinterpret_cast<const void*>(fibre.block->launch->spec.kernel->call), &kernel) == 0) return "";
    const auto* word = static_cast<void* const*>(fibre.stack_pointer);
    for (; count < kMost && static_cast<const void*>(word + 1) <= static_cast<const void*>(&fibre); ++word) {
        Dl_info info;
        if (dladdr(*word, &info) == 0 || info.dli_fbase != kernel.dli_fbase) continue;
        found[count++] = static_cast<const char*>(*word) - 1;
    }
    return place_of(found, count);
}

FaultGuard::FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    if (g_guards++ != 0) return;
    stack_t current{};
    sigaltstack(nullptr, &current);
    if ((current.ss_flags & SS_DISABLE) != 0) {
        if (!t_stack) t_stack = std::make_unique<char[]>(kAlternateStack);
        stack_t mine{};
        mine.ss_sp = t_stack.get();
        mine.ss_size = kAlternateStack;
        sigaltstack(&mine, nullptr);
    }
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &g_previous[i]);

    struct sigaction tick {};
    tick.sa_sigaction = on_tick;
    tick.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(kTick, &tick, &g_previous_tick);
    struct sigevent event {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = kTick;
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));  // sigev_notify_thread_id, which older glibc hides
    g_ticking = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &g_timer) == 0;
    const struct itimerspec second {{1, 0}, {1, 0}};
    if (g_ticking) timer_settime(g_timer, 0, &second, nullptr);
    t_silent_ticks = 0;
#endif
}

FaultGuard::~FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    if (--g_guards != 0) return;
    if (g_ticking) timer_delete(g_timer);
    g_ticking = false;
    sigaction(kTick, &g_previous_tick, nullptr);
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &g_previous[i], nullptr);
#endif
}

}  // namespace rdmakit::emu
