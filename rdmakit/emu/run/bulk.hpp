// bulk.hpp — bulk copies under way: issued by device code (atom_bulk.cuh), made by an engine of its own, in no order, at a
// time of its own. Untimed a step of the scheduler; timed an event, the copies of a block one behind the other.
// Explore: each copy is an agent of the asynchronous proxy (explore/async_proxy.cpp).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "scheduler.hpp"

namespace rdmakit::emu {

class Launcher;

// A bulk copy as the memory model knows it: `by` issued it.
struct BulkAgent {
    u32 agent, by;
};

class BulkEngine final : public WorkSource {
  public:
    BulkEngine(Scheduler& scheduler, Launcher& launcher) : scheduler_(scheduler), launcher_(launcher) {}

    // ---- primitives of device code (cpu::RunnerApi)
    void issue(Fibre& fibre, const cpu::BulkCopy& copy, Site site);
    void commit(Fibre& fibre) { ++stream_of(fibre).open; }
    void wait(Fibre& fibre, u32 pending, bool read, Site site);

    // The last fibre of a block has ended: what it has read and not yet written lands now. Returns what is wrong if a copy
    // still needs the block's shared memory. *known: joined with what those know who made its copies.
    std::string end_block(const Block& block, ClockRef* known);
    void clear();
    void forget_agents() {
        agents_.clear();
        barriers_.clear();
    }
    const std::vector<BulkAgent>& agents() const { return agents_; }
    const std::vector<const u64*>& barriers() const { return barriers_; }  // Explore: that copies have arrived at

    // ---- WorkSource
    void work(u32 budget) override;
    void steps(std::vector<u32>& agents) override;
    void take(u32 index) override;

  private:
    struct Copy {
        u64 number, fibre, group;
        Block* block;
        cpu::BulkCopy what;
        Site site;
        bool moves;              // false: its bytes do not, in a world of control traffic only
        bool read = false;       // a store whose source has been read
        std::vector<u8> bytes;   // what it has read
        u32 agent = 0;
        ClockRef issued = 0, has_read = 0;
        bool is_load() const { return what.barrier != nullptr; }
    };
    // What one fibre has issued: its groups count from 0, `open` is the one that stores join now.
    struct Stream {
        u64 fibre;
        const Block* block;
        u64 open = 0, turns = 0;  // turns: changes whenever one of its copies gets on; what it waits on
        struct Done {
            u64 group;
            ClockRef has_read, has_written;
        };
        std::vector<Done> done;
    };
    Stream& stream_of(const Fibre& fibre);
    bool under_way(u64 fibre, u64 groups, bool read) const;
    void advance(Copy& copy);    // one leg
    void read(Copy& copy);
    void write(Copy& copy);
    static void timed_leg(void* engine, u64 number);

    Scheduler& scheduler_;
    Launcher& launcher_;
    std::vector<std::unique_ptr<Copy>> copies_;
    std::vector<std::unique_ptr<Stream>> streams_;
    struct Unit {
        const Block* block;
        u64 free_ps;
    };
    std::vector<Unit> units_;  // Timed: when the engine of a block has taken all that it was given
    std::vector<BulkAgent> agents_;
    std::vector<const u64*> barriers_;
    u64 numbers_ = 0;
};

}  // namespace rdmakit::emu
