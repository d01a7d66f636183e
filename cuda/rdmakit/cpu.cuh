// rdmakit/cpu.cuh — the CPU runner's seam: what device code sees of the fibre that runs it.
// Layer: beside config, only under g++. The runner itself lives in rdmakit/emu and fills in RunnerApi; device code
// and runner share nothing else, so a kernel's shared object links against nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace rdmakit::cpu {

struct Dim3 {
    u32 x, y, z;
};

// One address that a parked fibre waits on, with the value that it saw there: like a futex, parking is refused when
// the value has changed meanwhile, so a wake-up between the look and the sleep cannot be lost.
struct Watched {
    const void* address;
    u64 seen;   // the value; of more than one word, their sum_of
    u32 bytes;  // 4, 8, or more words of 8 in one line
};
// One number for several words: equal numbers for different words are possible, and no more likely than by chance.
inline u64 sum_of(const u64* words, u32 count) {
    u64 sum = 0xcbf29ce484222325ull;
    for (u32 i = 0; i < count; ++i) sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15ull, sum ^= sum >> 29;
    return sum;
}

// What a report says of a wait: the field's words, not ours.
struct WaitNote {
    const char* what;   // "room in the send queue", "credit from the peer", …
    u64 expected;
    u32 qpn, peer, channel;
    Site site;
    bool may_end = false;  // without what it waits for: when nobody else can go on, its time is up, and that is no failure
};

// Order and scope of an access, as explore/weak_memory.hpp numbers them.
enum class Order : u32 { plain = 0, relaxed = 1, acquire = 2, release = 3, acq_rel = 4 };
struct Access {
    Order order;
    u32 scope;
};
enum RawAccess : u32 { kRawRead = 0, kRawWrite = 1, kRawVolatileRead = 2, kRawVolatileWrite = 3 };

// What a timeline shows of device code (rdmakit/emu/run/trace.hpp).
enum Mark : u32 { kMarkReserved = 0, kMarkPublished = 1, kMarkRecord = 2, kMarkDoorbell = 3, kMarkSeen = 4 };

// A bulk copy as it is issued (atom_bulk.cuh). `barrier` null: a store, of the group that is open.
struct BulkCopy {
    void* to;
    const void* from;
    u32 bytes;
    u64* barrier;
};

// The word of an mbarrier as this runner keeps it; a GPU's is opaque (PTX ISA, "mbarrier": "Contents of the mbarrier
// object"). A phase is complete when no arrival and no byte is due any more; both are then counted anew.
struct MbarrierWord {
    static constexpr u32 kCountBits = 20;
    static constexpr u64 kCountMask = (1ull << kCountBits) - 1;
    u32 parity;       // of the phase that is under way
    u32 due, of;      // arrivals due in this phase, and in each
    i32 bytes;        // transaction bytes due: below 0 when they come before they are expected

    static MbarrierWord from(u64 word) {
        return {static_cast<u32>(word & 1), static_cast<u32>((word >> 1) & kCountMask),
                static_cast<u32>((word >> (1 + kCountBits)) & kCountMask),
                static_cast<i32>(static_cast<i64>(word) >> (1 + 2 * kCountBits))};
    }
    u64 word() const {
        return (static_cast<u64>(static_cast<i64>(bytes)) << (1 + 2 * kCountBits)) |
               (static_cast<u64>(of) << (1 + kCountBits)) | (static_cast<u64>(due) << 1) | parity;
    }
    MbarrierWord after(u32 arrivals, i32 expected) const {
        MbarrierWord next{parity, due - arrivals, of, bytes + expected};
        if (next.due != 0 || next.bytes != 0) return next;
        return {parity ^ 1u, of, of, 0};
    }
};

struct Thread;

