// test_faults.cpp — what is placed, acknowledged and counted when packets, answers and doorbells get lost, come twice or
// come late: everything is executed once. IBTA vol. 1 §9.7.
#include "rig.hpp"

namespace rdmakit::test {

namespace {

RigOptions lossy(bool timed) {
    RigOptions options;
    options.timed = timed;
    options.modify.path_mtu = 1;  // 256 bytes
    options.modify.retry_cnt = 7;
    return options;
}
constexpr u64 kTimeout = 4'096'000ull << 4;

void fill(Rig& rig) {
    for (u32 i = 0; i < 8192; ++i) rig.a.memory[i] = static_cast<u8>(1 + i % 251);
}
bool arrived(const Rig& rig, u64 bytes) { return std::memcmp(rig.a.memory.data(), rig.b.memory.data(), bytes) == 0; }

TEST(a_lost_packet_is_named_by_the_next_and_sent_again_from_there) {
    Rig rig(lossy(true));
    fill(rig);
    rig.world.strike(FaultKind::loss, 2);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1000)});
    rig.a.sender.ring();
    while (!rig.b.hca->counters().out_of_sequence) rig.world.run(1);
    CHECK(arrived(rig, 512) && rig.b.memory[512] == 0);  // what came before it is in place
    CHECK(rig.world.run());
    CHECK(rig.a.send_cq.poll().opcode == CqeOpcode::requester && !rig.a.send_cq.poll().there);
    CHECK(arrived(rig, 1000) && rig.b.memory[1000] == 0);
    const HcaCounters a = rig.a.hca->counters(), b = rig.b.hca->counters();
    CHECK_EQ(a.packets_lost, 1);
    CHECK_EQ(a.packet_seq_err, 1);
    CHECK_EQ(a.retries, 1);
    CHECK_EQ(a.local_ack_timeout_err, 0);
    CHECK_EQ(b.out_of_sequence, 1);
    CHECK_EQ(b.duplicate_request, 0);
    CHECK_EQ(rig.a.query().counters.xmit_packets, 4 + 2);
    CHECK_EQ(rig.b.query().counters.rcv_payload, 1000);  // every byte once
    CHECK(rig.world.now_ps() < kTimeout);
}

TEST(a_lost_last_packet_waits_for_the_timer) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        fill(rig);
        rig.world.strike(FaultKind::loss, 3);
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1000)});
        CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
        CHECK(arrived(rig, 1000));
        CHECK_EQ(rig.a.hca->counters().retries, 1);
        CHECK_EQ(rig.b.query().counters.rcv_payload, 1000);
        if (!timed) continue;
        CHECK_EQ(rig.a.hca->counters().local_ack_timeout_err, 1);
        CHECK(rig.world.now_ps() >= kTimeout);
    }
}

TEST(a_lost_message_is_named_by_the_next_message) {
    Rig rig(lossy(true));
    rig.a.word(0) = 7, rig.a.word(8) = 8;
    rig.world.strike(FaultKind::loss, 0);
    for (u32 i = 0; i < 4; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8 * i), rig.local(0, 8)});
    rig.a.sender.post(Opcode::fetch_add, {rig.remote(64), atomic_segment(1, 0), rig.local(128, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    for (u32 i = 0; i < 5; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);  // all, once, in order
    CHECK(!rig.a.send_cq.poll().there);
    CHECK_EQ(rig.b.word(64), 1);
    CHECK_EQ(rig.b.hca->counters().out_of_sequence, 4);  // the NAK was said once
    CHECK_EQ(rig.a.hca->counters().packet_seq_err, 1);
    CHECK(rig.world.now_ps() < kTimeout);
}

TEST(a_corrupt_packet_is_dropped_and_counted_where_it_arrives) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        fill(rig);
        rig.world.strike(FaultKind::corrupt, 1);
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 1000)});
        CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
        CHECK(arrived(rig, 1000));
        CHECK_EQ(rig.b.hca->counters().rx_icrc_encapsulated, 1);
        CHECK_EQ(rig.a.hca->counters().rx_icrc_encapsulated, 0);
    }
}

