// rdmakit/report.cuh — bounded waiting, and what is said when a wait ends badly: who waited for what.
// Layer: atom (leans on atom, warp). Every spin in the device code goes through Spin; none is endless.
#pragma once
#include "warp.cuh"

namespace rdmakit {

enum class Status : u32 {
    ok = 0, timeout = 1, completion_error = 2, aborted = 3, layout_mismatch = 4, bad_argument = 5,
    // What the receiver of a sequence lock refuses (lock.cuh).
    gap = 6, repeated = 7, stale_epoch = 8, wrong_fingerprint = 9, corrupt_payload = 10,
    // A peer has not answered, and who waited goes on without it: no report (a Subject's `late`, nvl_mask.cuh).
    absent = 11,
};

// A queue pair's rings and counters, as far as a report tells of them. The host fills one in for each queue pair of a report.
struct QueueView {
    u32 qpn;
    u32 port;               // physical, where its packets leave; 0: every one is down
    const u8* sq;
    const u64* reserved;    // basic blocks, as SqState counts them (queue.cuh)
    const u64* ready;
    const u64* rung;
    const u64* completed;
    const u8* cqes;
    const u64* consumer;
    u32 log_sq, log_cq, log_stride;
    u32 cq_flags;
};
constexpr u32 kViewCollapsed = 1u << 0;   // every CQE lands in entry 0
constexpr u32 kViewReceives = 1u << 1;    // the CQ is that of its receives, and says nothing of what it sends
// What of it is kept: whoever reads the report may be unable to reach the rings, and they go on changing.
struct QueueRecord {
    u32 qpn;                // 0: nothing is known of the queue pair
    u32 port;
    u64 reserved, ready, rung, completed;
    u64 consumer, arrived;  // CQEs that have been taken, and that are there
    u32 cq_flags, unused;
    u64 wqe[2][8];          // the last two basic blocks that were published
    u64 cqe[8];             // the last CQE that is there
};

// Written once by the first device thread that gives up, in memory that the host reads; zeroed by the host before a
// launch, but for queues and queue_count. state goes 0 → 1 (being written) → 2 (complete). Everybody who spins leaves as soon as it is not 0.
struct Report {
    u32 layout_version;
    u32 state;
    u32 status;             // Status
    u32 rank, block, warp;
    u32 qpn, peer, channel;
    u32 line;
    u32 syndrome, vendor_syndrome;
    u64 expected, seen;
    u64 index;              // ring index, ticket or slot, as `what` says
    u64 waited_ns;
    char what[64];
    char file[64];
    const QueueView* queues;
    u32 queue_count, reserved;
    QueueRecord queue;      // of the queue pair that `qpn` names
};

// What every waiting function needs: where to report and how long to try.
struct Watch {
    Report* report;
    u64 timeout_ns;         // 0: the runner's or the default bound
    u32 rank;
};
constexpr u64 kDefaultTimeoutNs = 10ull * 1000 * 1000 * 1000;
// How often a GPU's thread that waits looks at the report. It lies in the host's memory: thousands that look all the time
// would keep the bus busy for longer than they wait.
constexpr u64 kLookNs = 1000 * 1000;

// Whom a wait concerns, and what it means when its time is up.
struct Subject {
    const char* what;
    u64 expected;
    u32 qpn, peer, channel;
    Status late = Status::timeout;
};

RDMAKIT_DEVICE void copy_text(char (&to)[64], const char* from) {
    int n = 0;
    while (from[n] != '\0') ++n;
    const int start = n > 63 ? n - 63 : 0;  // the end of a path says more than its beginning
    int i = 0;
    for (; start + i < n; ++i) to[i] = from[start + i];
    to[i] = '\0';
}

// A look at memory that others may be writing: good enough to tell, not to decide by.
RDMAKIT_UNWATCHED RDMAKIT_NOINLINE u64 peek(const volatile u64* p) { return *p; }

RDMAKIT_NOINLINE void keep_block(u64 (&to)[8], const u8* ring, u64 slot, u32 log_stride) {
    const u8* const block = ring + (slot << log_stride) + (1ull << log_stride) - 64;  // a CQE64 ends its entry
    for (u32 i = 0; i < 8; ++i) to[i] = peek(reinterpret_cast<const u64*>(block) + i);
}
// As cqe_ready (wqe.cuh, a layer above) has it.
RDMAKIT_NOINLINE bool cqe_is_there(const QueueView& q, u64 index) {
    const u64 entry = (q.cq_flags & kViewCollapsed) != 0 ? 0 : index & ((1ull << q.log_cq) - 1);
    const u8* const tail = q.cqes + (entry << q.log_stride) + (1ull << q.log_stride) - 8;
    const u32 op_own = static_cast<u32>(peek(reinterpret_cast<const u64*>(tail)) >> 56);
    return (op_own >> 4) != 0xf && ((q.cq_flags & kViewCollapsed) != 0 || (op_own & 1) == ((index >> q.log_cq) & 1));
}
RDMAKIT_NOINLINE void keep_queue(QueueRecord& r, const QueueView& q) {
    const bool collapsed = (q.cq_flags & kViewCollapsed) != 0;
    const u64 ready = peek(q.ready), consumer = peek(q.consumer), entries = collapsed ? 1 : 1ull << q.log_cq;
    const u64 wqes = (1ull << q.log_sq) - 1;
    u64 arrived = consumer;
    while (arrived - consumer < entries && cqe_is_there(q, arrived)) ++arrived;
    r.qpn = q.qpn;
    r.port = q.port;
    r.reserved = peek(q.reserved);
    r.ready = ready;
    r.rung = peek(q.rung);
    r.completed = peek(q.completed);
    r.consumer = consumer;
    r.arrived = arrived;
    r.cq_flags = q.cq_flags;
    keep_block(r.wqe[0], q.sq, (ready - 2) & wqes, 6);
    keep_block(r.wqe[1], q.sq, (ready - 1) & wqes, 6);
    keep_block(r.cqe, q.cqes, (arrived - 1) & (entries - 1), q.log_stride);
}

RDMAKIT_NOINLINE Status fail(const Watch& watch, Status status, const Subject& who, u64 seen, u64 index, u64 waited_ns,
                             u32 syndrome, u32 vendor, Site site) {
    Report* r = watch.report;
    if (r == nullptr) return status;
    const bool first = compare_swap<Scope::sys>(&r->state, 0u, 1u) == 0;
    if (!holds(first)) return status;  // one report, of the first who gives up
    r->layout_version = RDMAKIT_LAYOUT_VERSION;
    r->status = static_cast<u32>(status);
    r->rank = watch.rank;
#if RDMAKIT_GPU
    r->block = blockIdx.x;
    r->warp = threadIdx.x / kWarpThreads;
#else
    r->block = cpu::self().block_index.x;
    r->warp = cpu::self().thread_index.x / kWarpThreads;
#endif
    r->qpn = who.qpn;
    r->peer = who.peer;
    r->channel = who.channel;
    r->expected = who.expected;
    r->seen = seen;
    r->index = index;
    r->waited_ns = waited_ns;
    r->syndrome = syndrome;
    r->vendor_syndrome = vendor;
    r->line = static_cast<u32>(site.line);
    copy_text(r->what, who.what);
    copy_text(r->file, site.file);
    for (u32 i = 0; i < r->queue_count; ++i) {
        if (r->queues[i].qpn == who.qpn) keep_queue(r->queue, r->queues[i]);
    }
    store_release<Scope::sys>(&r->state, 2u);
    return status;
}
RDMAKIT_DEVICE bool aborted(const Report* r) { return r != nullptr && load_relaxed<Scope::sys>(&r->state) != 0; }

RDMAKIT_DEVICE bool layout_matches(u32 layout_version, const Watch& watch, const char* what, Site site = Site::here()) {
    if (holds(layout_version == RDMAKIT_LAYOUT_VERSION)) return true;
    fail(watch, Status::layout_mismatch, Subject{what, RDMAKIT_LAYOUT_VERSION, 0, 0, 0}, layout_version, 0, 0, 0, 0, site);
    return false;
}

// A word that a spin looks at, and what it saw there.
template <class T> struct Seen {
    const T* address;
    T value;
};
// Several words of one 64-byte line, and what was read there.
struct SeenLine {
    const u64* words;
    const u64* values;
    u32 count;
};
#if !RDMAKIT_GPU
namespace host {
template <class T> cpu::Watched watched(const Seen<T>& seen) { return {seen.address, static_cast<u64>(seen.value), sizeof(T)}; }
inline cpu::Watched watched(const SeenLine& seen) {
    return {seen.words, cpu::sum_of(seen.values, seen.count), static_cast<u32>(sizeof(u64)) * seen.count};
}
}  // namespace host
#endif

// for (Spin spin(watch); !condition;) if (!spin.pause(who, site, Seen<u64>{&word, value})) return spin.status();
class Spin {
  public:
    explicit RDMAKIT_DEVICE Spin(const Watch& watch) : watch_(watch) {}

