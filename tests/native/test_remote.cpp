// test_remote.cpp — a peer in another process: what is under way, what comes back late, what never does.
#include <deque>

#include "../../rdmakit/emu/hca/remote.hpp"
#include "rig.hpp"

namespace rdmakit::test {

namespace {

constexpr u32 kProcessBits = 15;

// One process: an object for each of two HCAs, of which it uses one, and what it has sent to the other process.
struct Process final : Environment {
    explicit Process(u32 number_) : number(number_) {
        HcaConfig config;
        config.rnr_turns = config.retry_turns = 2;
        config.first_qpn = number << kProcessBits | 0x100;
        config.last_qpn = (number + 1) << kProcessBits;
        for (u32 host = 0; host < 2; ++host) {
            hcas[host] = std::make_unique<Hca>(*this, fabric, config);
            CHECK(hcas[host]->add_address(1, gid_of(host, 1)).ok());
        }
        CHECK(own().alloc_pd(&pd).ok());
        memory.assign(1 << 12, 0);
        CHECK(own().reg_mr(pd, memory.data(), memory.size(), kAllAccess, &key).ok());
        u32 cqn = 0;
        CHECK(own().create_cq(CqAttr(), &cqn).ok());
        QpAttr attr;
        attr.pd = pd;
        attr.send_cq = attr.recv_cq = cqn;
        attr.log_rq_wqes = 4;
        attr.max_recv_sge = 1;
        u32 qpn = 0;
        CHECK(own().create_qp(attr, &qpn).ok());
        sender.hca = &own();
        own().query_qp(qpn, &sender.info);
        own().query_cq(cqn, &cq.info);
    }
    void connect(const Process& peer) {
        QpModify attr;
        attr.qp_access_flags = kAllAccess;
        attr.retry_cnt = 3;
        attr.rnr_retry = 7;
        attr.ah.is_global = true;
        attr.ah.dgid = gid_of(peer.number, 1);
        attr.dest_qp_num = peer.sender.info.qpn;
        attr.qp_state = QpState::init;
        CHECK(own().modify_qp(sender.info.qpn, attr, kToInit).ok());
        attr.qp_state = QpState::rtr;
        CHECK(own().modify_qp(sender.info.qpn, attr, kToRtr).ok());
        attr.qp_state = QpState::rts;
        CHECK(own().modify_qp(sender.info.qpn, attr, kToRts).ok());
    }
    Hca& own() { return *hcas[number]; }
    u64 address(u64 offset) const { return reinterpret_cast<u64>(memory.data()) + offset; }
    u64& word(u64 offset) { return *reinterpret_cast<u64*>(memory.data() + offset); }
    void work(u32 turns = 1) {
        while (turns-- != 0) own().work(256);
    }

    u64 now_ps() override { return 0; }
    bool timed() override { return false; }
    void at(u64, void (*)(void*, u64), void*, u64) override {}
    void memory_written(const void*, std::size_t) override {}
    u64 random(u64 bound) override { return bound / 2; }
    void ready(Hca&) override {}
    bool copy_payload() override { return true; }
    void async_event(Hca&, AsyncEvent) override {}
    bool elsewhere(u32 qpn) override { return qpn >> kProcessBits != number; }
    bool carry(Hca& from, Hca& to, const RemoteRequest& request, const std::vector<u8>& data) override {
        CHECK(&from == hcas[number].get());
        CHECK(&to == hcas[1 - number].get());
        if (!reachable) return false;
        sent.push_back({request, data});
        return true;
    }

    struct Sent {
        RemoteRequest request;
        std::vector<u8> data;
    };
    const u32 number;
    Fabric fabric;
    std::unique_ptr<Hca> hcas[2];
    u32 pd = 0, key = 0;
    std::vector<u8> memory;
    Sender sender;
    Poller cq;
    std::deque<Sent> sent;
    bool reachable = true;
};

struct TwoProcesses {
    Process here{0}, there{1};
    struct Answered {
        RemoteAnswer answer;
        std::vector<u8> data;
    };
    std::deque<Answered> answers;

