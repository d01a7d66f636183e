// direct_queues.hpp — an mlx5 device's queues driven from here by the batch: rows become WQEs in the ring, CQEs become rows,
// and libmlx5 is not called on the way.
// Leans on batch.hpp, boxes.hpp, direct.hpp and on cuda/rdmakit/wqe.cuh for the bytes. What libmlx5 keeps for itself (which
// WQE has which wr_id, how far a ring is free, a CQ's consumer index) is kept here instead, so a queue is driven by one of
// the two from its first work request on. Source: rdma-core providers/mlx5/qp.c and cq.c.
//
// No locks: whoever calls holds the interpreter's, since a batch takes less time than giving that away and back.
#pragma once
#include <memory>
#include <unordered_map>
#include <vector>

#include "batch.hpp"
#include "boxes.hpp"
#include "direct.hpp"
#include "rdmakit/wqe.cuh"

namespace rdmakit::verbs {

struct DirectQp {
    Mlx5View rings{};
    u32 qpn = 0, max_inline = 0;
    bool signal_all = false;
    u64 posted = 0, done = 0;        // basic blocks of the send ring: handed over, free again
    u64 receives = 0, received = 0;  // receive WQEs
    std::vector<u64> wr_ids, receive_ids;  // by place in the ring
    std::vector<u8> blocks;
    // The last work requests in a row that ask for completions, are of this opcode and one basic block long: where they
    // begin. While that is not past `done`, all that is outstanding completes by one CQE a block.
    u64 run_begin = 0;
    Opcode run_opcode = Opcode::nop;

    // False when the rings have been used: libmlx5 has posted.
    bool begin(const Mlx5View& found, u32 number, u32 inlined, bool all);
    // Rows of BatchSend. EINVAL: no such opcode, too much inline; ENOMEM: no room. What came before is posted and rung.
    Posted send(const void* rows, size_t count);
    // Rows of BatchRecv, one segment each.
    Posted receive(const void* rows, size_t count);

  private:
    u32 write(const BatchSend& row, Vec16& ctrl);
    void put(u64 ds, const Vec16* segments, u32 count);
};

struct DirectCq {
    Mlx5Cq ring{};
    u32 log_entries = 0;
    u64 consumed = 0;
    u32 failed = 0;  // of what the last poll found
    std::unordered_map<u32, DirectQp*> queue_pairs;

    bool begin(const Mlx5Cq& found);
    // How many; -1 when the next completion is of a queue pair that is not driven here, whose number is `stranger` then.
    int poll(Wc* into, int most, u32* stranger);
    // Null when the queue pair goes: libmlx5 sweeps no CQ whose ring it has told of (MLX5_CQ_FLAGS_DV_OWNED), so its
    // completions are still there, and passed over.
    void join(u32 qpn, DirectQp* qp);

  private:
    u32 last_ = 0;
    DirectQp* known_ = nullptr;  // of the last CQE
};

}  // namespace rdmakit::verbs
