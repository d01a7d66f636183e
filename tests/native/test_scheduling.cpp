// test_scheduling.cpp — what the scheduler leans on, against the obvious way of doing it: the calendar of what is due, and
// who watches which word.
#include <queue>
#include <random>

#include "../../rdmakit/emu/run/event_queue.hpp"
#include "../../rdmakit/emu/run/watch.hpp"
#include "rig.hpp"

namespace rdmakit::test {

namespace {
struct Later {
    bool operator()(const DueEvent& a, const DueEvent& b) const { return b.before(a); }
};
using Reference = std::priority_queue<DueEvent, std::vector<DueEvent>, Later>;

// How far ahead the next event is due: now, soon, within the calendar, at its end, far beyond it.
u64 ahead(std::mt19937_64& random) {
    constexpr u64 kSlot = 4096, kCalendar = 1024 * kSlot;
    switch (random() % 8) {
        case 0: return 0;
        case 1: return kCalendar + random() % (3 * kSlot) - kSlot;
        case 2: return random() % (100 * kCalendar);
        case 3: return random() % kCalendar;
        default: return random() % 50'000;
    }
}
}  // namespace

TEST(events_come_in_order) {
    for (u64 seed = 1; seed <= 40; ++seed) {
        std::mt19937_64 random(seed);
        EventQueue queue;
        Reference reference;
        u64 now = 0, order = 0;
        const u64 most = seed % 4 == 0 ? 3 : 4000;
        for (int step = 0; step < 20'000; ++step) {
            CHECK_EQ(queue.empty(), reference.empty());
            CHECK_EQ(queue.first_ps(), reference.empty() ? EventQueue::kNever : reference.top().when_ps);
            if (reference.empty() || (reference.size() < most && random() % 2 != 0)) {
                DueEvent event{};
                event.when_ps = now + ahead(random);
                event.order = random() % 2 != 0 ? DueEvent::kOfFibres | (random() >> 1) : order++;
                event.arg = random();
                queue.push(event);
                reference.push(event);
                continue;
            }
            const DueEvent event = queue.pop();
            CHECK_EQ(event.when_ps, reference.top().when_ps);
            CHECK_EQ(event.order, reference.top().order);
            CHECK_EQ(event.arg, reference.top().arg);
            reference.pop();
            now = event.when_ps;
            queue.look_ahead([&](const DueEvent& soon) { CHECK(soon.when_ps >= now); });
        }
    }
}

TEST(writes_wake_who_watches_the_word_and_the_longest_waiting_first) {
    constexpr u32 kWords = 64, kFibres = 40;
    for (u64 seed = 1; seed <= 40; ++seed) {
        std::mt19937_64 random(seed);
        alignas(64) u64 memory[kWords] = {};
        std::vector<Fibre> fibres(kFibres);
        std::vector<bool> parked(kFibres, false);
        WatchTable table;
        u64 parks = 0;
        const auto park = [&](u32 f) {
            Fibre& fibre = fibres[f];
            const u32 kind = random() % 8;
            const u32 bytes = kind == 0 ? 4 : kind == 1 ? 32 : 8;
            const u32 word = bytes > 8 ? random() % (kWords / 8) * 8 + random() % 5 : random() % kWords;
            const u8* const at = reinterpret_cast<const u8*>(memory + word) + (bytes == 4 ? random() % 2 * 4 : 0);
            u64 seen = 0;
            if (bytes > 8) seen = cpu::sum_of(memory + word, bytes / 8);
            else std::memcpy(&seen, at, bytes);
            fibre.watchers[0] = Watcher{at, seen, bytes, &fibre, nullptr, nullptr};
            fibre.parked_since = parks++;
            parked[f] = true;
            table.add(fibre.watchers[0]);
        };
        for (int step = 0; step < 3000; ++step) {
            const u32 f = random() % kFibres;
            if (!parked[f]) {
                park(f);
                continue;
            }
            const u64 begin = random() % (kWords * 8), length = 1 + random() % (random() % 4 == 0 ? kWords * 8 - begin : 8);
            const u64 end = std::min<u64>(begin + length, kWords * 8);
            auto* const bytes = reinterpret_cast<u8*>(memory);
            for (u64 i = begin; i < end; ++i) bytes[i] = static_cast<u8>(random() % 3);
            // By line, and in it by age.
            std::vector<std::pair<u64, Fibre*>> expected;
            for (u32 g = 0; g < kFibres; ++g) {
                const Watcher& w = fibres[g].watchers[0];
                const u64 at = static_cast<u64>(static_cast<const u8*>(w.address) - bytes);
                if (parked[g] && at < end && at + w.bytes > begin && WatchTable::changed(w)) {
                    expected.push_back({at / 64 * 1'000'000 + fibres[g].parked_since, &fibres[g]});
                }
            }
            std::sort(expected.begin(), expected.end());
            std::size_t next = 0;
            table.written(bytes + begin, end - begin, [&](Fibre* woken) {
                CHECK(next < expected.size() && expected[next].second == woken);
                ++next;
                table.remove(woken->watchers[0]);
                parked[static_cast<std::size_t>(woken - fibres.data())] = false;
            });
            CHECK_EQ(next, expected.size());
        }
        for (u32 f = 0; f < kFibres; ++f) {
            if (parked[f]) table.remove(fibres[f].watchers[0]);
        }
        u64 left = 0;
        for (u32 bucket = 0; bucket < cpu::kWatchBuckets; ++bucket) left += table.counters()[bucket];
        CHECK_EQ(left, 0);
    }
}

}  // namespace rdmakit::test