    TwoProcesses() {
        here.connect(there);
        there.connect(here);
    }
    Vec16 remote(u64 offset) const { return remote_segment(there.address(offset), there.key); }
    Vec16 local(u64 offset, u32 bytes) const { return data_segment(here.address(offset), bytes, here.key); }
    // All that is under way arrives there; its answers are on the way back.
    void arrive() {
        for (; !here.sent.empty(); here.sent.pop_front()) {
            Process::Sent& one = here.sent.front();
            const RemoteAnswer answer = there.own().serve(one.request, one.data, *there.hcas[0]);
            answers.push_back({answer, one.data});
        }
    }
    void come_back() {
        for (; !answers.empty(); answers.pop_front()) here.own().answered(answers.front().answer, answers.front().data);
    }
    void run(u32 turns = 50) {
        while (turns-- != 0) {
            here.work();
            arrive();
            come_back();
        }
    }
};

TEST(remote_requests_are_under_way_together) {
    TwoProcesses two;
    for (u32 i = 0; i < 70; ++i) two.here.sender.post(Opcode::write, {two.remote(8 * i), two.local(0, 8)});
    two.here.word(0) = 5;
    two.here.sender.ring();
    two.here.work();
    CHECK_EQ(two.here.sent.size(), 64);
    two.run();
    for (u32 i = 0; i < 70; ++i) {
        const PolledCqe done = two.here.cq.poll();
        CHECK_EQ(done.opcode, CqeOpcode::requester);
        CHECK_EQ(done.wqe, i);
        CHECK_EQ(two.there.word(8 * i), 5);
    }
}

TEST(remote_receiver_not_ready_sends_all_again) {
    TwoProcesses two;
    two.here.word(0) = 9;
    two.here.sender.post(Opcode::send, {two.local(0, 8)});
    for (u32 i = 0; i < 3; ++i) two.here.sender.post(Opcode::write, {two.remote(64 + 8 * i), two.local(0, 8)});
    two.here.sender.ring();
    two.here.work();
    two.arrive();
    CHECK_EQ(two.answers.size(), 4);
    CHECK_EQ(two.answers[0].answer.outcome.kind, Outcome::not_ready);
    for (u32 i = 0; i < 3; ++i) CHECK_EQ(two.there.word(64 + 8 * i), 0);  // nothing passes what waits
    const std::deque<TwoProcesses::Answered> late = two.answers;
    two.come_back();
    CHECK(!two.here.cq.poll().there);
    two.there.sender.post_receive({data_segment(two.there.address(8), 8, two.there.key)});
    two.run();
    two.answers = late;  // answers of the first round, once more: nobody waits for them
    two.come_back();
    for (u32 i = 0; i < 4; ++i) CHECK_EQ(two.here.cq.poll().wqe, i);
    CHECK(!two.here.cq.poll().there);
    CHECK_EQ(two.there.word(8), 9);
    CHECK_EQ(two.there.word(80), 9);
}

TEST(remote_request_that_is_lost_is_executed_once) {
    TwoProcesses two;
    const Vec16 operands = atomic_segment(3, 0);
    two.here.sender.post(Opcode::fetch_add, {two.remote(0), operands, two.local(8, 8)});
    two.here.sender.ring();
    two.here.work();
    two.arrive();
    two.answers.clear();  // executed, and the answer is lost
    CHECK_EQ(two.there.word(0), 3);
    two.here.own().unanswered(two.here.sender.info.qpn);
    two.here.word(8) = 77;
    two.run();
    CHECK_EQ(two.here.cq.poll().opcode, CqeOpcode::requester);
    CHECK_EQ(two.there.word(0), 3);
    CHECK_EQ(two.here.word(8), 0);  // the old value, as it was
    CHECK_EQ(two.there.own().counters().atomics_replayed, 1);
}

TEST(remote_process_that_is_gone_exhausts_the_retries) {
    TwoProcesses two;
    two.here.sender.post(Opcode::write, {two.remote(0), two.local(0, 8)});
    two.here.sender.post(Opcode::write, {two.remote(8), two.local(0, 8)});
    two.here.sender.ring();
    two.here.work();
    two.here.sent.clear();
    two.here.reachable = false;
    two.here.own().unanswered(two.here.sender.info.qpn);
    two.here.work(50);
    CHECK_EQ(two.here.cq.poll().syndrome, Syndrome::transport_retry_exceeded);
    CHECK_EQ(two.here.cq.poll().syndrome, Syndrome::flushed);
    QpInfo info;
    two.here.own().query_qp(two.here.sender.info.qpn, &info);
    CHECK_EQ(info.state, QpState::err);
    CHECK_EQ(info.counters.retries, 3);
}

TEST(remote_read_into_memory_that_is_registered_no_more) {
    TwoProcesses two;
    two.there.word(0) = 6;
    two.here.sender.post(Opcode::read, {two.remote(0), two.local(0, 8)});
    two.here.sender.ring();
    two.here.work();
    CHECK(two.here.own().dereg_mr(two.here.key).ok());
    two.run();
    CHECK_EQ(two.here.cq.poll().syndrome, Syndrome::local_protection);
    CHECK_EQ(two.here.word(0), 0);
}

TEST(remote_answers_after_a_reset_are_nobodys) {
    TwoProcesses two;
    two.here.sender.post(Opcode::write, {two.remote(0), two.local(0, 8)});
    two.here.sender.ring();
    two.here.work();
    two.arrive();
    QpModify attr;
    attr.qp_state = QpState::reset;
    CHECK(two.here.own().modify_qp(two.here.sender.info.qpn, attr, kQpAttrState).ok());
    two.come_back();
    CHECK(!two.here.cq.poll().there);
    QpInfo info;
    two.here.own().query_qp(two.here.sender.info.qpn, &info);
    CHECK_EQ(info.sq_completed, 0);
}

TEST(remote_fence_waits_for_reads) {
    TwoProcesses two;
    two.here.sender.post(Opcode::read, {two.remote(0), two.local(0, 8)});
    two.here.sender.post(Opcode::write, {two.remote(8), two.local(16, 8)}, kCqUpdate | kFence);
    two.here.sender.ring();
    two.here.work(3);
    CHECK_EQ(two.here.sent.size(), 1);
    two.run();
    CHECK_EQ(two.here.cq.poll().opcode, CqeOpcode::requester);
    CHECK_EQ(two.here.cq.poll().opcode, CqeOpcode::requester);
}

// A shared receive queue: WQEs in the order of the list, which is not that of the ring.
TEST(shared_receives_follow_their_list) {
    Rig rig([] {
        RigOptions options;
        options.qp.max_recv_sge = options.qp.log_rq_wqes = 0;
        return options;
    }());
    alignas(64) static u8 ring[4 * 32];
    u32 record[2] = {};
    const u32 order[] = {0, 2, 3, 1};
    for (u32 i = 0; i < 4; ++i) {
        u8* const wqe = ring + 32 * order[i];
        std::memset(wqe, 0, 16);
        wqe[3] = static_cast<u8>(order[(i + 1) % 4]);
        const Vec16 entry = data_segment(rig.b.address(64 + 8 * i), 8, rig.b.key);
        std::memcpy(wqe + 16, &entry, 16);
    }
    SrqAttr attr;
    attr.pd = rig.b.pd;
    attr.log_wqes = 2;
    attr.limit = 2;
    attr.buffer = ring;
    attr.dbrec = record;
    u32 srqn = 0;
    CHECK(rig.b.hca->create_srq(attr, &srqn).ok());
    QpAttr qp = rig.options.qp;
    qp.pd = rig.b.pd;
    qp.send_cq = rig.b.send_cqn;
    qp.recv_cq = rig.b.recv_cqn;
    qp.srq = srqn;
    u32 qpn = 0;
    CHECK(rig.b.hca->create_qp(qp, &qpn).ok());
    CHECK_EQ(rig.b.hca->destroy_srq(srqn).code, EBUSY);
    Sender sender;
    rig.add_qp(rig.a, sender);
    rig.connect(*rig.a.hca, sender.info.qpn, 2, qpn);
    rig.connect(*rig.b.hca, qpn, 1, sender.info.qpn);
    record[0] = swap_bytes(3u);
    for (u32 i = 0; i < 3; ++i) {
        rig.a.word(0) = 100 + i;
        sender.post(Opcode::send, {rig.local(0, 8)});
        sender.ring();
        CHECK(rig.world.run());
        const PolledCqe received = rig.b.recv_cq.poll();
        CHECK_EQ(received.opcode, CqeOpcode::responder_send);
        CHECK_EQ(received.wqe, order[i]);
        CHECK_EQ(swap_bytes(received.raw.srqn_uidx), srqn);
        CHECK_EQ(rig.b.word(64 + 8 * i), 100 + i);
        CHECK_EQ(rig.world.count(AsyncEventType::srq_limit_reached), i >= 1);
    }
    sender.post(Opcode::send, {rig.local(0, 8)});  // the fourth is not posted
    sender.ring();
    rig.world.run();
    CHECK(rig.b.hca->counters().rnr_naks != 0);
    CHECK(rig.b.hca->destroy_qp(qpn).ok());
    CHECK(rig.b.hca->destroy_srq(srqn).ok());
}

}  // namespace

}  // namespace rdmakit::test
