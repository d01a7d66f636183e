// random.hpp — the world's only source of chance: splitmix64 (Steele, Lea, Flood 2014), seeded, the same everywhere.
#pragma once
#include "rdmakit/config.cuh"

namespace rdmakit::emu {

class Random {
  public:
    explicit Random(u64 seed) : state_(seed) {}
    u64 next() {
        u64 z = (state_ += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // Uniform enough in [0, bound): bounds here are far below 2^32, so the multiply-shift bias is below 2^-32.
    u64 below(u64 bound) { return ((next() >> 32) * bound) >> 32; }

  private:
    u64 state_;
};

}  // namespace rdmakit::emu
