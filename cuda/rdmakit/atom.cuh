// rdmakit/atom.cuh — memory operations with an order and a scope, MMIO, warp collectives: with atom_bulk.cuh every line of PTX
// in the project, each next to its host twin.
// Layer: atom (leans on config). Source: PTX ISA 8.x, "Memory Consistency Model", "ld", "st", "fence", "atom".
#pragma once
#include "config.cuh"
#if !RDMAKIT_GPU
#include "cost.cuh"
#include "cpu_dma.cuh"
#endif

namespace rdmakit {

#if RDMAKIT_GPU
#define RDMAKIT_BY_SCOPE(S, STATEMENT_CTA, STATEMENT_GPU, STATEMENT_SYS) \
    if constexpr (S == Scope::cta) { STATEMENT_CTA; }                    \
    else if constexpr (S == Scope::gpu) { STATEMENT_GPU; }               \
    else { STATEMENT_SYS; }

// One asm statement for each scope and width, so the text of an instruction stands in one place.
#define RDMAKIT_LD(ORDER, TYPE, REG, OUT, P)                                                        \
    RDMAKIT_BY_SCOPE(S, asm volatile("ld." ORDER ".cta." TYPE " %0, [%1];" : REG(OUT) : "l"(P) : "memory"), \
                     asm volatile("ld." ORDER ".gpu." TYPE " %0, [%1];" : REG(OUT) : "l"(P) : "memory"),    \
                     asm volatile("ld." ORDER ".sys." TYPE " %0, [%1];" : REG(OUT) : "l"(P) : "memory"))
#define RDMAKIT_ST(ORDER, TYPE, REG, P, V)                                                          \
    RDMAKIT_BY_SCOPE(S, asm volatile("st." ORDER ".cta." TYPE " [%0], %1;" ::"l"(P), REG(V) : "memory"), \
                     asm volatile("st." ORDER ".gpu." TYPE " [%0], %1;" ::"l"(P), REG(V) : "memory"),    \
                     asm volatile("st." ORDER ".sys." TYPE " [%0], %1;" ::"l"(P), REG(V) : "memory"))
#define RDMAKIT_ATOM(OP, TYPE, REG_OUT, REG, OUT, P, V)                                                       \
    RDMAKIT_BY_SCOPE(S, asm volatile("atom." OP(cta) TYPE " %0, [%1], %2;" : REG_OUT(OUT) : "l"(P), REG(V) : "memory"), \
                     asm volatile("atom." OP(gpu) TYPE " %0, [%1], %2;" : REG_OUT(OUT) : "l"(P), REG(V) : "memory"),    \
                     asm volatile("atom." OP(sys) TYPE " %0, [%1], %2;" : REG_OUT(OUT) : "l"(P), REG(V) : "memory"))
#define RDMAKIT_ADD(SCOPE) "relaxed." #SCOPE ".add."
#define RDMAKIT_MAX(SCOPE) "relaxed." #SCOPE ".max."
#define RDMAKIT_WRAP(SCOPE) "relaxed." #SCOPE ".inc."
#define RDMAKIT_OR(SCOPE) "relaxed." #SCOPE ".or."
#define RDMAKIT_SWAP(SCOPE) "acq_rel." #SCOPE ".exch."
#define RDMAKIT_SWAP_ACQUIRE(SCOPE) "acquire." #SCOPE ".exch."
#define RDMAKIT_SWAP_RELEASE(SCOPE) "release." #SCOPE ".exch."
#define RDMAKIT_CAS(TYPE, REG_OUT, REG)                                                                                                   \
    RDMAKIT_BY_SCOPE(S, asm volatile("atom.relaxed.cta.cas." TYPE " %0, [%1], %2, %3;" : REG_OUT(old) : "l"(p), REG(expected), REG(desired) : "memory"), \
                     asm volatile("atom.relaxed.gpu.cas." TYPE " %0, [%1], %2, %3;" : REG_OUT(old) : "l"(p), REG(expected), REG(desired) : "memory"),    \
                     asm volatile("atom.relaxed.sys.cas." TYPE " %0, [%1], %2, %3;" : REG_OUT(old) : "l"(p), REG(expected), REG(desired) : "memory"))

// The same for words of 4 and of 8 bytes, T being the caller's type and p its pointer.
#define RDMAKIT_BY_WIDTH(NARROW, WIDE)                                                        \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "ordered accesses are 4 or 8 bytes");     \
    if constexpr (sizeof(T) == 4) { NARROW; } else { WIDE; }
#define RDMAKIT_LOAD(ORDER)                                                                                  \
    RDMAKIT_BY_WIDTH(u32 v; RDMAKIT_LD(ORDER, "u32", "=r", v, p); return static_cast<T>(v),                  \
                     u64 v; RDMAKIT_LD(ORDER, "u64", "=l", v, p); return static_cast<T>(v))
#define RDMAKIT_STORE(ORDER)                                                                                 \
    RDMAKIT_BY_WIDTH(RDMAKIT_ST(ORDER, "u32", "r", p, static_cast<u32>(value)),                              \
                     RDMAKIT_ST(ORDER, "u64", "l", p, static_cast<u64>(value)))
#define RDMAKIT_UPDATE(OP, LETTER)                                                                           \
    RDMAKIT_BY_WIDTH(T old; RDMAKIT_ATOM(OP, LETTER "32", "=r", "r", old, p, value); return old,             \
                     T old; RDMAKIT_ATOM(OP, LETTER "64", "=l", "l", old, p, value); return old)
#else
namespace host {
// The twins. One OS thread runs a whole world, so where nothing is outside a plain access is atomic; what others may see of
// it, and when, is Explore's business: there every access is the memory model's (rdmakit/emu/explore). Under Fast, whose
// worlds may have an outside (rdmakit/emu/outside.py: devices, and ranks in other processes that share a heap), acquires,
// releases, fences and updates are the CPU's own; those of scope sys hold for devices on the bus, too.
constexpr cost::Kind fence_cost(Scope scope) {
    return scope == Scope::cta ? cost::kFenceCta : scope == Scope::gpu ? cost::kFenceGpu : cost::kFenceSys;
}
inline void order(cpu::Access how) {
    if (how.order == cpu::Order::plain || how.order == cpu::Order::relaxed) return;
    if (how.scope == static_cast<u32>(Scope::sys)) cpu::with_device();
    else __atomic_thread_fence(__ATOMIC_ACQ_REL);
}
constexpr cpu::Access access(cpu::Order order, Scope scope) { return {order, static_cast<u32>(scope)}; }

template <class T> T load(const T* p, cpu::Access how, [[maybe_unused]] Site site) {
    T value;
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    cpu::self().api->load(&cpu::self(), p, &value, sizeof(T), how, site);
#else
    if constexpr (std::is_scalar_v<T>) value = *static_cast<const volatile T*>(p);
    else value = *p;
    order(how);
#endif
    return value;
}
template <class T> void store(T* p, T value, cpu::Access how, [[maybe_unused]] Site site) {
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    cpu::self().api->store(&cpu::self(), p, &value, sizeof(T), how, site);
#else
    order(how);
    if constexpr (std::is_scalar_v<T>) *static_cast<volatile T*>(p) = value;
    else *p = value;
    cpu::written(p, sizeof(T));
#endif
}
template <class T, class Next> T update(T* p, Next next, [[maybe_unused]] cpu::Access how, [[maybe_unused]] Site site) {
    cpu::step(cost::of(cost::kAtomic));
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    T old;
    cpu::self().api->update_begin(&cpu::self(), p, &old, sizeof(T), how, site);
    const T fresh = static_cast<T>(next(old));
    cpu::self().api->update_end(&cpu::self(), p, &fresh, sizeof(T));
#else
    const cpu::Whole whole;
#if RDMAKIT_POLICY == RDMAKIT_FAST
    T old = *p;
    T fresh = static_cast<T>(next(old));
    while (!__atomic_compare_exchange(p, &old, &fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) fresh = static_cast<T>(next(old));
    cpu::written(p, sizeof(T));
#else
    const T old = *p;
    store(p, static_cast<T>(next(old)), how, site);
#endif
#endif
    return old;
}
}  // namespace host
#endif

// ---- loads ------------------------------------------------------------------------------------------------------
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T load_relaxed(const T* p, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_LOAD("relaxed")
#else
    cpu::step(cost::of(cost::kLoad));
    return host::load(p, host::access(cpu::Order::relaxed, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T load_acquire(const T* p, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_LOAD("acquire")
#else
    cpu::step(cost::of(cost::kLoad));
    return host::load(p, host::access(cpu::Order::acquire, S), site);
#endif
}

// ---- stores -----------------------------------------------------------------------------------------------------
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE void store_relaxed(T* p, T value, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_STORE("relaxed")
#else
    cpu::step(cost::of(cost::kStore));
    host::store(p, value, host::access(cpu::Order::relaxed, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE void store_release(T* p, T value, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_STORE("release")
#else
    cpu::step(cost::of(cost::kStore) + cost::of(host::fence_cost(S)));
    host::store(p, value, host::access(cpu::Order::release, S), site);
#endif
}
// One segment of a WQE: a plain (weak) store. Only the fence before the doorbell orders it.
RDMAKIT_DEVICE void store_segment(void* p, const Vec16& v, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "r"(v.w[0]),
                 "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3])
                 : "memory");
#else
    cpu::step(cost::of(cost::kStore));
    host::store(static_cast<Vec16*>(p), v, host::access(cpu::Order::plain, Scope::cta), site);
#endif
}

// ---- fences -----------------------------------------------------------------------------------------------------
// Orders everything before it against everything after it, for observers within the scope.
template <Scope S> RDMAKIT_DEVICE void fence([[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_BY_SCOPE(S, asm volatile("fence.acq_rel.cta;" ::: "memory"),
                     asm volatile("fence.acq_rel.gpu;" ::: "memory"), asm volatile("fence.acq_rel.sys;" ::: "memory"))
#else
    cpu::step(cost::of(host::fence_cost(S)));
#if RDMAKIT_POLICY == RDMAKIT_EXPLORE
    cpu::self().api->fence(&cpu::self(), host::access(cpu::Order::acq_rel, S), site);
#else
    host::order(host::access(cpu::Order::acq_rel, S));
#endif
#endif
}

// ---- read-modify-write ------------------------------------------------------------------------------------------
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T fetch_add(T* p, T value, [[maybe_unused]] Site site = Site::here()) {  // relaxed
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_ADD, "u")
#else
    return host::update(p, [value](T old) { return old + value; }, host::access(cpu::Order::relaxed, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T fetch_max(T* p, T value, [[maybe_unused]] Site site = Site::here()) {  // relaxed, unsigned
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_MAX, "u")
#else
    return host::update(p, [value](T old) { return larger(old, value); }, host::access(cpu::Order::relaxed, S), site);
#endif
}
// Adds 1, and from `last` on goes back to 0: a counter of those who arrive that needs no reset.
template <Scope S = Scope::gpu> RDMAKIT_DEVICE u32 fetch_wrap(u32* p, u32 last, [[maybe_unused]] Site site = Site::here()) {  // relaxed
#if RDMAKIT_GPU
    u32 old;
    RDMAKIT_ATOM(RDMAKIT_WRAP, "u32", "=r", "r", old, p, last);
    return old;
#else
    return host::update(p, [last](u32 old) { return old >= last ? 0u : old + 1; }, host::access(cpu::Order::relaxed, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T fetch_or(T* p, T value, [[maybe_unused]] Site site = Site::here()) {  // relaxed
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_OR, "b")
#else
    return host::update(p, [value](T old) { return old | value; }, host::access(cpu::Order::relaxed, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T exchange(T* p, T value, [[maybe_unused]] Site site = Site::here()) {  // acquire and release
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_SWAP, "b")
#else
    return host::update(p, [value](T) { return value; }, host::access(cpu::Order::acq_rel, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T exchange_acquire(T* p, T value, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_SWAP_ACQUIRE, "b")
#else
    return host::update(p, [value](T) { return value; }, host::access(cpu::Order::acquire, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T exchange_release(T* p, T value, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    RDMAKIT_UPDATE(RDMAKIT_SWAP_RELEASE, "b")
#else
    return host::update(p, [value](T) { return value; }, host::access(cpu::Order::release, S), site);
#endif
}
template <Scope S = Scope::gpu, class T> RDMAKIT_DEVICE T compare_swap(T* p, T expected, T desired, [[maybe_unused]] Site site = Site::here()) {  // relaxed
#if RDMAKIT_GPU
    T old;
    RDMAKIT_BY_WIDTH(RDMAKIT_CAS("b32", "=r", "r"), RDMAKIT_CAS("b64", "=l", "l"))
    return old;
#else
    return host::update(p, [=](T old) { return old == expected ? desired : old; },
                        host::access(cpu::Order::relaxed, S), site);
#endif
}

// ---- conditions -------------------------------------------------------------------------------------------------
// A condition that a protocol rests on: a bound, an epoch, an order. Explore can take each one out, to see that it is needed.
RDMAKIT_DEVICE bool holds(bool condition, [[maybe_unused]] Site site = Site::here()) {
#if !RDMAKIT_GPU && RDMAKIT_POLICY == RDMAKIT_EXPLORE
    const bool removed = cpu::self().api->removed(&cpu::self(), site);
    return condition || removed;
#else
    return condition;
#endif
}

// ---- the doorbell register --------------------------------------------------------------------------------------
// An 8-byte write into the NIC's register page: one transaction, never split, merged or dropped.
RDMAKIT_DEVICE void mmio_store(u64* reg, u64 value) {
#if RDMAKIT_GPU
    asm volatile("st.mmio.relaxed.sys.global.b64 [%0], %1;" ::"l"(__cvta_generic_to_global(reg)), "l"(value) : "memory");
#else
    cpu::step(cost::of(cost::kMmio));
    cpu::self().api->mmio64(&cpu::self(), reg, value);  // does not wait for plain stores: that is the fence's task
#endif
}

// ---- payload ----------------------------------------------------------------------------------------------------
// Streaming 16-byte accesses: read once, do not displace what L1 holds.
RDMAKIT_DEVICE Vec16 load_stream(const Vec16* p, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    Vec16 v;
    asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "l"(__cvta_generic_to_global(p)) : "memory");
    return v;
#else
    return host::load(p, host::access(cpu::Order::plain, Scope::cta), site);
#endif
}
RDMAKIT_DEVICE void store_stream(Vec16* p, const Vec16& v, [[maybe_unused]] Site site = Site::here()) {
#if RDMAKIT_GPU
    asm volatile("st.global.L1::no_allocate.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]) : "memory");
#else
    host::store(p, v, host::access(cpu::Order::plain, Scope::cta), site);
#endif
}

// ---- number formats -----------------------------------------------------------------------------------------------
// Two floats as BF16, or as E4M3 that saturates, in one instruction; nearest even. Elsewhere numbers.cuh does it by hand.
#if RDMAKIT_GPU && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define RDMAKIT_CONVERTS 1
RDMAKIT_DEVICE u32 convert_bf16x2(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
RDMAKIT_DEVICE u32 convert_e4m3x2(float low, float high) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}
#else
#define RDMAKIT_CONVERTS 0
#endif

// ---- nearness ---------------------------------------------------------------------------------------------------------
#if RDMAKIT_GPU
// Brings a line near without waiting for it.
RDMAKIT_DEVICE void touch(const void* p) {
    asm volatile("prefetch.global.L1 [%0];" ::"l"(__cvta_generic_to_global(p)) : "memory");
}
#endif

// ---- time -------------------------------------------------------------------------------------------------------
RDMAKIT_DEVICE u64 time_ns() {
#if RDMAKIT_GPU
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
#else
    return cpu::self().clock_ps / 1000;
#endif
}
// The SM's own cycle counter: finer than time_ns, of no meaning on another SM. 1.7 GHz [assumed] where time is virtual.
RDMAKIT_DEVICE u64 clock_cycles() {
#if RDMAKIT_GPU
    u64 t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
#else
    return cpu::self().clock_ps * 17 / 10'000;
#endif
}
// The time, once it is `due` or later. Where time stands still nobody waits.
RDMAKIT_DEVICE u64 time_reached(u64 due) {
    u64 now = time_ns();
#if RDMAKIT_GPU
    while (now < due) now = time_ns();
#else
    if (now < due) cpu::step((due - now) * cost::kNanosecond);
    now = larger(now, due);
#endif
    return now;
}
RDMAKIT_DEVICE void sleep_ns([[maybe_unused]] u32 ns) {
#if RDMAKIT_GPU
    asm volatile("nanosleep.u32 %0;" ::"r"(ns));
#else
    cpu::step(static_cast<u64>(ns) * cost::kNanosecond);
#endif
}

}  // namespace rdmakit
