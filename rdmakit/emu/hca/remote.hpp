// remote.hpp — a request and its answer when the peer is in another process: what would be on the wire.
// Leans on queue_pair.hpp and port.hpp. Both processes have an object for each HCA of the machine; queue pairs and keys are in the one
// that made them. Untimed only.
#pragma once
#include <vector>

#include "port.hpp"
#include "queue_pair.hpp"

namespace rdmakit::emu {

// Without the vectors plain bytes: one library reads what the same library has written.
struct RemoteRequest {
    DecodedWqe wqe;
    u32 source_qpn = 0, dest_qpn = 0;
    u32 ticket = 0;      // comes back with the answer; those of a queue pair never repeat
    u32 psn = 0, mtu_shift = 0, header_octets = 0;
    u32 connection = 0;  // counts the requester's connections
    u32 sent_from = 0;   // the physical port by which it left
    u32 ib_port = 0;     // of the responder, as its address names it
    u32 home_port = 0;   // of the requester: where an answer comes in
    bool out_of_order = false;
};

struct RemoteAnswer {
    u32 qpn = 0, ticket = 0;  // the requester's
    Outcome outcome;          // `memory` is not meant for anybody else: what a READ brings comes beside it
    u32 sent_from = 0, home_port = 0;
    Packets packets{};        // that were sent with it
};

}  // namespace rdmakit::emu
