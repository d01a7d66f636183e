// rdmakit/report.cuh — bounded waiting, and what is said when a wait ends badly: who waited for what.
// Layer: atom (leans on atom, warp). Every spin in the device code goes through Spin; none is endless.
#pragma once
#include "warp.cuh"

namespace rdmakit {

enum class Status : u32 {
    ok = 0, timeout = 1, completion_error = 2, aborted = 3, layout_mismatch = 4, bad_argument = 5,
    // What the receiver of a sequence lock refuses (lock.cuh).
    gap = 6, repeated = 7, stale_epoch = 8, wrong_fingerprint = 9, corrupt_payload = 10,
};

// Written once by the first device thread that gives up, in memory that the host reads; zeroed by the host before a
// launch. state goes 0 → 1 (being written) → 2 (complete). Everybody who spins leaves as soon as it is not 0.
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
};

// What every waiting function needs: where to report and how long to try.
struct Watch {
    Report* report;
    u64 timeout_ns;         // 0: the runner's or the default bound
    u32 rank;
};
constexpr u64 kDefaultTimeoutNs = 10ull * 1000 * 1000 * 1000;

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
        if ((++turns_ & 63u) != 0) return true;  // the clock is slow, and the report lies in the host's memory
        if (aborted(watch_.report)) return give_up(Status::aborted);
        const u64 now = time_ns();
        if (since_ == 0) since_ = now;
        if (now - since_ < bound) return true;
#else
        if (since_ == 0) since_ = time_ns() + 1;
        const cpu::Watched list[] = {host::watched(seen)...};
        const cpu::WaitNote note{who.what, who.expected, who.qpn, who.peer, who.channel, site};
        const u64 spent = time_ns() + 1 - since_;
        cpu::Thread& t = cpu::self();
        if (spent < bound && t.api->park(&t, list, static_cast<int>(sizeof...(S)), note, bound - spent)) return true;
#endif
        const u64 end = time_ns();
        fail(watch_, who.late, who, first(seen...), 0, end > since_ ? end - since_ : 0, 0, 0, site);
        return give_up(who.late);
    }
    RDMAKIT_DEVICE Status status() const { return status_; }

  private:
    RDMAKIT_DEVICE bool give_up(Status s) {
        status_ = s;
        return false;
    }
    template <class T, class... Rest> static RDMAKIT_DEVICE u64 first(const Seen<T>& seen, const Rest&...) {
        return static_cast<u64>(seen.value);
    }
    template <class... Rest> static RDMAKIT_DEVICE u64 first(const SeenLine& seen, const Rest&...) { return seen.values[0]; }

    Watch watch_;
    Status status_ = Status::ok;
    u64 since_ = 0;
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
