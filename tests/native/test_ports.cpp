// test_ports.cpp — which port a queue pair uses, in a bond and without, what its counters say, what libmlx5 refuses.
#include <cerrno>
#include <functional>

#include "../../rdmakit/emu/hca/port.hpp"
#include "rig.hpp"

namespace rdmakit::test {

namespace {

RigOptions bonded(LagMode lag) {
    RigOptions options;
    options.config.lag = lag;
    return options;
}

// Many QPs between a and b, each of which writes `bytes`; returns how many used a's port 1.
u32 spread(Rig& rig, u32 count, u32 bytes, u32 flow_label_step = 0) {
    u32 on_first = 0;
    for (u32 i = 0; i < count; ++i) {
        Sender from, to;
        rig.add_qp(rig.a, from);
        rig.add_qp(rig.b, to);
        rig.options.modify.ah.flow_label = flow_label_step * (i + 1);
        rig.connect(*rig.a.hca, from.info.qpn, 2, to.info.qpn);
        rig.connect(*rig.b.hca, to.info.qpn, 1, from.info.qpn);
        from.post(Opcode::write, {rig.remote(0), rig.local(0, bytes)}, 0);
        from.ring();
        CHECK(rig.world.run());
        QpInfo info;
        rig.a.hca->query_qp(from.info.qpn, &info);
        on_first += info.physical_port == 1;
    }
    return on_first;
}

TEST(port_counters) {
    // RoCEv2 over IPv4: Ethernet 14, IP 20, UDP 8, BTH 12, ICRC 4, FCS 4 = 62 a packet; RETH 16, AETH 4, ATOMICETH 28,
    // ATOMICACKETH 8, IMMDT 4.
    struct Case {
        const char* name;
        u64 sent_octets, sent_packets, back_octets, back_packets;
    };
    const u32 overhead = 62;
    const auto measure = [&](const Case& expected, const std::function<void(Rig&)>& post) {
        g_context = expected.name;
        Rig rig;
        post(rig);
        CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
        const PortCounters a = rig.a.hca->port_counters(1), b = rig.b.hca->port_counters(1);
        CHECK_EQ(a.xmit_bytes, expected.sent_octets);
        CHECK_EQ(a.xmit_data, expected.sent_octets / 4);
        CHECK_EQ(a.xmit_packets, expected.sent_packets);
        CHECK_EQ(b.rcv_bytes, expected.sent_octets);
        CHECK_EQ(b.rcv_packets, expected.sent_packets);
        CHECK_EQ(b.xmit_bytes, expected.back_octets);
        CHECK_EQ(b.xmit_packets, expected.back_packets);
        CHECK_EQ(a.rcv_bytes, expected.back_octets);
        CHECK_EQ(rig.a.hca->port_counters(2).xmit_packets, 0);
    };
    const u64 ack = overhead + 4;
    measure({"WRITE 8", overhead + 16 + 8, 1, ack, 1},
            [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 8)}); });
    measure({"WRITE 5, padded", overhead + 16 + 8, 1, ack, 1},
            [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 5)}); });
    measure({"WRITE 4096", overhead + 16 + 4096, 1, ack, 1},
            [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 4096)}); });
    measure({"WRITE 4097", 2 * overhead + 16 + 4100, 2, ack, 1},
            [](Rig& r) { r.a.sender.post(Opcode::write, {r.remote(0), r.local(0, 4097)}); });
    measure({"READ 10000", overhead + 16, 1, 3 * overhead + 8 + 10000, 3},
            [](Rig& r) { r.a.sender.post(Opcode::read, {r.remote(0), r.local(0, 10000)}); });
    measure({"FETCH_ADD", overhead + 28, 1, overhead + 12, 1},
            [](Rig& r) { r.a.sender.post(Opcode::fetch_add, {r.remote(0), atomic_segment(1, 0), r.local(0, 8)}); });
    measure({"WRITE_IMM 0", overhead + 20, 1, ack, 1}, [](Rig& r) {
        r.b.sender.post_receive({});
        r.a.sender.post(Opcode::write_imm, {r.remote(0)});
    });
    measure({"NOP", 0, 0, 0, 0}, [](Rig& r) { r.a.sender.post(Opcode::nop, {}); });
    AddressVector v6;
    v6.dgid.raw[0] = 0x20;
    CHECK_EQ(packet_overhead(true, v6), 82);
    CHECK_EQ(packet_overhead(false, v6), 26);
}

