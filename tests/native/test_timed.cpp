// test_timed.cpp — the HCA with a clock: latencies and rates follow from HcaTiming, order holds, fences wait, and the
// outcome is that of the untimed HCA.
#include "rig.hpp"

namespace rdmakit::test {

namespace {

RigOptions clocked() {
    RigOptions options;
    options.timed = true;
    options.qp.log_sq_bbs = 9;
    options.memory = 1 << 22;
    return options;
}

TEST(small_write_latency) {
    Rig rig(clocked());
    const HcaTiming& t = rig.options.config.timing;
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    CHECK(rig.go().there);
    const u64 wire = (62 + 16 + 8 + 20) * 20, ack = (62 + 4 + 20) * 20;  // 20 ps a byte at 400 Gb/s
    const u64 expected = t.doorbell_to_fetch_ps + t.wqe_gap_ps + t.payload_fetch_ps + wire + t.wire_latency_ps +
                         t.placement_ps + ack + t.wire_latency_ps + t.completion_ps;
    CHECK_EQ(rig.world.now_ps(), expected);
    CHECK_EQ(rig.world.past_events, 0);
}

TEST(large_writes_reach_line_rate) {
    Rig rig(clocked());
    for (u32 i = 0; i < 32; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1 << 20)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    const double seconds = static_cast<double>(rig.world.now_ps()) * 1e-12;
    const double rate = 32.0 * (1 << 20) / seconds / 50e9;
    CHECK(rate > 0.93 && rate < 0.98);  // 4096 of 4178 bytes are payload
    const PortCounters port = rig.a.hca->port_counters(1);
    CHECK(port.xmit_busy_ps > rig.world.now_ps() * 95 / 100);
}

TEST(small_writes_reach_the_queue_pairs_rate) {
    Rig rig(clocked());
    for (u32 i = 0; i < 500; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, 0);
    rig.a.sender.ring();
    CHECK(rig.world.run());
    const u64 gap = rig.options.config.timing.qp_wqe_gap_ps;
    CHECK(rig.world.now_ps() > 499 * gap && rig.world.now_ps() < 499 * gap + 4'000'000);
}

// Two senders into one port: each gets half.
TEST(incast) {
    Rig rig(clocked());
    Side c;
    rig.open(c, 3);
    Sender target;
    rig.add_qp(rig.b, target);
    rig.connect(c, 2, target.info.qpn);
    rig.connect(*rig.b.hca, target.info.qpn, 3, c.sender.info.qpn);
    const auto post = [&](Side& side) {
        for (u32 i = 0; i < 16; ++i)
            side.sender.post(Opcode::write, {rig.remote(0), data_segment(side.address(), 1 << 20, side.key)});
        side.sender.ring();
    };
    post(rig.a);
    CHECK(rig.world.run());
    const u64 alone = rig.world.now_ps();
    post(rig.a), post(c);
    CHECK(rig.world.run());
    const double factor = static_cast<double>(rig.world.now_ps() - alone) / static_cast<double>(alone);
    CHECK(factor > 1.9 && factor < 2.05);
}

// A small WRITE of another QP does not wait for all of a long queue.
TEST(queue_pairs_take_turns) {
    Rig rig(clocked());
    Sender small, target;
    rig.add_qp(rig.a, small);
    rig.add_qp(rig.b, target);
    rig.connect(*rig.a.hca, small.info.qpn, 2, target.info.qpn);
    rig.connect(*rig.b.hca, target.info.qpn, 1, small.info.qpn);
    for (u32 i = 0; i < 64; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1 << 16)});
    small.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    rig.a.sender.ring();
    small.ring();
    u32 before = 0;
    CHECK(rig.world.run());
    for (PolledCqe cqe = rig.a.send_cq.poll(); cqe.qpn != small.info.qpn; cqe = rig.a.send_cq.poll()) ++before;
    CHECK(before < 6);
}

