// link.hpp — how long packets take to leave by a port, and when the port is free again.
// Leans on timing.hpp and port.hpp. Timed only.
#pragma once
#include "port.hpp"

namespace rdmakit::emu {

// In 64 bits a message of 20 MB would overflow.
inline u64 duration_ps(u64 bytes, u64 bytes_per_second) {
    return static_cast<u64>(static_cast<unsigned __int128>(bytes) * 1'000'000'000'000ull / bytes_per_second);
}

inline u64 serialization_ps(const HcaTiming& timing, const Packets& packets) {
    return duration_ps(packets.octets + packets.count * timing.wire_bytes_per_packet, timing.port_bytes_per_second);
}

// Takes the link from `earliest` on, for `length`; returns when the last byte has passed.
inline u64 occupy(u64& free_ps, u64 earliest, u64 length) {
    free_ps = larger(free_ps, earliest) + length;
    return free_ps;
}

}  // namespace rdmakit::emu