TEST(per_qp_bytes) {
    Rig rig;
    rig.b.sender.post_receive({data_segment(rig.b.address(), 64, rig.b.key)});
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 5000)});
    rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 300)});
    rig.a.sender.post(Opcode::send, {rig.local(0, 20)});
    rig.go();
    const QpCounters a = rig.a.query().counters, b = rig.b.query().counters;
    CHECK_EQ(a.xmit_payload, 5020);
    CHECK_EQ(a.rcv_payload, 300);
    CHECK_EQ(b.rcv_payload, 5020);
    CHECK_EQ(b.xmit_payload, 300);
    CHECK_EQ(a.xmit_packets, 4);
}

TEST(unbonded_port_is_chosen_at_init) {
    RigOptions options;
    options.modify.port_num = 2;
    Rig rig(options);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.hca->port_counters(1).xmit_packets, 0);
    CHECK_EQ(rig.a.hca->port_counters(2).xmit_packets, 1);
    CHECK_EQ(rig.b.hca->port_counters(2).rcv_packets, 1);
    CHECK_EQ(rig.a.query().physical_port, 2);
    u32 configured = 0, active = 0;
    CHECK_EQ(rig.a.hca->query_qp_lag_port(rig.a.sender.info.qpn, &configured, &active).code, EOPNOTSUPP);
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(rig.a.sender.info.qpn, 1).code, EOPNOTSUPP);
    // A port down here has no substitute.
    rig.a.hca->set_port_up(2, false);
    CHECK_EQ(rig.world.count(AsyncEventType::port_error), 1);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    CHECK_EQ(rig.go().syndrome, Syndrome::transport_retry_exceeded);
}

TEST(queue_affinity_round_robin_and_explicit) {
    Rig rig(bonded(LagMode::queue_affinity));
    CHECK_EQ(rig.a.hca->ib_ports(), 1);
    CHECK_EQ(spread(rig, 20, 4096), 10);
    const PortCounters first = rig.a.hca->port_counters(1), second = rig.a.hca->port_counters(2);
    CHECK_EQ(first.xmit_bytes, second.xmit_bytes);
    CHECK_EQ(rig.b.hca->port_counters(1).rcv_payload, rig.b.hca->port_counters(2).rcv_payload);
    const u32 qpn = rig.a.sender.info.qpn;
    u32 configured = 0, active = 0;
    CHECK(rig.a.hca->query_qp_lag_port(qpn, &configured, &active).ok());
    CHECK_EQ(configured, 2);  // the kernel's counter is incremented before use
    CHECK_EQ(active, 2);
    CHECK(rig.a.hca->modify_qp_lag_port(qpn, 1).ok());
    CHECK_EQ(rig.a.query().physical_port, 1);
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(qpn, 3).code, EINVAL);
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(qpn, 0).code, EINVAL);
    // Fail-over: the configured port stays, the active one changes, and traffic goes on.
    rig.a.hca->set_port_up(1, false);
    CHECK_EQ(rig.world.count(AsyncEventType::port_error), 0);
    CHECK(rig.a.hca->query_qp_lag_port(qpn, &configured, &active).ok());
    CHECK_EQ(configured, 1);
    CHECK_EQ(active, 2);
    const u64 before = rig.a.hca->port_counters(1).xmit_packets;
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)});
    CHECK_EQ(rig.go().opcode, CqeOpcode::requester);
    CHECK_EQ(rig.a.hca->port_counters(1).xmit_packets, before);
    rig.a.hca->set_port_up(2, false);
    CHECK_EQ(rig.world.count(AsyncEventType::port_error), 1);
    rig.a.hca->set_port_up(1, true);
    CHECK_EQ(rig.world.count(AsyncEventType::port_active), 1);
    CHECK_EQ(rig.a.query().physical_port, 1);
    // Only in RTS.
    QpModify attr;
    attr.qp_state = QpState::sqd;
    CHECK(rig.a.hca->modify_qp(qpn, attr, kQpAttrState).ok());
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(qpn, 2).code, EINVAL);
    attr.qp_state = QpState::reset;
    CHECK(rig.a.hca->modify_qp(qpn, attr, kQpAttrState).ok());
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(qpn, 2).code, EOPNOTSUPP);
}

