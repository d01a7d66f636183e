// post_each.cu — one WQE of every kind that device code can post, by one thread, each with its completion: the kinds
// beside WRITE and FETCH_ADD have no other kernel that uses them yet, and every one must be seen to work.
#include <rdmakit/signal.cuh>
#include <rdmakit/warp.cuh>

// `to` names 16 words at the peer, `from` 16 local ones. Word 0 is written, word 1 read back into local word 1, words 2 to
// 7 take one atomic each.
RDMAKIT_KERNEL post_each(const rdmakit::QpHandle* handle, rdmakit::RemoteMemory to, rdmakit::LocalMemory from) {
    using namespace rdmakit;
    const QpHandle& qp = *handle;
    if (!check_handle(qp) || thread_in_block() != 0 || block_id() != 0) return;
    const u32 blocks = 11;
    const u64 base = reserve(qp, blocks);
    if (base == kNoSlot) return;
    const auto word = [&](u32 i) { return to.address + 8ull * i; };
    write_rdma(qp, base, Opcode::write, word(0), to.key, from.address, from.key, 8, kCqUpdate);
    write_rdma(qp, base + 1, Opcode::read, word(1), to.key, from.address + 8, from.key, 8, kCqUpdate);
    write_cmp_swap(qp, base + 2, word(2), to.key, 222, 2, kCqUpdate);
    write_masked_fetch_add4(qp, base + 3, word(3), to.key, 0xff, 0xffffffff, kCqUpdate);
    write_masked_fetch_add8(qp, base + 4, word(4), to.key, 0x0101010101010101ull, 0x8080808080808080ull, kCqUpdate);
    write_masked_cmp_swap4(qp, base + 5, word(5), to.key, 0xabcd0000, 0, 0xffff0000, 0, kCqUpdate);
    write_masked_cmp_swap8(qp, base + 6, word(6), to.key, 0xf0, 0, 0xff, 0, kCqUpdate);  // two basic blocks
    write_dump(qp, base + 8, from.address, from.key, 8, kCqUpdate);
    write_nop(qp, base + 9, kCqUpdate);
    write_fetch_add(qp, base + 10, word(7), to.key, 1, kCqUpdate | kFence);
    if (publish(qp, base, blocks) == Status::ok) quiet(qp);
}
