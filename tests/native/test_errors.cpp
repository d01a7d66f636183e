// test_errors.cpp — every syndrome and how to get it, what happens to both queue pairs, and the flush of the rest.
#include <functional>

#include "rig.hpp"

namespace rdmakit::test {

namespace {

struct Case {
    const char* name;
    Syndrome syndrome;
    bool peer_fails;  // the responder's QP goes to ERR as well
    int event;        // AsyncEventType at the responder, or -1
    std::function<void(Rig&)> post;
    std::function<void(RigOptions&)> prepare;
};

std::vector<Case> cases() {
    const auto none = [](RigOptions&) {};
    const auto access = [](u32 flags) { return [flags](RigOptions& o) { o.mr_access = flags; }; };
    const int request = static_cast<int>(AsyncEventType::qp_request_error);
    const int denied = static_cast<int>(AsyncEventType::qp_access_error);
    return {
        {"unknown opcode", Syndrome::local_qp_op, false, -1,
         [](Rig& r) { r.a.sender.post(static_cast<Opcode>(0x3d), {r.remote(0), r.local(0, 8)}); }, none},
        {"READ with initiator depth 0", Syndrome::local_qp_op, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::read, {r.remote(0), r.local(0, 8)}); },
         [](RigOptions& o) { o.modify.max_rd_atomic = 0; }},
        {"over 1 GiB", Syndrome::local_length, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, kMaxWrite), r.local(0, 8)}); }, none},
        {"unknown lkey", Syndrome::local_protection, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), data_segment(r.a.address(), 8, 0x7fff00)}); }, none},
        {"stale lkey", Syndrome::local_protection, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), data_segment(r.a.address(), 8, r.a.key ^ 1)}); }, none},
        {"local bounds", Syndrome::local_protection, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(r.options.memory - 7, 8)}); }, none},
        {"second segment bad", Syndrome::local_protection, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8), r.local(r.options.memory, 8)}); }, none},
        {"READ into an MR without local write", Syndrome::local_protection, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::read, {r.remote(0), r.local(0, 8)}); }, access(kAccessRemoteRead)},
        {"foreign PD, lkey", Syndrome::local_protection, false, -1,
         [](Rig& r) {
             u32 pd = 0, key = 0;
             CHECK(r.a.hca->alloc_pd(&pd).ok());
             CHECK(r.a.hca->reg_mr(pd, r.a.memory.data(), 64, kAllAccess, &key).ok());
             r.a.sender.post(Opcode::write, {r.remote(0), data_segment(r.a.address(), 8, key)});
         }, none},
        {"foreign PD, rkey", Syndrome::remote_access, true, denied,
         [](Rig& r) {
             u32 pd = 0, key = 0;
             CHECK(r.b.hca->alloc_pd(&pd).ok());
             CHECK(r.b.hca->reg_mr(pd, r.b.memory.data(), 64, kAllAccess, &key).ok());
             r.a.sender.post(Opcode::write, {remote_segment(r.b.address(), key), r.local(0, 8)});
         }, none},
        {"remote bounds", Syndrome::remote_access, true, denied,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(r.options.memory - 4), r.local(0, 8)}); }, none},
        {"rkey after deregistration", Syndrome::remote_access, true, denied,
         [](Rig& r) {
             CHECK(r.b.hca->dereg_mr(r.b.key).ok());
             r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)});
         }, none},
        {"rkey after re-registration", Syndrome::remote_access, true, denied,
         [](Rig& r) {
             u32 key = 0;
             CHECK(r.b.hca->rereg_mr(r.b.key, r.b.pd, r.b.memory.data(), 4096, kAllAccess, &key).ok());
             CHECK(key >> 8 == r.b.key >> 8 && key != r.b.key);
             r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)});
         }, none},
        {"WRITE without remote write", Syndrome::remote_access, true, denied,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)}); },
         access(kAccessLocalWrite | kAccessRemoteRead)},
        {"READ without remote read", Syndrome::remote_access, true, denied,
         [](Rig& r) { r.a.sender.post(Opcode::read, {r.remote(0), r.local(0, 8)}); },
         access(kAccessLocalWrite | kAccessRemoteWrite)},
        {"atomic without remote atomic", Syndrome::remote_access, true, denied,
         [](Rig& r) { r.a.sender.post(Opcode::fetch_add, {r.remote(0), atomic_segment(1, 0), r.local(0, 8)}); },
         access(kAccessLocalWrite | kAccessRemoteWrite)},
        {"misaligned atomic", Syndrome::remote_invalid_request, true, request,
         [](Rig& r) { r.a.sender.post(Opcode::fetch_add, {r.remote(4), atomic_segment(1, 0), r.local(0, 8)}); }, none},
        {"WRITE that the QP does not take", Syndrome::remote_invalid_request, true, request,
         [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)}); },
         [](RigOptions& o) { o.modify.qp_access_flags = kAccessRemoteRead; }},
        {"READ with responder depth 0", Syndrome::remote_invalid_request, true, request,
         [](Rig& r) { r.a.sender.post(Opcode::read, {r.remote(0), r.local(0, 8)}); },
         [](RigOptions& o) { o.modify.max_dest_rd_atomic = 0; }},
        {"SEND longer than its receive WQE", Syndrome::remote_invalid_request, true, -1,
         [](Rig& r) {
             r.b.sender.post_receive({data_segment(r.b.address(), 7, r.b.key)});
             r.a.sender.post(Opcode::send, {r.local(0, 8)});
         }, none},
        {"receive WQE with a bad lkey", Syndrome::remote_op, true, -1,
         [](Rig& r) {
             r.b.sender.post_receive({data_segment(r.b.address(), 8, r.b.key ^ 3)});
             r.a.sender.post(Opcode::send, {r.local(0, 8)});
         }, none},
        {"no receive WQE", Syndrome::rnr_retry_exceeded, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::send, {r.local(0, 8)}); }, none},
        {"no receive WQE for an immediate", Syndrome::rnr_retry_exceeded, false, -1,
         [](Rig& r) { r.a.sender.post(Opcode::write_imm, {r.remote(0), r.local(0, 8)}); }, none},
        {"peer destroyed", Syndrome::transport_retry_exceeded, false, -1,
         [](Rig& r) {
             CHECK(r.b.hca->destroy_qp(r.b.sender.info.qpn).ok());
             r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)});
         }, none},
        {"wrong PSN", Syndrome::transport_retry_exceeded, false, -1,
         [](Rig& r) {
             QpModify attr = r.options.modify;
             attr.qp_state = QpState::reset;
             CHECK(r.a.hca->modify_qp(r.a.sender.info.qpn, attr, kQpAttrState).ok());
             r.options.modify.sq_psn = 5;
             r.connect(r.a, 2, r.b.sender.info.qpn);
             r.a.sender.next = 0;
             r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)});
         }, none},
        {"all ports down", Syndrome::transport_retry_exceeded, false, -1,
         [](Rig& r) {
             r.a.hca->set_port_up(1, false);
             r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)});
         }, none},
    };
}

