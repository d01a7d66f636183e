#include "uar_pages.hpp"

#include <rdma/mlx5-abi.h>

#include <cerrno>

namespace rdmakit::uverbs {
namespace {

// Above the commands of mlx5_ib_mmap_cmd the driver numbers what it has given out (MLX5_IB_MMAP_OFFSET_START).
constexpr u64 kAllocated = 9;

}  // namespace

void UarPages::close() {
    while (!pages_.empty()) {
        const u32 index = pages_.begin()->first;
        if (release(index) != 0) pages_.erase(index);
    }
}

const UarPage* UarPages::allocate() {
    UarPage page;
    if (!hca_->alloc_uar(&page).ok()) return nullptr;
    Machine::here().watch(hca_, page.page);
    return &(pages_[page.index] = page);
}

const UarPage* UarPages::numbered(u32 number) {
    const auto known = numbered_.find(number);
    if (known != numbered_.end()) return find(known->second);
    const UarPage* const made = allocate();
    if (made != nullptr) numbered_[number] = made->index;
    return made;
}

const UarPage* UarPages::find(u32 index) const {
    const auto found = pages_.find(index);
    return found == pages_.end() ? nullptr : &found->second;
}

int UarPages::release(u32 index) {
    const UarPage* const page = find(index);
    if (page == nullptr) return EINVAL;
    void* const memory = page->page;
    if (const Status status = hca_->free_uar(index); !status.ok()) return status.code;
    Machine::here().unwatch(memory);
    pages_.erase(index);
    return 0;
}

// Bits of the page number: the low byte of an index, the command, the rest of the index.
u64 UarPages::mmap_offset(const UarPage& page) {
    return (u64{page.index & 0xff} | kAllocated << 8 | u64{page.index >> 8} << 16) * kPage;
}

void* UarPages::map(u64 offset) {
    const u64 page = offset / kPage, command = page >> 8 & 0xff;
    const u32 number = static_cast<u32>(page & 0xff) | static_cast<u32>(page >> 16 & 0xffff) << 8;
    const UarPage* found = nullptr;
    switch (command) {
        case MLX5_IB_MMAP_REGULAR_PAGE:
        case MLX5_IB_MMAP_WC_PAGE:
        case MLX5_IB_MMAP_NC_PAGE: found = numbered(number); break;
        case kAllocated: found = find(number); break;
    }
    return found != nullptr ? found->page : nullptr;
}

bool UarPages::owns(const void* page) const {
    for (const auto& [index, known] : pages_)
        if (known.page == page) return true;
    return false;
}

}  // namespace rdmakit::uverbs
