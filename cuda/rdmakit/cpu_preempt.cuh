// cpu_preempt.cuh — preempts code that never calls a primitive, such as `while (*flag == 0);` in a kernel of the user's.
// Layer: beside config, only under g++. A translation unit of its own, linked to kernels that are compiled with
// -fsanitize-coverage=trace-pc: g++ calls the function below at the start of every basic block, and it must not be
// instrumented itself. Source: GCC manual, "Program Instrumentation Options".
#pragma once
#include "config.cuh"

// Set once the module's entries have been asked for: before that its code runs on Python's stack, which is no fibre.
extern "C" {
__attribute__((visibility("default"))) int rdmakit_preemption = 0;
}

namespace rdmakit::cpu {
constexpr u64 kBlockPicoseconds = 3'000;  // Timed: some five instructions at 1.7 GHz [assumed]
}

extern "C" __attribute__((visibility("hidden"))) void __sanitizer_cov_trace_pc() {
    if (rdmakit_preemption == 0) return;
    rdmakit::cpu::Thread& t = rdmakit::cpu::self();
#if RDMAKIT_POLICY == RDMAKIT_TIMED
    t.clock_ps += rdmakit::cpu::kBlockPicoseconds;
    if (t.clock_ps > t.horizon_ps) t.api->preempt(&t, __builtin_return_address(0));
#else
    if (--t.budget <= 0) t.api->preempt(&t, __builtin_return_address(0));
#endif
}
