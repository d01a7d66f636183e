// counters.hpp — port counters as files: opening one of the tree's gives what all processes have counted so far.
// Leans on wire.hpp. Names as in tree.py; Linux Documentation/ABI/stable/sysfs-class-infiniband (port_*_data count words of
// four bytes). A network device of a bond shows one physical port, with RDMA's bytes among them: a kernel's statistics have
// what the network stack sends alone, and `ethtool -S` has the rest as *_phy.
#pragma once
#include <string>

#include "wire.hpp"

namespace rdmakit::uverbs {

// Where a process keeps its share of each (Wire::counters).
enum SharedCounter : u32 {
    kXmitBytes, kRcvBytes, kXmitPackets, kRcvPackets,
    kDuplicateRequest, kOutOfSequence, kPacketSeqErr, kImpliedNakSeqErr, kLocalAckTimeoutErr, kRxIcrcEncapsulated,
};
constexpr u32 shared_counter(u32 hca, u32 port, u32 counter) { return (hca * 4 + port - 1) * 16 + counter; }

// The text of the counter that `path` names, with its newline; empty if it names none.
std::string counter_text(const char* path);

}  // namespace rdmakit::uverbs