// READ then WRITE into what was read: only a fence keeps them apart.
TEST(fence_orders_read_before_write) {
    for (const u32 fence : {0u, kReadAtomicFence, kFence, kStrongOrder}) {
        Rig rig(clocked());
        rig.b.word(0) = 1;
        rig.a.word(1000) = 2;
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 8)});
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(1000, 8)}, kCqUpdate | fence);
        CHECK(rig.go().there);
        CHECK_EQ(rig.a.word(0), fence ? 1 : 2);
        CHECK_EQ(rig.b.word(0), 2);
    }
}

TEST(strong_order_waits_for_writes) {
    u64 plain = 0;
    for (const u32 fence : {0u, kFence, kStrongOrder}) {
        Rig rig(clocked());
        for (u32 i = 0; i < 4; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, kCqUpdate | fence);
        CHECK(rig.go().there);
        if (fence == 0) plain = rig.world.now_ps();
        if (fence == kFence) CHECK_EQ(rig.world.now_ps(), plain);  // never orders WRITE after WRITE
        if (fence == kStrongOrder) CHECK(rig.world.now_ps() > 2 * plain);
    }
}

TEST(initiator_depth) {
    u64 at[2] = {};
    for (u32 i = 0; i < 2; ++i) {
        RigOptions options = clocked();
        options.modify.max_rd_atomic = i ? 16 : 1;
        Rig rig(options);
        for (u32 n = 0; n < 16; ++n) rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(0, 8)});
        CHECK(rig.go().there);
        CHECK_EQ(rig.b.word(0), 16);
        at[i] = rig.world.now_ps();
    }
    CHECK(at[0] > 5 * at[1]);
}

TEST(regions_that_go_while_under_way) {
    for (u32 which = 0; which < 3; ++which) {
        Rig rig(clocked());
        if (which == 2) rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 8)});
        else rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        rig.a.sender.ring();
        rig.world.run(which == 2 ? 3 : 2);  // doorbell, tick, and for the READ its arrival
        CHECK(which == 0 ? rig.a.hca->dereg_mr(rig.a.key).ok() : rig.b.hca->dereg_mr(rig.b.key).ok());
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.send_cq.poll().syndrome, which == 0 ? Syndrome::local_protection : Syndrome::remote_access);
        CHECK_EQ(rig.b.word(0), 0);
    }
}

TEST(error_behind_good_ones_comes_in_order) {
    Rig rig(clocked());
    rig.a.word(0) = 77;
    for (u32 i = 0; i < 5; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8), rig.local(0, 1 << 16)});
    rig.a.sender.post(static_cast<Opcode>(0x66), {});
    rig.a.sender.post(Opcode::write, {rig.remote(1 << 20), rig.local(0, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    for (u32 i = 0; i < 5; ++i) CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.send_cq.poll().syndrome, Syndrome::local_qp_op);
    CHECK_EQ(rig.a.send_cq.poll().syndrome, Syndrome::flushed);
    CHECK_EQ(rig.b.word(8), 77);
    // Nothing is sent past an error that waits for its turn: five messages of 16 packets, and no more.
    CHECK_EQ(rig.b.word(1 << 20), 0);
    CHECK_EQ(rig.a.hca->port_counters(1).xmit_packets, 80);
}

// A kernel that reuses a slot too early: an error or garbage, but nothing outside the ring is read.
TEST(wqe_overwritten_while_under_way) {
    RigOptions options = clocked();
    options.qp.log_sq_bbs = 1;
    Rig rig(options);
    u8 bytes[60];
    std::memset(bytes, 1, sizeof bytes);
    rig.a.sender.post_inline(Opcode::write, {rig.remote(0)}, bytes, 60);
    rig.a.sender.ring();
    rig.world.run(2);
    const u32 count = swap_bytes(kInlineFlag | 0x7fffff00u);
    std::memcpy(rig.a.sender.bb(0) + 32, &count, 4);
    CHECK(rig.world.run());
    CHECK_EQ(rig.a.send_cq.poll().syndrome, Syndrome::local_qp_op);
}

TEST(destroyed_while_under_way) {
    Rig rig(clocked());
    for (u32 i = 0; i < 5; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1 << 16)});
    rig.a.sender.ring();
    rig.world.run(4);
    CHECK(rig.a.hca->destroy_qp(rig.a.sender.info.qpn).ok());
    CHECK(rig.world.run());
}