TEST(hash_mode) {
    Rig rig(bonded(LagMode::hash));
    const u32 on_first = spread(rig, 200, 64);
    CHECK(on_first > 60 && on_first < 140);
    const u32 qpn = rig.a.sender.info.qpn;
    u32 configured = 0, active = 0;
    CHECK_EQ(rig.a.hca->query_qp_lag_port(qpn, &configured, &active).code, EOPNOTSUPP);
    CHECK_EQ(rig.a.hca->modify_qp_lag_port(qpn, 1).code, EOPNOTSUPP);
    // The source port decides, and nothing else of the QP does.
    CHECK_EQ(rig.a.query().udp_source_port,
             flow_label_to_source_port(flow_label_of_qpns(qpn, rig.b.sender.info.qpn)));
    u32 seen[3] = {};
    for (u32 port = 0xc000; port < 0xc040; ++port) {
        CHECK(rig.a.hca->modify_qp_udp_sport(qpn, port).ok());
        const u32 physical = rig.a.query().physical_port;
        ++seen[physical];
        CHECK_EQ(physical, Ports::hash_port(port, gid_of(2, 1), 2));
    }
    CHECK(seen[1] > 16 && seen[2] > 16);
    CHECK_EQ(rig.a.hca->modify_qp_udp_sport(qpn, 0xbfff).code, EINVAL);
    CHECK_EQ(rig.a.hca->modify_qp_udp_sport(qpn, 0x10000).code, EINVAL);
    QpModify reset;
    CHECK(rig.a.hca->modify_qp(qpn, reset, kQpAttrState).ok());
    CHECK_EQ(rig.a.hca->modify_qp_udp_sport(qpn, 0xc001).code, EINVAL);
}

TEST(hash_mode_without_bypass_keeps_affinity) {
    RigOptions options = bonded(LagMode::hash);
    options.config.port_select_flow_table_bypass = false;
    Rig rig(options);
    u32 configured = 0, active = 0;
    CHECK(rig.a.hca->query_qp_lag_port(rig.a.sender.info.qpn, &configured, &active).ok());
    CHECK(rig.a.hca->modify_qp_lag_port(rig.a.sender.info.qpn, 1).ok());
    CHECK_EQ(rig.a.query().physical_port, 1);
}

TEST(source_port_formulas) {
    CHECK_EQ(flow_label_to_source_port(0), 0xc000);
    CHECK_EQ(flow_label_to_source_port(0xfffff), 0xffc0);
    CHECK_EQ(flow_label_of_qpns(1, 1), 1);
    // (0x100000 × 0x3) ^ >>20: the upper bits fold in.
    CHECK_EQ(flow_label_of_qpns(0x100000, 3), 3);
    Rig rig(bonded(LagMode::hash));
    QpModify reset;
    CHECK(rig.a.hca->modify_qp(rig.a.sender.info.qpn, reset, kQpAttrState).ok());
    rig.options.modify.ah.flow_label = 0x12345;
    rig.connect(rig.a, 2, rig.b.sender.info.qpn);
    CHECK_EQ(rig.a.query().udp_source_port, flow_label_to_source_port(0x12345));
}

TEST(addresses) {
    Rig rig;
    CHECK_EQ(rig.a.hca->add_address(1, gid_of(2, 1)).code, EADDRINUSE);
    CHECK_EQ(rig.a.hca->add_address(3, gid_of(5, 1)).code, EINVAL);
    CHECK(rig.a.hca->add_address(1, gid_of(5, 1)).ok());
    // InfiniBand: by LID, without a global route.
    RigOptions options;
    options.config.roce = false;
    Rig ib(options);
    QpModify attr = options.modify;
    const u32 qpn = ib.a.sender.info.qpn;
    attr.qp_state = QpState::reset;
    CHECK(ib.a.hca->modify_qp(qpn, attr, kQpAttrState).ok());
    attr.ah.dlid = 2 * 8 + 1;
    attr.dest_qp_num = ib.b.sender.info.qpn;
    attr.qp_state = QpState::init;
    CHECK(ib.a.hca->modify_qp(qpn, attr, kToInit).ok());
    attr.qp_state = QpState::rtr;
    CHECK(ib.a.hca->modify_qp(qpn, attr, kToRtr).ok());
    attr.qp_state = QpState::rts;
    CHECK(ib.a.hca->modify_qp(qpn, attr, kToRts).ok());
    ib.a.sender.post(Opcode::write, {ib.remote(0), ib.local(0, 8)});
    CHECK_EQ(ib.go().opcode, CqeOpcode::requester);
    CHECK_EQ(ib.a.hca->port_counters(1).xmit_bytes, 26 + 16 + 8);
}

}  // namespace
}  // namespace rdmakit::test
