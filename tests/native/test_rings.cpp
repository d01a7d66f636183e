// test_rings.cpp — going round: send rings, 16-bit indices, CQ laps and owner bits, collapsed CQs, overrun, arming, and
// the doorbell in all its modes and dialects.
#include "rig.hpp"

namespace rdmakit::test {

namespace {

// Two-block WQEs of every alignment go round a small ring, past the 16-bit index, with the data segment and inline bytes
// falling on both sides of the ring's end.
TEST(ring_and_index_wrap) {
    for (const bool masked_index : {false, true}) {
        RigOptions options;
        options.qp.log_sq_bbs = 3;
        options.cq.log_entries = 2;
        Rig rig(options);
        Sender& s = rig.a.sender;
        u64 expected = 0;
        u8 bytes[90];
        for (u32 i = 0; s.next < 0x30000; ++i) {
            g_context = "operation " + std::to_string(i);
            const u32 kind = i % 3;
            if (kind == 0) {
                const u32 index = static_cast<u32>(masked_index ? s.next & 7 : s.next);
                s.post_bytes(ctrl_segment(Opcode::fetch_add, 0, index, s.info.qpn, 4, kCqUpdate),
                             {rig.remote(0), atomic_segment(1, 0), rig.local(64, 8)});
                ++expected;
            } else if (kind == 1) {
                const u32 index = static_cast<u32>(masked_index ? s.next & 7 : s.next);
                s.post_bytes(ctrl_segment(Opcode::masked_cmp_swap, kOpmodMasked8, index, s.info.qpn, 5, kCqUpdate),
                             {rig.remote(0), pair64(expected + 1, expected), pair64(~0ull, ~0ull), rig.local(64, 8)});
                ++expected;
            } else {
                for (u32 n = 0; n < 90; ++n) bytes[n] = static_cast<u8>(i + n);
                s.post_inline(Opcode::write, {rig.remote(1000)}, bytes, 90);
            }
            const u64 at = s.last;
            const PolledCqe cqe = rig.go();
            if (!CHECK(cqe.opcode == CqeOpcode::requester) || !CHECK_EQ(cqe.wqe, at & 0xffff)) return;
            if (kind == 2 && !CHECK(std::memcmp(&rig.b.memory[1000], bytes, 90) == 0)) return;
        }
        CHECK_EQ(rig.b.word(0), expected);
    }
}

TEST(full_ring) {
    for (const bool timed : {false, true}) {
        RigOptions options;
        options.timed = timed;
        options.qp.log_sq_bbs = 4;
        Rig rig(options);
        for (u32 lap = 0; lap < 40; ++lap) {
            for (u32 i = 0; i < 16; ++i)
                rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(64, 8)});
            CHECK_EQ(rig.go().wqe, (lap * 16) & 0xffff);
            for (u32 i = 1; i < 16; ++i) CHECK(rig.a.send_cq.poll().opcode == CqeOpcode::requester);
        }
        CHECK_EQ(rig.b.word(0), 40 * 16);
    }
}

TEST(send_ring_overflow) {
    for (const DoorbellMode mode : {DoorbellMode::dbrec, DoorbellMode::register_value, DoorbellMode::no_dbr}) {
        RigOptions options;
        options.qp.log_sq_bbs = 4;
        options.qp.doorbell = mode;
        Rig rig(options);
        for (u32 i = 0; i < 17; ++i) rig.a.sender.post(Opcode::nop, {});
        const PolledCqe cqe = rig.go();
        CHECK_EQ(cqe.syndrome, Syndrome::local_qp_op);
        CHECK_EQ(rig.world.count(AsyncEventType::qp_fatal), 1);
        u32 flushed = 0;
        while (rig.a.send_cq.poll().syndrome == Syndrome::flushed) ++flushed;
        CHECK_EQ(flushed, 15);
        CHECK_EQ(rig.a.state(), QpState::err);
    }
}

