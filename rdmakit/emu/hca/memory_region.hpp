// memory_region.hpp — the table behind lkeys and rkeys: who may touch which bytes.
// Leans on cuda/rdmakit/hca_key.cuh, whose check reads the same table.
#pragma once
#include <vector>

#include "rdmakit/hca.cuh"

namespace rdmakit::emu {

class MemoryRegions {
  public:
    // `skip` entries are never used, so that two devices of one world do not give out the same keys; `variant` is the
    // low byte of the first ones. Key 0x100 ends scatter lists, hence at least two.
    MemoryRegions(u32 skip, u32 variant, u32 limit);
    // 0 if the table is full. The index freed last is used first: a stale key is then as likely as possible to name
    // a live entry, and must be caught by its variant.
    u32 add(u64 iova, u64 length, u64 base, u32 access, u32 pd, const u8* low_byte = nullptr);
    bool remove(u32 key);
    // Other rights, another PD: the key stays (as UMR does it).
    void change(u32 key, u32 access, u32 pd);
    // Null if the key names no live region.
    const KeyEntry* find(u32 key) const;
    KeyTable table() const { return KeyTable{entries_.data(), static_cast<u32>(entries_.size())}; }
    u32 live() const { return live_; }

  private:
    std::vector<KeyEntry> entries_;
    std::vector<u32> free_;
    u32 variant_, limit_, live_ = 0;
};

}  // namespace rdmakit::emu
