// late_write.hpp — writes that have arrived and are not visible yet: relaxed ordering on PCIe (man ibv_reg_mr).
// Leans on config.cuh. Timed only. Nothing of one QP passes its atomics, its READs or a completion at this end.
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

struct LateWrite {
    u64 number;
    u32 qpn;
    u8* at;
    std::vector<u8> bytes;
};

}  // namespace rdmakit::emu