    // Not there yet. Returns false once the time is up (and reports it) or somebody else has given up.
    template <class... S> RDMAKIT_DEVICE bool pause(const Subject& who, Site site, const S&... seen) {
#if !RDMAKIT_GPU
        if (aborted(watch_.report)) return give_up(Status::aborted);
#endif
        const u64 bound = watch_.timeout_ns != 0 ? watch_.timeout_ns : kDefaultTimeoutNs;
#if RDMAKIT_GPU
        ((void)seen, ...);
        if ((++turns_ & 63u) != 0) return true;  // the clock is slow
        const u64 now = time_ns();
        if (since_ == 0) since_ = looked_ = now;
        if (now - looked_ >= kLookNs) {
            looked_ = now;
            if (aborted(watch_.report)) return give_up(Status::aborted);
        }
        if (now - since_ < bound) return true;
#else
        if (since_ == 0) since_ = time_ns() + 1;
        // Somebody else's report ends this wait, too. Without one, the first word is watched twice.
        const Report* const report = watch_.report;
        const cpu::Watched first_seen = first_of(host::watched(seen)...);
        const cpu::Watched list[] = {host::watched(seen)..., report != nullptr ? cpu::Watched{&report->state, 0, 4} : first_seen};
        const cpu::WaitNote note{who.what, who.expected, who.qpn, who.peer, who.channel, site, who.late == Status::absent};
        const u64 spent = time_ns() + 1 - since_;
        cpu::Thread& t = cpu::self();
        if (spent < bound && t.api->park(&t, list, static_cast<int>(sizeof...(S)) + 1, note, bound - spent)) return true;
#endif
        if (who.late == Status::absent) return give_up(who.late);
        const u64 end = time_ns();
        const Watch watch = watch_;  // of which a call may have the address: this object stays in registers
        fail(watch, who.late, who, first(seen...), 0, end > since_ ? end - since_ : 0, 0, 0, site);
        return give_up(who.late);
    }
    RDMAKIT_DEVICE Status status() const { return status_; }