TEST(a_later_acknowledgement_stands_for_a_lost_one) {
    Rig rig(lossy(true));
    rig.world.strike(FaultKind::ack_lost, 0);
    for (u32 i = 0; i < 3; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    for (u32 i = 0; i < 3; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
    CHECK_EQ(rig.a.hca->counters().responses_lost, 1);
    CHECK_EQ(rig.a.hca->counters().retries, 0);
    CHECK_EQ(rig.b.hca->counters().duplicate_request, 0);
}

TEST(a_write_whose_acknowledgement_is_lost_is_not_executed_again) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.a.word(0) = 7;
        rig.world.strike(FaultKind::ack_lost, 0);
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        rig.a.sender.ring();
        while (rig.b.word(0) != 7) rig.world.run(1);
        rig.b.word(0) = 99;  // its owner goes on with it
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.send_cq.poll().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.b.word(0), 99);
        CHECK_EQ(rig.b.hca->counters().duplicate_request, 1);
    }
}

TEST(an_atomic_adds_once_and_has_its_first_result) {
    for (const bool timed : {false, true}) {
        for (const u32 behind : {0u, 1u}) {  // alone: the timer. With a WRITE behind it: an implied NAK.
            Rig rig(lossy(timed));
            rig.b.word(0) = 40;
            rig.world.strike(FaultKind::ack_lost, 0);
            rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(2, 0), rig.local(64, 8)});
            for (u32 i = 0; i < behind; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8), rig.local(0, 8)});
            rig.a.sender.ring();
            while (rig.b.word(0) != 42) rig.world.run(1);
            rig.b.word(0) = 1000;  // the saved result, not what is there now
            CHECK(rig.world.run());
            for (u32 i = 0; i <= behind; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
            CHECK_EQ(rig.a.word(64), 40);
            CHECK_EQ(rig.b.word(0), 1000);
            CHECK_EQ(rig.b.hca->counters().atomics_replayed, 1);
            CHECK_EQ(rig.a.hca->counters().implied_nak_seq_err, timed && behind);
        }
    }
}

TEST(a_read_is_read_again) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.b.word(0) = 1;
        rig.world.strike(FaultKind::ack_lost, 0);
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 700)});
        rig.a.sender.ring();
        while (!rig.a.hca->counters().responses_lost) rig.world.run(1);
        rig.b.word(0) = 2;
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.send_cq.poll().bytes, 700);
        CHECK_EQ(rig.a.word(0), 2);
        CHECK_EQ(rig.b.hca->counters().duplicate_request, 1);
    }
}

TEST(what_the_network_doubles_is_done_once) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.world.faults_on = true;
        rig.world.percent[static_cast<u32>(FaultKind::duplicate)] = 100;
        rig.world.largest_delay_ps = 3'000'000;
        rig.b.sender.post_receive({data_segment(rig.b.address(4096), 64, rig.b.key)});
        rig.b.sender.post_receive({data_segment(rig.b.address(4160), 64, rig.b.key)});
        rig.a.sender.post(Opcode::write, {rig.remote(8), rig.local(0, 600)});
        for (u32 i = 0; i < 10; ++i)
            rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(1024 + 8 * i, 8)});
        rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
        rig.a.sender.post(Opcode::write_imm, {rig.remote(1024), rig.local(0, 8)}, kCqUpdate, 0, 5);
        rig.a.sender.ring();
        CHECK(rig.world.run());
        for (u32 i = 0; i < 13; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
        for (u64 i = 0; i < 10; ++i) CHECK_EQ(rig.a.word(1024 + 8 * i), i);
        CHECK_EQ(rig.b.word(0), 10);
        CHECK_EQ(rig.b.hca->counters().duplicate_request, 13);
        CHECK_EQ(rig.b.hca->counters().atomics_replayed, 10);
        CHECK(rig.b.recv_cq.poll().there && rig.b.recv_cq.poll().there && !rig.b.recv_cq.poll().there);
    }
}

TEST(an_rnr_for_nothing_is_tried_again) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.world.strike(FaultKind::rnr, 0);
        rig.b.sender.post_receive({data_segment(rig.b.address(0), 64, rig.b.key)});
        rig.a.sender.post(Opcode::write_imm, {rig.remote(1024), rig.local(0, 600)}, kCqUpdate, 0, 5);
        CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
        CHECK_EQ(rig.b.recv_cq.poll().imm, 5);
        CHECK_EQ(rig.b.hca->counters().rnr_naks, 1);
        CHECK_EQ(rig.b.query().counters.rcv_payload, 600);  // the first packets were taken, and not again
    }
}

