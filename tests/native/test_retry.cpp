// test_retry.cpp — waiting for a receive WQE or for a peer: for how long, and what has happened meanwhile.
#include "rig.hpp"

namespace rdmakit::test {

namespace {

RigOptions patient(bool timed, u32 rnr_retry) {
    RigOptions options;
    options.timed = timed;
    options.modify.rnr_retry = rnr_retry;
    return options;
}

TEST(rnr_finite_then_ready) {
    for (const bool timed : {false, true}) {
        Rig rig(patient(timed, 3));
        rig.a.word(0) = 7;
        rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
        rig.a.sender.post(Opcode::write, {rig.remote(64), rig.local(0, 8)});
        rig.a.sender.ring();
        rig.world.run(timed ? 4 : 2);  // the NAK is there, the timer is not over
        CHECK_EQ(rig.b.hca->counters().rnr_naks, 1);
        CHECK_EQ(rig.b.word(64), 0);  // what follows waits as well
        rig.b.sender.post_receive({data_segment(rig.b.address(8), 8, rig.b.key)});
        rig.b.hca->receive_posted(rig.b.sender.info.qpn);
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.b.word(8), 7);
        CHECK_EQ(rig.b.word(64), 7);
        CHECK_EQ(rig.b.state(), QpState::rts);  // an RNR NAK leaves the responder up
        CHECK_EQ(rig.a.query().counters.rnr_naks_received, rig.b.hca->counters().rnr_naks);
    }
}

TEST(rnr_retries_are_counted) {
    for (const bool timed : {false, true}) {
        for (const u32 retries : {0u, 1u, 6u}) {
            Rig rig(patient(timed, retries));
            rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
            CHECK_EQ(rig.go().syndrome, Syndrome::rnr_retry_exceeded);
            CHECK_EQ(rig.b.hca->counters().rnr_naks, retries + 1);
            CHECK_EQ(rig.a.query().counters.retries, retries);
            // 10 µs a timer (code 1), and the way there and back.
            if (timed) CHECK(rig.world.now_ps() >= retries * 10'000'000ull && rig.world.now_ps() < (retries + 1) * 20'000'000ull);
        }
    }
}

// Each message has its own retries: what one used up, the next gets again.
TEST(retries_start_anew) {
    for (const bool timed : {false, true}) {
        RigOptions options = patient(timed, 1);
        options.config.rnr_turns = 2;
        Rig rig(options);
        for (u32 i = 0; i < 5; ++i) {
            rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
            rig.a.sender.ring();
            const u32 naks = static_cast<u32>(rig.b.hca->counters().rnr_naks);
            for (u32 turn = 0; turn < 1000 && rig.b.hca->counters().rnr_naks == naks; ++turn) rig.world.run(1);
            rig.b.sender.post_receive({data_segment(rig.b.address(8), 8, rig.b.key)});
            CHECK(rig.world.run());
            CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        }
        CHECK_EQ(rig.a.query().counters.retries, 5);
    }
}

TEST(rnr_for_ever) {
    Rig rig(patient(false, 7));
    rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());  // comes to rest: nobody is asked to turn round and round
    CHECK_EQ(rig.a.hca->waiting(), 1);
    CHECK(!rig.a.send_cq.poll().there);
    rig.b.sender.post_receive({data_segment(rig.b.address(8), 8, rig.b.key)});
    // Without a word of it, the next work() finds out.
    rig.a.hca->work(64);
    CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.hca->waiting(), 0);

    Rig clocked(patient(true, 7));
    clocked.a.sender.post(Opcode::send, {clocked.local(0, 8)});
    clocked.a.sender.ring();
    CHECK(!clocked.world.run(1000));
    CHECK_EQ(clocked.a.state(), QpState::rts);
    clocked.b.sender.post_receive({data_segment(clocked.b.address(8), 8, clocked.b.key)});
    CHECK(clocked.world.run());
    CHECK_EQ(clocked.a.send_cq.poll().opcode, CqeOpcode::requester);
}

// Only the last packet of a WRITE_IMM needs a receive WQE; the payload before it is in place by then.
TEST(write_imm_places_before_rnr) {
    RigOptions options = patient(false, 0);
    options.modify.path_mtu = 1;  // 256 bytes
    Rig rig(options);
    std::memset(rig.a.memory.data(), 0xee, 1024);
    rig.a.sender.post(Opcode::write_imm, {rig.remote(0), rig.local(0, 600)});
    CHECK_EQ(rig.go().syndrome, Syndrome::rnr_retry_exceeded);
    CHECK_EQ(rig.b.memory[511], 0xee);
    CHECK_EQ(rig.b.memory[512], 0);
}

// A peer that comes up late is found by a retry.
TEST(late_peer) {
    for (const bool timed : {false, true}) {
        RigOptions options;
        options.timed = timed;
        options.modify.retry_cnt = 7;
        Rig rig(options);
        QpModify reset;
        CHECK(rig.b.hca->modify_qp(rig.b.sender.info.qpn, reset, kQpAttrState).ok());
        rig.a.word(0) = 3;
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(64, 8)});
        rig.a.sender.ring();
        rig.world.run(6);
        CHECK(!rig.a.send_cq.poll().there);
        rig.connect(rig.b, 1, rig.a.sender.info.qpn);
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.b.word(0), 4);  // once
        CHECK(rig.a.query().counters.retries >= 1);
    }
}

TEST(timeout_zero_waits_for_ever) {
    for (const bool timed : {false, true}) {
        RigOptions options;
        options.timed = timed;
        options.modify.timeout = 0;
        Rig rig(options);
        CHECK(rig.b.hca->destroy_qp(rig.b.sender.info.qpn).ok());
        rig.a.sender.post(Opcode::nop, {});
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
        CHECK(!rig.a.send_cq.poll().there);
        CHECK_EQ(rig.a.state(), QpState::rts);
        CHECK(rig.a.hca->destroy_qp(rig.a.sender.info.qpn).ok());
        rig.a.hca->work(8);
        CHECK_EQ(rig.a.hca->waiting(), 0);
    }
}

TEST(reset_while_waiting) {
    Rig rig(patient(false, 7));
    rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    QpModify reset;
    CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, reset, kQpAttrState).ok());
    rig.a.hca->work(8);
    CHECK_EQ(rig.a.hca->waiting(), 0);
    rig.a.sender.next = 0;
    rig.connect(rig.a, 2, rig.b.sender.info.qpn);
    rig.a.sender.post(Opcode::nop, {});
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
}

}  // namespace
}  // namespace rdmakit::test
