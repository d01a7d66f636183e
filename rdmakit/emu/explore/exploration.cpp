// exploration.cpp — raw accesses: see exploration.hpp.
#include "exploration.hpp"

#include <cstring>

namespace rdmakit::emu {

bool Exploration::settle(void** p, u32* bytes) {
    *bytes = 0;
    if (raw_.state == Raw::State::none) return false;
    const Raw done = raw_;
    raw_.state = Raw::State::none;
    if (done.state == Raw::State::loading) {
        std::memcpy(done.at, kept_.data(), done.bytes);
        return true;
    }
    memory.stored(done.agent, done.at, kept_.data(), done.bytes, done.strong ? Order::relaxed : Order::plain, 2,
                  where_pc(done.pc));
    *p = done.at;
    *bytes = done.bytes;
    return true;
}

void Exploration::raw(u32 agent, void* p, u32 bytes, u32 kind, const void* pc) {
    const bool strong = kind == cpu::kRawVolatileRead || kind == cpu::kRawVolatileWrite;  // PTX: as relaxed.sys
    raw_ = Raw{Raw::State::none, agent, bytes, static_cast<u8*>(p), strong, pc};
    kept_.assign(raw_.at, raw_.at + bytes);
    if (kind == cpu::kRawWrite || kind == cpu::kRawVolatileWrite) {
        raw_.state = Raw::State::storing;
        return;
    }
    chosen_.resize(bytes);
    memory.load(agent, p, chosen_.data(), bytes, strong ? Order::relaxed : Order::plain, 2, where_pc(pc));
    if (std::memcmp(chosen_.data(), kept_.data(), bytes) == 0) return;
    std::memcpy(raw_.at, chosen_.data(), bytes);
    raw_.state = Raw::State::loading;
}

}  // namespace rdmakit::emu
