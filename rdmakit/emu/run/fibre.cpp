// fibre.cpp — see fibre.hpp.
#include "fibre.hpp"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

namespace rdmakit::emu {
namespace {
constexpr std::size_t kSlabFibres = 64;
constexpr std::size_t kGuard = 4096;
// vm.max_map_count is 65530 by default; a guarded stack costs two mappings.
constexpr std::size_t kMaxGuarded = 16384;
}  // namespace

StackPool::~StackPool() {
    for (const Slab& slab : slabs_) munmap(slab.memory, slab.bytes);
}

bool StackPool::grow() {
    const std::size_t bytes = (kSlabFibres + 1) * cpu::kFibreBytes;  // one more to align
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    slabs_.push_back({memory, bytes});
    const auto base = (reinterpret_cast<std::uintptr_t>(memory) + cpu::kFibreBytes - 1) & ~(cpu::kFibreBytes - 1);
    for (std::size_t i = kSlabFibres; i-- > 0;) {
        const auto stack = base + i * cpu::kFibreBytes;
        if (guarded_ < kMaxGuarded && mprotect(reinterpret_cast<void*>(stack), kGuard, PROT_NONE) == 0) ++guarded_;
        free_.push_back(reinterpret_cast<Fibre*>(stack + cpu::kFibreBytes - cpu::kThreadReserve));
    }
    return true;
}

Fibre* StackPool::take() {
    if (free_.empty() && !grow()) return nullptr;
    Fibre* fibre = free_.back();
    free_.pop_back();
    std::memset(static_cast<void*>(fibre), 0, sizeof(Fibre));
    return fibre;
}

bool StackPool::owns_guard(const Fibre* fibre, const void* address) {
    const auto stack = reinterpret_cast<std::uintptr_t>(fibre) & ~(cpu::kFibreBytes - 1);
    const auto at = reinterpret_cast<std::uintptr_t>(address);
    return at >= stack && at < stack + kGuard;
}

}  // namespace rdmakit::emu
