// event_queue.hpp — what is due in virtual time, the earliest first. A calendar: slots of a few nanoseconds, each sorted
// once when its turn comes, so that an event costs about the same however many others wait. Leans on config.cuh.
#pragma once
#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

// A call, or a fibre that may go on. Equal times: in the order of `order`, which is different for each.
struct DueEvent {
    static constexpr u64 kOfFibres = 1ull << 63;
    u64 when_ps, order;  // order: with kOfFibres if it is a fibre's
    void* object;
    union {
        void (*call)(void*, u64);
        const void* stack;  // of the fibre: where it will go on, or nearly
    };
    u64 arg;  // of the call; or the fibre's number, so that a killed one's place is not taken by the next
    bool is_fibre() const { return order >= kOfFibres; }
    bool before(const DueEvent& other) const { return when_ps != other.when_ps ? when_ps < other.when_ps : order < other.order; }
};

class EventQueue {
  public:
    static constexpr u64 kNever = std::numeric_limits<u64>::max();

    bool empty() const { return first_ps_ == kNever; }
    u64 first_ps() const { return first_ps_; }  // kNever: there is none

    void push(const DueEvent& event) {
        if (event.when_ps < first_ps_) first_ps_ = event.when_ps;
        const u64 slot = event.when_ps >> kSlotShift;
        if (slot <= slot_) {
            add(late_, event);
        } else if (slot - slot_ <= kSlots) {
            put(slot, event);
        } else {
            add(far_, event);
        }
    }
    // There has to be one.
    DueEvent pop() {
        if (exhausted()) turn();
        const bool in_turn = next_ < sorted_.size() && (late_.empty() || sorted_[next_].before(late_.front()));
        const DueEvent event = in_turn ? sorted_[next_++] : take(late_);
        first_ps_ = find_first();
        return event;
    }
    // Calls visit(event) for those that come soon, each about once: for whoever wants to have their memory at hand.
    template <class Visit> void look_ahead(Visit visit) {
        for (const std::size_t end = std::min(next_ + kAhead, sorted_.size()); shown_ < end; ++shown_) visit(sorted_[shown_]);
        if (!late_.empty()) visit(late_.front());
    }

  private:
    static constexpr u32 kSlotShift = 12;  // 4 ns
    static constexpr u64 kSlots = 1024;
    static constexpr std::size_t kAhead = 4;
    static constexpr u32 kNone = ~0u;
    using Heap = std::vector<DueEvent>;
    struct Listed {
        DueEvent event;
        u32 next;
    };
    struct Later {
        bool operator()(const DueEvent& a, const DueEvent& b) const { return b.before(a); }
    };
    static void add(Heap& heap, const DueEvent& event) {
        heap.push_back(event);
        std::push_heap(heap.begin(), heap.end(), Later{});
    }
    static DueEvent take(Heap& heap) {
        std::pop_heap(heap.begin(), heap.end(), Later{});
        const DueEvent event = heap.back();
        heap.pop_back();
        return event;
    }

    bool exhausted() const { return next_ == sorted_.size() && late_.empty(); }
    void put(u64 slot, const DueEvent& event) {
        const u64 at = slot % kSlots;
        if (free_ == kNone) {
            free_ = static_cast<u32>(pool_.size());
            pool_.push_back({{}, kNone});
        }
        const u32 taken = free_;
        free_ = pool_[taken].next;
        const bool more = occupied(at);
        pool_[taken] = {event, more ? heads_[at] : kNone};
        heads_[at] = taken;
        firsts_ps_[at] = more ? std::min(firsts_ps_[at], event.when_ps) : event.when_ps;
        occupied_[at / 64] |= 1ull << at % 64;
    }
    bool occupied(u64 at) const { return (occupied_[at / 64] >> at % 64 & 1) != 0; }
    // The next slot after slot_ that holds something; 0: none does.
    u64 occupied_after() const {
        for (u64 ahead = 1; ahead <= kSlots;) {
            const u64 at = (slot_ + ahead) % kSlots;
            const u64 word = occupied_[at / 64] >> at % 64;
            if (word != 0) return slot_ + ahead + static_cast<u64>(__builtin_ctzll(word));
            ahead += 64 - at % 64;
        }
        return 0;
    }
    // Goes on to the next slot that holds something. What is far comes after all that the calendar holds.
    void turn() {
        const u64 slot = occupied_after();
        slot_ = slot != 0 ? slot : far_.front().when_ps >> kSlotShift;
        sorted_.clear();
        next_ = shown_ = 0;
        const u64 at = slot_ % kSlots;
        for (u32 i = occupied(at) ? heads_[at] : kNone; i != kNone;) {
            sorted_.push_back(pool_[i].event);
            const u32 next = pool_[i].next;
            pool_[i].next = free_;
            free_ = i;
            i = next;
        }
        occupied_[at / 64] &= ~(1ull << at % 64);
        while (!far_.empty() && (far_.front().when_ps >> kSlotShift) - slot_ <= kSlots) {
            const DueEvent event = take(far_);
            const u64 due = event.when_ps >> kSlotShift;
            if (due == slot_) sorted_.push_back(event);
            else put(due, event);
        }
        std::sort(sorted_.begin(), sorted_.end(), [](const DueEvent& a, const DueEvent& b) { return a.before(b); });
    }
    u64 find_first() const {
        if (exhausted()) {
            const u64 slot = occupied_after();
            return slot != 0 ? firsts_ps_[slot % kSlots] : far_.empty() ? kNever : far_.front().when_ps;
        }
        const u64 in_turn = next_ < sorted_.size() ? sorted_[next_].when_ps : kNever;
        return late_.empty() ? in_turn : std::min(in_turn, late_.front().when_ps);
    }

    Heap sorted_;  // of the slot whose turn it is, in order; from next_ on they are still to come
    std::size_t next_ = 0, shown_ = 0;
    Heap late_;    // of that slot or before, and came when it was sorted already
    Heap far_;     // beyond the calendar
    // The calendar, of slots after slot_: lists in one pool, by slot modulo kSlots. Fibres push on their own small stacks:
    // no allocation but the pool's.
    std::vector<Listed> pool_;
    u32 free_ = kNone;
    std::array<u32, kSlots> heads_;       // of those that are occupied,
    std::array<u64, kSlots> firsts_ps_;   // and when the first of each is due
    std::array<u64, kSlots / 64> occupied_{};
    u64 slot_ = 0, first_ps_ = kNever;
};

}  // namespace rdmakit::emu
