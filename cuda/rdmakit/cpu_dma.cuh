// rdmakit/cpu_dma.cuh — which barriers order a CPU's accesses against those of a device on its bus.
// Layer: beside config, only under g++; it leans on nothing. C++ fences order CPUs: on aarch64 they reach the inner
// shareable domain, a device may stand outside of it. So each place where a device takes part names what it needs, by the
// names of rdma-core's util/udma_barrier.h, whose instructions these are, but for one: on x86-64 loads of write-back memory
// keep their order (Intel SDM vol. 3A, "Memory Ordering in P6 and More Recent Processor Families"), and rings are that, so
// no LFENCE is needed behind an owner bit; it is for memory that streams.
#pragma once
#include <cstdint>

namespace rdmakit::cpu {

// Between what a device is to find and the word, record or register that tells it to look.
inline void to_device() {
#if defined(__x86_64__)
    asm volatile("" ::: "memory");
#elif defined(__aarch64__)
    asm volatile("dmb oshst" ::: "memory");
#else
    __sync_synchronize();
#endif
}

// Between a look at a word that a device writes last and looks at what it wrote before.
inline void from_device() {
#if defined(__x86_64__)
    asm volatile("" ::: "memory");
#elif defined(__aarch64__)
    asm volatile("dmb oshld" ::: "memory");
#else
    __sync_synchronize();
#endif
}

// Loads and stores before it against loads and stores behind it, for CPUs and devices.
inline void with_device() {
#if defined(__aarch64__)
    asm volatile("dmb osh" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_ACQ_REL);
#endif
}

// Before and behind a store to a register in write-combining memory: it passes nothing older, and leaves at once.
inline void flush_mmio() {
#if defined(__x86_64__)
    asm volatile("sfence" ::: "memory");
#elif defined(__aarch64__)
    asm volatile("dsb st" ::: "memory");
#else
    __sync_synchronize();
#endif
}

// An 8-byte register, written behind all that has been written before.
inline void ring(void* address, std::uint64_t value) {
    flush_mmio();
    *static_cast<volatile std::uint64_t*>(address) = value;
    flush_mmio();
}

}  // namespace rdmakit::cpu