void run_case(const Case& test, bool timed) {
    g_context = test.name;
    RigOptions options;
    options.timed = timed;
    test.prepare(options);
    Rig rig(options);
    // Before it one good WQE where that is possible, unsignalled; after it two more, of which one is unsignalled.
    rig.a.sender.post(Opcode::nop, {}, 0);
    test.post(rig);
    const u32 bad = static_cast<u32>(rig.a.sender.last);
    const u32 first_after = static_cast<u32>(rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, 0));
    const u32 second_after = static_cast<u32>(
        rig.a.sender.post(Opcode::masked_cmp_swap, {rig.remote(0), Vec16{}, Vec16{}, rig.local(0, 8)}, kCqUpdate, 9));
    for (u32 i = 0; i < 2; ++i) {
        const Vec16 entry = data_segment(rig.a.address(), 8, rig.a.key);
        rig.a.sender.post_receive({entry});
    }
    PolledCqe cqe = rig.go();
    CHECK(cqe.opcode == CqeOpcode::requester_error);
    CHECK_EQ(cqe.syndrome, test.syndrome);
    CHECK_EQ(cqe.wqe, bad);
    CHECK_EQ(cqe.qpn, rig.a.sender.info.qpn);
    for (const u32 wqe : {first_after, second_after}) {
        cqe = rig.a.send_cq.poll();
        CHECK(cqe.opcode == CqeOpcode::requester_error);
        CHECK_EQ(cqe.syndrome, Syndrome::flushed);
        CHECK_EQ(cqe.wqe, wqe);
    }
    CHECK(!rig.a.send_cq.poll().there);
    for (u32 i = 0; i < 2; ++i) {
        cqe = rig.a.recv_cq.poll();
        CHECK(cqe.opcode == CqeOpcode::responder_error);
        CHECK_EQ(cqe.syndrome, Syndrome::flushed);
        CHECK_EQ(cqe.wqe, i);
    }
    CHECK_EQ(rig.a.state(), QpState::err);
    QpInfo peer;
    if (rig.b.hca->query_qp(rig.b.sender.info.qpn, &peer).ok())
        CHECK_EQ(peer.state, test.peer_fails ? QpState::err : QpState::rts);
    u32 events = 0;
    for (const auto& seen : rig.world.asynchronous)
        if (seen.hca == rig.b.hca.get()) {
            ++events;
            CHECK_EQ(seen.event.type, test.event);
            CHECK_EQ(seen.event.number, rig.b.sender.info.qpn);
        }
    CHECK_EQ(events, test.event >= 0 ? 1 : 0);
    // Posting goes on being answered.
    const u32 late = static_cast<u32>(rig.a.sender.post(Opcode::nop, {}, 0));
    cqe = rig.go();
    CHECK_EQ(cqe.syndrome, Syndrome::flushed);
    CHECK_EQ(cqe.wqe, late);
    rig.a.sender.post_receive({});
    rig.a.hca->receive_posted(rig.a.sender.info.qpn);
    CHECK_EQ(rig.a.recv_cq.poll().syndrome, Syndrome::flushed);
}

