// rig.hpp — a small world for testing the HCA alone: a clock, events, two or more devices, connected queue pairs, and a
// sender that writes WQE bytes and doorbells as device code does. Leans on rdmakit/emu/hca only.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <queue>
#include <string>
#include <vector>

#include "../../rdmakit/emu/hca/hca.hpp"

namespace rdmakit::test {

using namespace rdmakit::emu;

inline u64 g_checks = 0, g_failures = 0;
inline const char* g_test = "";
inline std::string g_context;

inline bool check(bool ok, const char* what, const char* file, int line, u64 left, u64 right) {
    ++g_checks;
    if (ok) return true;
    if (++g_failures <= 50)
        std::printf("FAILED %s:%d in %s: %s (0x%llx, 0x%llx) %s\n", file, line, g_test, what, left, right,
                    g_context.c_str());
    return false;
}
#define CHECK(condition) ::rdmakit::test::check((condition), #condition, __FILE__, __LINE__, 0, 0)
template <class A, class B>
bool check_equal(const A& left, const B& right, const char* what, const char* file, int line) {
    return check((u64)left == (u64)right, what, file, line, (u64)left, (u64)right);
}
#define CHECK_EQ(a, b) ::rdmakit::test::check_equal((a), (b), #a " == " #b, __FILE__, __LINE__)

// Every test registers itself; main() in main.cpp runs them all, or those whose names contain its argument.
struct Test {
    const char* name;
    void (*run)();
};
inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}
struct Registration {
    Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};
#define TEST(name)                                                      \
    static void test_##name();                                          \
    static ::rdmakit::test::Registration register_##name(#name, test_##name); \
    static void test_##name()

class World final : public Environment {
  public:
    explicit World(bool timed = false, u64 seed = 1) : timed_(timed), state_(seed * 0x9e3779b97f4a7c15ull + 1) {}

    u64 now_ps() override { return now_; }
    bool timed() override { return timed_; }
    void at(u64 when, void (*fn)(void*, u64), void* object, u64 arg) override {
        if (when < now_) past_events += 1;
        events_.push(Event{when, order_++, fn, object, arg, nullptr});
    }
    void timer(u64 when, void (*fn)(void*, u64), void* object, u64 arg, bool (*wanted)(void*, u64)) override {
        events_.push(Event{when, order_++, fn, object, arg, wanted});
    }
    void memory_written(const void*, std::size_t bytes) override { writes += 1, written_bytes += bytes; }
    u64 random(u64 bound) override {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_ % bound;
    }
    void ready(Hca& hca) override {
        for (Hca* waiting : ready_)
            if (waiting == &hca) return;
        ready_.push_back(&hca);
    }
    bool copy_payload() override { return copy; }
    void async_event(Hca& hca, AsyncEvent event) override { asynchronous.push_back({&hca, event}); }

    // Faults: as scripted (strike), or by chance (percent).
    bool fault(FaultKind kind, u32) override {
        const u32 k = static_cast<u32>(kind);
        const u64 nth = asked[k]++;
        delay_ps_ = largest_delay_ps ? 1 + random(largest_delay_ps) : 0;
        for (const Strike& s : strikes_)
            if (s.kind == kind && s.nth == nth) return delay_ps_ = s.delay_ps, true;
        return percent[k] != 0 && random(100) < percent[k];
    }
    u64 fault_delay_ps(FaultKind) override { return delay_ps_; }
    u64 port_skew_ps(u32 port) override { return port > 1 ? skew_ps : 0; }
    void message_left(Hca&, u32) override { ++messages; }
    // It happens at the nth time that this kind is asked about, from 0.
    void strike(FaultKind kind, u64 nth, u64 delay_ps = 0) {
        faults_on = true;
        strikes_.push_back({kind, nth, delay_ps});
    }
    u32 percent[kFaultKinds] = {};
    u64 asked[kFaultKinds] = {};
    u64 largest_delay_ps = 0, skew_ps = 0, messages = 0;

