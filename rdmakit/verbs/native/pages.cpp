#include "pages.hpp"

#include <sys/mman.h>

#include <map>
#include <mutex>

namespace rdmakit::verbs {

std::shared_ptr<void> new_pages(size_t size) {
    constexpr size_t kPage = 4096;
    const size_t whole = (size + kPage - 1) / kPage * kPage;
    void* const memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    return std::shared_ptr<void>(memory, [whole](void* at) { munmap(at, whole); });
}

namespace {

struct Allocation {
    std::shared_ptr<void> memory;
    size_t size;
};

std::mutex mutex;
std::map<uintptr_t, Allocation>& allocations() {
    static auto* const all = new std::map<uintptr_t, Allocation>();  // libmlx5 may free after static destructors
    return *all;
}

void* allocate(size_t size, void*) {
    const std::shared_ptr<void> memory = new_pages(size);
    if (memory == nullptr) return nullptr;
    const std::lock_guard<std::mutex> hold(mutex);
    allocations()[reinterpret_cast<uintptr_t>(memory.get())] = {memory, size};
    return memory.get();
}

void release(void* memory, void*) {
    std::shared_ptr<void> last;  // unmapped, if at all, outside the lock
    const std::lock_guard<std::mutex> hold(mutex);
    const auto found = allocations().find(reinterpret_cast<uintptr_t>(memory));
    if (found == allocations().end()) return;
    last = std::move(found->second.memory);
    allocations().erase(found);
}

}  // namespace

Mlx5Allocators page_allocators() { return {allocate, release, nullptr}; }

std::shared_ptr<void> share_pages(const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    const std::lock_guard<std::mutex> hold(mutex);
    auto after = allocations().upper_bound(at);
    if (after == allocations().begin()) return nullptr;
    --after;
    return at < after->first + after->second.size ? after->second.memory : nullptr;
}

}  // namespace rdmakit::verbs
