// test_operations.cpp — what every operation does when all is well, with and without a clock.
#include "rig.hpp"

namespace rdmakit::test {

namespace {
RigOptions with(bool timed) {
    RigOptions options;
    options.timed = timed;
    return options;
}
void fill(Side& side, u64 offset, u32 bytes, u8 seed) {
    for (u32 i = 0; i < bytes; ++i) side.memory[offset + i] = static_cast<u8>(seed + i * 7);
}
void check_success(const PolledCqe& cqe, Opcode opcode, u32 wqe, u32 bytes) {
    CHECK(cqe.there);
    CHECK(cqe.opcode == CqeOpcode::requester);
    CHECK_EQ(cqe.send_opcode, opcode);
    CHECK_EQ(cqe.wqe, wqe);
    CHECK_EQ(cqe.bytes, bytes);
}

void writes(bool timed) {
    Rig rig(with(timed));
    fill(rig.a, 0, 10000, 3);
    rig.a.sender.post(Opcode::write, {rig.remote(100), rig.local(0, 10000)});
    check_success(rig.go(), Opcode::write, 0, 10000);
    CHECK(std::memcmp(&rig.b.memory[100], &rig.a.memory[0], 10000) == 0);
    // Several segments, gathered in order.
    rig.a.sender.post(Opcode::write, {rig.remote(20000), rig.local(5, 3), rig.local(100, 1), rig.local(50, 9)});
    check_success(rig.go(), Opcode::write, 1, 13);
    CHECK(std::memcmp(&rig.b.memory[20000], &rig.a.memory[5], 3) == 0 && rig.b.memory[20003] == rig.a.memory[100] &&
          std::memcmp(&rig.b.memory[20004], &rig.a.memory[50], 9) == 0);
    // Inline: 28 bytes fit into one basic block, more takes another.
    u8 bytes[200];
    for (u32 i = 0; i < 200; ++i) bytes[i] = static_cast<u8>(i ^ 0x5a);
    for (const u32 length : {1u, 12u, 28u, 29u, 61u, 200u}) {
        const u64 at = rig.a.sender.post_inline(Opcode::write, {rig.remote(30000)}, bytes, length);
        if (length == 28) CHECK_EQ(rig.a.sender.next - at, 1);
        check_success(rig.go(), Opcode::write, static_cast<u32>(at), length);
        CHECK(std::memcmp(&rig.b.memory[30000], bytes, length) == 0);
    }
    // An empty WRITE needs no valid key.
    const u64 at = rig.a.sender.post(Opcode::write, {remote_segment(0, 0xdead)});
    check_success(rig.go(), Opcode::write, static_cast<u32>(at), 0);
    CHECK_EQ(rig.b.state(), QpState::rts);
}
TEST(write) { writes(false); }
TEST(write_timed) { writes(true); }

void immediates(bool timed) {
    Rig rig(with(timed));
    rig.b.sender.post_receive({});
    rig.b.sender.post_receive({});
    fill(rig.a, 0, 64, 9);
    rig.a.sender.post(Opcode::write_imm, {rig.remote(8), rig.local(0, 64)}, kCqUpdate | kSolicited, 0, 0x01020304);
    check_success(rig.go(), Opcode::write_imm, 0, 64);
    PolledCqe cqe = rig.b.recv_cq.poll();
    CHECK(cqe.opcode == CqeOpcode::responder_write_imm);
    CHECK_EQ(cqe.imm, 0x01020304);
    CHECK_EQ(cqe.bytes, 64);
    CHECK_EQ(cqe.wqe, 0);
    CHECK_EQ(cqe.flags, kSolicited);
    CHECK_EQ(cqe.qpn, rig.b.sender.info.qpn);
    CHECK_EQ(cqe.source_qpn, rig.a.sender.info.qpn);
    CHECK(std::memcmp(&rig.b.memory[8], &rig.a.memory[0], 64) == 0);
    rig.a.sender.post(Opcode::write_imm, {remote_segment(0, 0)}, kCqUpdate, 0, 7);
    check_success(rig.go(), Opcode::write_imm, 1, 0);
    cqe = rig.b.recv_cq.poll();
    CHECK_EQ(cqe.imm, 7);
    CHECK_EQ(cqe.wqe, 1);
    CHECK_EQ(cqe.bytes, 0);
}
TEST(write_imm) { immediates(false); }
TEST(write_imm_timed) { immediates(true); }

void sends(bool timed) {
    Rig rig(with(timed));
    fill(rig.a, 0, 100, 1);
    rig.b.sender.post_receive({data_segment(rig.b.address(500), 30, rig.b.key), data_segment(rig.b.address(700), 90, rig.b.key)});
    rig.b.sender.post_receive({data_segment(rig.b.address(900), 64, rig.b.key)});
    rig.b.sender.post_receive({});
    rig.a.sender.post(Opcode::send, {rig.local(0, 60), rig.local(60, 40)});
    check_success(rig.go(), Opcode::send, 0, 100);
    CHECK(std::memcmp(&rig.b.memory[500], &rig.a.memory[0], 30) == 0);
    CHECK(std::memcmp(&rig.b.memory[700], &rig.a.memory[30], 70) == 0);
    CHECK_EQ(rig.b.memory[770], 0);
    PolledCqe cqe = rig.b.recv_cq.poll();
    CHECK(cqe.opcode == CqeOpcode::responder_send);
    CHECK_EQ(cqe.bytes, 100);
    rig.a.sender.post_inline(Opcode::send_imm, {}, "hello", 5, kCqUpdate, 0x55);
    check_success(rig.go(), Opcode::send_imm, 1, 5);
    CHECK(std::memcmp(&rig.b.memory[900], "hello", 5) == 0);
    cqe = rig.b.recv_cq.poll();
    CHECK(cqe.opcode == CqeOpcode::responder_send_imm);
    CHECK_EQ(cqe.imm, 0x55);
    CHECK_EQ(cqe.wqe, 1);
    rig.a.sender.post(Opcode::send, {});
    check_success(rig.go(), Opcode::send, 2, 0);
    CHECK_EQ(rig.b.recv_cq.poll().bytes, 0);
}
TEST(send) { sends(false); }
TEST(send_timed) { sends(true); }

void reads(bool timed) {
    Rig rig(with(timed));
    fill(rig.b, 0, 9000, 77);
    rig.a.sender.post(Opcode::read, {rig.remote(10), rig.local(0, 4000), rig.local(6000, 4990)});
    check_success(rig.go(), Opcode::read, 0, 8990);
    CHECK(std::memcmp(&rig.a.memory[0], &rig.b.memory[10], 4000) == 0);
    CHECK(std::memcmp(&rig.a.memory[6000], &rig.b.memory[4010], 4990) == 0);
    rig.a.sender.post(Opcode::dump, {rig.local(0, 1)});
    check_success(rig.go(), Opcode::dump, 1, 1);
    rig.a.sender.post(Opcode::nop, {Vec16{}});
    check_success(rig.go(), Opcode::nop, 2, 0);
    rig.a.sender.post(Opcode::read, {remote_segment(0, 0)});
    check_success(rig.go(), Opcode::read, 3, 0);
}
TEST(read_dump_nop) { reads(false); }
TEST(read_dump_nop_timed) { reads(true); }

void atomics(bool timed, bool host_endian) {
    RigOptions options = with(timed);
    options.config.atomic_8b_host_endian = host_endian;
    Rig rig(options);
    const auto landed8 = [&] { return host_endian ? rig.a.word(64) : swap_bytes(rig.a.word(64)); };
    const auto landed4 = [&] { return swap_bytes(rig.a.word32(64)); };
    rig.b.word(128) = 0x1000000000000005;
    rig.a.sender.post(Opcode::fetch_add, {rig.remote(128), atomic_segment(10, 99), rig.local(64, 8)});
    check_success(rig.go(), Opcode::fetch_add, 0, 8);
    CHECK_EQ(rig.b.word(128), 0x100000000000000f);
    CHECK_EQ(landed8(), 0x1000000000000005);
    rig.a.sender.post(Opcode::cmp_swap, {rig.remote(128), atomic_segment(42, 0x100000000000000f), rig.local(64, 8)});
    check_success(rig.go(), Opcode::cmp_swap, 1, 8);
    CHECK_EQ(rig.b.word(128), 42);
    rig.a.sender.post(Opcode::cmp_swap, {rig.remote(128), atomic_segment(7, 41), rig.local(64, 8)});
    rig.go();
    CHECK_EQ(rig.b.word(128), 42);
    CHECK_EQ(landed8(), 42);
    // Masked, 8 bytes: two independent 32-bit counters, then a swap of one byte in the two-block form.
    rig.b.word(128) = 0xffffffff00000001;
    rig.a.sender.post(Opcode::masked_fetch_add, {rig.remote(128), pair64(0x00000001ffffffff, 0x8000000080000000), rig.local(64, 8)},
                      kCqUpdate, kOpmodMasked8);
    check_success(rig.go(), Opcode::masked_fetch_add, 3, 8);
    CHECK_EQ(rig.b.word(128), 0);
    CHECK_EQ(landed8(), 0xffffffff00000001);
    const u64 at = rig.a.sender.post(Opcode::masked_cmp_swap,
                                     {rig.remote(128), pair64(0xab00, 0), pair64(0xff00, 0xff), rig.local(64, 8)},
                                     kCqUpdate, kOpmodMasked8);
    CHECK_EQ(rig.a.sender.next - at, 2);
    check_success(rig.go(), Opcode::masked_cmp_swap, static_cast<u32>(at), 8);
    CHECK_EQ(rig.b.word(128), 0xab00);
    // Masked, 4 bytes; the neighbour stays.
    rig.b.word32(256) = 0xf0;
    rig.b.word32(260) = 0x77;
    rig.a.sender.post(Opcode::masked_fetch_add, {rig.remote(256), masked_fetch_add4_segment(0x20, 0), rig.local(64, 4)},
                      kCqUpdate, kOpmodMasked4);
    check_success(rig.go(), Opcode::masked_fetch_add, 6, 4);
    CHECK_EQ(rig.b.word32(256), 0x110);
    CHECK_EQ(landed4(), 0xf0);
    rig.a.sender.post(Opcode::masked_cmp_swap, {rig.remote(256), masked_cmp_swap4_segment(9, 0, ~0u, 0), rig.local(64, 4)},
                      kCqUpdate, kOpmodMasked4);
    check_success(rig.go(), Opcode::masked_cmp_swap, 7, 4);
    CHECK_EQ(rig.b.word32(256), 9);
    CHECK_EQ(landed4(), 0x110);
    CHECK_EQ(rig.b.word32(260), 0x77);
}
TEST(atomics) { atomics(false, true); }
TEST(atomics_big_endian) { atomics(false, false); }
TEST(atomics_timed) { atomics(true, true); }

TEST(unsignalled_and_sig_all) {
    for (const bool all : {false, true}) {
        RigOptions options;
        options.qp.sq_sig_all = all;
        Rig rig(options);
        for (u32 i = 0; i < 5; ++i) rig.a.sender.post(Opcode::write, {rig.remote(8 * i), rig.local(0, 8)}, 0);
        rig.a.sender.post(Opcode::write, {rig.remote(64), rig.local(0, 8)});
        const PolledCqe first = rig.go();
        CHECK_EQ(first.wqe, all ? 0 : 5);
        u32 more = 0;
        while (rig.a.send_cq.poll().there) ++more;
        CHECK_EQ(more, all ? 5 : 0);
        CHECK_EQ(rig.a.query().counters.send_wqes, 6);
    }
}

TEST(scatter_to_cqe) {
    for (const u32 cqe_bytes : {64u, 128u}) {
        RigOptions options;
        options.cq.cqe_bytes = cqe_bytes;
        options.qp.scatter_to_cqe_requester = options.qp.scatter_to_cqe_responder = true;
        Rig rig(options);
        fill(rig.b, 0, 64, 5);
        fill(rig.a, 1000, 64, 6);
        // A READ of 24 bytes ends in the CQE, and not in memory: device code that forgets to forbid it never sees it.
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 24)});
        PolledCqe cqe = rig.go();
        CHECK_EQ(cqe.flags, kCqeScatter32);
        CHECK(std::memcmp(&cqe.raw, &rig.b.memory[0], 24) == 0);
        CHECK_EQ(rig.a.word(0), 0);
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(0, 60)});
        cqe = rig.go();
        CHECK_EQ(cqe.flags, cqe_bytes == 128 ? kCqeScatter64 : 0);
        CHECK(std::memcmp(cqe_bytes == 128 ? cqe.preceding : &rig.a.memory[0], &rig.b.memory[0], 60) == 0);
        rig.b.word(512) = 0x0102030405060708;
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(512), atomic_segment(1, 0), rig.local(600, 8)});
        cqe = rig.go();
        u64 old;
        std::memcpy(&old, &cqe.raw, 8);
        CHECK_EQ(swap_bytes(old), 0x0102030405060708);
        CHECK_EQ(rig.a.word(600), 0);
        // Responder.
        rig.b.sender.post_receive({data_segment(rig.b.address(2000), 64, rig.b.key)});
        rig.a.sender.post(Opcode::send, {rig.local(1000, 20)});
        rig.go();
        cqe = rig.b.recv_cq.poll();
        CHECK_EQ(cqe.flags, kCqeScatter32);
        CHECK(std::memcmp(&cqe.raw, &rig.a.memory[1000], 20) == 0);
        CHECK_EQ(rig.b.word(2000), 0);
        // Unsignalled: nowhere to scatter, so memory it is.
        rig.a.sender.post(Opcode::read, {rig.remote(0), rig.local(3000, 8)}, 0);
        rig.go();
        CHECK_EQ(rig.a.word(3000), rig.b.word(0));
    }
}

TEST(payload_copying_off) {
    Rig rig;
    rig.world.copy = false;
    constexpr u32 control = cpu::kControlBytes, payload = control + 8;
    fill(rig.a, 0, payload, 1);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, payload)});
    check_success(rig.go(), Opcode::write, 0, payload);
    CHECK_EQ(rig.b.word(0), 0);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, control)});
    rig.go();
    CHECK_EQ(rig.b.word(0), rig.a.word(0));
    rig.a.sender.post(Opcode::write, {rig.remote(rig.options.memory - 100), rig.local(0, 4096)});
    CHECK(rig.go().syndrome == Syndrome::remote_access);  // checked all the same
}

}  // namespace
}  // namespace rdmakit::test
