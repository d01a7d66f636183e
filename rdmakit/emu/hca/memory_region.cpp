// memory_region.cpp — protection domains and memory registration (man ibv_reg_mr, ibv_rereg_mr, ibv_alloc_pd).
#include "memory_region.hpp"

#include <cerrno>

#include "hca.hpp"

namespace rdmakit::emu {

MemoryRegions::MemoryRegions(u32 skip, u32 variant, u32 limit)
    : entries_(larger(skip, 2u), KeyEntry{}), variant_(variant & 0xff), limit_(limit) {}

u32 MemoryRegions::add(u64 iova, u64 length, u64 base, u32 access, u32 pd, const u8* low_byte) {
    u32 index = static_cast<u32>(entries_.size());
    if (free_.empty()) {
        if (live_ >= limit_) return 0;
        entries_.push_back(KeyEntry{});
        entries_[index].key = (index << 8) | variant_;
    } else {
        index = free_.back();
        free_.pop_back();
    }
    KeyEntry& entry = entries_[index];
    const u32 key = (index << 8) | (low_byte != nullptr ? *low_byte : (entry.key + 1) & 0xff);
    entry = KeyEntry{iova, length, base, key, access, pd, KeyState::live};
    ++live_;
    return key;
}

bool MemoryRegions::remove(u32 key) {
    if (!find(key)) return false;
    entries_[key >> 8].state = KeyState::free;
    free_.push_back(key >> 8);
    --live_;
    return true;
}

void MemoryRegions::change(u32 key, u32 access, u32 pd) {
    if (!find(key)) return;
    entries_[key >> 8].access = access;
    entries_[key >> 8].pd = pd;
}

const KeyEntry* MemoryRegions::find(u32 key) const {
    const u32 index = key >> 8;
    if (index >= entries_.size()) return nullptr;
    const KeyEntry& entry = entries_[index];
    return entry.state == KeyState::live && entry.key == key ? &entry : nullptr;
}

Status Hca::alloc_pd(u32* pd) {
    *pd = static_cast<u32>(pds_.size());
    pds_.push_back(Pd{true, 0});
    return {};
}

Status Hca::dealloc_pd(u32 pd) {
    if (pd >= pds_.size() || !pds_[pd].live) return refuse(EINVAL, "no PD %u", pd);
    if (pds_[pd].users)
        return refuse(EBUSY, "PD %u still holds %u MRs or QPs: close them first", pd, pds_[pd].users);
    pds_[pd].live = false;
    return {};
}

Status Hca::reg_mr(u32 pd, void* address, u64 length, u32 access, u32* key) {
    return reg_mr_iova(pd, address, length, reinterpret_cast<u64>(address), access, key);
}

Status Hca::check_registration(u32 pd, void* address, u64 length, u64 iova, u32 access) const {
    constexpr u32 known = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic |
                          kAccessRelaxedOrdering;
    const u64 base = reinterpret_cast<u64>(address);
    if (pd >= pds_.size() || !pds_[pd].live) return refuse(EINVAL, "no PD %u", pd);
    if (access & ~known) return refuse(EINVAL, "access flags 0x%x: unknown bits 0x%x", access, access & ~known);
    // ib_check_mr_access in the kernel's include/rdma/ib_verbs.h
    if ((access & (kAccessRemoteWrite | kAccessRemoteAtomic)) && !(access & kAccessLocalWrite))
        return refuse(EINVAL, "access flags 0x%x: remote write or atomic needs local write as well", access);
    if (length == 0) return refuse(EINVAL, "an MR of 0 bytes cannot be registered");
    if (base == 0) return refuse(EFAULT, "an MR cannot begin at address 0");
    if (base + length - 1 < base || iova + length - 1 < iova)
        return refuse(EINVAL, "an MR of %llu bytes at 0x%llx wraps the address space", length, base);
    return {};
}

Status Hca::reg_mr_iova(u32 pd, void* address, u64 length, u64 iova, u32 access, u32* key) {
    return enter_region(pd, address, length, iova, access, nullptr, key);
}

Status Hca::create_mkey(u32 pd, void* address, u64 length, u64 iova, u32 access, u8 low_byte, u32* key) {
    return enter_region(pd, address, length, iova, access, &low_byte, key);
}

Status Hca::enter_region(u32 pd, void* address, u64 length, u64 iova, u32 access, const u8* low_byte, u32* key) {
    const Status status = check_registration(pd, address, length, iova, access);
    if (!status.ok()) return status;
    *key = memory_->add(iova, length, reinterpret_cast<u64>(address), access, pd, low_byte);
    if (*key == 0) return refuse(ENOMEM, "all %u MRs of this device are in use", config_.max_mrs);
    ++pds_[pd].users;
    return {};
}

Status Hca::dereg_mr(u32 key) {
    const KeyEntry* entry = memory_->find(key);
    if (!entry) return refuse(EINVAL, "key 0x%x names no registered MR (deregistered before?)", key);
    land(0);  // nothing may land in memory that is no longer registered
    --pds_[entry->pd].users;
    memory_->remove(key);
    return {};
}

Status Hca::rereg_mr(u32 key, u32 pd, void* address, u64 length, u32 access, u32* new_key) {
    return rereg_mr_iova(key, pd, address, length, reinterpret_cast<u64>(address), access, new_key);
}

Status Hca::rereg_mr_iova(u32 key, u32 pd, void* address, u64 length, u64 iova, u32 access, u32* new_key) {
    const KeyEntry* entry = memory_->find(key);
    if (!entry) return refuse(EINVAL, "key 0x%x names no registered MR (deregistered before?)", key);
    const Status status = check_registration(pd, address, length, iova, access);
    if (!status.ok()) return status;
    dereg_mr(key);
    return reg_mr_iova(pd, address, length, iova, access, new_key);  // takes the index just freed
}

Status Hca::change_mr(u32 key, u32 pd, u32 access) {
    const KeyEntry* entry = memory_->find(key);
    if (!entry) return refuse(EINVAL, "key 0x%x names no registered MR (deregistered before?)", key);
    const Status status = check_registration(pd, reinterpret_cast<void*>(entry->base), entry->len, entry->addr, access);
    if (!status.ok()) return status;
    --pds_[entry->pd].users;
    ++pds_[pd].users;
    memory_->change(key, access, pd);
    return {};
}

Status Hca::query_mr(u32 key, MrInfo* info) const {
    const KeyEntry* entry = memory_->find(key);
    if (!entry) return refuse(EINVAL, "key 0x%x names no registered MR (deregistered before?)", key);
    *info = MrInfo{entry->key, entry->pd, entry->access, entry->addr, entry->len, reinterpret_cast<void*>(entry->base)};
    return {};
}

u32 Hca::live_mrs() const { return memory_->live(); }

}  // namespace rdmakit::emu
