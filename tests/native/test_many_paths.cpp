// test_many_paths.cpp — out-of-order queue pairs, relaxed ordering, and ports that go down under way.
// man mlx5dv_create_qp (MLX5DV_QP_CREATE_OOO_DP), man ibv_reg_mr (IBV_ACCESS_RELAXED_ORDERING).
#include "rig.hpp"

namespace rdmakit::test {

namespace {

RigOptions spread(bool out_of_order = true) {
    RigOptions options;
    options.timed = true;
    options.qp.out_of_order = out_of_order;
    options.modify.retry_cnt = 7;
    return options;
}

TEST(writes_pass_each_other_and_complete_in_order) {
    Rig rig(spread());
    rig.a.word(0) = 1;
    rig.world.strike(FaultKind::path, 0, 20'000'000);
    rig.world.faults_on = true;
    for (u32 i = 0; i < 3; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8 * i), rig.local(0, 8)});
    rig.a.sender.ring();
    while (rig.b.word(16) == 0) rig.world.run(1);
    CHECK_EQ(rig.b.word(8), 1);
    CHECK_EQ(rig.b.word(0), 0);  // the first is the last
    CHECK(!rig.a.send_cq.poll().there);
    CHECK(rig.world.run());
    CHECK_EQ(rig.b.word(0), 1);
    for (u32 i = 0; i < 3; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
    CHECK_EQ(rig.b.hca->counters().out_of_sequence, 0);
}

TEST(both_ends_have_to_ask_for_it) {
    Rig rig(spread(false));
    Sender one;
    rig.options.qp.out_of_order = true;
    rig.add_qp(rig.a, one);
    Sender target;
    rig.options.qp.out_of_order = false;
    rig.add_qp(rig.b, target);
    rig.connect(*rig.a.hca, one.info.qpn, 2, target.info.qpn);
    rig.connect(*rig.b.hca, target.info.qpn, 1, one.info.qpn);
    rig.world.faults_on = true;
    rig.world.percent[static_cast<u32>(FaultKind::path)] = 100;
    one.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    one.ring();
    CHECK(rig.world.run());
    CHECK_EQ(rig.world.asked[static_cast<u32>(FaultKind::path)], 0);
}

// The published observation on multi-path NICs: a signal behind a put costs one round trip more.
TEST(an_atomic_costs_one_round_trip_more) {
    u64 took[2] = {};
    for (u32 many = 0; many < 2; ++many) {
        Rig rig(spread(many != 0));
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 64)});
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(64), atomic_segment(1, 0), rig.local(64, 8)});
        rig.a.sender.ring();
        while (rig.b.word(64) == 0) rig.world.run(1);
        took[many] = rig.world.now_ps();
        CHECK(rig.world.run());
    }
    const HcaTiming t;
    CHECK(took[1] > took[0] + 2 * t.wire_latency_ps);
    CHECK(took[1] < took[0] + 2 * t.wire_latency_ps + t.placement_ps + t.completion_ps + t.payload_fetch_ps + 100'000);
}

// An atomic, a READ and an immediate are executed after everything before them, whatever the paths; WRITEs behind an
// atomic do not wait for it.
TEST(what_signals_comes_after_what_it_signals) {
    u32 passed = 0;
    for (u64 seed = 1; seed <= 60; ++seed) {
        RigOptions options = spread();
        options.seed = seed;
        Rig rig(options);
        rig.world.faults_on = true;
        rig.world.percent[static_cast<u32>(FaultKind::path)] = 70;
        rig.world.percent[static_cast<u32>(FaultKind::loss)] = seed % 2 ? 5 : 0;
        rig.world.percent[static_cast<u32>(FaultKind::ack_lost)] = seed % 3 ? 0 : 5;
        rig.world.percent[static_cast<u32>(FaultKind::duplicate)] = seed % 5 ? 0 : 50;
        rig.world.largest_delay_ps = 5'000'000;
        for (u32 i = 0; i < 2; ++i) rig.b.sender.post_receive({data_segment(rig.b.address(0), 8, rig.b.key)});
        std::memset(rig.a.memory.data(), 1, 4096);
        for (u32 i = 0; i < 6; ++i) rig.a.sender.post(Opcode::write, {rig.remote(64 * i), rig.local(0, 64)});
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(1024), atomic_segment(1, 0), rig.local(5000, 8)});
        for (u32 i = 6; i < 10; ++i) rig.a.sender.post(Opcode::write, {rig.remote(64 * i), rig.local(0, 64)});
        rig.a.sender.post(Opcode::write_imm, {rig.remote(2048), rig.local(0, 64)}, kCqUpdate, 0, 9);
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(8192, 1024)});
        rig.a.sender.ring();
        const auto there = [&](u32 first, u32 end) {
            u32 n = 0;
            for (u32 i = first; i < end; ++i) n += rig.b.memory[64 * i] == 1;
            return n;
        };
        while (rig.b.word(1024) == 0) rig.world.run(1);
        CHECK_EQ(there(0, 6), 6);
        PolledCqe immediate;
        while (!(immediate = rig.b.recv_cq.poll()).there) {
            if (!rig.a.send_cq.info.produced && there(6, 10)) ++passed;
            rig.world.run(1);
        }
        CHECK_EQ(there(0, 10), 10);
        CHECK_EQ(rig.b.memory[2048], 1);
        CHECK(rig.world.run());
        for (u32 i = 0; i < 13; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
        CHECK_EQ(rig.b.word(1024), 1);
        CHECK(std::memcmp(rig.a.memory.data(), rig.a.memory.data() + 8192, 640) == 0);
        CHECK_EQ(rig.b.query().counters.rcv_payload, 11 * 64);
    }
    CHECK(passed > 0);
}