TEST(receive_ring) {
    Rig rig;
    rig.b.recv_cq.record = true;
    for (u32 i = 0; i < 70000; ++i) {
        rig.b.sender.post_receive({data_segment(rig.b.address(8), 8, rig.b.key)});
        rig.a.word(0) = i;
        rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
        if (!CHECK(rig.go().opcode == CqeOpcode::requester)) return;
        if (!CHECK_EQ(rig.b.recv_cq.poll().wqe, i & 0xffff) || !CHECK_EQ(rig.b.word(8), i)) return;
    }
    // A record further ahead than the ring is long.
    rig.b.sender.received += 17;
    rig.b.sender.info.create.dbrec[kDbrecReceive] = swap_bytes(static_cast<u32>(rig.b.sender.received) & 0xffff);
    rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
    CHECK_EQ(rig.go().syndrome, Syndrome::remote_op);
    CHECK_EQ(rig.world.count(AsyncEventType::qp_fatal), 1);
}

TEST(owner_bit_over_laps) {
    RigOptions options;
    options.cq.log_entries = 3;
    Rig rig(options);
    for (u32 i = 0; i < 100; ++i) {
        CHECK(!rig.a.send_cq.poll().there);  // the old lap's entries are not taken for new ones
        rig.a.sender.post(Opcode::nop, {});
        const PolledCqe cqe = rig.go();
        CHECK(cqe.there);
        CHECK_EQ(cqe.raw.op_own & 1, i >> 3 & 1);
    }
}

TEST(collapsed) {
    RigOptions options;
    options.cq.log_entries = 3;
    options.cq.collapsed = options.cq.overrun_ignore = true;
    Rig rig(options);
    for (u32 i = 0; i < 100; ++i) rig.a.sender.post(Opcode::nop, {}), rig.a.sender.ring(), CHECK(rig.world.run());
    const u8* entry = static_cast<const u8*>(rig.a.send_cq.info.buffer);
    CHECK_EQ(entry[60] * 256 + entry[61], 99);
    CHECK_EQ(entry[64 + 63], kCqeInitial);  // nothing but entry 0 is written
    CHECK_EQ(entry[63], 0);
    CHECK_EQ(rig.world.asynchronous.size(), 0);
    // The flush that follows an error overwrites the root cause.
    rig.a.sender.post(static_cast<Opcode>(0x44), {});
    rig.a.sender.post(Opcode::nop, {});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    CHECK_EQ(entry[55], Syndrome::flushed);
}

TEST(overrun_kills) {
    RigOptions options;
    options.cq.log_entries = 3;
    Rig rig(options);
    for (u32 i = 0; i < 9; ++i) rig.a.sender.post(Opcode::nop, {});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    CHECK_EQ(rig.world.count(AsyncEventType::cq_error), 1);
    CHECK_EQ(rig.world.count(AsyncEventType::qp_fatal), 1);
    CHECK_EQ(rig.a.state(), QpState::err);
    CqInfo info;
    CHECK(rig.a.hca->query_cq(rig.a.send_cqn, &info).ok());
    CHECK(info.dead);
    CHECK_EQ(info.produced, 8);
    u32 there = 0;
    while (rig.a.send_cq.poll().there) ++there;
    CHECK_EQ(there, 8);
    rig.a.sender.post(Opcode::nop, {});
    CHECK(!rig.go().there);
    CHECK_EQ(rig.world.count(AsyncEventType::cq_error), 1);
}

TEST(responder_overrun) {
    RigOptions options;
    options.cq.log_entries = 1;
    Rig rig(options);
    for (u32 i = 0; i < 4; ++i) rig.b.sender.post_receive({});
    for (u32 i = 0; i < 3; ++i) {
        rig.a.sender.post(Opcode::write_imm, {remote_segment(0, 0)});
        const PolledCqe cqe = rig.go();
        CHECK_EQ(cqe.syndrome, i < 2 ? Syndrome::none : Syndrome::remote_op);
    }
    CHECK_EQ(rig.b.state(), QpState::err);
    CHECK_EQ(rig.world.count(AsyncEventType::cq_error), 1);
}

