// late_stores.hpp — Explore: stores that their fibre has made and nobody else has seen yet.
// Per fibre and in any order across addresses, in order for one address (coherence). A fence, a release or chance
// makes them visible. This models missing fences; stale loads are the business of a fuller memory model.
#pragma once
#include <cstring>
#include <vector>

#include "fibre.hpp"

namespace rdmakit::emu {

class LateStores {
  public:
    struct Entry {
        Fibre* fibre;
        u64 address;
        u32 bytes;
        u8 data[16];
    };

    void push(Fibre* fibre, void* address, const void* data, u32 bytes) {
        Entry e{fibre, reinterpret_cast<std::uintptr_t>(address), bytes, {}};
        std::memcpy(e.data, data, bytes);
        entries_.push_back(e);
    }
    bool empty() const { return entries_.empty(); }
    std::size_t size() const { return entries_.size(); }

    // What `fibre` itself reads at address: memory, overlaid with its own pending stores, oldest first.
    void read(const Fibre* fibre, const void* address, void* out, u32 bytes) const {
        std::memcpy(out, address, bytes);
        const u64 at = reinterpret_cast<std::uintptr_t>(address);
        for (const Entry& e : entries_) {
            if (e.fibre != fibre || e.address >= at + bytes || at >= e.address + e.bytes) continue;
            const u64 begin = e.address > at ? e.address : at;
            const u64 end = e.address + e.bytes < at + bytes ? e.address + e.bytes : at + bytes;
            std::memcpy(static_cast<u8*>(out) + (begin - at), e.data + (begin - e.address), end - begin);
        }
    }
    // Makes the stores of `fibre` visible that touch [p, p + bytes); p == nullptr: all of them.
    template <class Written> void drain(const Fibre* fibre, const void* p, u32 bytes, Written written) {
        const u64 at = reinterpret_cast<std::uintptr_t>(p);
        std::size_t kept = 0;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            const Entry e = entries_[i];
            const bool mine = e.fibre == fibre && (p == nullptr || (e.address < at + bytes && at < e.address + e.bytes));
            if (mine) land(e, written);
            else entries_[kept++] = e;
        }
        entries_.resize(kept);
    }
    // Makes one store visible, chosen by `choice`, or an older one of the same fibre that overlaps it.
    template <class Written> void drain_one(u64 choice, Written written) {
        std::size_t pick = static_cast<std::size_t>(choice % entries_.size());
        for (std::size_t i = 0; i < pick; ++i) {
            const Entry &a = entries_[i], &b = entries_[pick];
            if (a.fibre == b.fibre && a.address < b.address + b.bytes && b.address < a.address + a.bytes) pick = i;
        }
        const Entry e = entries_[pick];
        entries_.erase(entries_.begin() + static_cast<std::ptrdiff_t>(pick));
        land(e, written);
    }

  private:
    template <class Written> static void land(const Entry& e, Written written) {
        void* const to = reinterpret_cast<void*>(static_cast<std::uintptr_t>(e.address));
        std::memcpy(to, e.data, e.bytes);
        written(to, e.bytes);
    }
    std::vector<Entry> entries_;
};

}  // namespace rdmakit::emu
