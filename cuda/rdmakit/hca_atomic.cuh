// rdmakit/hca_atomic.cuh — the arithmetic of RDMA atomics on values in the machine's own byte order.
// Layer: hca (leans on wqe). Source: mlx5 PRM "Extended Atomic Operations"; DOCA GPUNetIO's names for the opmods.
#pragma once
#include "wqe.cuh"

namespace rdmakit {

// Adds field by field: a set bit in `boundary` is the top bit of a field, out of which no carry leaves. 0 adds the
// whole word; all ones adds each bit alone, which is XOR.
template <class T> RDMAKIT_DEVICE constexpr T masked_add(T old, T add, T boundary) {
    // With the top bits taken out, a carry that arrives in one stays there; XOR then adds the top bits themselves.
    const T below = static_cast<T>((old & static_cast<T>(~boundary)) + (add & static_cast<T>(~boundary)));
    return static_cast<T>(below ^ ((old ^ add) & boundary));
}

// Compares the bits in compare_mask; where they agree, replaces the bits in swap_mask.
template <class T> RDMAKIT_DEVICE constexpr T masked_swap(T old, T swap, T compare, T swap_mask, T compare_mask) {
    if (((old ^ compare) & compare_mask) != 0) return old;
    return static_cast<T>((old & static_cast<T>(~swap_mask)) | (swap & swap_mask));
}

// What an atomic of any opcode asks for, widened to 64 bits.
struct AtomicOperands {
    u64 swap_add, compare, swap_mask, compare_mask;  // compare_mask holds the field boundary of a fetch-add
};

// The new value of `width` (4 or 8) bytes that hold `old`.
RDMAKIT_DEVICE u64 atomic_result(bool fetch_add, u32 width, u64 old, const AtomicOperands& by) {
    if (width == 4) {
        const u32 value = static_cast<u32>(old);
        return fetch_add ? masked_add<u32>(value, static_cast<u32>(by.swap_add), static_cast<u32>(by.compare_mask))
                         : masked_swap<u32>(value, static_cast<u32>(by.swap_add), static_cast<u32>(by.compare),
                                            static_cast<u32>(by.swap_mask), static_cast<u32>(by.compare_mask));
    }
    return fetch_add ? masked_add<u64>(old, by.swap_add, by.compare_mask)
                     : masked_swap<u64>(old, by.swap_add, by.compare, by.swap_mask, by.compare_mask);
}

}  // namespace rdmakit
