// cqe_lines.cpp — what 64 CQEs cost to read that a thread has just written, on this core or on another: the floor of a poll.
//
// Medians in ns a CQE, the clock's two looks within: of tails alone; of tails with a row each, by three stores of 16 bytes or
// by one for each field. Asking for lines early is worth a try on other machines: PREFETCH is how many lines ahead.
//   g++ -O2 -std=c++17 -pthread -o cqe_lines benchmarks/probes/cqe_lines.cpp && ./cqe_lines
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#ifndef PREFETCH
#define PREFETCH 0
#endif
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using Pair = u64 __attribute__((vector_size(16)));

constexpr u32 kBatch = 64, kEntries = 256, kCqe = 64, kRow = 48, kRounds = 4000;
constexpr u64 kOwner = u64{1} << 56;

alignas(4096) static unsigned char ring[kEntries * kCqe];
alignas(64) static unsigned char rows[kBatch * kRow];
alignas(64) static u64 wr_ids[kEntries];
alignas(64) static std::atomic<u64> asked{0};
alignas(64) static std::atomic<u64> written{0};

static u64 now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return static_cast<u64>(t.tv_sec) * 1'000'000'000u + static_cast<u64>(t.tv_nsec);
}
static void pin(int core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) std::printf("core %d is not to be had\n", core);
}
static u64 owner_of(u64 at) { return at / kEntries & 1 ? 0 : kOwner; }  // the ring is zeroed
static unsigned char* entry_of(u64 at) { return ring + at % kEntries * kCqe; }

static void write_batch(u64 first) {
    for (u64 at = first; at < first + kBatch; ++at) {
        const u64 tail = owner_of(at) | (at & 0xffff) << 32 | 0x08;
        std::memset(entry_of(at), 0x5a, kCqe - 8);
        __atomic_store_n(reinterpret_cast<u64*>(entry_of(at) + kCqe - 8), tail, __ATOMIC_RELEASE);
    }
}

// How many are there, each handed to `take` with its tail.
template <class Take>
static u32 poll(u64 first, Take take) {
    u32 count = 0;
    for (; count < kBatch; ++count) {
        const u64 tail = __atomic_load_n(reinterpret_cast<const u64*>(entry_of(first + count) + kCqe - 8), __ATOMIC_RELAXED);
        if ((tail & kOwner) != owner_of(first + count)) break;
        if (PREFETCH) __builtin_prefetch(entry_of(first + count + PREFETCH));
        take(tail, rows + count * kRow);
    }
    return count;
}
static u64 id_of(u64 tail) { return wr_ids[tail >> 32 & (kEntries - 1)]; }

static void by_pairs(u64 tail, unsigned char* row) {
    const Pair begin = {id_of(tail), tail << 32}, rest = {0, 0};
    std::memcpy(row, &begin, 16);
    std::memcpy(row + 16, &rest, 16);
    std::memcpy(row + 32, &rest, 16);
}
static void by_fields(u64 tail, unsigned char* row) {
    const u64 id = id_of(tail);
    std::memcpy(row, &id, 8);
    for (u32 at = 8; at < kRow; at += 4) {
        const u32 field = at == 12 ? static_cast<u32>(tail) : 0;
        std::memcpy(row + at, &field, 4);
        asm volatile("" ::: "memory");  // as it is when fields are made one by one
    }
}

template <class Take>
static double median(bool other_core, Take take) {
    static u64 first = 0;
    std::vector<u64> spent;
    for (u32 round = 0; round < kRounds; ++round, first += kBatch) {
        if (other_core) {
            asked = first + kBatch;
            while (written != first + kBatch) {}
        } else {
            write_batch(first);
        }
        const u64 began = now();
        const u32 found = poll(first, take);
        spent.push_back(now() - began);
        if (found != kBatch) std::printf("%u of %u\n", found, kBatch);
    }
    std::nth_element(spent.begin(), spent.begin() + kRounds / 2, spent.end());
    return static_cast<double>(spent[kRounds / 2]) / kBatch;
}

int main() {
    std::atomic<bool> over{false};
    std::thread device([&over] {
        pin(1);
        for (u64 done = 0; !over;) {
            if (asked == done) continue;
            const u64 until = asked;
            write_batch(until - kBatch);
            written = done = until;
        }
    });
    pin(0);
    std::printf("%-12s%10s%18s%18s\n", "written by", "tails", "rows, 3 stores", "rows, by field");
    for (const bool other : {false, true, false, true}) {
        const double tails = median(other, [](u64, unsigned char*) {});
        const double pairs = median(other, by_pairs), fields = median(other, by_fields);
        std::printf("%-12s%10.2f%18.2f%18.2f\n", other ? "another core" : "this core", tails, pairs, fields);
    }
    over = true;
    device.join();
}