    // Until nothing is left to do, or so many turns. True if it came to rest.
    bool run(u32 turns = 100000) {
        for (u32 turn = 0; turn < turns; ++turn) {
            if (timed_) {
                if (events_.empty()) return true;
                const Event event = events_.top();
                events_.pop();
                if (!event.wanted || event.wanted(event.object, event.arg)) now_ = event.when;
                event.fn(event.object, event.arg);
            } else {
                if (ready_.empty()) return true;
                Hca* hca = ready_.front();
                ready_.erase(ready_.begin());
                hca->work(64);
            }
        }
        return false;
    }
    u32 count(AsyncEventType type) const {
        u32 n = 0;
        for (const auto& seen : asynchronous) n += seen.event.type == type;
        return n;
    }

    struct Seen {
        Hca* hca;
        AsyncEvent event;
    };
    std::vector<Seen> asynchronous;
    u64 writes = 0, written_bytes = 0, past_events = 0;
    bool copy = true;

  private:
    struct Event {
        u64 when, order;
        void (*fn)(void*, u64);
        void* object;
        u64 arg;
        bool (*wanted)(void*, u64);
        bool operator<(const Event& other) const {
            return when != other.when ? when > other.when : order > other.order;
        }
    };
    struct Strike {
        FaultKind kind;
        u64 nth, delay_ps;
    };
    std::vector<Strike> strikes_;
    u64 delay_ps_ = 0;
    bool timed_;
    u64 now_ = 0, order_ = 0, state_;
    std::priority_queue<Event> events_;
    std::vector<Hca*> ready_;
};

inline Gid gid_of(u32 host, u32 port) {
    Gid gid;  // ::ffff:10.0.port.host
    gid.raw[10] = gid.raw[11] = 0xff;
    gid.raw[12] = 10;
    gid.raw[14] = static_cast<u8>(port);
    gid.raw[15] = static_cast<u8>(host);
    return gid;
}

struct PolledCqe {
    bool there = false;
    CqeOpcode opcode = CqeOpcode::invalid;
    Syndrome syndrome = Syndrome::none;
    u32 wqe = 0, bytes = 0, qpn = 0, send_opcode = 0, imm = 0, flags = 0, source_qpn = 0;
    Cqe raw{};
    u8 preceding[64] = {};
};

// A CQ as software sees it.
struct Poller {
    CqInfo info;
    u64 consumed = 0;
    bool record = true;  // keep the doorbell record up to date

    PolledCqe poll() {
        PolledCqe result;
        const u64 slot = info.collapsed ? 0 : consumed & ((1ull << info.log_entries) - 1);
        const u8* entry = static_cast<const u8*>(info.buffer) + slot * info.cqe_bytes;
        const u8* body = entry + (info.cqe_bytes - 64);
        if (!cqe_ready(body[63], info.collapsed ? 0 : consumed, info.log_entries)) return result;
        std::memcpy(&result.raw, body, 64);
        if (info.cqe_bytes == 128) std::memcpy(result.preceding, entry, 64);
        const Cqe& cqe = result.raw;
        result.there = true;
        result.opcode = static_cast<CqeOpcode>(cqe.op_own >> 4);
        result.flags = cqe.op_own & 0xe;
        result.wqe = swap_bytes(cqe.wqe_counter);
        result.qpn = swap_bytes(cqe.sop_drop_qpn) & 0xffffff;
        result.send_opcode = swap_bytes(cqe.sop_drop_qpn) >> 24;
        result.bytes = swap_bytes(cqe.byte_count);
        result.imm = swap_bytes(cqe.imm_inval_pkey);
        result.source_qpn = swap_bytes(cqe.flags_rqpn) & 0xffffff;
        if (result.opcode == CqeOpcode::requester_error || result.opcode == CqeOpcode::responder_error)
            result.syndrome = static_cast<Syndrome>(body[55]);
        ++consumed;
        if (record) info.dbrec[kDbrecSetCi] = swap_bytes(static_cast<u32>(consumed) & 0xffffff);
        return result;
    }
};

// What device code does with a QP: WQEs into the ring, the record, the register.
struct Sender {
    Hca* hca = nullptr;
    QpInfo info;
    u64 next = 0;       // next basic block
    u64 received = 0;   // receive WQEs posted
    u64 last = 0;       // first basic block of the last WQE
    u32 last_ds = 0;