TEST(syndromes) {
    for (const Case& test : cases()) run_case(test, false);
}
TEST(syndromes_timed) {
    for (const Case& test : cases()) run_case(test, true);
}

TEST(responder_error_cqes) {
    for (const bool bad_key : {false, true}) {
        Rig rig;
        rig.b.sender.post_receive({data_segment(rig.b.address(), bad_key ? 8 : 4, rig.b.key ^ (bad_key ? 1 : 0))});
        rig.b.sender.post_receive({});
        rig.a.sender.post(Opcode::send, {rig.local(0, 8)});
        rig.go();
        PolledCqe cqe = rig.b.recv_cq.poll();
        CHECK(cqe.opcode == CqeOpcode::responder_error);
        CHECK_EQ(cqe.syndrome, bad_key ? Syndrome::local_protection : Syndrome::local_length);
        CHECK_EQ(cqe.wqe, 0);
        cqe = rig.b.recv_cq.poll();
        CHECK_EQ(cqe.syndrome, Syndrome::flushed);
        CHECK_EQ(cqe.wqe, 1);
        CHECK_EQ(rig.b.word(0), 0);
    }
}

// Two queue pairs share a CQ; only one fails.
TEST(error_is_the_queue_pairs_own) {
    Rig rig;
    Sender second, target;
    rig.add_qp(rig.a, second);
    rig.add_qp(rig.b, target);
    rig.connect(*rig.a.hca, second.info.qpn, 2, target.info.qpn);
    rig.connect(*rig.b.hca, target.info.qpn, 1, second.info.qpn);
    rig.a.sender.post(Opcode::write, {remote_segment(0, 1), rig.local(0, 8)});
    second.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    second.ring();
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.send_cq.poll().syndrome, Syndrome::remote_access);
    CHECK_EQ(rig.a.state(), QpState::err);
}

TEST(connected_to_itself) {
    Rig rig;
    QpModify attr;
    attr.qp_state = QpState::reset;
    CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, attr, kQpAttrState).ok());
    rig.connect(rig.a, 1, rig.a.sender.info.qpn);
    rig.a.word(0) = 77;
    rig.a.sender.post(Opcode::write, {remote_segment(rig.a.address(64), rig.a.key), rig.local(0, 8)});
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.word(64), 77);
    rig.a.sender.post(Opcode::write, {remote_segment(rig.a.address(64), 1), rig.local(0, 8)});
    CHECK_EQ(rig.go().syndrome, Syndrome::flushed);  // its own responder went to ERR first
    CHECK(!rig.a.send_cq.poll().there);
}

TEST(failed_recovery_through_reset) {
    Rig rig;
    rig.a.sender.post(static_cast<Opcode>(0x7f), {});
    CHECK_EQ(rig.go().syndrome, Syndrome::local_qp_op);
    QpModify attr;
    attr.qp_state = QpState::reset;
    CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, attr, kQpAttrState).ok());
    CHECK(rig.b.hca->modify_qp(rig.b.sender.info.qpn, attr, kQpAttrState).ok());
    CHECK_EQ(rig.a.sender.info.create.dbrec[kDbrecSend], 0);
    rig.a.sender.next = 0;
    rig.connect(rig.a, 2, rig.b.sender.info.qpn);
    rig.connect(rig.b, 1, rig.a.sender.info.qpn);
    rig.a.word(0) = 5;
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.b.word(0), 5);
}

}  // namespace
}  // namespace rdmakit::test
