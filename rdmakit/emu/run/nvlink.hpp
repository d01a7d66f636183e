// nvlink.hpp — copies between GPUs of one host, with a clock: each GPU's links take them in turn, out and in.
// Leans on config.cuh. Without a rate nothing is modelled: a copy takes what its warp takes.
#pragma once
#include <algorithm>
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

struct NvlinkUse {
    u64 bytes = 0, busy_ps = 0;
};

class Nvlink {
  public:
    void set_rate(u64 bytes_per_second) { rate_ = bytes_per_second; }
    bool modelled() const { return rate_ != 0; }
    // Memory of a GPU's, which other GPUs of its host may write. Ranges do not overlap.
    void add_memory(const void* base, u64 bytes, u32 gpu) {
        const auto begin = reinterpret_cast<u64>(base);
        memory_.push_back({begin, begin + bytes, gpu});
        std::sort(memory_.begin(), memory_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
        const u64 gpus = std::max<u64>(use_.size(), gpu + 1ull);
        use_.resize(gpus);
        out_.resize(gpus);
        in_.resize(gpus);
    }
    // When bytes that `gpu` began to write to `address`, or to pull from there, at `began_ps` are all across; 0: they stay at
    // home.
    u64 across(u32 gpu, const void* address, u64 bytes, u64 began_ps, bool pull) {
        const u32 other = owner(reinterpret_cast<u64>(address), gpu);
        if (other == gpu || gpu >= use_.size()) return 0;
        const u32 from = pull ? other : gpu, there = pull ? gpu : other;
        const u64 length = static_cast<u64>(static_cast<unsigned __int128>(bytes) * 1'000'000'000'000ull / rate_);
        // The switch between them buffers: a busy receiver holds up its own copies, not the sender's others.
        out_[from] = std::max(out_[from], began_ps) + length;
        in_[there] = std::max(in_[there], began_ps) + length;
        use_[from].bytes += bytes;
        use_[from].busy_ps += length;
        return std::max(out_[from], in_[there]);
    }
    const std::vector<NvlinkUse>& use() const { return use_; }

  private:
    struct Range {
        u64 begin, end;
        u32 gpu;
    };
    u32 owner(u64 address, u32 otherwise) const {
        auto after = std::upper_bound(memory_.begin(), memory_.end(), address,
                                      [](u64 at, const Range& range) { return at < range.begin; });
        if (after == memory_.begin()) return otherwise;
        --after;
        return address < after->end ? after->gpu : otherwise;
    }
    u64 rate_ = 0;
    std::vector<Range> memory_;
    std::vector<u64> out_, in_;
    std::vector<NvlinkUse> use_;  // by the GPU that sends
};

}  // namespace rdmakit::emu
