// watch.hpp — who is parked on which address. A counter a 64-byte line answers "nobody" in one load, in device code; then
// lists by word, so that who waits for a line's other words costs nothing, and each leaves its list in one step.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "fibre.hpp"

namespace rdmakit::emu {

class WatchTable {
  public:
    WatchTable() : counters_(cpu::kWatchBuckets, 0), heads_(cpu::kWatchBuckets, nullptr) {}

    const u8* counters() const { return counters_.data(); }

    void add(Watcher& w) {
        Watcher*& head = heads_[list_of(w)];
        w.next = head;
        w.link = &head;
        if (head != nullptr) head->link = &w.next;
        head = &w;
        u8& count = counters_[cpu::watch_bucket(w.address)];
        if (count != 255) ++count;  // saturated: stays "somebody" for good, which is only slow
    }
    void remove(Watcher& w) {
        *w.link = w.next;
        if (w.next != nullptr) w.next->link = w.link;
        u8& count = counters_[cpu::watch_bucket(w.address)];
        if (count != 255) --count;
    }
    // Calls wake(fibre) for each fibre that watches a word in [p, p + bytes) whose value has changed: line by line, and
    // within a line who has waited longest is first.
    template <class Wake> void written(const void* p, u64 bytes, Wake wake) {
        const auto begin = reinterpret_cast<std::uintptr_t>(p);
        const auto end = begin + bytes;
        for (u64 line = begin / cpu::kWatchLine; line <= (end - 1) / cpu::kWatchLine; ++line) {
            if (counters_[cpu::watch_bucket_of_line(line)] == 0) continue;
            hit_.clear();
            const u64 first = std::max<u64>(begin, line * cpu::kWatchLine) / kWord;
            const u64 last = (std::min<u64>(end, (line + 1) * cpu::kWatchLine) - 1) / kWord;
            for (u64 word = first; word <= last; ++word) look(heads_[list_of_word(word)], line, begin, end);
            look(heads_[list_of_wide(line)], line, begin, end);
            if (hit_.size() > 1) {
                std::sort(hit_.begin(), hit_.end(), [](const Fibre* a, const Fibre* b) { return a->parked_since < b->parked_since; });
            }
            for (Fibre* fibre : hit_) wake(fibre);
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
    static constexpr u64 kWord = sizeof(u64);
    static u32 list_of_word(u64 word) { return cpu::watch_bucket_of_line(word); }
    // Of those that watch more than a word, by line. One place for both kinds: what a list holds is looked at again.
    static u32 list_of_wide(u64 line) { return cpu::watch_bucket_of_line(~line); }
    static u32 list_of(const Watcher& w) {
        const auto at = reinterpret_cast<std::uintptr_t>(w.address);
        return at % kWord + w.bytes <= kWord ? list_of_word(at / kWord) : list_of_wide(at / cpu::kWatchLine);
    }
    void look(const Watcher* w, u64 line, std::uintptr_t begin, std::uintptr_t end) {
        for (; w != nullptr; w = w->next) {
            const auto at = reinterpret_cast<std::uintptr_t>(w->address);
            if (at / cpu::kWatchLine == line && at + w->bytes > begin && at < end && changed(*w)) hit_.push_back(w->fibre);
        }
    }

    std::vector<u8> counters_;
    std::vector<Watcher*> heads_;
    std::vector<Fibre*> hit_;
};

}  // namespace rdmakit::emu