    u8* bb(u64 index) const {
        return static_cast<u8*>(info.create.sq_buffer) + (index & ((1ull << info.create.log_sq_bbs) - 1)) * kWqebb;
    }
    // Segments of 16 bytes after the ctrl segment; wraps at the end of the ring.
    u64 post(Opcode opcode, std::initializer_list<Vec16> segments, u32 flags = kCqUpdate, u32 opmod = 0, u32 imm = 0) {
        return post_raw(opcode, std::vector<Vec16>(segments), flags, opmod, imm);
    }
    u64 post_raw(Opcode opcode, const std::vector<Vec16>& segments, u32 flags = kCqUpdate, u32 opmod = 0, u32 imm = 0) {
        const u32 ds = 1 + static_cast<u32>(segments.size());
        const Vec16 ctrl = ctrl_segment(opcode, opmod, static_cast<u32>(next), info.qpn, ds, flags, imm);
        return post_bytes(ctrl, segments);
    }
    u64 post_bytes(const Vec16& ctrl, const std::vector<Vec16>& segments) {
        const u32 ds = 1 + static_cast<u32>(segments.size());
        std::memcpy(bb(next), &ctrl, 16);
        for (u32 i = 0; i < segments.size(); ++i)
            std::memcpy(bb(next + (i + 1) / 4) + (i + 1) % 4 * 16, &segments[i], 16);
        last = next;
        last_ds = ds;
        next += wqebbs(ds);
        return last;
    }
    u64 post_inline(Opcode opcode, std::initializer_list<Vec16> before, const void* bytes, u32 length,
                    u32 flags = kCqUpdate, u32 imm = 0) {
        std::vector<Vec16> segments(before);
        const u32 count = swap_bytes(length | kInlineFlag);
        std::string raw(reinterpret_cast<const char*>(&count), sizeof count);
        raw.append(static_cast<const char*>(bytes), length);
        raw.resize(round_up<std::size_t>(raw.size(), 16));
        for (std::size_t at = 0; at < raw.size(); at += 16) {
            Vec16 v;
            std::memcpy(&v, raw.data() + at, 16);
            segments.push_back(v);
        }
        return post_raw(opcode, segments, flags, 0, imm);
    }
    void write_record() const { info.create.dbrec[kDbrecSend] = swap_bytes(static_cast<u32>(next) & 0xffff); }
    void ring_register() const { hca->mmio_write64(info.uar_register, doorbell_next(info.qpn, next)); }
    void ring() const {
        write_record();
        ring_register();
    }
    void post_receive(std::initializer_list<Vec16> list) {
        const u64 slot = received & ((1ull << info.create.log_rq_wqes) - 1);
        u8* wqe = static_cast<u8*>(info.create.rq_buffer) + slot * info.rq_stride;
        u32 n = 0;
        for (const Vec16& entry : list) std::memcpy(wqe + 16 * n++, &entry, 16);
        if (n < info.create.max_recv_sge) {
            const Vec16 end = data_segment(0, 0, kInvalidLkey);
            std::memcpy(wqe + 16 * n, &end, 16);
        }
        ++received;
        info.create.dbrec[kDbrecReceive] = swap_bytes(static_cast<u32>(received) & 0xffff);
    }
};

struct Side {
    std::unique_ptr<Hca> hca;
    u32 pd = 0, key = 0, send_cqn = 0, recv_cqn = 0;
    std::vector<u8> memory;
    Sender sender;
    Poller send_cq, recv_cq;
    u64 address(u64 offset = 0) const { return reinterpret_cast<u64>(memory.data()) + offset; }
    u64& word(u64 offset) { return *reinterpret_cast<u64*>(memory.data() + offset); }
    u32& word32(u64 offset) { return *reinterpret_cast<u32*>(memory.data() + offset); }
    QpState state() const {
        QpInfo info;
        hca->query_qp(sender.info.qpn, &info);
        return info.state;
    }
    QpInfo query() const {
        QpInfo info;
        hca->query_qp(sender.info.qpn, &info);
        return info;
    }
};

