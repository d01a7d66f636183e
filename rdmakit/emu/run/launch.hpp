// launch.hpp — kernel launches on emulated GPUs: streams, grids, blocks, shared memory, barriers, warp collectives.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bulk.hpp"
#include "nvlink.hpp"
#include "trace.hpp"
#include "scheduler.hpp"

namespace rdmakit::emu {

struct Dim {
    u32 x = 1, y = 1, z = 1;
    u64 volume() const { return static_cast<u64>(x) * y * z; }
};

struct LaunchSpec {
    const cpu::KernelEntry* kernel = nullptr;
    Dim grid, block;
    u32 shared_bytes = 0;
    u32 gpu = 0, stream = 0;
    u32 which = 0;  // of those that are kept, and run again and again
    void* section_begin = nullptr;  // where a user's raw __shared__ variables live in the module; null: nowhere
    u64 section_bytes = 0;
    const void* arguments = nullptr;  // packed values, each at its offset
    void** pointers = nullptr;        // to each of them, if they stay where they are; else kernels read a copy
    const u32* offsets = nullptr;
    u64 argument_bytes = 0;
};

struct Launch {
    u64 number = 0;
    LaunchSpec spec;
    std::vector<u8> argument_memory;
    std::vector<void*> argument_pointers;
    u64 next_block = 0, live_blocks = 0;
    u64 begin_ps = 0, end_ps = 0;
    std::vector<Block*> blocks;  // those that live now
    bool failed = false;
};

// Lanes that have met at one collective. Lanes of a warp may meet in disjoint groups at the same time. Used again once
// nobody reads it: few addresses, so that a loop around a collective shows few stack images (endless.hpp).
struct Gather {
    u32 mask = 0, arrived = 0;
    bool complete = false;
    u32 readers = 0;
    Site site{"", 0};
    u64 values[32] = {};
};
struct Warp {
    u32 exited = 0;  // lanes that have ended, or never were
    std::vector<std::unique_ptr<Gather>> gathers;
};

struct SharedSlot {
    const char* key;  // its name, by its address
    u64 bytes, offset;
};

struct Block {
    Launch* launch;
    Dim index;
    u32 live_fibres = 0, waiting = 0;
    Fibre* barrier_list = nullptr;
    Site barrier_site{"", 0};
    std::vector<Fibre*> fibres;
    std::vector<Warp> warps;
    std::vector<SharedSlot> slots;
    std::vector<std::unique_ptr<u8[]>> slot_memory;
    std::unique_ptr<u8[]> dynamic_memory;
    std::vector<u8> section;  // contents of the module's raw __shared__ variables while another block runs
};

// What went wrong in device code: a fault or a trap, by whom.
// A stream of device instructions, as the memory model knows it.
struct FibreAgent {
    u32 agent, gpu, thread;
    Dim block;
    const char* kernel;
};
// A variable in shared memory, as long as it has been there.
struct SharedName {
    const void* address;
    u64 bytes;
    const char* name;
    u32 gpu;
    Dim block;
};
struct DeviceError {
    std::string kernel, why;
    u32 gpu = 0, thread = 0;
    Dim block;
};
struct LaunchTime {
    u64 number, begin_ps, end_ps;
    u32 gpu;
    std::string kernel;
};

class Launcher : public FibreOwner {
  public:
    Launcher(Policy policy, u64 seed, u32 gpus, u32 resident_warps);
    ~Launcher() override;

    Scheduler& scheduler() { return scheduler_; }
    // Empty string, or what is wrong with a launch.
    std::string refusal(const LaunchSpec& spec) const;
    // Queues a launch behind those of its stream; the same answer.
    std::string launch(const LaunchSpec& spec);
    bool idle() const { return live_launches_ == 0; }
    void copy_payload(bool on) { copy_payload_ = on; }
    bool copy_payload() const { return copy_payload_; }
    // Ends every launch at once, finished or not.
    void abandon();
    const std::vector<DeviceError>& errors() const { return errors_; }
    void clear_errors() { errors_.clear(); }
    const std::vector<FibreAgent>& introduced() const { return introduced_; }
    const std::vector<SharedName>& shared_names() const { return shared_names_; }
    BulkEngine& bulk() { return bulk_; }
    Nvlink& nvlink() { return nvlink_; }
    Trace& trace() { return trace_; }
    bool in_shared(const Block& block, const void* p, u64 bytes) const;
    bool in_section(const Block& block, const void* p) const;
    void forget_agents() {
        introduced_.clear();
        shared_names_.clear();
        bulk_.forget_agents();
        for (Gpu& gpu : gpus_) gpu.ended = 0;
    }
    std::vector<LaunchTime>& times() { return times_; }
    // Calls visit(fibre, launch, block) for every fibre that has not ended.
    template <class Visit> void each_fibre(Visit visit) const {
        for (const Gpu& gpu : gpus_) {
            for (const Launch* launch : gpu.running) {
                for (const Block* block : launch->blocks) {
                    for (const Fibre* fibre : block->fibres) {
                        if (fibre != nullptr) visit(*fibre, *launch, *block);
                    }
                }
            }
        }
    }

    void run_fibre(Fibre& fibre) override;
    void fibre_finished(Fibre& fibre) override;
    void fibre_faulted(Fibre& fibre, const std::string& why) override;

    // ---- primitives (cpu::RunnerApi)
    void barrier(Fibre& fibre, Site site);
    const u64* gather(Fibre& fibre, u32 mask, u64 value, Site site);
    void gathered(Fibre& fibre);
    void* shared(Fibre& fibre, const char* key, u64 bytes, u64 alignment);

    static const cpu::RunnerApi* api();
    // The doorbell: set by the world, which knows the HCAs.
    bool (*mmio64)(void* world, void* reg, u64 value) = nullptr;  // false: no register of any HCA
    void (*mmio32)(void* world, void* reg, u32 value) = nullptr;
    void* world = nullptr;

  private:
    struct Gpu {
        std::map<u32, std::vector<Launch*>> streams;  // by number, which may be anything; those that were ever used
        std::vector<Launch*> running;
        u64 resident_warps = 0;
        ClockRef ended = 0;  // Explore: what those knew that have ended here: kernels of a stream follow each other
    };
    void start_blocks(u32 gpu);
    bool start_block(Launch& launch);
    // Returns the time at which the last one came; `last` runs on by itself.
    u64 release_barrier(Block& block, const Fibre* last = nullptr);
    void introduce(Fibre& fibre, const Block& block, u32 gpu, bool many);
    void met(const std::vector<Fibre*>& fibres);
    void forget(const void* p, u64 bytes);
    void drop(Block* block);
    void complete_gathers(Block& block, u32 warp);
    void end_block(Block& block);
    void end_launch(Launch& launch);
    u64 warps_of(const Launch& launch) const;

    Scheduler scheduler_;
    BulkEngine bulk_;
    Nvlink nvlink_;
    Trace trace_;
    std::vector<SharedName> shared_names_;
    std::vector<Gpu> gpus_;
    std::vector<std::unique_ptr<Launch>> launches_;
    u64 resident_limit_, numbers_ = 0, live_launches_ = 0, blocks_made_ = 0;
    bool copy_payload_ = true;
    std::vector<FibreAgent> introduced_;
    std::vector<DeviceError> errors_;
    std::vector<LaunchTime> times_;
    Block* section_owner_ = nullptr;

  public:
    void swap_section(Block& block);  // before a fibre of the block runs on
};

}  // namespace rdmakit::emu
