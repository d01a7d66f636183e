// pages.hpp — the memory of libmlx5's queues, given by us and shared: a view of a ring outlives its queue pair.
// Leans on abi_mlx5dv.hpp. man mlx5dv_set_context_attr. A queue's pages can so be registered with CUDA as a whole, too.
#pragma once
#include <memory>

#include "abi_mlx5dv.hpp"

namespace rdmakit::verbs {

// Zeroed, page-aligned memory, unmapped when its last owner is gone; null when there is none.
std::shared_ptr<void> new_pages(size_t size);
// Allocators for mlx5dv_set_context_attr: such memory.
Mlx5Allocators page_allocators();
// An owner of the allocation that `address` lies in; null for memory that is not of these allocators.
std::shared_ptr<void> share_pages(const void* address);

}  // namespace rdmakit::verbs
