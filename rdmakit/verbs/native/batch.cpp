#include "batch.hpp"

#include <endian.h>

#include <algorithm>

namespace rdmakit::verbs {
namespace {

constexpr size_t kAtOnce = 64;  // of a chain on the stack: one doorbell each

bool has_immediate(uint32_t opcode) { return opcode == kWrWriteImm || opcode == kWrSendImm; }
bool is_atomic(uint32_t opcode) { return opcode == kWrCmpSwap || opcode == kWrFetchAdd; }

void fill(SendWr& wr, Sge& sge, const BatchSend& from) {
    sge = {from.address, from.length, from.lkey};
    wr.wr_id = from.wr_id;
    wr.sg_list = &sge;
    wr.num_sge = from.length != 0;
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

}  // namespace

Posted post_sends(Qp* qp, const BatchSend* requests, size_t count) {
    SendWr chain[kAtOnce] = {};
    Sge sges[kAtOnce];
    for (size_t done = 0; done < count;) {
        const size_t here = std::min(kAtOnce, count - done);
        for (size_t i = 0; i < here; ++i) {
            fill(chain[i], sges[i], requests[done + i]);
            chain[i].next = i + 1 < here ? &chain[i + 1] : nullptr;
        }
        SendWr* bad = nullptr;
        if (const int error = qp->context->ops.post_send(qp, chain, &bad)) {
            return {error, done + static_cast<size_t>(bad != nullptr ? bad - chain : 0)};
        }
        done += here;
    }
    return {0, count};
}

Posted post_receives(Qp* qp, const BatchRecv* requests, size_t count) {
    RecvWr chain[kAtOnce];
    Sge sges[kAtOnce];
    for (size_t done = 0; done < count;) {
        const size_t here = std::min(kAtOnce, count - done);
        for (size_t i = 0; i < here; ++i) {
            const BatchRecv& from = requests[done + i];
            sges[i] = {from.address, from.length, from.lkey};
            chain[i] = {from.wr_id, i + 1 < here ? &chain[i + 1] : nullptr, &sges[i], from.length != 0};
        }
        RecvWr* bad = nullptr;
        if (const int error = qp->context->ops.post_recv(qp, chain, &bad)) {
            return {error, done + static_cast<size_t>(bad != nullptr ? bad - chain : 0)};
        }
        done += here;
    }
    return {0, count};
}

}  // namespace rdmakit::verbs