TEST(overrun_ignored) {
    RigOptions options;
    options.cq.log_entries = 3;
    options.cq.overrun_ignore = true;
    Rig rig(options);
    for (u32 i = 0; i < 20; ++i) rig.a.sender.post(Opcode::nop, {});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    CqInfo info;
    CHECK(rig.a.hca->query_cq(rig.a.send_cqn, &info).ok());
    CHECK_EQ(info.produced, 20);
    CHECK_EQ(info.overwritten, 12);
    CHECK_EQ(rig.a.state(), QpState::rts);
    CHECK_EQ(rig.world.asynchronous.size(), 0);
}

TEST(arming) {
    Rig rig;
    const auto events = [&] { return rig.world.count(AsyncEventType::completion); };
    CHECK(rig.a.hca->arm_cq(rig.a.send_cqn, false).ok());
    CHECK_EQ(events(), 0);
    for (u32 i = 0; i < 3; ++i) rig.a.sender.post(Opcode::nop, {});
    CHECK(rig.go().there);
    CHECK_EQ(events(), 1);  // once
    CHECK(rig.a.hca->arm_cq(rig.a.send_cqn, false).ok());
    CHECK_EQ(events(), 2);  // two entries were not taken yet
    rig.a.send_cq.poll(), rig.a.send_cq.poll();
    // Through the register: {sn, command, ci}, {cqn}; command bit 24 asks for solicited entries only.
    const auto doorbell = [&](bool any) {
        const u64 first = swap_bytes(any ? 0u : 1u << 24), second = swap_bytes(rig.b.recv_cqn);
        rig.b.hca->mmio_write64(static_cast<u8*>(rig.b.hca->default_uar().page) + 0x20, second << 32 | first);
    };
    for (u32 i = 0; i < 4; ++i) rig.b.sender.post_receive({});
    doorbell(false);
    rig.a.sender.post(Opcode::send, {}, kCqUpdate);
    rig.go();
    CHECK_EQ(events(), 2);
    rig.a.sender.post(Opcode::send, {}, kCqUpdate | kSolicited);
    rig.go();
    CHECK_EQ(events(), 3);
    while (rig.b.recv_cq.poll().there) {}
    doorbell(true);
    rig.a.sender.post(Opcode::send, {}, kCqUpdate);
    rig.go();
    CHECK_EQ(events(), 4);
}

// mode × (record written, register in either dialect) → was it executed?
TEST(doorbell_modes) {
    struct Case {
        DoorbellMode mode;
        bool record, last_dialect, executes;
    };
    const Case cases[] = {
        {DoorbellMode::dbrec, true, false, true},           {DoorbellMode::dbrec, true, true, true},
        {DoorbellMode::dbrec, false, false, false},         {DoorbellMode::dbrec, false, true, false},
        {DoorbellMode::register_value, true, false, true},  {DoorbellMode::register_value, false, false, true},
        {DoorbellMode::register_value, false, true, true},  {DoorbellMode::no_dbr, false, false, true},
        {DoorbellMode::no_dbr, false, true, true},
    };
    for (const Case& test : cases) {
        g_context = std::to_string(static_cast<u32>(test.mode)) + (test.record ? " record" : "") + (test.last_dialect ? " last" : " next");
        RigOptions options;
        options.config.doorbell = test.mode;
        Rig rig(options);
        Sender& s = rig.a.sender;
        for (u32 round = 0; round < 100; ++round) {
            s.post(Opcode::nop, {}, 0);
            s.post(Opcode::masked_cmp_swap, {rig.remote(0), Vec16{}, Vec16{}, rig.local(0, 8)}, kCqUpdate, 9);
            if (test.record) s.write_record();
            Vec16 ctrl;
            std::memcpy(&ctrl, s.bb(s.last), 16);
            rig.a.hca->mmio_write64(s.info.uar_register, test.last_dialect ? doorbell_last(ctrl) : doorbell_next(s.info.qpn, s.next));
            CHECK(rig.world.run());
            CHECK_EQ(rig.a.send_cq.poll().there, test.executes);
            if (!test.executes) break;
        }
        CHECK_EQ(rig.a.hca->counters().doorbells_no_progress, test.executes ? 0 : 1);
    }
}

