// payload.cpp — copying between scattered runs of memory, without a staging buffer.
#include "payload.hpp"

#include <cstring>

namespace rdmakit::emu {

u64 copy_pieces(const Pieces& from, const Pieces& to, u64 bytes, Environment& environment) {
    u64 copied = 0, from_at = 0, to_at = 0;
    u32 i = 0, j = 0;
    while (copied < bytes && i < from.count && j < to.count) {
        const u64 run = smaller(smaller(from.piece[i].bytes - from_at, to.piece[j].bytes - to_at), bytes - copied);
        std::memmove(to.piece[j].at + to_at, from.piece[i].at + from_at, run);
        copied += run;
        from_at += run;
        to_at += run;
        environment.memory_written(to.piece[j].at + to_at - run, run);
        if (from_at == from.piece[i].bytes) ++i, from_at = 0;
        if (to_at == to.piece[j].bytes) ++j, to_at = 0;
    }
    return copied;
}

Pieces without_first(const Pieces& pieces, u64 bytes) {
    Pieces rest;
    for (u32 i = 0; i < pieces.count; ++i) {
        const u64 skipped = smaller(bytes, pieces.piece[i].bytes);
        rest.add(pieces.piece[i].at + skipped, pieces.piece[i].bytes - skipped);
        bytes -= skipped;
    }
    return rest;
}

u64 gather_pieces(const Pieces& from, u8* to, u64 bytes) {
    u64 copied = 0;
    for (u32 i = 0; i < from.count && copied < bytes; ++i) {
        const u64 run = smaller(from.piece[i].bytes, bytes - copied);
        std::memcpy(to + copied, from.piece[i].at, run);
        copied += run;
    }
    return copied;
}

}  // namespace rdmakit::emu