struct RunnerApi {
    void (*yield)(Thread*);
    bool (*park)(Thread*, const Watched*, int count, const WaitNote&, u64 timeout_ns);  // false: timed out
    void (*written)(Thread*, const void*, u64 bytes);
    void (*mmio64)(Thread*, void*, u64);
    void (*mmio32)(Thread*, void*, u32);
    void (*barrier)(Thread*, Site);
    const u64* (*gather)(Thread*, u32 mask, u64 value, Site);  // one value from each lane of mask, by lane number
    void (*gathered)(Thread*);                                 // done reading them
    void (*trap)(Thread*, const char* why, Site);              // ends the launch with an error; does not return
    void* (*shared)(Thread*, const char* name, u64 bytes, u64 alignment);  // each name, by its address, is a variable
    // Explore only: every access goes through the memory model, which decides what is seen.
    void (*load)(Thread*, const void*, void* out, u32 bytes, Access, Site);
    void (*store)(Thread*, void*, const void* value, u32 bytes, Access, Site);
    void (*update_begin)(Thread*, void*, void* old, u32 bytes, Access, Site);
    void (*update_end)(Thread*, void*, const void* fresh, u32 bytes);
    void (*fence)(Thread*, Access, Site);
    bool (*removed)(Thread*, Site);  // is the condition at this place taken out, to see whether it is needed?
    // Accesses that the compiler reports (cpu_watch.cuh), before they happen: size, RawAccess, and by which instruction.
    void (*raw)(Thread*, void*, u32 bytes, u32 kind, const void* pc);
    // Foreign kernels (cpu_preempt.cuh): the budget is used up in code that waits for nobody, at instruction pc.
    void (*preempt)(Thread*, const void* pc);
    // Bulk copies (atom_bulk.cuh): who copies, and when, is the runner's affair.
    void (*bulk_copy)(Thread*, const BulkCopy&, Site);
    void (*bulk_commit)(Thread*);
    void (*bulk_wait)(Thread*, u32 pending, bool read, Site);  // until no more than so many groups are (being read) under way
    void (*proxy_fence)(Thread*, Site);                        // Explore only
    void (*mark)(Thread*, u32 kind, u32 qpn, u64 index);       // Timed: for a timeline
    // Timed: a warp has copied to memory that may be another GPU's, or from it (`pull`); it began at began_ps.
    void (*copied)(Thread*, const void* there, u64 bytes, u64 began_ps, bool pull);
    // Timed: `count` times step(cost_ps), one after the other, between which this fibre neither sees nor does anything.
    void (*steps)(Thread*, u64 cost_ps, u32 count);
};

// The part of a fibre that device code sees. It lies at the top of the fibre's stack, so it is found from the stack
// pointer, in every shared object, without thread-local storage.
struct Thread {
    Dim3 thread_index, block_index, block_size, grid_size;
    const RunnerApi* api;
    const u8* watched;     // kWatchBuckets counters: is anybody parked on this line?
    u64 clock_ps;          // Timed: this fibre's virtual time
    u64 horizon_ps;        // Timed: the next event elsewhere; beyond it this fibre must let others go first
    i32 budget;            // Fast, Explore: primitives until the scheduler looks again
    u32 rank;
    u32 lane;
    u32 abreast_log;       // Timed: a fibre that stands for 2^so many lanes does their steps at once (warp.cuh, Abreast)
    const u64* costs;      // Timed: by cost::Kind
    u64 copy_limit;        // larger pieces of payload are not moved: kControlBytes in a world of control traffic only
    u8* dynamic_shared;
    u32 dynamic_shared_bytes;
};

constexpr u64 kFibreBytes = 64 * 1024;     // stack and Thread, aligned to its size
constexpr u64 kThreadReserve = 1024;       // of which the top belongs to Thread and the runner
constexpr u32 kWatchBuckets = 1u << 16;
constexpr u32 kWatchLine = 64;
constexpr u64 kControlBytes = 4096;        // metadata comes in smaller pieces than this, payload that matters in larger
static_assert(sizeof(Thread) <= kThreadReserve / 2, "the runner keeps its own part behind Thread");

inline __attribute__((always_inline)) Thread& self() {
    const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
    return *reinterpret_cast<Thread*>((here | (kFibreBytes - 1)) + 1 - kThreadReserve);
}
// Lines side by side have buckets side by side; the same place in each rank's heap, which begin at round addresses, has not
// the same bucket.
inline u32 watch_bucket_of_line(u64 line) {
    return static_cast<u32>(line + (line / kWatchBuckets) * 40503) & (kWatchBuckets - 1);
}
inline u32 watch_bucket(const void* p) { return watch_bucket_of_line(reinterpret_cast<std::uintptr_t>(p) / kWatchLine); }

