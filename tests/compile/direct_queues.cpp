// Rings driven by rdmakit/verbs/native/direct_queues.hpp against a device that is another thread: it sees a doorbell record
// grow, decodes what it counts with the emulator's decoder, does the WRITE and completes it. What arrives has to be what was
// posted, in order, round the rings many times; a missing barrier shows on a CPU that lets stores pass each other.
//   direct_queues LAPS
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "native/direct_queues.hpp"
#include "rdmakit/cpu_dma.cuh"
#include "rdmakit/hca_cqe.cuh"
#include "rdmakit/hca_wqe.cuh"

using namespace rdmakit;
using namespace rdmakit::verbs;

namespace {

constexpr u32 kBlocks = 64, kLogBlocks = 6, kEntries = 32, kLogEntries = 5, kQpn = 0x1234, kBatch = 16;

alignas(64) u8 sq[kBlocks * kWqebb], ring[kEntries * kCqe];
alignas(64) u32 qp_record[2], cq_record[2];
alignas(64) u64 bell, source[kBatch], target[kBatch];
std::atomic<bool> stop{false};

#define CHECK(that)                                                          \
    do {                                                                     \
        if (!(that)) {                                                       \
            std::printf("line %d: %s is false\n", __LINE__, #that);          \
            std::_Exit(1);                                                   \
        }                                                                    \
    } while (0)

void device() {
    SendRing sends{sq, kLogBlocks};
    u64 done = 0, completed = 0;
    while (!stop) {
        const u64 producer = widen_index(done, swap_bytes(__atomic_load_n(&qp_record[kDbrecSend], __ATOMIC_RELAXED)));
        if (producer == done) std::this_thread::yield();
        cpu::from_device();
        while (done < producer) {
            const DecodedWqe wqe = decode_wqe(sends, done, producer - done, kQpn);
            CHECK(wqe.fault == Syndrome::none && wqe.opcode == static_cast<u32>(Opcode::write) && wqe.bytes == 8);
            const LocalSegment from = local_segment(sends, wqe, wqe.first_segment);
            if (from.inline_ds != 0) {
                u8 bytes[8];
                for (u32 i = 0; i < 8; ++i) bytes[i] = ring_ds(sends, wqe.bb, wqe.first_segment + (4 + i) / kDs)[(4 + i) % kDs];
                std::memcpy(reinterpret_cast<void*>(wqe.raddr), bytes, 8);
            } else {
                std::memcpy(reinterpret_cast<void*>(wqe.raddr), reinterpret_cast<const void*>(from.addr), 8);
            }
            done += wqe.bbs;
            if (wqe.index % 2 == 0) continue;  // every other one was posted unsignalled
            const Cqe cqe = requester_cqe(kQpn, wqe.opcode, wqe.index, 0, 0);
            u8* const entry = ring + cqe_slot(completed, kLogEntries, false) * kCqe;
            std::memcpy(entry, &cqe, kCqe - 1);
            cpu::to_device();
            const u8 op_own = reinterpret_cast<const u8*>(&cqe)[kCqe - 1];
            __atomic_store_n(entry + kCqe - 1, static_cast<u8>(op_own | cqe_owner(completed, kLogEntries, false)),
                             __ATOMIC_RELAXED);
            ++completed;
        }
    }
}

}  // namespace

int main(int, char** arguments) {
    const long laps = std::atol(arguments[1]);
    std::memset(ring, kCqeInitial, sizeof ring);
    Mlx5Cq cq_rings = {};
    cq_rings.buf = ring, cq_rings.dbrec = cq_record, cq_rings.cqe_cnt = kEntries, cq_rings.cqe_size = kCqe;
    Mlx5View rings = {};
    rings.dbrec = qp_record, rings.sq = sq, rings.sq_blocks = kBlocks, rings.sq_stride = kWqebb, rings.doorbell = &bell;
    DirectCq cq;
    DirectQp qp;
    CHECK(cq.begin(cq_rings) && qp.begin(rings, kQpn, 64, false));
    cq.join(kQpn, &qp);
    std::thread other(device);
    BatchSend rows[kBatch] = {};
    Wc found[kBatch];
    u64 next = 1;
    for (long lap = 0; lap < laps; ++lap) {
        for (u32 i = 0; i < kBatch; ++i, ++next) {
            source[i] = next * 0x9e3779b97f4a7c15ull;
            rows[i].wr_id = next;
            rows[i].flags = (i % 2 ? 2u : 0u) | (i % 3 ? 0u : 8u);
            rows[i].address = reinterpret_cast<u64>(source + i), rows[i].length = 8;
            rows[i].remote_address = reinterpret_cast<u64>(target + i);
        }
        const Posted posted = qp.send(rows, kBatch);
        CHECK(posted.error == 0 && posted.count == kBatch);
        CHECK(static_cast<u32>(bell >> 32) == swap_bytes((kQpn << 8) | 3u));  // a WRITE is three segments
        for (u32 got = 0; got < kBatch / 2;) {
            u32 stranger = 0;
            const int count = cq.poll(found, kBatch, &stranger);
            CHECK(count >= 0 && cq.failed == 0);
            for (int i = 0; i < count; ++i, ++got) CHECK(found[i].wr_id == next - kBatch + 1 + 2 * got);
            if (count == 0) std::this_thread::yield();
        }
        for (u32 i = 0; i < kBatch; ++i) CHECK(target[i] == source[i]);
    }
    CHECK(swap_bytes(cq_record[kDbrecSetCi]) == static_cast<u32>(laps * kBatch / 2 & 0xffffff));
    CHECK(qp.done == qp.posted);
    stop = true;
    other.join();
    std::printf("%ld batches\n", laps);
}
