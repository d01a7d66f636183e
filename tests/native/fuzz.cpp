// fuzz.cpp — random bytes and damaged WQEs, receive lists, records and doorbells: never a crash, never a byte outside
// the registered memory, always a completion or a queue pair in ERR. One number replays one world: main --fuzz SEED 1.
#include "rig.hpp"

namespace rdmakit::test {

namespace {

constexpr u32 kGuard = 1024, kRegistered = 4096;

struct Fuzzer {
    u64 seed;
    World dice;
    RigOptions options;
    bool faulty;
    bool over_own_rings;  // an MR over the sender's own queues: WQEs may rewrite WQEs, records and CQEs
    explicit Fuzzer(u64 number) : seed(number), dice(false, number * 2654435761u + 12345) {
        for (u32 i = 0; i < 4; ++i) dice.random(2);
        options.timed = chance(30);
        options.seed = number + 1;
        options.memory = 2 * kGuard + kRegistered;
        options.qp.log_sq_bbs = 1 + roll(5);
        options.qp.log_rq_wqes = roll(4);
        options.qp.max_recv_sge = 1 + roll(5);
        options.qp.sq_sig_all = chance(30);
        options.qp.scatter_to_cqe_requester = chance(40);
        options.qp.scatter_to_cqe_responder = chance(40);
        options.qp.doorbell = static_cast<DoorbellMode>(1 + roll(3));
        options.cq.log_entries = roll(8);
        options.cq.cqe_bytes = chance(50) ? 64 : 128;
        options.cq.collapsed = chance(15);
        options.cq.overrun_ignore = chance(30);
        options.modify.rnr_retry = roll(3);
        options.modify.path_mtu = 1 + roll(5);
        options.modify.max_rd_atomic = roll(3);
        options.config.lag = static_cast<LagMode>(roll(3));
        options.config.atomic_8b_host_endian = chance(50);
        over_own_rings = chance(10);
        options.qp.out_of_order = chance(30);
        if (chance(30)) options.mr_access |= kAccessRelaxedOrdering;
        faulty = chance(30);
    }
    void break_things(World& world) {
        if (!faulty) return;
        world.faults_on = true;
        world.largest_delay_ps = 1 + roll(30'000'000);
        for (u32& percent : world.percent) percent = chance(50) ? roll(30) : 0;
    }
    u32 roll(u32 bound) { return static_cast<u32>(dice.random(bound)); }
    bool chance(u32 percent) { return roll(100) < percent; }

