// hca_engine.cpp — how fast the emulated HCA executes 8-byte signalled WRITEs, in isolation and without a clock:
// 32 WQEs a doorbell, every CQE polled, every sum checked. Prints one line.
//
//   g++ -std=c++17 -O2 -I cuda benchmarks/hca_engine.cpp rdmakit/emu/hca/*.cpp -o hca_engine && ./hca_engine [WQEs]
#include <chrono>

#include "../tests/native/rig.hpp"

using namespace rdmakit;
using namespace rdmakit::test;

namespace {
// Only the doorbell and the execution are timed; posting and polling are not.
struct Figures {
    double seconds;
    u64 sum;
};

Figures run(u64 total, u32 batch, u32 bytes) {
    RigOptions options;
    options.qp.log_sq_bbs = 8;
    options.cq.log_entries = 8;
    Rig rig(options);
    Sender& s = rig.a.sender;
    u64 polled = 0, sum = 0;
    double seconds = 0;
    for (u64 done = 0; done < total; done += batch) {
        for (u32 i = 0; i < batch; ++i) {
            rig.a.word(i * 8) = done + i;
            const Vec16 wqe[3] = {ctrl_segment(Opcode::write, 0, static_cast<u32>(s.next), s.info.qpn, 3, kCqUpdate),
                                  rig.remote(i * bytes), rig.local(i * 8, bytes)};
            std::memcpy(s.bb(s.next), wqe, sizeof wqe);
            ++s.next;
        }
        s.write_record();
        const auto start = std::chrono::steady_clock::now();
        s.ring_register();
        rig.world.run();
        seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        for (u32 i = 0; i < batch; ++i) {
            polled += rig.a.send_cq.poll().opcode == CqeOpcode::requester;
            u64 value;
            std::memcpy(&value, rig.b.memory.data() + i * bytes, 8);
            sum += value;
        }
    }
    if (polled != total || sum != total * (total - 1) / 2) {
        std::printf("WRONG: %llu CQEs, sum %llu\n", polled, sum);
        std::exit(1);
    }
    return {seconds, sum};
}
}  // namespace

int main(int count, char** arguments) {
    const u64 total = (count > 1 ? std::strtoull(arguments[1], nullptr, 0) : 4'000'000) / 32 * 32;
    const Figures figures = run(total, 32, 8);
    const double each = figures.seconds / static_cast<double>(total);
    std::printf("measured: %llu signalled 8-byte WRITE WQEs, 32 a doorbell: %.1f million WQE/s, %.1f ns each; "
                "sums correct\n",
                total, 1e-6 / each, each * 1e9);
    return 0;
}
