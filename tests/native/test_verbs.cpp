// test_verbs.cpp — PDs, MRs, CQs, QPs as objects: who may be destroyed when, what is refused and with which errno.
#include <cerrno>

#include "../../rdmakit/emu/hca/qp_state.hpp"
#include "rig.hpp"

namespace rdmakit::test {

namespace {

// IBTA's table for RC as an independent list: rows are from, columns to.
const char* const kTransitions[kQpStates] = {
    //  RESET INIT RTR RTS SQD SQE ERR
    "yynnnnn",  // RESET
    "yyynnny",  // INIT
    "ynnynny",  // RTR
    "ynnyyny",  // RTS
    "ynnyyny",  // SQD
    "ynnynny",  // SQE
    "ynnnnny",  // ERR
};

QpModify valid_attributes(const Rig& rig) {
    QpModify attr = rig.options.modify;
    attr.ah.is_global = true;
    attr.ah.dgid = gid_of(2, 1);
    attr.dest_qp_num = rig.b.sender.info.qpn;
    return attr;
}

void take_to(Rig& rig, QpState state) {
    QpModify attr = valid_attributes(rig);
    const u32 qpn = rig.a.sender.info.qpn;
    const auto go = [&](QpState to, u32 mask) {
        attr.qp_state = to;
        CHECK(rig.a.hca->modify_qp(qpn, attr, mask).ok());
    };
    go(QpState::reset, kQpAttrState);
    if (state == QpState::reset) return;
    go(QpState::init, kToInit);
    if (state == QpState::init) return;
    if (state == QpState::err) return go(QpState::err, kQpAttrState);
    go(QpState::rtr, kToRtr);
    if (state == QpState::rtr) return;
    go(QpState::rts, kToRts);
    if (state == QpState::sqd) go(QpState::sqd, kQpAttrState);
}

TEST(state_machine_all_transitions) {
    Rig rig;
    const u32 qpn = rig.a.sender.info.qpn;
    for (u32 from = 0; from < kQpStates; ++from) {
        for (u32 to = 0; to < kQpStates; ++to) {
            const QpState f = static_cast<QpState>(from), t = static_cast<QpState>(to);
            g_context = std::string(qp_state_name(f)) + " to " + qp_state_name(t);
            const QpTransition transition = qp_transition(f, t);
            CHECK_EQ(transition.valid, kTransitions[from][to] == 'y');
            if (f == QpState::sqe) continue;  // an RC queue pair cannot be brought there
            // All that is needed: goes. Without any one of it: refused, and nothing has changed. With more: refused.
            QpModify attr = valid_attributes(rig);
            attr.qp_state = t;
            const u32 required = transition.required | kQpAttrState;
            take_to(rig, f);
            const Status status = rig.a.hca->modify_qp(qpn, attr, required);
            CHECK_EQ(status.code, transition.valid ? 0 : EINVAL);
            CHECK_EQ(rig.a.state(), transition.valid ? t : f);
            if (!transition.valid) {
                CHECK(std::strstr(status.message, qp_state_name(f)) && std::strstr(status.message, qp_state_name(t)));
                continue;
            }
            for (u32 bit = 0; bit < kQpAttrs; ++bit) {
                const u32 attribute = 1u << bit;
                if (attribute == kQpAttrState) continue;
                take_to(rig, f);
                const u32 mask = required ^ attribute;
                const bool optional = transition.optional & attribute;
                const Status changed = rig.a.hca->modify_qp(qpn, attr, mask);
                if (transition.required & attribute) {
                    CHECK_EQ(changed.code, EINVAL);
                    CHECK(std::strstr(changed.message, "missing"));
                    CHECK_EQ(rig.a.state(), f);
                } else if (optional && attribute == kQpAttrAltPath) {
                    CHECK_EQ(changed.code, EOPNOTSUPP);
                } else if (optional && attribute == kQpAttrCurState) {
                    attr.cur_qp_state = f;
                    take_to(rig, f);
                    CHECK(rig.a.hca->modify_qp(qpn, attr, mask).ok());
                    take_to(rig, f);
                    attr.cur_qp_state = QpState::err;
                    CHECK_EQ(rig.a.hca->modify_qp(qpn, attr, mask).code, EINVAL);
                } else {
                    CHECK_EQ(changed.code, optional ? 0 : EINVAL);
                    CHECK_EQ(rig.a.state(), optional ? t : f);
                }
            }
        }
    }
}

TEST(attribute_values) {
    Rig rig;
    const u32 qpn = rig.a.sender.info.qpn;
    const auto refused = [&](QpState from, QpState to, u32 mask, int code, void (*spoil)(QpModify&)) {
        take_to(rig, from);
        QpModify attr = valid_attributes(rig);
        attr.qp_state = to;
        spoil(attr);
        CHECK_EQ(rig.a.hca->modify_qp(qpn, attr, mask).code, code);
        CHECK_EQ(rig.a.state(), from);
    };
    const QpState reset = QpState::reset, init = QpState::init, rtr = QpState::rtr, rts = QpState::rts;
    refused(reset, init, kToInit, EINVAL, [](QpModify& a) { a.port_num = 3; });
    refused(reset, init, kToInit, EINVAL, [](QpModify& a) { a.port_num = 0; });
    refused(reset, init, kToInit, EINVAL, [](QpModify& a) { a.pkey_index = 1; });
    refused(reset, init, kToInit, EINVAL, [](QpModify& a) { a.qp_access_flags = 0x100; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.path_mtu = 6; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.path_mtu = 0; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.dest_qp_num = 1 << 24; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.rq_psn = 1 << 24; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.max_dest_rd_atomic = 17; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.min_rnr_timer = 32; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.ah.is_global = false; });
    refused(init, rtr, kToRtr, ETIMEDOUT, [](QpModify& a) { a.ah.dgid = gid_of(9, 9); });
    refused(init, rtr, kToRtr, EOPNOTSUPP, [](QpModify& a) { a.ah.static_rate = 16; });
    refused(init, rtr, kToRtr, EINVAL, [](QpModify& a) { a.ah.src_path_bits = 1; });
    refused(init, rtr, kToRtr | kQpAttrAltPath, EOPNOTSUPP, [](QpModify&) {});
    refused(rtr, rts, kToRts | kQpAttrPathMigState, EOPNOTSUPP, [](QpModify& a) { a.path_mig_state = 1; });
    refused(rtr, rts, kToRts, EINVAL, [](QpModify& a) { a.timeout = 32; });
    refused(rtr, rts, kToRts, EINVAL, [](QpModify& a) { a.retry_cnt = 8; });
    refused(rtr, rts, kToRts, EINVAL, [](QpModify& a) { a.rnr_retry = 8; });
    refused(rtr, rts, kToRts, EINVAL, [](QpModify& a) { a.max_rd_atomic = 17; });
    refused(rtr, rts, kToRts, EINVAL, [](QpModify& a) { a.sq_psn = 1 << 24; });
}

TEST(ownership) {
    Rig rig;
    Hca& hca = *rig.a.hca;
    CHECK_EQ(hca.dealloc_pd(rig.a.pd).code, EBUSY);
    CHECK_EQ(hca.destroy_cq(rig.a.send_cqn).code, EBUSY);
    CHECK(hca.dereg_mr(rig.a.key).ok());
    CHECK_EQ(hca.dereg_mr(rig.a.key).code, EINVAL);
    CHECK_EQ(hca.dealloc_pd(rig.a.pd).code, EBUSY);
    CHECK(hca.destroy_qp(rig.a.sender.info.qpn).ok());
    CHECK_EQ(hca.destroy_qp(rig.a.sender.info.qpn).code, EINVAL);
    CHECK(hca.dealloc_pd(rig.a.pd).ok());
    CHECK_EQ(hca.dealloc_pd(rig.a.pd).code, EINVAL);
    CHECK(hca.destroy_cq(rig.a.send_cqn).ok());
    CHECK_EQ(hca.destroy_cq(rig.a.send_cqn).code, EINVAL);
    CHECK(hca.destroy_cq(rig.a.recv_cqn).ok());
    UarPage page;
    CHECK(hca.alloc_uar(&page).ok());
    CHECK(hca.owns(page.registers) && !rig.b.hca->owns(page.registers));
    CHECK(hca.free_uar(page.index).ok());
    CHECK(!hca.owns(page.registers));
    CHECK_EQ(hca.free_uar(0).code, EINVAL);
}

TEST(registration) {
    Rig rig;
    Hca& hca = *rig.a.hca;
    u8 bytes[64];
    u32 key = 0;
    CHECK_EQ(hca.reg_mr(99, bytes, 64, 0, &key).code, EINVAL);
    CHECK_EQ(hca.reg_mr(rig.a.pd, bytes, 0, 0, &key).code, EINVAL);
    CHECK_EQ(hca.reg_mr(rig.a.pd, bytes, 64, kAccessRemoteWrite, &key).code, EINVAL);
    CHECK_EQ(hca.reg_mr(rig.a.pd, bytes, 64, 1u << 30, &key).code, EINVAL);
    CHECK_EQ(hca.reg_mr(rig.a.pd, bytes, ~0ull, 0, &key).code, EINVAL);
    CHECK_EQ(hca.reg_mr(rig.a.pd, nullptr, 64, 0, &key).code, EFAULT);
    // 256 variants of one index come round, and never key 0x100.
    CHECK(hca.reg_mr(rig.a.pd, bytes, 64, 0, &key).ok());
    const u32 first = key;
    for (u32 i = 1; i <= 256; ++i) {
        CHECK(hca.dereg_mr(key).ok());
        CHECK(hca.reg_mr(rig.a.pd, bytes, 64, 0, &key).ok());
        CHECK_EQ(key, (first & ~0xffu) | ((first + i) & 0xff));
        CHECK(key != kInvalidLkey);
    }
    // An iova of its own choice.
    u32 at_zero = 0;
    CHECK(hca.reg_mr_iova(rig.a.pd, bytes, 64, 0, kAllAccess, &at_zero).ok());
    rig.b.word(0) = 0x1234;
    rig.b.sender.post(Opcode::write, {remote_segment(56, at_zero), data_segment(rig.b.address(), 8, rig.b.key)});
    rig.b.sender.ring();
    CHECK(rig.world.run());
    CHECK(rig.b.send_cq.poll().opcode == CqeOpcode::requester);
    u64 seen;
    std::memcpy(&seen, bytes + 56, 8);
    CHECK_EQ(seen, 0x1234);
}

TEST(creation_limits) {
    Rig rig;
    Hca& hca = *rig.a.hca;
    u32 number = 0;
    CqAttr cq;
    cq.log_entries = 23;
    CHECK_EQ(hca.create_cq(cq, &number).code, EINVAL);
    cq.log_entries = 3;
    cq.cqe_bytes = 32;
    CHECK_EQ(hca.create_cq(cq, &number).code, EINVAL);
    QpAttr good = rig.options.qp;
    good.pd = rig.a.pd;
    good.send_cq = rig.a.send_cqn;
    good.recv_cq = rig.a.recv_cqn;
    const auto refused = [&](void (*spoil)(QpAttr&)) {
        QpAttr attr = good;
        spoil(attr);
        CHECK_EQ(hca.create_qp(attr, &number).code, EINVAL);
    };
    refused([](QpAttr& a) { a.pd = 77; });
    refused([](QpAttr& a) { a.send_cq = 0; });
    refused([](QpAttr& a) { a.recv_cq = 77; });
    refused([](QpAttr& a) { a.uar = 9; });
    refused([](QpAttr& a) { a.log_sq_bbs = 16; });
    refused([](QpAttr& a) { a.log_rq_wqes = 16; });
    refused([](QpAttr& a) { a.max_recv_sge = 33; });
    refused([](QpAttr& a) { a.max_inline = 973; });
    refused([](QpAttr& a) { a.sq_buffer = reinterpret_cast<void*>(8); });
    refused([](QpAttr& a) { a.doorbell = static_cast<DoorbellMode>(9); });
    CHECK_EQ(Hca::rq_stride_bytes(0), 16);
    CHECK_EQ(Hca::rq_stride_bytes(3), 64);
}

TEST(drain) {
    for (const bool timed : {false, true}) {
        RigOptions options;
        options.timed = timed;
        Rig rig(options);
        QpModify attr = valid_attributes(rig);
        attr.qp_state = QpState::sqd;
        attr.en_sqd_async_notify = true;
        rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
        if (timed) {
            rig.a.sender.ring();
            rig.world.run(2);  // doorbell and tick: the request is on the wire
        }
        CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, attr, kQpAttrState | kQpAttrEnSqdAsyncNotify).ok());
        CHECK_EQ(rig.world.count(AsyncEventType::sq_drained), timed ? 0 : 1);
        rig.a.sender.post(Opcode::write, {rig.remote(8), rig.local(0, 8)});
        const PolledCqe cqe = rig.go();
        CHECK_EQ(cqe.there, timed);
        CHECK_EQ(rig.world.count(AsyncEventType::sq_drained), 1);
        CHECK(!rig.a.send_cq.poll().there);
        attr.qp_state = QpState::rts;
        CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, attr, kQpAttrState).ok());
        CHECK(rig.world.run());
        u32 more = 0;
        while (rig.a.send_cq.poll().there) ++more;
        CHECK_EQ(more, timed ? 1 : 2);
    }
}

TEST(communication_established) {
    Rig rig;
    take_to(rig, QpState::rtr);
    rig.b.word(0) = 1;
    rig.b.sender.post(Opcode::write, {remote_segment(rig.a.address(), rig.a.key), data_segment(rig.b.address(), 8, rig.b.key)});
    rig.b.sender.ring();
    CHECK(rig.world.run());
    CHECK_EQ(rig.world.count(AsyncEventType::communication_established), 1);
    CHECK_EQ(rig.a.word(0), 1);
}

}  // namespace
}  // namespace rdmakit::test
