// link.hpp — how long packets take to leave by a port, and when the port is free again.
// Leans on timing.hpp and port.hpp. Timed only.
#pragma once
#include "port.hpp"

namespace rdmakit::emu {

inline u64 serialization_ps(const HcaTiming& timing, const Packets& packets) {
    const u64 octets = packets.octets + packets.count * timing.wire_bytes_per_packet;
    // In 64 bits a message of 20 MB would overflow.
    const unsigned __int128 scaled = static_cast<unsigned __int128>(octets) * 1'000'000'000'000ull;
    return static_cast<u64>(scaled / timing.port_bytes_per_second);
}

// Takes the link from `earliest` on, for `length`; returns when the last byte has passed.
inline u64 occupy(u64& free_ps, u64 earliest, u64 length) {
    free_ps = larger(free_ps, earliest) + length;
    return free_ps;
}

}  // namespace rdmakit::emu
