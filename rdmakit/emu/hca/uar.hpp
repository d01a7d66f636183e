// uar.hpp — a user access region page: where doorbells are written.
// Leans on owned_memory.hpp. rdma-core providers/mlx5: MLX5_BF_OFFSET 0x800, two alternating halves; the CQ doorbell
// is at 0x20 (MLX5_CQ_DOORBELL).
#pragma once
#include "hca.hpp"
#include "owned_memory.hpp"

namespace rdmakit::emu {

constexpr u64 kUarBytes = 4096;
constexpr u64 kUarDoorbellOffset = 0x800;
constexpr u64 kUarCqOffset = 0x20;

struct Hca::Uar {
    OwnedMemory page;
    u32 users = 0;
};

}  // namespace rdmakit::emu
