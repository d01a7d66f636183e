#include "batch.hpp"

#include <endian.h>

#include <algorithm>

namespace rdmakit::verbs {
namespace {

constexpr size_t kAtOnce = 64;  // of a chain on the stack: one doorbell each

bool has_immediate(uint32_t opcode) { return opcode == kWrWriteImm || opcode == kWrSendImm; }
bool is_atomic(uint32_t opcode) { return opcode == kWrCmpSwap || opcode == kWrFetchAdd; }

void fill(SendWr& wr, const BatchSend& from) {
    wr.wr_id = from.wr_id;
    wr.opcode = static_cast<int>(from.opcode);
    wr.send_flags = from.flags;
    wr.imm_data = has_immediate(from.opcode) ? htobe32(from.imm) : from.imm;
    if (is_atomic(from.opcode)) {
        wr.wr.atomic.remote_addr = from.remote_address;
        wr.wr.atomic.compare_add = from.compare_add;
        wr.wr.atomic.swap = from.swap;
        wr.wr.atomic.rkey = from.rkey;
    } else {
        wr.wr.rdma.remote_addr = from.remote_address;
        wr.wr.rdma.rkey = from.rkey;
    }
}

void fill(RecvWr& wr, const BatchRecv& from) { wr.wr_id = from.wr_id; }

template <typename Wr, typename Row>
Posted post_rows(Qp* qp, int (*post)(Qp*, Wr*, Wr**), const void* rows, size_t count) {
    const Row* const requests = static_cast<const Row*>(rows);
    Wr chain[kAtOnce] = {};
    Sge sges[kAtOnce];
    for (size_t done = 0; done < count;) {
        const size_t here = std::min(kAtOnce, count - done);
        for (size_t i = 0; i < here; ++i) {
            const Row& from = requests[done + i];
            fill(chain[i], from);
            sges[i] = {from.address, from.length, from.lkey};
            chain[i].sg_list = &sges[i];
            chain[i].num_sge = from.length != 0;
            chain[i].next = i + 1 < here ? &chain[i + 1] : nullptr;
        }
        Wr* bad = nullptr;
        if (const int error = post(qp, chain, &bad)) {
            return {error, done + static_cast<size_t>(bad != nullptr ? bad - chain : 0)};
        }
        done += here;
    }
    return {0, count};
}

}  // namespace

Posted post_sends(Qp* qp, const void* rows, size_t count) {
    return post_rows<SendWr, BatchSend>(qp, qp->context->ops.post_send, rows, count);
}

Posted post_receives(Qp* qp, const void* rows, size_t count) {
    return post_rows<RecvWr, BatchRecv>(qp, qp->context->ops.post_recv, rows, count);
}

}  // namespace rdmakit::verbs