    // An address and length that are mostly right.
    u64 address(const Side& side, u32& bytes) {
        const u32 at = kGuard + roll(kRegistered);
        bytes = chance(80) ? roll(64) : roll(3000);
        if (chance(80)) bytes = smaller(bytes, kGuard + kRegistered - at);
        return side.address(at) & (chance(70) ? ~7ull : ~0ull);
    }
    Vec16 data(const Side& side, u32 key, u32 fixed = 0) {
        u32 bytes = 0;
        const u64 at = address(side, bytes);
        return data_segment(at, fixed ? fixed : bytes, key);
    }
    std::vector<Vec16> valid(const Rig& rig, const std::vector<u32>& keys, Vec16& ctrl) {
        static constexpr Opcode opcodes[] = {Opcode::nop, Opcode::write, Opcode::write_imm, Opcode::send, Opcode::send_imm,
                                             Opcode::read, Opcode::cmp_swap, Opcode::fetch_add, Opcode::masked_cmp_swap,
                                             Opcode::masked_fetch_add, Opcode::dump};
        const Opcode opcode = opcodes[roll(11)];
        const u32 code = static_cast<u32>(opcode);
        std::vector<Vec16> out;
        u32 bytes = 0, opmod = 0;
        const u32 key = keys[roll(static_cast<u32>(keys.size()))];
        const bool atomic = code >= 0x11 && code <= 0x15;
        if (opcode_shape(code).remote) out.push_back(remote_segment(address(rig.b, bytes), rig.b.key));
        if (atomic) {
            if (code >= 0x14) opmod = chance(50) ? kOpmodMasked4 : kOpmodMasked8;
            out.push_back(pair64(dice.random(~0ull), dice.random(~0ull)));
            if (opcode == Opcode::masked_cmp_swap && opmod == kOpmodMasked8) out.push_back(pair64(dice.random(~0ull), 0));
            out.push_back(data(rig.a, key, opmod == kOpmodMasked4 ? 4 : 8));
        } else if (opcode == Opcode::dump) {
            out.push_back(data(rig.a, key, 1));
        } else if (opcode != Opcode::nop && opcode != Opcode::read && chance(30)) {
            const u32 length = roll(100), begin = static_cast<u32>(out.size());
            out.resize(begin + ceil_div(length + 4, 16u));
            for (u32 i = begin; i < out.size(); ++i)
                for (u32& w : out[i].w) w = roll(~0u);
            out[begin].w[0] = swap_bytes(length | kInlineFlag);
        } else if (opcode != Opcode::nop) {
            for (u32 n = roll(5); n != 0; --n) out.push_back(data(rig.a, key));
        }
        ctrl = ctrl_segment(opcode, opmod, static_cast<u32>(rig.a.sender.next), rig.a.sender.info.qpn,
                            1 + static_cast<u32>(out.size()), chance(70) ? kCqUpdate | (roll(8) << 5) : roll(256), roll(~0u));
        return out;
    }
    void damage(u8* bytes, u32 count) {
        for (u32 n = 1 + roll(3); n != 0; --n) {
            const u32 at = roll(count);
            if (chance(60)) bytes[at] = static_cast<u8>(bytes[at] ^ (1u << roll(8)));
            else bytes[at] = static_cast<u8>(chance(50) ? roll(256) : chance(50) ? 0xff : 0);
        }
    }
    void post(Rig& rig, const std::vector<u32>& keys) {
        Sender& s = rig.a.sender;
        Vec16 ctrl;
        const std::vector<Vec16> segments = valid(rig, keys, ctrl);
        const u64 begin = s.next;
        s.post_bytes(ctrl, segments);
        const u32 kind = roll(10);
        if (kind < 4) return;
        const u32 bbs = static_cast<u32>(s.next - begin);
        for (u32 i = 0; i < bbs; ++i) {
            if (kind < 8) {
                if (i == 0 || chance(30)) damage(s.bb(begin + i), kWqebb);
            } else {
                for (u32 n = 0; n < kWqebb; ++n) s.bb(begin + i)[n] = static_cast<u8>(roll(256));
                // Half of the random ones get past the ctrl segment.
                if (kind == 9 && i == 0) std::memcpy(s.bb(begin), &ctrl, 16);
            }
        }
    }
    void receives(Rig& rig) {
        for (u32 n = roll(4); n != 0; --n) {
            rig.b.sender.post_receive({data(rig.b, rig.b.key)});
            if (!chance(30)) continue;
            const u64 slot = (rig.b.sender.received - 1) & ((1ull << options.qp.log_rq_wqes) - 1);
            damage(static_cast<u8*>(rig.b.sender.info.create.rq_buffer) + slot * rig.b.sender.info.rq_stride, 16);
        }
    }
    void ring(Rig& rig) {
        Sender& s = rig.a.sender;
        s.write_record();
        if (chance(5)) s.info.create.dbrec[kDbrecSend] = roll(~0u);
        if (chance(5)) rig.b.sender.info.create.dbrec[kDbrecReceive] = roll(~0u);
        u64 value = doorbell_next(s.info.qpn, s.next);
        if (chance(30)) {
            Vec16 ctrl;
            std::memcpy(&ctrl, s.bb(s.last), 16);
            value = doorbell_last(ctrl);
        }
        if (chance(5)) value ^= 1ull << roll(64);
        rig.a.hca->mmio_write64(s.info.uar_register, value);
        if (chance(10)) rig.b.hca->receive_posted(rig.b.sender.info.qpn);
    }
    void poll(Rig& rig, Side& side, Poller& cq) {
        if (cq.info.collapsed) return;  // without counting laps its one entry cannot be told from the last one polled
        for (u32 n = 0; n < 1000; ++n) {
            const PolledCqe cqe = cq.poll();
            if (!cqe.there) return;
            const u32 opcode = static_cast<u32>(cqe.opcode), syndrome = static_cast<u32>(cqe.syndrome);
            const bool good = opcode <= 3, bad = opcode == 13 || opcode == 14;
            CHECK(good || bad);
            CHECK(!bad || (syndrome >= 1 && syndrome <= 0x16));
            CHECK_EQ(cqe.qpn, side.sender.info.qpn);
        }
        if (!rig.options.cq.overrun_ignore) CHECK(false);
    }
    void run() {
        g_context = "replay: --fuzz " + std::to_string(seed) + " 1";
        Rig rig(options);
        break_things(rig.world);
        // Only the middle is registered; the guards on both sides, and ASan beyond them, see strays.
        std::vector<u32> keys;
        for (Side* side : {&rig.a, &rig.b}) {
            CHECK(side->hca->dereg_mr(side->key).ok());
            CHECK(side->hca->reg_mr(side->pd, side->memory.data() + kGuard, kRegistered, options.mr_access, &side->key).ok());
            std::memset(side->memory.data(), 0xa5, kGuard);
            std::memset(side->memory.data() + kGuard + kRegistered, 0xa5, kGuard);
        }
        keys.push_back(rig.a.key);
        if (over_own_rings) {
            QpInfo& info = rig.a.sender.info;
            u32 key = 0;
            CHECK(rig.a.hca->reg_mr_iova(rig.a.pd, info.create.sq_buffer, 64ull << info.create.log_sq_bbs,
                                         rig.a.address(kGuard), kAllAccess, &key).ok());
            keys.push_back(key);
        }
        for (u32 round = 0; round < 6; ++round) {
            receives(rig);
            for (u32 n = 1 + roll(4); n != 0; --n) post(rig, keys);
            ring(rig);
            if (options.timed && chance(20)) {  // WQEs that are overwritten while they are under way
                rig.world.run(1 + roll(6));
                damage(static_cast<u8*>(rig.a.sender.info.create.sq_buffer), kWqebb << options.qp.log_sq_bbs);
            }
            CHECK(rig.world.run(20000));
            if (over_own_rings) continue;
            if (!rig.options.cq.overrun_ignore || chance(70)) {
                poll(rig, rig.a, rig.a.send_cq), poll(rig, rig.a, rig.a.recv_cq);
                poll(rig, rig.b, rig.b.send_cq), poll(rig, rig.b, rig.b.recv_cq);
            }
        }
        const QpInfo info = rig.a.query();
        CHECK(info.state == QpState::rts || info.state == QpState::err);
        CHECK_EQ(info.sq_completed, info.sq_producer);
        CHECK_EQ(info.sq_issued, info.sq_producer);
        if (info.state == QpState::err) CHECK(info.counters.errors != 0 || rig.world.count(AsyncEventType::qp_fatal) != 0);
        for (const Side* side : {&rig.a, &rig.b})
            for (u32 i = 0; i < kGuard; ++i)
                if (side->memory[i] != 0xa5 || side->memory[kGuard + kRegistered + i] != 0xa5) {
                    CHECK(!"a byte outside the registered memory changed");
                    return;
                }
    }
};

}  // namespace

void fuzz(u64 seed, u64 count) {
    g_test = "fuzz";
    std::printf("fuzz: seeds %llu to %llu\n", seed, seed + count - 1);
    for (u64 i = 0; i < count; ++i) {
        std::fflush(stdout);
        Fuzzer(seed + i).run();
    }
}

}  // namespace rdmakit::test
