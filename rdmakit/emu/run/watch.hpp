// watch.hpp — who is parked on which address. A counter a 64-byte line answers "nobody" in one load, in device code.
#pragma once
#include <array>
#include <cstring>
#include <vector>

#include "fibre.hpp"

namespace rdmakit::emu {

class WatchTable {
  public:
    WatchTable() : counters_(cpu::kWatchBuckets, 0), heads_(cpu::kWatchBuckets, nullptr) {}

    const u8* counters() const { return counters_.data(); }

    void add(Watcher& w) {
        const u32 bucket = cpu::watch_bucket(w.address);
        w.next = heads_[bucket];
        heads_[bucket] = &w;
        if (counters_[bucket] != 255) ++counters_[bucket];  // saturated: stays "somebody" for good, which is only slow
    }
    void remove(Watcher& w) {
        const u32 bucket = cpu::watch_bucket(w.address);
        for (Watcher** link = &heads_[bucket]; *link != nullptr; link = &(*link)->next) {
            if (*link != &w) continue;
            *link = w.next;
            if (counters_[bucket] != 255) --counters_[bucket];
            return;
        }
    }
    // Calls wake(fibre) for each fibre that watches a word in [p, p + bytes) whose value has changed.
    template <class Wake> void written(const void* p, u64 bytes, Wake wake) {
        const auto begin = reinterpret_cast<std::uintptr_t>(p);
        const auto end = begin + bytes;
        const u64 first = begin / cpu::kWatchLine, last = (end - 1) / cpu::kWatchLine;
        for (u64 line = first; line <= last; ++line) {
            const u32 bucket = cpu::watch_bucket_of_line(line);
            if (counters_[bucket] == 0) continue;
            hit_.clear();
            for (Watcher* w = heads_[bucket]; w != nullptr; w = w->next) {
                const auto at = reinterpret_cast<std::uintptr_t>(w->address);
                if (at / cpu::kWatchLine == line && at + w->bytes > begin && at < end && changed(*w)) hit_.push_back(w->fibre);
            }
            for (std::size_t k = hit_.size(); k-- > 0;) wake(hit_[k]);  // oldest first
        }
    }
    static bool changed(const Watcher& w) { return differs(w.address, w.bytes, w.seen); }
    static bool differs(const void* address, u32 bytes, u64 seen) {
        if (bytes > sizeof(u64)) return cpu::sum_of(static_cast<const u64*>(address), bytes / sizeof(u64)) != seen;
        u64 now = 0;
        std::memcpy(&now, address, bytes);
        return now != seen;
    }

  private:
    std::vector<u8> counters_;
    std::vector<Watcher*> heads_;
    std::vector<Fibre*> hit_;
};

}  // namespace rdmakit::emu