  private:
    RDMAKIT_DEVICE bool give_up(Status s) {
        status_ = s;
        return false;
    }
#if !RDMAKIT_GPU
    template <class... Rest> static cpu::Watched first_of(const cpu::Watched& seen, const Rest&...) { return seen; }
#endif
    template <class T, class... Rest> static RDMAKIT_DEVICE u64 first(const Seen<T>& seen, const Rest&...) {
        return static_cast<u64>(seen.value);
    }
    template <class... Rest> static RDMAKIT_DEVICE u64 first(const SeenLine& seen, const Rest&...) { return seen.values[0]; }

    Watch watch_;
    Status status_ = Status::ok;
    u64 since_ = 0;
#if RDMAKIT_GPU
    u64 looked_ = 0;
#endif
    u32 turns_ = 0;
};

// Waits until done(*p) holds; returns the status and leaves the last value in *value. `site` is what a report names,
// `place` the call itself, by which exploration knows this wait.
template <Scope S = Scope::sys, class T, class Done>
RDMAKIT_DEVICE Status wait_until(const T* p, Done done, const Watch& watch, const Subject& who, T* value,
                                 Site site = Site::here(), Site place = Site::here()) {
    for (Spin spin(watch);;) {
        *value = load_acquire<S>(p);
        if (holds(done(*value), place)) return Status::ok;
        if (!spin.pause(who, site, Seen<T>{p, *value})) return spin.status();
    }
}

// For words that stay as they are once done(word) holds: of `count` of them, one for each kLanes, how many it holds for
// already, from the first on. Where one fibre is a warp they have been loaded then, at the time that it takes to wait for
// each; elsewhere none is, and the caller waits. That is all the same to whoever calls, and to everybody else.
template <class T, class Done> RDMAKIT_DEVICE u32 there_already(const T* words, u32 count, Done done) {
#if !RDMAKIT_GPU && RDMAKIT_POLICY == RDMAKIT_TIMED
    u32 n = 0;
    while (n < count && done(words[n * kLanes])) ++n;
    if (n != 0) cpu::self().api->steps(&cpu::self(), cost::of(cost::kLoad), n);
    return n;
#else
    (void)words, (void)count, (void)done;
    return 0;
#endif
}

// Lane 0 acts, all lanes learn how it went. The first meeting orders what the lanes did before its release, the second
// what they read after its acquire: a shuffle alone orders no memory.
template <class Act> RDMAKIT_DEVICE Status by_lane_zero(Act act) {
    warp_sync();
    u32 status = 0;
    if (lane_id() == 0) status = static_cast<u32>(act());
    warp_sync();
    return static_cast<Status>(warp_broadcast(status));
}

}  // namespace rdmakit
