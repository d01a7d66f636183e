// test_pure.cpp — cuda/rdmakit/hca*.cuh by themselves: decoding, keys, atomic arithmetic, indices, doorbell values.
#include "rig.hpp"

namespace rdmakit::test {

namespace {
alignas(64) u8 g_ring[8 * kWqebb];
SendRing ring() { return SendRing{g_ring, 3}; }

DecodedWqe decode(std::initializer_list<Vec16> segments, u64 at = 0, u64 available = 8) {
    u32 ds = 0;
    for (const Vec16& v : segments) std::memcpy(const_cast<u8*>(ring_ds(ring(), at, ds++)), &v, 16);
    return decode_wqe(ring(), at, available, 0x123);
}
Vec16 ctrl(Opcode opcode, u32 ds, u32 index = 0, u32 opmod = 0, u32 qpn = 0x123) {
    return ctrl_segment(opcode, opmod, index, qpn, ds, kCqUpdate, 0xabcd0123);
}
// Adds field by field the slow way.
u64 slow_masked_add(u64 old, u64 add, u64 boundary, u32 bits) {
    u64 sum = 0, carry = 0;
    for (u32 i = 0; i < bits; ++i) {
        const u64 total = (old >> i & 1) + (add >> i & 1) + carry;
        sum |= (total & 1) << i;
        carry = boundary >> i & 1 ? 0 : total >> 1;
    }
    return sum;
}
}  // namespace

TEST(decode_fields) {
    const DecodedWqe wqe = decode({ctrl(Opcode::write_imm, 3, 7), remote_segment(0x1122334455667788, 0xdeadbeef),
                                   data_segment(0x8877665544332211, 4096, 0xcafe)}, 7);
    CHECK_EQ(wqe.fault, Syndrome::none);
    CHECK_EQ(wqe.raddr, 0x1122334455667788);
    CHECK_EQ(wqe.rkey, 0xdeadbeef);
    CHECK_EQ(wqe.bytes, 4096);
    CHECK_EQ(swap_bytes(wqe.imm), 0xabcd0123);
    CHECK_EQ(wqe.fm_ce_se, kCqUpdate);
    CHECK_EQ(wqe.index, 7);
    const LocalSegment segment = local_segment(ring(), wqe, wqe.first_segment);
    CHECK_EQ(segment.addr, 0x8877665544332211);
    CHECK_EQ(segment.lkey, 0xcafe);
    CHECK_EQ(wants_cqe(wqe, false), true);
}

TEST(decode_structure_errors) {
    const Vec16 remote = remote_segment(64, 1), data = data_segment(64, 8, 1);
    const auto qp_op = [](const DecodedWqe& wqe) { return wqe.fault == Syndrome::local_qp_op; };
    const auto length = [](const DecodedWqe& wqe) { return wqe.fault == Syndrome::local_length; };
    CHECK(qp_op(decode({ctrl(Opcode::write, 0), remote, data})));                 // ds 0
    CHECK(qp_op(decode({ctrl(Opcode::write, 1), remote, data})));                 // no remote segment
    CHECK(qp_op(decode({ctrl(Opcode::write, 3, 0, 0, 0x124), remote, data})));    // another QP's number
    CHECK(qp_op(decode({ctrl(Opcode::write, 3, 5), remote, data})));              // another index
    CHECK(qp_op(decode({ctrl(Opcode::write, 3, 0, 9), remote, data})));           // opmod on a plain opcode
    CHECK(qp_op(decode({ctrl(Opcode::send_inval, 2), data})));
    CHECK(qp_op(decode({ctrl(static_cast<Opcode>(0x3f), 3), remote, data})));
    CHECK(qp_op(decode({ctrl(Opcode::write, 5), remote, data, data, data}, 0, 1)));  // past the doorbell
    CHECK(qp_op(decode({ctrl(Opcode::fetch_add, 3), remote, atomic_segment(1, 0)})));
    CHECK(qp_op(decode({ctrl(Opcode::fetch_add, 5), remote, atomic_segment(1, 0), data, data})));
    CHECK(qp_op(decode({ctrl(Opcode::masked_fetch_add, 4, 0, 7), remote, atomic_segment(1, 0), data})));
    CHECK(qp_op(decode({ctrl(Opcode::masked_cmp_swap, 4, 0, kOpmodMasked8), remote, atomic_segment(1, 0), data})));
    CHECK(qp_op(decode({ctrl(Opcode::masked_cmp_swap, 5, 0, kOpmodMasked4), remote, atomic_segment(1, 0), data, data})));
    CHECK(qp_op(decode({ctrl(Opcode::dump, 1)})));
    CHECK(qp_op(decode({ctrl(Opcode::read, 3), remote, Vec16{{swap_bytes(kInlineFlag | 4), 0, 0, 0}}})));
    CHECK(qp_op(decode({ctrl(Opcode::write, 3), remote, Vec16{{swap_bytes(kInlineFlag | 13), 0, 0, 0}}})));
    CHECK(qp_op(decode({ctrl(Opcode::write, 3), remote, Vec16{{swap_bytes(0xffffffffu), 0, 0, 0}}})));
    CHECK(length(decode({ctrl(Opcode::fetch_add, 4), remote, atomic_segment(1, 0), data_segment(64, 4, 1)})));
    CHECK(length(decode({ctrl(Opcode::masked_fetch_add, 4, 0, kOpmodMasked4), remote, atomic_segment(1, 0), data})));
    CHECK(length(decode({ctrl(Opcode::write, 3), remote, data_segment(64, 0, 1)})));  // 0 stands for 2 GiB
    CHECK(length(decode({ctrl(Opcode::write, 3), remote, data_segment(64, kMaxWrite + 1, 1)})));
    CHECK(length(decode({ctrl(Opcode::write, 4), remote, data_segment(64, kMaxWrite, 1), data})));
    CHECK(decode({ctrl(Opcode::write, 3), remote, data_segment(64, kMaxWrite, 1)}).fault == Syndrome::none);
    CHECK(decode({ctrl(Opcode::write, 2), remote}).fault == Syndrome::none);
    CHECK(decode({ctrl(Opcode::nop, 2), Vec16{{~0u, ~0u, ~0u, ~0u}}}).fault == Syndrome::none);
    // Both readings of the index: free running, and the slot.
    CHECK(decode({ctrl(Opcode::write, 3, 13), remote, data}, 13).fault == Syndrome::none);
    CHECK(decode({ctrl(Opcode::write, 3, 5), remote, data}, 13).fault == Syndrome::none);
    CHECK(qp_op(decode({ctrl(Opcode::write, 3, 6), remote, data}, 13)));
}

TEST(key_checks) {
    KeyEntry entries[3] = {};
    entries[2] = KeyEntry{0x1000, 0x100, 0x9000, 0x207, kKeyLocalWrite | kKeyRemoteRead, 5, KeyState::live};
    const KeyTable table{entries, 3};
    const auto fault = [&](u32 key, u64 addr, u64 len, u32 access, u32 pd) {
        return check_key(table, key, addr, len, access, pd).fault;
    };
    CHECK_EQ(check_key(table, 0x207, 0x1010, 0xf0, kKeyRemoteRead, 5).memory, 0x9010);
    CHECK(fault(0x207, 0x1000, 0x100, 0, 5) == KeyFault::none);
    CHECK(fault(0x208, 0x1000, 1, 0, 5) == KeyFault::stale);
    CHECK(fault(0x107, 0x1000, 1, 0, 5) == KeyFault::unknown);
    CHECK(fault(0xffffffff, 0x1000, 1, 0, 5) == KeyFault::unknown);
    CHECK(fault(0x207, 0x1000, 1, 0, 4) == KeyFault::foreign_pd);
    CHECK(fault(0x207, 0x1000, 1, kKeyRemoteWrite, 5) == KeyFault::access);
    CHECK(fault(0x207, 0xfff, 1, 0, 5) == KeyFault::bounds);
    CHECK(fault(0x207, 0x1000, 0x101, 0, 5) == KeyFault::bounds);
    CHECK(fault(0x207, 0x10ff, 2, 0, 5) == KeyFault::bounds);
    CHECK(fault(0x207, ~0ull, 2, 0, 5) == KeyFault::bounds);
    CHECK(fault(0x207, 0x1001, ~0ull, 0, 5) == KeyFault::bounds);
}

TEST(masked_arithmetic) {
    CHECK_EQ(masked_add<u64>(5, 7, 0), 12);
    CHECK_EQ(masked_add<u64>(~0ull, 1, 0), 0);
    CHECK_EQ(masked_add<u64>(0xff00ff00ff00ff00, 0x0ff00ff00ff00ff0, ~0ull), 0xf0f0f0f0f0f0f0f0);  // XOR
    CHECK_EQ(masked_add<u32>(0xffffffff, 0x00010001, 0x80008000), 0x00000000);  // two 16-bit counters
    CHECK_EQ(masked_add<u32>(0x0001ffff, 0x00000001, 0x00008000), 0x00010000);
    World world;
    for (u32 i = 0; i < 20000; ++i) {
        const u64 old = world.random(~0ull), add = world.random(~0ull), boundary = world.random(~0ull);
        if (!CHECK_EQ(masked_add<u64>(old, add, boundary), slow_masked_add(old, add, boundary, 64))) break;
        if (!CHECK_EQ(masked_add<u32>(static_cast<u32>(old), static_cast<u32>(add), static_cast<u32>(boundary)),
                      slow_masked_add(old, add, boundary, 32)))
            break;
    }
    CHECK_EQ(masked_swap<u64>(0x1234, 0xffff, 0x1234, ~0ull, ~0ull), 0xffff);
    CHECK_EQ(masked_swap<u64>(0x1235, 0xffff, 0x1234, ~0ull, ~0ull), 0x1235);
    CHECK_EQ(masked_swap<u64>(0x1235, 0xffff, 0x1234, 0xff00, 0xff00), 0xff35);
    CHECK_EQ(masked_swap<u32>(0xdeadbeef, 7, 0, ~0u, 0), 7);                      // SET
    CHECK_EQ(masked_swap<u32>(0xf0, 0x0f, 0, 0x0f, 0), 0xff);                     // OR
    CHECK_EQ(masked_swap<u32>(0xff, 0xf3 & 0, 0, ~0xf3u, 0), 0xf3);               // AND
}

TEST(indices_and_doorbells) {
    CHECK_EQ(widen_index(0, 5), 5);
    CHECK_EQ(widen_index(0xfffe, 2), 0x10002);
    CHECK_EQ(widen_index(0x10002, 0xfffe), 0xfffe);
    CHECK_EQ(widen_index(0x123450000, 0x8000), 0x123458000);
    CHECK_EQ(widen_index(0x123450000, 0x8001), 0x123448001);
    const Doorbell next = decode_doorbell(doorbell_next(0xabcdef, 0x12345));
    CHECK_EQ(next.qpn, 0xabcdef);
    CHECK_EQ(doorbell_next_index(next), 0x2345);
    const Doorbell last = decode_doorbell(doorbell_last(ctrl_segment(Opcode::write, 0, 0xffff, 0xabcdef, 5, 8)));
    CHECK_EQ(last.opcode, Opcode::write);
    CHECK_EQ(doorbell_next_index(last), 1);
}

TEST(cqe_bytes) {
    // The bytes 52..63 of an error CQE that a ConnectX wrote: SEND, QP 0x1542, WQE 0x19, local protection.
    const ErrorCqe cqe = error_cqe(CqeOpcode::requester_error, 0x1542, 0x0a, 0, 0x19, Syndrome::local_protection);
    u8 bytes[64];
    std::memcpy(bytes, &cqe, 64);
    const u8 expected[] = {0x53, 0x04, 0x0a, 0x00, 0x15, 0x42, 0x00, 0x19};
    CHECK(std::memcmp(bytes + 54, expected, sizeof expected) == 0);
    CHECK_EQ(bytes[63] >> 4, 13);
    CHECK_EQ(cqe_owner(7, 3, false), 0);
    CHECK_EQ(cqe_owner(8, 3, false), 1);
    CHECK_EQ(cqe_owner(16, 3, false), 0);
    CHECK_EQ(cqe_owner(8, 3, true), 0);
    CHECK_EQ(scatter_flag(32, 64), kCqeScatter32);
    CHECK_EQ(scatter_flag(33, 64), 0);
    CHECK_EQ(scatter_flag(33, 128), kCqeScatter64);
    CHECK_EQ(scatter_flag(65, 128), 0);
}

}  // namespace rdmakit::test
