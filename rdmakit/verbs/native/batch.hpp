// batch.hpp — many work requests in one call: rows of a NumPy array become a chain that libibverbs takes whole.
// Leans on abi.hpp. BatchSend and BatchRecv are the dtypes SEND_WR and RECV_WR of rdmakit/verbs/batch.py; Wc is WC.
#pragma once
#include "abi.hpp"

namespace rdmakit::verbs {

struct BatchSend {
    uint64_t wr_id;
    uint32_t opcode, flags;
    uint64_t address;  // of the payload, or where an atomic leaves the old value
    uint32_t length, lkey;
    uint64_t remote_address;
    uint32_t rkey, imm;  // imm in host order
    uint64_t compare_add, swap;
};
static_assert(sizeof(BatchSend) == 64);

struct BatchRecv {
    uint64_t wr_id, address;
    uint32_t length, lkey;
};
static_assert(sizeof(BatchRecv) == 24);

struct Posted {
    int error;     // 0 or an errno
    size_t count;  // how many were taken
};

// Rows of BatchSend, of BatchRecv. No lock is needed but the queue pair's own. A length of 0 is no payload.
using PostRows = Posted (*)(Qp* qp, const void* rows, size_t count);
Posted post_sends(Qp* qp, const void* rows, size_t count);
Posted post_receives(Qp* qp, const void* rows, size_t count);

}  // namespace rdmakit::verbs
