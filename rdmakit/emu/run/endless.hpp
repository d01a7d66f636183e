// endless.hpp — telling a loop that can never end from one that merely takes long.
// A fibre that gives way without waiting, again and again, while nothing else in the world moves on, is looked at. All
// that is alive of it then lies on its stack, registers included, since switching stacks has pushed them: if the stacks
// of all who run show the same few images over and over, they poll memory that nobody writes. Lanes that meet again and
// again are looked at where they meet: anywhere else a warp shows too many images.
#pragma once
#include <cstring>
#include <vector>

#include "fibre.hpp"

namespace rdmakit::emu {

constexpr u32 kLookEvery = 64;           // turns between looks at one fibre
constexpr u32 kLookEveryMeeting = 4;     // under Timed a meeting of lanes takes a hundred turns
constexpr u32 kMeetingsFirst = 1024;     // of each lane: by then whoever works beside them has been looked at, too
constexpr u32 kSameLooks = 1u << 15;     // looks in a row that showed nothing new: 7 × 10⁷ basic blocks, a fifth of a second
constexpr u32 kOutsideEvery = 64;        // looks at a loop that shows something new each time, between turns of the outside
constexpr u32 kIdlePoints = 1u << 20;    // Explore: ordered accesses in a row, by whomever, that changed no word of memory
constexpr u32 kEndlessTurns = 1u << 26;  // turns of one fibre, whatever it does: 2 × 10⁹ basic blocks
constexpr u32 kImages = 1u << 16;        // that are remembered, of all fibres together

class EndlessLoops {
  public:
    // One more turn of a fibre that waits for nobody; `progress` changes whenever anything else in the world does.
    // True: it is time for a look.
    bool turn(Fibre& fibre, u64 progress) {
        return !moved_on(fibre, progress) && ++fibre.turns_alone > kLookEvery && ++fibre.turns % kLookEvery == 0;
    }
    // The same where it is about to meet other lanes.
    bool meeting(Fibre& fibre, u64 progress) {
        fibre.turns_alone = 0;
        return !moved_on(fibre, progress) && ++fibre.meetings > kMeetingsFirst && fibre.meetings % kLookEveryMeeting == 0;
    }
    // The look, at a fibre whose stack has been left. Not null: it will never end, because …
    const char* look(const Fibre& fibre, u64 progress) {
        const bool known = remember(mix(stack_image(fibre), mix(fibre.number, progress)));
        same_looks_ = known && progress == progress_ ? same_looks_ + 1 : 0;
        progress_ = progress;
        ++looks_;
        if (same_looks_ >= kSameLooks) return kPolls;
        if (fibre.turns >= kEndlessTurns) return "endless loop: it ran for billions of instructions while nothing else moved";
        return nullptr;
    }
    // With an outside: whether the last look showed nothing new; whether it is time to let the outside work; start anew.
    bool repeats() const { return same_looks_ > 0; }
    bool due_outside() const { return repeats() || looks_ % kOutsideEvery == 0; }
    void forgive(Fibre& fibre) {
        same_looks_ = 0;
        fibre.turns = 0;
    }
    static constexpr const char* kPolls = "endless loop: it polls memory that nobody writes, and nothing else moves";

    void start_over() { idle_points_ = 0; }
    // Explore: one more ordered access; `progress` and `changes` grow whenever anything, or any word of memory, changes.
    bool idle(u64 progress, u64 changes) {
        const u64 now = progress + changes;
        idle_points_ = now == idle_since_ ? idle_points_ + 1 : 0;
        idle_since_ = now;
        return idle_points_ > kIdlePoints;
    }

  private:
    static bool moved_on(Fibre& fibre, u64 progress) {
        if (fibre.progress_seen == progress) return false;
        fibre.progress_seen = progress;
        fibre.turns = fibre.turns_alone = fibre.meetings = 0;
        return true;
    }
    static u64 mix(u64 hash, u64 word) {
        hash = (hash ^ word) * 0xff51afd7ed558ccdull;
        return hash ^ (hash >> 29);
    }
    static u64 stack_image(const Fibre& fibre) {
        u64 hash = 0x9e3779b97f4a7c15ull;
        const auto* end = reinterpret_cast<const u8*>(&fibre);
        for (const auto* p = static_cast<const u8*>(fibre.stack_pointer); p + sizeof(u64) <= end; p += sizeof(u64)) {
            u64 word;
            std::memcpy(&word, p, sizeof word);
            hash = mix(hash, word);
        }
        return hash;
    }
    // Whether it is known already; it is from now on.
    bool remember(u64 image) {
        image |= 1;  // 0 means "none"
        if (images_.empty() || used_ > kImages / 2) {
            images_.assign(kImages, 0);
            used_ = 0;
        }
        for (u64 at = image >> 40;; ++at) {
            u64& slot = images_[at % kImages];
            if (slot == image) return true;
            if (slot == 0) {
                slot = image;
                ++used_;
                return false;
            }
        }
    }
    std::vector<u64> images_;  // open addressing
    u32 used_ = 0, same_looks_ = 0, looks_ = 0;
    u64 progress_ = 0, idle_since_ = 0;
    u32 idle_points_ = 0;
};

}  // namespace rdmakit::emu
