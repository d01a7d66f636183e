// owned_memory.hpp — an aligned, zeroed block that frees itself: rings, records and UAR pages that the HCA allocates.
// Leans on the C++ library alone.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace rdmakit::emu {

struct FreeMemory {
    void operator()(void* block) const { std::free(block); }
};
using OwnedMemory = std::unique_ptr<void, FreeMemory>;

// Page-aligned, as drivers allocate queues; null if there is no memory.
inline OwnedMemory allocate_pages(std::size_t bytes) {
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    void* block = std::aligned_alloc(4096, rounded);
    if (block) std::memset(block, 0, rounded);
    return OwnedMemory(block);
}

}  // namespace rdmakit::emu