// The same random program in both worlds: the same memory, the same completions in the same order.
TEST(timed_equals_untimed) {
    for (u64 seed = 1; seed <= 30; ++seed) {
        g_context = "seed " + std::to_string(seed);
        std::vector<u8> memory[2];
        std::string completions[2];
        for (u32 timed = 0; timed < 2; ++timed) {
            RigOptions options;
            options.timed = timed != 0;
            options.modify.path_mtu = 2;
            options.modify.rnr_retry = 7;
            Rig rig(options);
            World dice(false, seed);
            for (u32 i = 0; i < 4096; ++i) rig.a.memory[i] = static_cast<u8>(dice.random(256));
            // SENDs of this program always find a receive WQE that is posted beforehand, at most 16 of them.
            for (u32 i = 0; i < 15; ++i)
                rig.b.sender.post_receive({data_segment(rig.b.address(8192 + 128 * i), 128, rig.b.key)});
            u32 receives = 15;
            for (u32 round = 0; round < 40; ++round) {
                for (u32 burst = 1 + static_cast<u32>(dice.random(8)); burst != 0; --burst) {
                    const u64 to = dice.random(500) * 8, from = 4096 + dice.random(400) * 8;
                    const u32 bytes = 1 + static_cast<u32>(dice.random(600));
                    const u32 flags = (dice.random(2) ? kCqUpdate : 0) | kFence;
                    Sender& s = rig.a.sender;
                    switch (dice.random(6)) {
                        case 0: s.post(Opcode::write, {rig.remote(to), rig.local(dice.random(4000), bytes)}, flags); break;
                        case 1: s.post(Opcode::read, {rig.remote(to), rig.local(from, bytes)}, flags); break;
                        case 2:
                            s.post(Opcode::fetch_add, {rig.remote(to), atomic_segment(bytes, 0), rig.local(from, 8)}, flags);
                            break;
                        case 3:
                            s.post(Opcode::masked_fetch_add, {rig.remote(to), masked_fetch_add4_segment(bytes, 0x80), rig.local(from, 4)},
                                   flags, kOpmodMasked4);
                            break;
                        case 4: s.post(Opcode::nop, {}, flags); break;
                        default:
                            if (receives == 0) break;
                            --receives;
                            s.post(Opcode::send, {rig.local(dice.random(4000), bytes % 128)}, flags);
                    }
                }
                // An empty data segment (2 GiB to mlx5) ends the queue pair; it must do so in both worlds.
                rig.a.sender.ring();
                CHECK(rig.world.run());
                for (PolledCqe cqe = rig.a.send_cq.poll(); cqe.there; cqe = rig.a.send_cq.poll())
                    completions[timed] += std::to_string(cqe.wqe) + ":" + std::to_string(static_cast<u32>(cqe.syndrome)) + " ";
            }
            memory[timed] = rig.a.memory;
            memory[timed].insert(memory[timed].end(), rig.b.memory.begin(), rig.b.memory.end());
        }
        CHECK(memory[0] == memory[1]);
        CHECK(completions[0] == completions[1] && completions[0].size() > 100);
    }
}

// One seed, one run; another seed, other keys and QP numbers.
TEST(determinism) {
    const auto trace = [](u64 seed) {
        RigOptions options = clocked();
        options.seed = seed;
        Rig rig(options);
        for (u32 i = 0; i < 50; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8 * i), rig.local(0, 100 * i + 8)});
        rig.go();
        return std::to_string(rig.world.now_ps()) + " " + std::to_string(rig.world.writes) + " " +
               std::to_string(rig.a.key) + " " + std::to_string(rig.b.key) + " " + std::to_string(rig.a.sender.info.qpn);
    };
    const std::string first = trace(7);
    CHECK(first == trace(7));
    CHECK(first != trace(8));
}

}  // namespace
}  // namespace rdmakit::test