constexpr u32 kAllAccess = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;
constexpr u32 kToInit = kQpAttrState | kQpAttrPkeyIndex | kQpAttrPort | kQpAttrAccessFlags;
constexpr u32 kToRtr = kQpAttrState | kQpAttrAv | kQpAttrPathMtu | kQpAttrDestQpn | kQpAttrRqPsn |
                       kQpAttrMaxDestRdAtomic | kQpAttrMinRnrTimer;
constexpr u32 kToRts = kQpAttrState | kQpAttrTimeout | kQpAttrRetryCnt | kQpAttrRnrRetry | kQpAttrSqPsn |
                       kQpAttrMaxQpRdAtomic;

struct RigOptions {
    bool timed = false;
    u64 seed = 1;
    HcaConfig config;
    CqAttr cq;
    QpAttr qp;
    QpModify modify;
    u32 memory = 1 << 16;
    u32 mr_access = kAllAccess;
    RigOptions() {
        qp.log_sq_bbs = 6;
        qp.log_rq_wqes = 4;
        qp.max_recv_sge = 4;
        modify.qp_access_flags = kAllAccess;
        modify.rnr_retry = 3;
        modify.retry_cnt = 2;
        modify.min_rnr_timer = 1;
        modify.timeout = 4;
        config.rnr_turns = config.retry_turns = 4;
    }
};

// Two hosts, an HCA each, one connection.
struct Rig {
    RigOptions options;
    World world;
    Fabric fabric;
    Side a, b;

    explicit Rig(const RigOptions& given = RigOptions()) : options(given), world(given.timed, given.seed) {
        open(a, 1);
        open(b, 2);
        connect(a, 2, b.sender.info.qpn);
        connect(b, 1, a.sender.info.qpn);
    }
    void open(Side& side, u32 host) {
        side.hca = std::make_unique<Hca>(world, fabric, options.config);
        for (u32 port = 1; port <= side.hca->ib_ports(); ++port)
            CHECK(side.hca->add_address(port, gid_of(host, port), host * 8 + port).ok());
        side.memory.assign(options.memory, 0);
        CHECK(side.hca->alloc_pd(&side.pd).ok());
        CHECK(side.hca->reg_mr(side.pd, side.memory.data(), options.memory, options.mr_access, &side.key).ok());
        CHECK(side.hca->create_cq(options.cq, &side.send_cqn).ok());
        CHECK(side.hca->create_cq(options.cq, &side.recv_cqn).ok());
        add_qp(side, side.sender);
        side.hca->query_cq(side.send_cqn, &side.send_cq.info);
        side.hca->query_cq(side.recv_cqn, &side.recv_cq.info);
    }
    void add_qp(Side& side, Sender& sender) {
        QpAttr attr = options.qp;
        attr.pd = side.pd;
        attr.send_cq = side.send_cqn;
        attr.recv_cq = side.recv_cqn;
        u32 qpn = 0;
        CHECK(side.hca->create_qp(attr, &qpn).ok());
        sender.hca = side.hca.get();
        side.hca->query_qp(qpn, &sender.info);
    }
    void connect(Side& side, u32 to_host, u32 to_qpn) { connect(*side.hca, side.sender.info.qpn, to_host, to_qpn); }
    void connect(Hca& hca, u32 qpn, u32 to_host, u32 to_qpn) {
        QpModify attr = options.modify;
        attr.ah.is_global = true;
        attr.ah.dgid = gid_of(to_host, attr.port_num);
        attr.dest_qp_num = to_qpn;
        attr.qp_state = QpState::init;
        CHECK(hca.modify_qp(qpn, attr, kToInit).ok());
        attr.qp_state = QpState::rtr;
        CHECK(hca.modify_qp(qpn, attr, kToRtr).ok());
        attr.qp_state = QpState::rts;
        CHECK(hca.modify_qp(qpn, attr, kToRts).ok());
    }
    // Shorthand for segments between a's memory and b's.
    Vec16 remote(u64 offset) const { return remote_segment(b.address(offset), b.key); }
    Vec16 local(u64 offset, u32 bytes) const { return data_segment(a.address(offset), bytes, a.key); }
    PolledCqe go() {
        a.sender.ring();
        CHECK(world.run());
        return a.send_cq.poll();
    }
};

}  // namespace rdmakit::test
