// payload.hpp — runs of host memory that make up one message, and copying between them.
// Leans on environment.hpp. Every Piece was checked against a key or lies inside a ring.
#pragma once
#include "environment.hpp"

namespace rdmakit::emu {

struct Piece {
    u8* at;
    u64 bytes;
};

// A WQE of 63 DS holds at most 62 segments; an inline one may break at the ring's end.
constexpr u32 kMaxPieces = 64;

struct Pieces {
    u32 count;
    Piece piece[kMaxPieces];
    Pieces() : count(0) {}  // the array is filled up to count, and not cleared: this lies on the hot path
    void add(void* at, u64 bytes) {
        if (bytes != 0 && count < kMaxPieces) piece[count++] = Piece{static_cast<u8*>(at), bytes};
    }
};

// Copies up to `bytes`, in ascending order, and tells the environment of each run written. Runs may overlap: a WQE may
// well name the same memory twice. Returns the number of bytes copied.
u64 copy_pieces(const Pieces& from, const Pieces& to, u64 bytes, Environment& environment);
// All but the first `bytes`.
Pieces without_first(const Pieces& pieces, u64 bytes);
// As copy_pieces, into memory that nobody watches (a CQE under construction).
u64 gather_pieces(const Pieces& from, u8* to, u64 bytes);

}  // namespace rdmakit::emu