TEST(relaxed_writes_land_late_but_not_behind_an_atomic) {
    for (const Opcode signal : {Opcode::fetch_add, Opcode::write_imm, Opcode::write, Opcode::read}) {
        RigOptions options = spread(false);
        options.mr_access = kAllAccess | kAccessRelaxedOrdering;
        Rig rig(options);
        rig.b.sender.post_receive({data_segment(rig.b.address(0), 8, rig.b.key)});
        std::memset(rig.a.memory.data(), 1, 64);
        rig.world.strike(FaultKind::relaxed, 0, 30'000'000);
        Sender& s = rig.a.sender;
        s.post(Opcode::write, {rig.remote(0), rig.local(0, 64)});
        if (signal == Opcode::fetch_add) s.post(signal, {rig.remote(1024), atomic_segment(1, 0), rig.local(5000, 8)});
        else s.post(signal, {rig.remote(1024), rig.local(signal == Opcode::read ? 5000 : 0, 8)});
        s.ring();
        if (signal == Opcode::fetch_add)
            while (rig.b.word(1024) == 0) rig.world.run(1);
        else if (signal == Opcode::write_imm)
            while (!rig.b.recv_cq.poll().there) rig.world.run(1);
        else if (signal == Opcode::write)
            while (rig.b.word(1024) == 0) rig.world.run(1);
        else
            while (rig.a.hca->counters().wqes < 2) rig.world.run(1);
        CHECK_EQ(rig.b.memory[0], signal != Opcode::write);  // a flag that is a WRITE has overtaken its data
        CHECK(rig.world.run());
        CHECK_EQ(rig.b.memory[63], 1);
        CHECK_EQ(rig.b.hca->counters().late_writes, 1);
    }
}

TEST(nothing_lands_in_memory_that_is_gone) {
    RigOptions options = spread(false);
    options.mr_access = kAllAccess | kAccessRelaxedOrdering;
    Rig rig(options);
    rig.a.word(0) = 7;
    rig.world.strike(FaultKind::relaxed, 0, 30'000'000);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    rig.a.sender.ring();
    while (!rig.a.send_cq.poll().there) rig.world.run(1);
    CHECK_EQ(rig.b.word(0), 0);
    CHECK(rig.b.hca->dereg_mr(rig.b.key).ok());
    CHECK_EQ(rig.b.word(0), 7);
    rig.b.word(0) = 1;
    CHECK(rig.world.run());
    CHECK_EQ(rig.b.word(0), 1);
}

TEST(a_bond_survives_a_port_that_goes_down_under_way) {
    for (const u32 side : {0u, 1u}) {
        RigOptions options = spread(false);
        options.config.lag = LagMode::queue_affinity;
        options.modify.timeout = 4;
        Rig rig(options);
        std::memset(rig.a.memory.data(), 1, 1 << 14);
        for (u32 i = 0; i < 16; ++i) rig.a.sender.post(Opcode::write, {rig.remote(1024 * i), rig.local(0, 1024)});
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(1 << 15), atomic_segment(1, 0), rig.local(5000, 8)});
        rig.a.sender.ring();
        while (rig.b.memory[1024 * 3] == 0) rig.world.run(1);
        const u32 port = rig.a.query().physical_port;
        (side ? rig.b : rig.a).hca->set_port_up(port, false);
        CHECK(rig.world.run());
        for (u32 i = 0; i < 17; ++i) CHECK(rig.a.send_cq.poll().opcode == CqeOpcode::requester);
        CHECK(std::memcmp(rig.a.memory.data(), rig.b.memory.data(), 16) == 0);
        for (u32 i = 0; i < 16; ++i) CHECK_EQ(rig.b.memory[1024 * i + 1023], 1);
        CHECK_EQ(rig.b.word(1 << 15), 1);
        CHECK_EQ(rig.b.query().counters.rcv_payload, 16 * 1024);
        CHECK(rig.a.hca->port_counters(3 - port).xmit_payload > 0 || side == 1);
        if (side == 0) CHECK(rig.a.query().physical_port == 3 - port && rig.a.hca->counters().retries > 0);
    }
}