TEST(doorbell_order_and_strays) {
    Rig rig;
    Sender& s = rig.a.sender;
    // DOCA rings, writes the record, rings again: the first finds nothing new, the second all.
    s.post(Opcode::nop, {});
    s.ring_register();
    CHECK(rig.world.run());
    CHECK(!rig.a.send_cq.poll().there);
    CHECK(rig.go().there);
    // A ring too many, a stale record, another QP's number, another page, half a doorbell.
    s.ring_register();
    s.info.create.dbrec[kDbrecSend] = 0;
    s.ring_register();
    const HcaCounters before = rig.a.hca->counters();
    CHECK_EQ(before.doorbells_no_progress, 3);
    rig.a.hca->mmio_write64(s.info.uar_register, doorbell_next(0xfffffe, 5));
    rig.a.hca->mmio_write64(s.info.uar_register, doorbell_next(0, 5));
    UarPage other;
    CHECK(rig.a.hca->alloc_uar(&other).ok());
    s.post(Opcode::nop, {});
    s.write_record();
    rig.a.hca->mmio_write64(other.registers, doorbell_next(s.info.qpn, s.next));
    rig.a.hca->mmio_write32(static_cast<u8*>(s.info.uar_register) + 4, swap_bytes(s.info.qpn << 8));
    CHECK(rig.world.run());
    CHECK(!rig.a.send_cq.poll().there);
    const HcaCounters counters = rig.a.hca->counters();
    CHECK_EQ(counters.doorbells_unknown_qp, 2);
    CHECK_EQ(counters.doorbells_wrong_uar, 1);
    CHECK_EQ(counters.doorbells_split, 1);
    CHECK_EQ(rig.world.count(AsyncEventType::doorbell_split), 1);
    CHECK_EQ(rig.world.asynchronous.back().event.number, s.info.qpn);
    CHECK(rig.go().there);
    // Before RTS nobody listens, and the record is found by the first doorbell after it.
    QpModify attr;
    attr.qp_state = QpState::reset;
    CHECK(rig.a.hca->modify_qp(s.info.qpn, attr, kQpAttrState).ok());
    CHECK(rig.b.hca->modify_qp(rig.b.sender.info.qpn, attr, kQpAttrState).ok());
    s.next = 0;
    s.post(Opcode::nop, {});
    s.ring();
    CHECK_EQ(rig.a.hca->counters().doorbells_wrong_state, 1);
    rig.connect(rig.a, 2, rig.b.sender.info.qpn);
    rig.a.send_cq.info.dbrec[0] = swap_bytes(static_cast<u32>(rig.a.send_cq.consumed));
    CHECK(rig.go().there);
}

TEST(callers_own_buffers) {
    alignas(64) static u8 sq[64 * 8], cq[64 * 8];
    alignas(64) static u32 records[16];
    std::memset(cq, 0xff, sizeof cq);
    Rig rig;
    CqAttr cq_attr;
    cq_attr.log_entries = 3;
    cq_attr.buffer = cq;
    cq_attr.dbrec = records;
    u32 cqn = 0, qpn = 0;
    CHECK(rig.a.hca->create_cq(cq_attr, &cqn).ok());
    QpAttr attr;
    attr.pd = rig.a.pd;
    attr.send_cq = attr.recv_cq = cqn;
    attr.log_sq_bbs = 3;
    attr.sq_buffer = sq;
    attr.dbrec = records + 2;
    CHECK(rig.a.hca->create_qp(attr, &qpn).ok());
    Sender s;
    s.hca = rig.a.hca.get();
    CHECK(rig.a.hca->query_qp(qpn, &s.info).ok());
    CHECK(s.info.create.sq_buffer == sq && s.info.create.dbrec == records + 2);
    QpModify reset;
    CHECK(rig.b.hca->modify_qp(rig.b.sender.info.qpn, reset, kQpAttrState).ok());
    rig.connect(*rig.a.hca, qpn, 2, rig.b.sender.info.qpn);
    rig.connect(rig.b, 1, qpn);
    rig.a.word(0) = 42;
    s.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    s.ring();
    CHECK(rig.world.run());
    CHECK_EQ(rig.b.word(0), 42);
    CHECK_EQ(cq[63] >> 4, CqeOpcode::requester);
    CHECK_EQ(cq[127], 0xff);
}

}  // namespace
}  // namespace rdmakit::test
