// rdmakit/lock_strategy.cuh — the ways in which a sequence lock can tell that a transfer is there, and, as data, where
// each is right and what it costs. rdmakit/signal/strategies.py says the same in Python; a test compares them.
// Layer: signal (leans on config). Nothing here touches memory.
#pragma once
#include "config.cuh"

namespace rdmakit {

enum class Strategy : u32 {
    amo = 0,    // FETCH_ADD to a tail, behind the data on its QP
    imm = 1,    // WRITE_WITH_IMM: ticket and fingerprint in the immediate, signed off at the receiver's CQ
    eager = 2,  // the data carries its own stamps, one in each 128-byte line
    write = 3,  // an 8-byte flag WRITE behind the data on its QP
    cqe = 4,    // the same flag, once the data's completion is there
    split = 5,  // FETCH_ADD on another QP: nothing orders it behind the data. Wrong on purpose
};
constexpr u32 kStrategies = 6;

// How the data's WRITEs may reach memory, and who looks at it there.
enum class Ordering : u32 {
    strict = 0,        // RC as IBTA has it: WRITEs land in the order of the messages
    relaxed = 1,       // the MR has IBV_ACCESS_RELAXED_ORDERING (man ibv_reg_mr): any order, though never past an atomic
    out_of_order = 2,  // MLX5DV_QP_CREATE_OOO_DP (man mlx5dv_create_qp): packets take many paths, atomics wait for all before
};
enum class Reader : u32 { host = 0, gpu = 1 };

RDMAKIT_DEVICE constexpr u32 mode_bit(Ordering ordering, Reader reader) {
    return 1u << (2 * static_cast<u32>(ordering) + static_cast<u32>(reader));
}
constexpr u32 kAllModes = 0x3f;

// The modes in which a strategy never lets a reader see a transfer that is not whole.
RDMAKIT_DEVICE constexpr u32 right_modes(Strategy strategy, bool crc) {
    const u32 strict = mode_bit(Ordering::strict, Reader::host) | mode_bit(Ordering::strict, Reader::gpu);
    const u32 out_of_order = mode_bit(Ordering::out_of_order, Reader::host) | mode_bit(Ordering::out_of_order, Reader::gpu);
    switch (strategy) {
        // Relaxed WRITEs do not pass atomics; out-of-order QPs execute atomics after all messages before them.
        case Strategy::amo: return kAllModes;
        // A completion says that all data is visible, in every mode (man ibv_reg_mr).
        case Strategy::imm: return kAllModes;
        // Bytes of an aligned 128-byte line land in order for the host alone, and not in a relaxed MR (man
        // ibv_query_qp_data_in_order, ALIGNED_128_BYTES). A checksum in the stamp needs no such promise.
        case Strategy::eager:
            return crc ? kAllModes
                       : mode_bit(Ordering::strict, Reader::host) | mode_bit(Ordering::out_of_order, Reader::host);
        case Strategy::write: return strict;
        // An acknowledgement may come before the data is placed; in a relaxed MR the flag then passes it.
        case Strategy::cqe: return strict | out_of_order;
        case Strategy::split: return 0;
    }
    return 0;
}
RDMAKIT_DEVICE constexpr bool is_right(Strategy strategy, bool crc, Ordering ordering, Reader reader) {
    return (right_modes(strategy, crc) & mode_bit(ordering, reader)) != 0;
}

// Strong: all earlier puts of that QP are visible. Weak: only the put that it is attached to.
RDMAKIT_DEVICE constexpr bool is_strong(Strategy strategy) {
    return strategy != Strategy::eager && strategy != Strategy::split;
}

// ---- what one transfer costs its sender ------------------------------------------------------------------------------
struct StrategyCost {
    u32 wqes, doorbells;
    u32 extra_round_trips;  // that the sender waits for, beside those of the NICs
    u64 message_bytes;      // payload of all messages, header and stamps included; packet headers are the wire's affair
};
constexpr u32 kLockHeaderBytes = 32;
constexpr u32 kLineBytes = 128, kLineWords = 15, kLineDataBytes = 8 * kLineWords;

RDMAKIT_DEVICE constexpr u32 eager_lines(u32 length) { return ceil_div(kLockHeaderBytes + length, kLineDataBytes); }
// Bytes that a transfer takes in its slot, which are those of its data's WRITE.
RDMAKIT_DEVICE constexpr u32 slot_message(Strategy strategy, u32 length) {
    return strategy == Strategy::eager ? eager_lines(length) * kLineBytes : kLockHeaderBytes + length;
}
RDMAKIT_DEVICE constexpr StrategyCost cost_of(Strategy strategy, u32 length) {
    const u64 data = slot_message(strategy, length);
    switch (strategy) {
        case Strategy::amo: return {2, 1, 0, data + 8};
        case Strategy::imm: return {1, 1, 0, data};
        case Strategy::eager: return {1, 1, 0, data};
        case Strategy::write: return {2, 1, 0, data + 8};
        case Strategy::cqe: return {2, 2, 1, data + 8};
        case Strategy::split: return {2, 2, 0, data + 8};
    }
    return {0, 0, 0, 0};
}

}  // namespace rdmakit
