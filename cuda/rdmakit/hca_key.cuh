// rdmakit/hca_key.cuh — memory keys: who may touch which bytes.
// Layer: hca (leans on config). A key is an index (key >> 8) into a table and a variant (its low byte) that changes at
// each registration, so that a key kept after deregistration is caught (mlx5 PRM, "Memory Key").
#pragma once
#include "wqe.cuh"

namespace rdmakit {

// IBV_ACCESS_*. Local reads are always allowed.
constexpr u32 kKeyLocalWrite = 1u << 0;
constexpr u32 kKeyRemoteWrite = 1u << 1;
constexpr u32 kKeyRemoteRead = 1u << 2;
constexpr u32 kKeyRemoteAtomic = 1u << 3;

enum class KeyState : u32 { free = 0, live = 1 };

struct KeyEntry {
    u64 addr;  // what WQEs call the first byte (the iova)
    u64 len;
    u64 base;  // where that byte lies for the engine that executes
    u32 key;
    u32 access;
    u32 pd;
    KeyState state;
};

struct KeyTable {
    const KeyEntry* entries;
    u32 count;
};

enum class KeyFault : u32 { none = 0, unknown = 1, stale = 2, foreign_pd = 3, access = 4, bounds = 5 };

// Where the bytes lie, or why they may not be touched.
struct KeyCheck {
    KeyFault fault;
    u64 memory;  // meaningful if fault is none
};

RDMAKIT_DEVICE KeyCheck check_key(const KeyTable& table, u32 key, u64 addr, u64 len, u32 access, u32 pd) {
    const u32 index = key >> 8;
    if (index >= table.count) return {KeyFault::unknown, 0};
    const KeyEntry& entry = table.entries[index];
    if (entry.state != KeyState::live) return {KeyFault::unknown, 0};
    if (entry.key != key) return {KeyFault::stale, 0};
    if (entry.pd != pd) return {KeyFault::foreign_pd, 0};
    if ((entry.access & access) != access) return {KeyFault::access, 0};
    // In this form nothing can overflow.
    if (addr < entry.addr || len > entry.len || addr - entry.addr > entry.len - len) return {KeyFault::bounds, 0};
    return {KeyFault::none, entry.base + (addr - entry.addr)};
}

}  // namespace rdmakit
