// cpu_watch.cuh — shows every load and store of a kernel to the memory model, those of raw pointers too.
// Layer: beside config, only under g++, policy Explore. A translation unit of its own, linked to kernels that are compiled
// with -fsanitize=thread: g++ calls these functions before each access to memory, and no libtsan is there to answer. What
// lies on the fibre's own stack is nobody else's business. Source: GCC, gcc/tsan.cc; the functions' names are its ABI.
#pragma once
#include "config.cuh"

// Set once the module's entries have been asked for: before that its code runs on Python's stack, which is no fibre.
extern "C" {
__attribute__((visibility("default"))) int rdmakit_watching = 0;
}

namespace rdmakit::cpu {
inline __attribute__((always_inline)) void watch_access(void* address, u64 bytes, u32 kind, const void* pc) {
    if (rdmakit_watching == 0) return;
    Thread& t = self();
    const auto at = reinterpret_cast<std::uintptr_t>(address), top = reinterpret_cast<std::uintptr_t>(&t);
    if ((at & ~(kFibreBytes - 1)) == (top & ~(kFibreBytes - 1))) return;
    t.api->raw(&t, address, static_cast<u32>(bytes), kind, pc);
}
}  // namespace rdmakit::cpu

#define RDMAKIT_TSAN extern "C" __attribute__((visibility("hidden"))) void
#define RDMAKIT_TSAN_SIZE(N)                                                                                                  \
    RDMAKIT_TSAN __tsan_read##N(void* p) { rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawRead, __builtin_return_address(0)); }   \
    RDMAKIT_TSAN __tsan_write##N(void* p) { rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawWrite, __builtin_return_address(0)); } \
    RDMAKIT_TSAN __tsan_volatile_read##N(void* p) {                                                                           \
        rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawVolatileRead, __builtin_return_address(0));                        \
    }                                                                                                                         \
    RDMAKIT_TSAN __tsan_volatile_write##N(void* p) {                                                                          \
        rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawVolatileWrite, __builtin_return_address(0));                       \
    }                                                                                                                         \
    RDMAKIT_TSAN __tsan_unaligned_read##N(void* p) { rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawRead, __builtin_return_address(0)); }   \
    RDMAKIT_TSAN __tsan_unaligned_write##N(void* p) { rdmakit::cpu::watch_access(p, N, rdmakit::cpu::kRawWrite, __builtin_return_address(0)); }
RDMAKIT_TSAN_SIZE(1)
RDMAKIT_TSAN_SIZE(2)
RDMAKIT_TSAN_SIZE(4)
RDMAKIT_TSAN_SIZE(8)
RDMAKIT_TSAN_SIZE(16)
#undef RDMAKIT_TSAN_SIZE
RDMAKIT_TSAN __tsan_read_range(void* p, unsigned long n) { rdmakit::cpu::watch_access(p, n, rdmakit::cpu::kRawRead, __builtin_return_address(0)); }
RDMAKIT_TSAN __tsan_write_range(void* p, unsigned long n) { rdmakit::cpu::watch_access(p, n, rdmakit::cpu::kRawWrite, __builtin_return_address(0)); }
RDMAKIT_TSAN __tsan_vptr_update(void**, void*) {}
RDMAKIT_TSAN __tsan_func_entry(void*) {}
RDMAKIT_TSAN __tsan_func_exit() {}
RDMAKIT_TSAN __tsan_init() {}
#undef RDMAKIT_TSAN

// Copies that the compiler leaves to the library are accesses, too.
extern "C" {
void* memcpy(void* to, const void* from, unsigned long n) {
    rdmakit::cpu::watch_access(const_cast<void*>(from), n, rdmakit::cpu::kRawRead, __builtin_return_address(0));
    rdmakit::cpu::watch_access(to, n, rdmakit::cpu::kRawWrite, __builtin_return_address(0));
    for (unsigned long i = 0; i < n; ++i) static_cast<volatile char*>(to)[i] = static_cast<const char*>(from)[i];
    return to;
}
void* memmove(void* to, const void* from, unsigned long n) {
    if (to <= from || static_cast<const char*>(from) + n <= to) return memcpy(to, from, n);
    rdmakit::cpu::watch_access(const_cast<void*>(from), n, rdmakit::cpu::kRawRead, __builtin_return_address(0));
    rdmakit::cpu::watch_access(to, n, rdmakit::cpu::kRawWrite, __builtin_return_address(0));
    for (unsigned long i = n; i-- > 0;) static_cast<volatile char*>(to)[i] = static_cast<const char*>(from)[i];
    return to;
}
void* memset(void* to, int value, unsigned long n) {
    rdmakit::cpu::watch_access(to, n, rdmakit::cpu::kRawWrite, __builtin_return_address(0));
    for (unsigned long i = 0; i < n; ++i) static_cast<volatile char*>(to)[i] = static_cast<char>(value);
    return to;
}
}
