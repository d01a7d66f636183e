// mutation.hpp — one place of the device code made weaker while a kernel runs, to see whether anybody notices.
// A place is known by file, line and what stands there: one primitive of a kind a line is the rule for device headers,
// kept by a test. Leans on config.cuh.
#pragma once
#include <cstring>
#include <string>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

enum class Primitive : u32 { load = 0, store = 1, update = 2, fence = 3, condition = 4, bulk = 5 };
constexpr u32 kPrimitives = 6;

struct Mutation {
    bool on = false;
    std::string file;  // as the compiler names it: the end of a path is enough
    int line = 0;
    Primitive what = Primitive::fence;
    bool removed = false;                    // fence, bulk (a proxy fence, a wait for bulk copies): none at all; condition: passes for true
    bool no_acquire = false, no_release = false;
    u32 scope = 2;                           // at most this
    u64 hits = 0;

    bool at(Primitive primitive, const Site& site) {
        if (!on || site.line != line || primitive != what) return false;
        const std::size_t n = std::strlen(site.file);
        if (n < file.size() || std::strcmp(site.file + (n - file.size()), file.c_str()) != 0) return false;
        ++hits;
        return true;
    }
    cpu::Access weaken(cpu::Access how) const {
        if (how.scope > scope) how.scope = scope;
        if (how.order == cpu::Order::acquire && no_acquire) how.order = cpu::Order::relaxed;
        if (how.order == cpu::Order::release && no_release) how.order = cpu::Order::relaxed;
        if (how.order == cpu::Order::acq_rel && (no_acquire || no_release)) {
            how.order = no_acquire && no_release ? cpu::Order::relaxed : no_acquire ? cpu::Order::release : cpu::Order::acquire;
        }
        return how;
    }
};

}  // namespace rdmakit::emu
