// rdmakit/lock_stamp.cuh — what a transfer says of itself: header, fingerprint, flag and stamp words, checksums, and how
// a ticket of 64 bits is told from 16 or 32 of them.
// Layer: signal (leans on lock_strategy, warp). Arithmetic on words; rdmakit/signal/reference.py is its truth in NumPy.
#pragma once
#include "lock_strategy.cuh"
#include "warp.cuh"

namespace rdmakit {

// First in every slot. In an eager slot it is the first data of line 0.
struct LockHeader {
    u64 ticket;
    u32 length;       // payload bytes
    u32 fingerprint;  // of the five numbers beside it
    u32 epoch;
    u32 crc;          // payload_crc, or 0 where the lock does not ask for it
    u32 qpn;          // the sender's
    u32 reserved;
};
static_assert(sizeof(LockHeader) == kLockHeaderBytes, "the header is four words");
constexpr u32 kHeaderWords = kLockHeaderBytes / 8;

// The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of v changes half of the bits.
RDMAKIT_DEVICE constexpr u64 mix64(u64 v) {
    v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9ull;
    v = (v ^ (v >> 27)) * 0x94d049bb133111ebull;
    return v ^ (v >> 31);
}
// Binds a transfer to its queue pair, epoch, ticket, length and checksum: a slot, flag or stamp of another one matches
// once in 2^32.
RDMAKIT_DEVICE constexpr u32 fingerprint(u32 qpn, u32 epoch, u64 ticket, u32 length, u32 crc) {
    const u64 sender = mix64((static_cast<u64>(epoch) << 32 | qpn) + 0x9e3779b97f4a7c15ull);
    const u64 transfer = mix64(sender ^ ticket);
    return static_cast<u32>(mix64(transfer ^ (static_cast<u64>(crc) << 32 | length)) >> 32);
}
// The same for line `line` of an eager slot, whose checksum is that of its 120 bytes.
RDMAKIT_DEVICE constexpr u32 line_fingerprint(u32 qpn, u32 epoch, u64 ticket, u32 length, u32 line, u32 crc) {
    return fingerprint(qpn, epoch, ticket, length, crc + line * 0x9e3779b1u);
}

// ---- tickets on the wire -----------------------------------------------------------------------------------------------
// A flag or a stamp: 32 bits of the ticket and the fingerprint, one 8-byte store, never torn.
RDMAKIT_DEVICE constexpr u64 stamp_word(u64 ticket, u32 print) {
    return static_cast<u64>(print) << 32 | static_cast<u32>(ticket);
}
RDMAKIT_DEVICE constexpr u32 immediate_of(u64 ticket, u32 print) {
    return (print >> 16) << 16 | static_cast<u32>(ticket & 0xffff);
}
// The 64-bit ticket nearest to `next` with these low bits: windows are far smaller than half of what the bits count.
RDMAKIT_DEVICE constexpr u64 widen_ticket(u32 low, u64 next) {
    return next + static_cast<u64>(static_cast<i64>(static_cast<i32>(low - static_cast<u32>(next))));
}
RDMAKIT_DEVICE constexpr u64 widen_ticket(u16 low, u64 next) {
    return next + static_cast<u64>(static_cast<i64>(static_cast<i16>(low - static_cast<u16>(next))));
}
// Whether a comes behind b: differences, not values, are compared, so the ticket before 0 is 2^64 − 1.
RDMAKIT_DEVICE constexpr bool comes_after(u64 a, u64 b) { return static_cast<i64>(a - b) > 0; }

// ---- checksums -----------------------------------------------------------------------------------------------------------
// CRC32C (RFC 3720, reflected polynomial 0x82f63b78) of eight more bytes. Bit by bit: NVRTC has no table to lay out.
RDMAKIT_DEVICE constexpr u32 crc32c_word(u32 crc, u64 word) {
    u64 v = word ^ crc;
    RDMAKIT_NO_UNROLL for (int bit = 0; bit < 64; ++bit) v = (v >> 1) ^ ((v & 1) != 0 ? 0x82f63b78ull : 0);
    return static_cast<u32>(v);
}
RDMAKIT_NOINLINE u32 crc32c_line(const u64* words) {
    u32 crc = ~0u;
    RDMAKIT_NO_UNROLL for (u32 i = 0; i < kLineWords; ++i) crc = crc32c_word(crc, words[i]);
    return ~crc;
}

// Word i of `length` bytes, zeros behind the end. Reads no byte that is not the payload's.
RDMAKIT_NOINLINE u64 last_word(const u8* bytes, u32 length, u32 i) {
    u64 word = 0;
    RDMAKIT_NO_UNROLL for (u32 k = 8 * i; k < length; ++k) word |= static_cast<u64>(bytes[k]) << (8 * (k & 7));
    return word;
}
RDMAKIT_DEVICE u64 word_at(const u8* bytes, u32 length, u32 i) {
    return 8 * i + 8 <= length ? reinterpret_cast<const u64*>(bytes)[i] : last_word(bytes, length, i);
}
RDMAKIT_DEVICE void store_word(u8* bytes, u32 length, u32 i, u64 word) {
    if (8 * i + 8 <= length) {
        reinterpret_cast<u64*>(bytes)[i] = word;
        return;
    }
    RDMAKIT_NO_UNROLL for (u32 k = 8 * i; k < length; ++k) bytes[k] = static_cast<u8>(word >> (8 * (k & 7)));
}

// All lanes: the sum of the CRC32C of each 128-byte block, its number in front of it. A sum, since lanes take the blocks
// in any order; the number, since a sum alone would not see two blocks change places.
RDMAKIT_NOINLINE u32 payload_crc(const u8* bytes, u32 length) {
    constexpr u32 kBlockWords = 16;
    const u32 words = ceil_div(length, 8u);
    u32 sum = 0;
    for (u32 block = static_cast<u32>(lane_id()); block < ceil_div(words, kBlockWords); block += kLanes) {
        u32 crc = crc32c_word(~0u, block);
        RDMAKIT_NO_UNROLL for (u32 i = block * kBlockWords; i < smaller(words, (block + 1) * kBlockWords); ++i) {
            crc = crc32c_word(crc, word_at(bytes, length, i));
        }
        sum += ~crc;
    }
    return warp_sum(sum);
}

}  // namespace rdmakit
