// rdmakit/atom_bulk.cuh — the asynchronous proxy, instruction by instruction: mbarriers, bulk copies, the proxy fence. Each
// line of PTX next to its host twin; bulk.cuh puts bounded waits on top.
// Layer: atom (leans on atom). Sources: PTX ISA 8.x, "Asynchronous Data Movement and Completion Mechanism", "Async proxy",
// "mbarrier", "cp.async.bulk", "membar/fence"; Lustig et al., "Mixed-Proxy Extensions for the NVIDIA PTX Memory Consistency
// Model" (ISCA 2022). What they say, as this project reads it:
//
//   * A bulk copy reads and writes memory through another proxy than loads and stores do. What a thread, or one that it
//     has met, has accessed by the generic proxy is ordered before the copy only with a proxy fence in between.
//   * Its completion is followed by an implicit proxy fence: who has seen the mbarrier's phase complete (an acquire), or has
//     waited for the group, needs no other. Copies of one block need none among each other.
//   * Copies are in no order of their own, not even those of one group.
//   * wait_group.read: the sources have been read and may be overwritten. wait_group: what was written is visible to the
//     thread that waited, and to whom it tells.
//   * The mbarrier itself is accessed by the generic proxy (PTX ISA 9.3): its initialisation needs no proxy fence.
#pragma once
#include "atom.cuh"

// Hopper and later. Elsewhere the functions below trap; bulk.cuh's check_bulk says so in time.
#if !RDMAKIT_GPU
#define RDMAKIT_BULK 1
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define RDMAKIT_BULK 1
#else
#define RDMAKIT_BULK 0
#endif

namespace rdmakit {

constexpr u32 kBulkAlignment = 16;  // of both ends and of the size, bytes

// In shared memory. Counts arrivals and bytes, phase by phase; a phase is known by its parity, 0 first.
struct alignas(8) Mbarrier {
    u64 state;
};

#if RDMAKIT_GPU
RDMAKIT_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
#if RDMAKIT_BULK
#define RDMAKIT_BULK_ASM(...) asm volatile(__VA_ARGS__)
#else
#define RDMAKIT_BULK_ASM(...) __trap()
#endif
#endif

// ---- mbarriers ------------------------------------------------------------------------------------------------------
// One thread, before all others: meet them at a barrier behind it. `arrivals` counts threads that arrive in each phase; on
// the CPU runner instruction streams, which are warps where a fibre stands for one.
RDMAKIT_DEVICE void mbarrier_init(Mbarrier* barrier, u32 arrivals, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
#else
    cpu::step(cost::of(cost::kStore));
    host::store(&barrier->state, static_cast<u64>(cpu::MbarrierWord{0, arrivals, arrivals, 0}.word()),
                host::access(cpu::Order::plain, Scope::cta), site);
#endif
}
// A release: what came before is visible to whoever sees the phase complete.
RDMAKIT_DEVICE void mbarrier_arrive(Mbarrier* barrier, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("{.reg .b64 state; mbarrier.arrive.release.cta.shared::cta.b64 state, [%0];}" ::"r"(shared_address(barrier))
                     : "memory");
#else
    host::update(&barrier->state, [](u64 word) { return static_cast<u64>(cpu::MbarrierWord::from(word).after(1, 0).word()); },
                 host::access(cpu::Order::release, Scope::cta), site);
#endif
}
// Arrives, and `bytes` more are due in this phase: call it before the copies that bring them. Relaxed: it vouches for
// nothing of the caller's, and what the copies bring is released by their own arrival.
RDMAKIT_DEVICE void mbarrier_arrive_expect(Mbarrier* barrier, u32 bytes, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("{.reg .b64 state; mbarrier.arrive.expect_tx.relaxed.cta.shared::cta.b64 state, [%0], %1;}" ::"r"(
                         shared_address(barrier)),
                     "r"(bytes)
                     : "memory");
#else
    host::update(&barrier->state,
                 [bytes](u64 word) {
                     return static_cast<u64>(cpu::MbarrierWord::from(word).after(1, static_cast<i32>(bytes)).word());
                 },
                 host::access(cpu::Order::relaxed, Scope::cta), site);
#endif
}
// Is the phase of this parity complete? An acquire. On a GPU it may sleep for a moment first. *seen is the word, where
// words can be looked at.
RDMAKIT_DEVICE bool mbarrier_test(const Mbarrier* barrier, u32 parity, u64* seen, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    u32 done = 0;
    *seen = 0;
    RDMAKIT_BULK_ASM("{.reg .pred p; mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    return done != 0;
#else
    cpu::step(cost::of(cost::kLoad) / 8);  // shared memory
    *seen = host::load(&barrier->state, host::access(cpu::Order::acquire, Scope::cta), site);
    return cpu::MbarrierWord::from(*seen).parity != parity;
#endif
}

// ---- copies -----------------------------------------------------------------------------------------------------------
// One thread. Global to shared memory; its bytes arrive at `barrier`, whose phase has to expect them.
RDMAKIT_DEVICE void bulk_load(void* to_shared, const void* from_global, u32 bytes, Mbarrier* barrier,
                              [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                         shared_address(to_shared)),
                     "l"(__cvta_generic_to_global(from_global)), "r"(bytes), "r"(shared_address(barrier))
                     : "memory");
#else
    cpu::step(cost::kBulkIssue);
    cpu::self().api->bulk_copy(&cpu::self(), {to_shared, from_global, bytes, &barrier->state}, site);
#endif
}
// One thread. Shared to global memory, in the group that this thread's next bulk_commit closes.
RDMAKIT_DEVICE void bulk_store(void* to_global, const void* from_shared, u32 bytes, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(to_global)),
                     "r"(shared_address(from_shared)), "r"(bytes)
                     : "memory");
#else
    cpu::step(cost::kBulkIssue);
    cpu::self().api->bulk_copy(&cpu::self(), {to_global, from_shared, bytes, nullptr}, site);
#endif
}
RDMAKIT_DEVICE void bulk_commit() {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("cp.async.bulk.commit_group;" ::: "memory");
#else
    cpu::self().api->bulk_commit(&cpu::self());
#endif
}
// Waits until no more than `Pending` of this thread's groups are not yet complete: what they wrote is visible to it.
template <u32 Pending = 0> RDMAKIT_DEVICE void bulk_wait([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("cp.async.bulk.wait_group %0;" ::"n"(Pending) : "memory");
#else
    cpu::self().api->bulk_wait(&cpu::self(), Pending, false, site);
#endif
}
// The same, but only until their sources have been read: those may be filled anew, and no more is promised.
template <u32 Pending = 0> RDMAKIT_DEVICE void bulk_wait_read([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
#else
    cpu::self().api->bulk_wait(&cpu::self(), Pending, true, site);
#endif
}

// ---- the fence ----------------------------------------------------------------------------------------------------------
// Between accesses by loads and stores, of this thread or of those that it has met, and bulk copies of the same bytes.
RDMAKIT_DEVICE void proxy_fence([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("fence.proxy.async;" ::: "memory");
#else
    cpu::step(cost::kProxyFence);
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    cpu::self().api->proxy_fence(&cpu::self(), site);
#endif
#endif
}
// The same for bytes of shared memory alone, which is much sooner done: it does not wait for stores to global memory.
RDMAKIT_DEVICE void proxy_fence_shared([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BULK_ASM("fence.proxy.async.shared::cta;" ::: "memory");
#else
    proxy_fence(site);
#endif
}

#if RDMAKIT_GPU
#undef RDMAKIT_BULK_ASM
#endif

}  // namespace rdmakit
