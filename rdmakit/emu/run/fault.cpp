// fault.cpp — see fault.hpp.
#include "fault.hpp"

#include <dlfcn.h>
#include <ucontext.h>

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
    char text[256];
    if (fault.signal == SIGFPE) {
        std::snprintf(text, sizeof text, "arithmetic fault (division by zero?)");
    } else if (fault.signal == SIGILL) {
        std::snprintf(text, sizeof text, "illegal instruction (a trap, or code that was overwritten)");
    } else if (StackPool::owns_guard(&fibre, fault.address)) {
        std::snprintf(text, sizeof text, "stack overflow: a fibre has %llu KiB", cpu::kFibreBytes / 1024);
    } else {
        std::snprintf(text, sizeof text, "illegal access to address %p", fault.address);
    }
    std::string why = text;
    const void* const instruction = fault.instruction;
    return why + place_of(&instruction, 1);
}

// Runs on the fibre's stack, from its top: nothing below is needed any more.
void landing() {
    Scheduler* scheduler = Scheduler::running();
    Fibre& fibre = *scheduler->current();
    scheduler->fault_current(fibre, describe(t_fault, fibre));
}

void on_signal(int signal, siginfo_t* info, void* context) {
    Scheduler* scheduler = Scheduler::running();
    Fibre* fibre = scheduler != nullptr ? scheduler->current() : nullptr;
    auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    const auto sp = static_cast<std::uintptr_t>(machine->gregs[REG_RSP]);
    const auto pc = static_cast<std::uintptr_t>(machine->gregs[REG_RIP]);
#else
    const auto sp = static_cast<std::uintptr_t>(machine->sp);
    const auto pc = static_cast<std::uintptr_t>(machine->pc);
#endif
    const auto top = reinterpret_cast<std::uintptr_t>(fibre);
    const bool on_fibre = fibre != nullptr && sp <= top && sp + cpu::kFibreBytes > top - 4096;
    if (!on_fibre) {
        for (int i = 0; i < 4; ++i) {
            if (kSignals[i] == signal) sigaction(signal, &g_previous[i], nullptr);  // and fault again
        }
        return;
    }
    t_fault = {signal, info->si_addr, reinterpret_cast<void*>(pc)};
    const auto stack = top - 4096;  // anywhere inside; entered as if by a call
#if defined(__x86_64__)
    machine->gregs[REG_RSP] = static_cast<greg_t>((stack & ~std::uintptr_t{15}) - 8);
    machine->gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(&landing));
#else
    machine->sp = stack & ~std::uintptr_t{15};
    machine->pc = reinterpret_cast<std::uintptr_t>(&landing);
#endif
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
#endif
}

FaultGuard::~FaultGuard() {
#if !defined(__SANITIZE_ADDRESS__)
    if (--g_guards != 0) return;
    for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &g_previous[i], nullptr);
#endif
}

}  // namespace rdmakit::emu