TEST(when_nothing_comes_through_the_queue_pair_fails) {
    for (const bool timed : {false, true}) {
        for (const FaultKind kind : {FaultKind::loss, FaultKind::ack_lost}) {
            Rig rig(lossy(timed));
            rig.world.faults_on = true;
            rig.world.percent[static_cast<u32>(kind)] = 100;
            rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(64, 8)});
            CHECK_EQ(rig.go().syndrome, Syndrome::transport_retry_exceeded);
            CHECK_EQ(rig.b.word(0), kind == FaultKind::ack_lost);
            CHECK_EQ(rig.a.query().counters.retries, 7);
        }
    }
}

TEST(a_lost_doorbell_is_covered_by_the_next) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.world.strike(FaultKind::doorbell_lost, 0);
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        CHECK(!rig.go().there);
        CHECK_EQ(rig.a.hca->counters().doorbells_lost, 1);
        rig.a.sender.post(Opcode::write, {rig.remote(8), rig.local(0, 8)});
        CHECK_EQ(rig.go().wqe, 0);
        CHECK_EQ(rig.a.send_cq.poll().wqe, 1);
    }
}

TEST(a_late_doorbell_is_late) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.world.strike(FaultKind::doorbell_late, 0, 50'000'000);
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        CHECK_EQ(rig.go().wqe, 0);
        CHECK_EQ(rig.a.hca->counters().doorbells_late, 1);
        if (timed) CHECK(rig.world.now_ps() > 50'000'000);
    }
}

TEST(late_completions_stay_in_order) {
    Rig rig(lossy(true));
    rig.world.strike(FaultKind::cqe_late, 0, 40'000'000);
    for (u32 i = 0; i < 4; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8 * i), rig.local(0, 8)});
    rig.a.sender.ring();
    while (!rig.a.send_cq.poll().there) CHECK(!rig.world.run(1));
    CHECK(rig.world.now_ps() > 40'000'000);
    CHECK(rig.world.run());
    for (u32 i = 1; i < 4; ++i) CHECK_EQ(rig.a.send_cq.poll().wqe, i);
}

TEST(queue_pairs_overtake_each_other) {
    for (const bool slow_port : {false, true}) {
        Rig rig(lossy(true));
        Sender other, target;
        rig.add_qp(rig.a, other);
        rig.add_qp(rig.b, target);
        rig.options.modify.port_num = 2;
        rig.connect(*rig.a.hca, other.info.qpn, 2, target.info.qpn);
        rig.connect(*rig.b.hca, target.info.qpn, 1, other.info.qpn);
        if (slow_port) rig.world.faults_on = true, rig.world.skew_ps = 9'000'000;
        else rig.world.strike(FaultKind::delay, 0, 9'000'000);
        Sender& late = slow_port ? other : rig.a.sender;
        Sender& early = slow_port ? rig.a.sender : other;
        for (Sender* sender : {&late, &early})
            for (u32 i = 0; i < 2; ++i) sender->post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        late.ring();
        early.ring();
        CHECK(rig.world.run());
        for (u32 i = 0; i < 4; ++i) CHECK_EQ(rig.a.send_cq.poll().qpn, (i < 2 ? early : late).info.qpn);
        CHECK_EQ(rig.b.hca->counters().out_of_sequence, 0);  // one path keeps its order
    }
}

// One end begins anew, the other does not: its PSNs are those of messages that were executed long ago.
TEST(a_half_made_connection_is_no_duplicate) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        for (u32 i = 0; i < 3; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, 0);
        CHECK(!rig.go().there);
        QpModify reset;
        CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, reset, kQpAttrState).ok());
        rig.connect(rig.a, 2, rig.b.sender.info.qpn);
        rig.a.sender.next = 0;
        rig.a.sender.post(Opcode::write, {rig.remote(64), rig.local(0, 8)});
        CHECK_EQ(rig.go().syndrome, Syndrome::transport_retry_exceeded);
        CHECK_EQ(rig.b.hca->counters().duplicate_request, 0);
    }
}

TEST(a_broken_queue_pair_flushes) {
    for (const bool timed : {false, true}) {
        Rig rig(lossy(timed));
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        rig.a.hca->break_qp(0);
        rig.a.hca->break_qp(77);
        CHECK_EQ(rig.go().syndrome, Syndrome::flushed);
        CHECK_EQ(rig.a.state(), QpState::err);
        CHECK_EQ(rig.world.count(AsyncEventType::qp_fatal), 1);
    }
}

}  // namespace
}  // namespace rdmakit::test
