// completion_queue.hpp — one CQ: where the next entry goes and whether there is room for it.
// Leans on attributes.hpp and cuda/rdmakit/hca_cqe.cuh.
#pragma once
#include "attributes.hpp"
#include "environment.hpp"
#include "owned_memory.hpp"
#include "rdmakit/hca.cuh"

namespace rdmakit::emu {

struct CompletionQueue {
    CqInfo info;
    OwnedMemory owned_buffer, owned_dbrec;
    enum class Armed { no, any, solicited } armed = Armed::no;
    u64 last_solicited = 0;  // produced count just after the last solicited or error entry

    u64 entries() const { return 1ull << info.log_entries; }
    // Entries that the consumer has not taken, by its record; over entries() if the record makes no sense.
    u64 unconsumed() const;
    // Writes `cqe` (a Cqe or ErrorCqe with owner bit 0), and `preceding` into the half before it in a 128-byte entry.
    // False: the CQ is full, and now dead, or was dead before.
    // `agent` writes it, to the memory model.
    bool push(const void* cqe, const u8* preceding, Environment& environment, u32 agent = 0);
};

}  // namespace rdmakit::emu
