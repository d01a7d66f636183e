// uar_pages.hpp — the UAR pages of one open device: which it has, and what an mmap of its descriptor gives.
// Leans on machine.hpp. Two ways to get one: libmlx5 numbers pages itself and maps them (static), or asks for each
// (dynamic; MLX5_LIB_CAP_DYN_UAR). rdma-core providers/mlx5/mlx5.c get_uar_mmap_offset; rdma/mlx5-abi.h mlx5_ib_mmap_cmd.
#pragma once
#include <map>

#include "machine.hpp"

namespace rdmakit::uverbs {

constexpr u32 kPage = 4096;

class UarPages {
  public:
    explicit UarPages(Hca* hca) : hca_(hca) {}
    void close();  // when no queue pair rings there any more

    // The page that libmlx5 calls `number`; made when first asked for. Null: no memory.
    const UarPage* numbered(u32 number);
    // A page of its own, known by its index; null: no memory.
    const UarPage* allocate();
    const UarPage* find(u32 index) const;
    // 0, EINVAL, or EBUSY while a queue pair rings there.
    int release(u32 index);
    static u64 mmap_offset(const UarPage& page);
    void* map(u64 offset);
    bool owns(const void* page) const;

  private:
    Hca* const hca_;
    std::map<u32, UarPage> pages_;   // by the HCA's index
    std::map<u32, u32> numbered_;    // libmlx5's number → the HCA's index
};

}  // namespace rdmakit::uverbs