// Every primitive passes here once: Fast counts, Timed charges. The time is passed in picoseconds.
inline __attribute__((always_inline)) void step([[maybe_unused]] u64 cost_ps) {
    Thread& t = self();
#if RDMAKIT_POLICY == RDMAKIT_TIMED
    t.clock_ps += cost_ps >> t.abreast_log;
    if (t.clock_ps > t.horizon_ps) t.api->yield(&t);
#else
    if (--t.budget <= 0) t.api->yield(&t);
#endif
}
// Tells a timeline, if there is one; nothing elsewhere.
inline __attribute__((always_inline)) void mark([[maybe_unused]] u32 kind, [[maybe_unused]] u32 qpn, [[maybe_unused]] u64 index) {
#if RDMAKIT_POLICY == RDMAKIT_TIMED
    Thread& t = self();
    t.api->mark(&t, kind, qpn, index);
#endif
}
// A read-modify-write is whole: code that is preempted between any two basic blocks is not while this lives.
struct Whole {
#if defined(RDMAKIT_PREEMPT)
    // Nothing of the clock or the budget may stay behind on the stack: endless loops are known by their stacks.
    static constexpr i32 kCredit = 1 << 24;
    Whole() {
        self().budget += kCredit;
        self().horizon_ps = ~0ull;
    }
    ~Whole() {
        self().budget -= kCredit;
        self().horizon_ps = 0;  // the scheduler says anew
    }
    Whole(const Whole&) = delete;
    Whole& operator=(const Whole&) = delete;
#else
    Whole() {}  // not trivial, lest its unused instances be warned of
#endif
};
inline __attribute__((always_inline)) void written(const void* p, u64 bytes) {
    Thread& t = self();
    if (bytes <= kWatchLine) {  // the common case: a word or a segment, inside one line
        if (t.watched[watch_bucket(p)] != 0) t.api->written(&t, p, bytes);
        return;
    }
    t.api->written(&t, p, bytes);
}

// ---- launching: a uniform entry point for any kernel signature ---------------------------------------------------
template <class... A, std::size_t... I>
void call_kernel(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(arguments[I])...);
}
template <class... A> void call_kernel(void (*kernel)(A...), void** arguments) {
    call_kernel(kernel, arguments, std::index_sequence_for<A...>{});
}

enum ArgumentKind : u32 { kPointer = 0, kInteger = 1, kFloat = 2, kStruct = 3 };
struct ArgumentType {
    u32 kind, bytes;
};
template <class T> constexpr ArgumentType argument_type() {
    using V = std::remove_cv_t<T>;
    return {std::is_pointer_v<V> ? kPointer : std::is_integral_v<V> || std::is_enum_v<V> ? kInteger
            : std::is_floating_point_v<V> ? kFloat : kStruct, static_cast<u32>(sizeof(V))};
}
struct KernelEntry {
    const char* name;
    void (*call)(void**);
    const ArgumentType* arguments;
    u32 argument_count, policy, lanes, layout_version;
};
template <class... A> struct ArgumentList {
    static constexpr ArgumentType types[sizeof...(A) + 1] = {argument_type<A>()..., {0, 0}};
    static constexpr u32 count = sizeof...(A);
};
template <class... A> constexpr ArgumentList<A...> arguments_of(void (*)(A...)) { return {}; }

}  // namespace rdmakit::cpu

// The compile step appends one of these for each kernel of a source file.
#define RDMAKIT_EXPORT(kernel)                                                                                      \
    extern "C" __attribute__((visibility("default"))) const ::rdmakit::cpu::KernelEntry* rdmakit_entry_##kernel() { \
        using List = decltype(::rdmakit::cpu::arguments_of(&kernel));                                               \
        static const ::rdmakit::cpu::KernelEntry entry = {                                                          \
            #kernel, [](void** a) { ::rdmakit::cpu::call_kernel(&kernel, a); }, List::types, List::count,           \
            RDMAKIT_POLICY, RDMAKIT_LANES, RDMAKIT_LAYOUT_VERSION};                                                 \
        return &entry;                                                                                              \
    }