TEST(without_a_bond_it_does_not_unless_the_port_comes_back) {
    for (const bool back : {false, true}) {
        Rig rig(spread(false));
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        rig.a.hca->set_port_up(1, false);
        rig.a.sender.ring();
        rig.world.run(8);
        if (back) rig.a.hca->set_port_up(1, true);
        CHECK(rig.world.run());
        const PolledCqe cqe = rig.a.send_cq.poll();
        CHECK_EQ(cqe.syndrome, back ? Syndrome::none : Syndrome::transport_retry_exceeded);
        CHECK_EQ(cqe.opcode, back ? CqeOpcode::requester : CqeOpcode::requester_error);
    }
}

// A random program under random faults ends as it does without any: memory, completions, bytes executed.
TEST(faults_change_nothing_but_time) {
    for (u64 seed = 1; seed <= 120; ++seed) {
        g_context = "seed " + std::to_string(seed);
        std::vector<u8> memory[3];
        std::string completions[3];
        u64 payload[3] = {};
        for (u32 run = 0; run < 3; ++run) {  // none; untimed; timed
            RigOptions options;
            options.timed = run == 2;
            options.modify.path_mtu = 1;
            options.modify.rnr_retry = 7;
            options.modify.retry_cnt = 7;
            options.qp.out_of_order = seed % 2;
            options.mr_access = kAllAccess | (seed % 3 ? 0 : kAccessRelaxedOrdering);
            Rig rig(options);
            World dice(false, seed);
            if (run != 0) {
                rig.world.faults_on = true;
                rig.world.largest_delay_ps = 4'000'000;
                for (u32 kind = 0; kind < kFaultKinds; ++kind)
                    if (kind != static_cast<u32>(FaultKind::doorbell_lost)) rig.world.percent[kind] = static_cast<u32>(3 + seed % 8);
            }
            for (u32 i = 0; i < 4096; ++i) rig.a.memory[i] = static_cast<u8>(dice.random(256));
            for (u32 i = 0; i < 15; ++i)
                rig.b.sender.post_receive({data_segment(rig.b.address(8192 + 128 * i), 128, rig.b.key)});
            u32 receives = 15, slot = 0;
            for (u32 round = 0; round < 12; ++round) {
                for (u32 burst = 1 + static_cast<u32>(dice.random(8)); burst != 0; --burst, ++slot) {
                    // Each message has bytes of its own: with several paths the order of overlapping WRITEs is nobody's.
                    const u64 to = 16384 + 512 * (slot % 90), from = 8192 + 512 * (slot % 80);
                    const u32 bytes = 1 + static_cast<u32>(dice.random(500));
                    const u32 flags = dice.random(2) ? kCqUpdate : 0;
                    Sender& s = rig.a.sender;
                    switch (dice.random(5)) {
                        case 0: s.post(Opcode::write, {rig.remote(to), rig.local(dice.random(3500), bytes)}, flags); break;
                        case 1: s.post(Opcode::read, {rig.remote(4096), rig.local(from, bytes)}, flags); break;
                        case 2:
                            s.post(Opcode::fetch_add, {rig.remote(8 * dice.random(4)), atomic_segment(bytes, 0), rig.local(from, 8)}, flags);
                            break;
                        case 3: s.post(Opcode::write, {rig.remote(to), rig.local(dice.random(3500), bytes)}, flags); break;
                        default:
                            if (receives == 0) break;
                            --receives;
                            s.post(Opcode::send, {rig.local(dice.random(3500), bytes % 128 + 1)}, flags);
                    }
                }
                rig.a.sender.ring();
                CHECK(rig.world.run());
                for (PolledCqe cqe = rig.a.send_cq.poll(); cqe.there; cqe = rig.a.send_cq.poll())
                    completions[run] += std::to_string(cqe.wqe) + ":" + std::to_string(static_cast<u32>(cqe.syndrome)) + " ";
            }
            memory[run] = rig.a.memory;
            memory[run].insert(memory[run].end(), rig.b.memory.begin(), rig.b.memory.end());
            payload[run] = rig.b.query().counters.rcv_payload;
        }
        for (const u32 run : {1u, 2u}) {
            CHECK(completions[run] == completions[0]);
            CHECK(memory[run] == memory[0]);
            CHECK_EQ(payload[run], payload[0]);
        }
    }
}

}  // namespace
}  // namespace rdmakit::test
