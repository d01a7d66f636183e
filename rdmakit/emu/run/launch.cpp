// launch.cpp — see launch.hpp.
#include "launch.hpp"

#include <algorithm>
#include <cstring>

#include "rdmakit/cpu_dma.cuh"

namespace rdmakit::emu {
namespace {

constexpr u64 kMaxThreads = 1024;
constexpr u64 kManyThreads = 512;       // Explore: in larger launches the lanes of a warp are one observer of memory
constexpr u64 kMaxShared = 227 * 1024;  // what a block may have on Hopper

Launcher& launcher_of(cpu::Thread* t);
Fibre& fibre_of(cpu::Thread* t) { return *static_cast<Fibre*>(t); }

}  // namespace

Launcher::Launcher(Policy policy, u64 seed, u32 gpus, u32 resident_warps)
    : scheduler_(policy, seed, *this), bulk_(scheduler_, *this), gpus_(gpus), resident_limit_(resident_warps) {}

Launcher::~Launcher() { abandon(); }

// ---- launching -------------------------------------------------------------------------------------------------
std::string Launcher::refusal(const LaunchSpec& spec) const {
    const cpu::KernelEntry& k = *spec.kernel;
    if (k.layout_version != RDMAKIT_LAYOUT_VERSION) return "the kernel was compiled against another layout version";
    if (k.policy != static_cast<u32>(scheduler_.policy())) return "the kernel was compiled for another policy";
    if (spec.gpu >= gpus_.size()) return "no such GPU";
    if (spec.block.volume() == 0 || spec.grid.volume() == 0) return "an empty grid or block";
    if (spec.block.volume() > kMaxThreads) return "more than 1024 threads in a block";
    if (spec.shared_bytes > kMaxShared) return "more than 227 KiB of dynamic shared memory";
    if (k.lanes == 1 && spec.block.volume() % kWarpThreads != 0) return "a kernel run by warps needs whole warps of 32 threads";
    if ((spec.block.volume() + kWarpThreads - 1) / kWarpThreads > resident_limit_) return "one block alone exceeds the GPU's resident warps";
    return "";
}

std::string Launcher::launch(const LaunchSpec& spec) {
    const std::string wrong = refusal(spec);
    if (!wrong.empty()) return wrong;
    const cpu::KernelEntry& k = *spec.kernel;

    auto launch = std::make_unique<Launch>();
    launch->number = numbers_++;
    launch->spec = spec;
    const auto* bytes = static_cast<const u8*>(spec.arguments);
    if (spec.pointers == nullptr) {
        launch->argument_memory.assign(bytes, bytes + spec.argument_bytes);
        for (u32 i = 0; i < k.argument_count; ++i) {
            launch->argument_pointers.push_back(launch->argument_memory.data() + spec.offsets[i]);
        }
        launch->spec.pointers = launch->argument_pointers.data();
    }
    Gpu& gpu = gpus_[spec.gpu];
    gpu.streams[spec.stream].push_back(launch.get());
    launches_.push_back(std::move(launch));
    ++live_launches_;
    start_blocks(spec.gpu);
    return "";
}

u64 Launcher::warps_of(const Launch& launch) const {
    return (launch.spec.block.volume() + kWarpThreads - 1) / kWarpThreads;
}

// The head of each stream runs; its blocks start in order while the GPU has room for them.
void Launcher::start_blocks(u32 index) {
    Gpu& gpu = gpus_[index];
    for (auto& [number, stream] : gpu.streams) {
        if (stream.empty()) continue;
        Launch& launch = *stream.front();
        if (launch.next_block == 0 && launch.live_blocks == 0) {
            launch.begin_ps = scheduler_.now_ps();
            gpu.running.push_back(&launch);
        }
        while (!launch.failed && launch.next_block < launch.spec.grid.volume() &&
               gpu.resident_warps + warps_of(launch) <= resident_limit_) {
            if (!start_block(launch)) {
                launch.failed = true;
                errors_.push_back({launch.spec.kernel->name, "out of memory for stacks", index, 0, {}});
            }
        }
    }
}

bool Launcher::start_block(Launch& launch) {
    const LaunchSpec& spec = launch.spec;
    const u64 id = launch.next_block;
    auto* block = new Block;
    block->launch = &launch;
    block->index = Dim{static_cast<u32>(id % spec.grid.x), static_cast<u32>(id / spec.grid.x % spec.grid.y),
                       static_cast<u32>(id / spec.grid.x / spec.grid.y)};
    block->warps.resize(warps_of(launch));
    if (spec.shared_bytes != 0) {
        block->dynamic_memory = std::make_unique<u8[]>(spec.shared_bytes + 128);
        forget(block->dynamic_memory.get(), spec.shared_bytes + 128);
        if (scheduler_.exploration() != nullptr) {
            const auto at = (reinterpret_cast<std::uintptr_t>(block->dynamic_memory.get()) + 127) & ~std::uintptr_t{127};
            shared_names_.push_back({reinterpret_cast<void*>(at), spec.shared_bytes, "dynamic shared memory", spec.gpu, block->index});
        }
    }
    block->section.assign(spec.section_bytes, 0);
    const u64 threads = spec.block.volume();
    const u64 stride = spec.kernel->lanes == 1 ? kWarpThreads : 1;
    for (u64 t = 0; t < threads; t += stride) {
        Fibre* fibre = scheduler_.create_fibre();
        if (fibre == nullptr) {
            for (Fibre* f : block->fibres) scheduler_.kill(*f);
            delete block;
            return false;
        }
        fibre->block = block;
        fibre->api = api();
        fibre->has_section = spec.section_bytes != 0;
        fibre->thread_index = {static_cast<u32>(t % spec.block.x), static_cast<u32>(t / spec.block.x % spec.block.y),
                               static_cast<u32>(t / spec.block.x / spec.block.y)};
        fibre->block_index = {block->index.x, block->index.y, block->index.z};
        fibre->block_size = {spec.block.x, spec.block.y, spec.block.z};
        fibre->grid_size = {spec.grid.x, spec.grid.y, spec.grid.z};
        fibre->rank = spec.gpu;
        fibre->lane = spec.kernel->lanes == 1 ? 0 : static_cast<u32>(t % kWarpThreads);
        fibre->warp_in_block = static_cast<u32>(t / kWarpThreads);
        fibre->copy_limit = copy_payload_ ? ~0ull : cpu::kControlBytes;
        if (spec.shared_bytes != 0) {
            const auto raw = reinterpret_cast<std::uintptr_t>(block->dynamic_memory.get());
            fibre->dynamic_shared = reinterpret_cast<u8*>((raw + 127) & ~std::uintptr_t{127});
        }
        fibre->dynamic_shared_bytes = spec.shared_bytes;
        block->fibres.push_back(fibre);
        introduce(*fibre, *block, spec.gpu, threads * spec.grid.volume() > kManyThreads);
    }
    ++blocks_made_;
    block->live_fibres = static_cast<u32>(block->fibres.size());
    if (threads % kWarpThreads != 0) block->warps.back().exited = ~0u << (threads % kWarpThreads);
    ++launch.next_block;
    ++launch.live_blocks;
    gpus_[spec.gpu].resident_warps += warps_of(launch);
    launch.blocks.push_back(block);
    for (Fibre* fibre : block->fibres) scheduler_.make_ready(*fibre);
    return true;
}

// Explore: who this fibre is to the memory model, and what it knows at the start.
void Launcher::introduce(Fibre& fibre, const Block& block, u32 gpu, bool many) {
    Exploration* exploration = scheduler_.exploration();
    if (exploration == nullptr) return;
    const Fibre* before = block.fibres.size() > 1 ? block.fibres[block.fibres.size() - 2] : nullptr;
    if (many && fibre.lane != 0 && before != nullptr) {
        fibre.agent = before->agent;
        return;
    }
    const cpu::Dim3& t = fibre.thread_index;
    const u32 thread = t.x + fibre.block_size.x * (t.y + fibre.block_size.y * t.z);
    const Dim& grid = block.launch->spec.grid;
    const u64 number = block.index.x + u64{grid.x} * (block.index.y + u64{grid.y} * block.index.z);
    const u64 identity = u64{block.launch->spec.which} << 48 ^ number << 10 ^ thread;
    fibre.agent = exploration->memory.add_agent(static_cast<u32>(blocks_made_), gpu, identity, gpus_[gpu].ended);
    introduced_.push_back({fibre.agent, gpu, thread, block.index,
                           block.launch->spec.kernel->name});
}
void Launcher::met(const std::vector<Fibre*>& fibres) {
    Exploration* exploration = scheduler_.exploration();
    if (exploration == nullptr) return;
    std::vector<u32> agents;
    for (const Fibre* f : fibres) agents.push_back(f->agent);
    exploration->memory.meet(agents.data(), static_cast<u32>(agents.size()));
}

void Launcher::run_fibre(Fibre& fibre) {
    swap_section(*fibre.block);
    Launch& launch = *fibre.block->launch;
    launch.spec.kernel->call(launch.spec.pointers);
}

void Launcher::fibre_finished(Fibre& fibre) {
    Block& block = *fibre.block;
    const auto slot = std::find(block.fibres.begin(), block.fibres.end(), &fibre);
    *slot = nullptr;
    block.warps[fibre.warp_in_block].exited |= 1u << fibre.lane;
    const u32 warp = fibre.warp_in_block;
    if (Exploration* exploration = scheduler_.exploration()) {
        ClockRef& ended = gpus_[block.launch->spec.gpu].ended;
        ended = exploration->memory.both(ended, exploration->memory.snapshot(fibre.agent));
    }
    scheduler_.retire(fibre);
    if (--block.live_fibres == 0) {
        const std::string why = bulk_.end_block(block, &gpus_[block.launch->spec.gpu].ended);
        if (why.empty()) {
            end_block(block);
            return;
        }
        errors_.push_back({block.launch->spec.kernel->name, why, block.launch->spec.gpu, 0, block.index});
        abandon();
        return;
    }
    complete_gathers(block, warp);
    if (block.waiting == block.live_fibres) release_barrier(block);  // CUDA: threads that have exited do not count
}

void Launcher::fibre_faulted(Fibre& fibre, const std::string& why) {
    Launch& launch = *fibre.block->launch;
    const u32 thread = fibre.thread_index.x + fibre.block_size.x * (fibre.thread_index.y + fibre.block_size.y * fibre.thread_index.z);
    errors_.push_back({launch.spec.kernel->name, why, launch.spec.gpu, thread, fibre.block->index});
    // As on a GPU, an error ends everything that runs on the device; here, in the whole world.
    abandon();
}

void Launcher::end_block(Block& block) {
    Launch& launch = *block.launch;
    if (section_owner_ == &block) section_owner_ = nullptr;
    launch.blocks.erase(std::find(launch.blocks.begin(), launch.blocks.end(), &block));
    gpus_[launch.spec.gpu].resident_warps -= warps_of(launch);
    --launch.live_blocks;
    drop(&block);
    const u32 gpu = launch.spec.gpu;
    if (launch.live_blocks == 0 && (launch.failed || launch.next_block == launch.spec.grid.volume())) end_launch(launch);
    start_blocks(gpu);
}

void Launcher::end_launch(Launch& launch) {
    launch.end_ps = scheduler_.now_ps();
    times_.push_back({launch.number, launch.begin_ps, launch.end_ps, launch.spec.gpu, launch.spec.kernel->name});
    Gpu& gpu = gpus_[launch.spec.gpu];
    gpu.running.erase(std::find(gpu.running.begin(), gpu.running.end(), &launch));
    auto& stream = gpu.streams[launch.spec.stream];
    stream.erase(stream.begin());
    --live_launches_;
    const auto mine = [&](const std::unique_ptr<Launch>& l) { return l.get() == &launch; };
    launches_.erase(std::find_if(launches_.begin(), launches_.end(), mine));
}

void Launcher::abandon() {
    bulk_.clear();
    for (Gpu& gpu : gpus_) {
        for (Launch* launch : gpu.running) {
            for (Block* block : launch->blocks) {
                for (Fibre* fibre : block->fibres) {
                    if (fibre != nullptr) scheduler_.kill(*fibre);
                }
                drop(block);
            }
        }
        gpu = Gpu{};
    }
    launches_.clear();
    live_launches_ = 0;
    section_owner_ = nullptr;
}

// ---- shared memory ---------------------------------------------------------------------------------------------
void* Launcher::shared(Fibre& fibre, const char* key, u64 bytes, u64 alignment) {
    Block& block = *fibre.block;
    for (std::size_t i = 0; i < block.slots.size(); ++i) {
        if (block.slots[i].key == key) return block.slot_memory[i].get() + block.slots[i].offset;
    }
    auto memory = std::make_unique<u8[]>(bytes + alignment);  // zeroed
    const auto raw = reinterpret_cast<std::uintptr_t>(memory.get());
    block.slots.push_back({key, bytes, (alignment - raw % alignment) % alignment});
    forget(memory.get(), bytes + alignment);
    block.slot_memory.push_back(std::move(memory));
    void* const found = block.slot_memory.back().get() + block.slots.back().offset;
    if (scheduler_.exploration() != nullptr) {
        shared_names_.push_back({found, bytes, key, block.launch->spec.gpu, block.index});
    }
    return found;
}

bool Launcher::in_section(const Block& block, const void* p) const {
    const LaunchSpec& spec = block.launch->spec;
    const auto at = reinterpret_cast<std::uintptr_t>(p), begin = reinterpret_cast<std::uintptr_t>(spec.section_begin);
    return at - begin < spec.section_bytes;
}
bool Launcher::in_shared(const Block& block, const void* p, u64 bytes) const {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    const auto within = [&](const void* memory, u64 size) { return at - reinterpret_cast<std::uintptr_t>(memory) + bytes <= size; };
    for (std::size_t i = 0; i < block.slots.size(); ++i) {
        if (within(block.slot_memory[i].get() + block.slots[i].offset, block.slots[i].bytes)) return true;
    }
    const LaunchSpec& spec = block.launch->spec;
    return (block.dynamic_memory && within(block.dynamic_memory.get(), spec.shared_bytes + 128)) ||
           (spec.section_bytes != 0 && within(spec.section_begin, spec.section_bytes));
}

// Explore: shared memory comes and goes, and what the last block wrote there is not the next one's history.
void Launcher::forget(const void* p, u64 bytes) {
    if (Exploration* exploration = scheduler_.exploration()) exploration->memory.forget(p, bytes);
}
void Launcher::drop(Block* block) {
    for (std::size_t i = 0; i < block->slots.size(); ++i) forget(block->slot_memory[i].get() + block->slots[i].offset, block->slots[i].bytes);
    if (block->dynamic_memory) forget(block->dynamic_memory.get(), block->launch->spec.shared_bytes + 128);
    delete block;
}

// Raw __shared__ variables live in one section of the module, the same addresses for every block, as on a GPU: their
// contents change with the block that runs.
void Launcher::swap_section(Block& block) {
    const LaunchSpec& spec = block.launch->spec;
    if (spec.section_bytes == 0 || section_owner_ == &block) return;
    if (section_owner_ != nullptr) {
        const LaunchSpec& old = section_owner_->launch->spec;
        std::memcpy(section_owner_->section.data(), old.section_begin, old.section_bytes);
    }
    std::memcpy(spec.section_begin, block.section.data(), spec.section_bytes);
    section_owner_ = &block;
}

// ---- barrier ---------------------------------------------------------------------------------------------------
void Launcher::barrier(Fibre& fibre, Site site) {
    Block& block = *fibre.block;
    block.barrier_site = site;
    if (++block.waiting == block.live_fibres) {
        fibre.next_in_group = block.barrier_list;
        block.barrier_list = &fibre;
        fibre.clock_ps = std::max(fibre.clock_ps, release_barrier(block, &fibre));
        scheduler_.yield(fibre);
        return;
    }
    fibre.next_in_group = block.barrier_list;
    block.barrier_list = &fibre;
    fibre.note = cpu::WaitNote{"the other threads of the block at a barrier", block.live_fibres, 0, 0, 0, site};
    scheduler_.block_current(fibre, FibreState::at_barrier);
}

u64 Launcher::release_barrier(Block& block, const Fibre* last) {
    u64 latest = scheduler_.now_ps();
    for (Fibre* f = block.barrier_list; f != nullptr; f = f->next_in_group) latest = std::max(latest, f->clock_ps);
    Fibre* list = block.barrier_list;
    std::vector<Fibre*> all;
    for (Fibre* f = list; f != nullptr; f = f->next_in_group) all.push_back(f);
    met(all);
    block.barrier_list = nullptr;
    block.waiting = 0;
    while (list != nullptr) {
        Fibre* const f = list;
        list = f->next_in_group;
        f->clock_ps = latest;
        if (f != last) scheduler_.make_ready(*f);
    }
    return latest;
}

// ---- warp collectives (a fibre a thread) -------------------------------------------------------------------------
const u64* Launcher::gather(Fibre& fibre, u32 mask, u64 value, Site site) {
    Warp& warp = fibre.block->warps[fibre.warp_in_block];
    const u32 bit = 1u << fibre.lane;
    Gather* group = nullptr;
    Gather* unused = nullptr;
    for (auto& g : warp.gathers) {
        if (g->readers == 0) unused = g.get();
        else if (g->mask == mask && !g->complete && (g->arrived & bit) == 0) group = g.get();
    }
    if (group == nullptr) group = unused;
    if (group == nullptr) {
        warp.gathers.push_back(std::make_unique<Gather>());
        group = warp.gathers.back().get();
    }
    group->mask = mask;
    group->arrived |= bit;
    group->site = site;
    group->values[fibre.lane] = value;
    ++group->readers;
    fibre.gather = group;
    fibre.note = cpu::WaitNote{"the other lanes of the warp at a collective", mask, 0, 0, 0, site};
    const u32 expected = mask & ~warp.exited;
    if ((group->arrived & expected) == expected) {
        complete_gathers(*fibre.block, fibre.warp_in_block);
    } else {
        scheduler_.block_current(fibre, FibreState::in_gather);
    }
    return group->values;
}

void Launcher::complete_gathers(Block& block, u32 index) {
    Warp& warp = block.warps[index];
    for (auto& g : warp.gathers) {
        const u32 expected = g->mask & ~warp.exited;
        if (g->readers == 0 || g->complete || (g->arrived & expected) != expected) continue;
        g->complete = true;
        u64 latest = 0;
        std::vector<Fibre*> all;
        for (Fibre* f : block.fibres) {
            if (f == nullptr || f->gather != g.get()) continue;
            latest = std::max(latest, f->clock_ps);
            all.push_back(f);
        }
        met(all);
        for (Fibre* f : block.fibres) {
            if (f == nullptr || f->gather != g.get()) continue;
            f->clock_ps = latest;
            if (f->state == FibreState::in_gather) scheduler_.make_ready(*f);
        }
    }
}

void Launcher::gathered(Fibre& fibre) {
    auto* group = static_cast<Gather*>(fibre.gather);
    fibre.gather = nullptr;
    if (--group->readers == 0) *group = Gather{};
}

// ---- what device code calls --------------------------------------------------------------------------------------
namespace {
Launcher& launcher_of(cpu::Thread* t) { return *static_cast<Launcher*>(fibre_of(t).scheduler->owner()); }
Scheduler& scheduler_of(cpu::Thread* t) { return *fibre_of(t).scheduler; }

Exploration& exploration_of(cpu::Thread* t) { return *scheduler_of(t).exploration(); }
void back_on(cpu::Thread* t) {
    if (fibre_of(t).has_section) launcher_of(t).swap_section(*fibre_of(t).block);
}
// Raw __shared__ variables have one address for all blocks: no history can be kept of it.
bool in_section(cpu::Thread* t, const void* p) { return launcher_of(t).in_section(*fibre_of(t).block, p); }
// Explore: others may go first, then this access is made.
void before_access(cpu::Thread* t) {
    scheduler_of(t).settle();
    scheduler_of(t).point(fibre_of(t));
    back_on(t);
}

// A doorbell that an HCA made of warps watches lies in plain memory (hca_engine.cuh); one of a device that is not of this
// world is written here as well, between fences that also order write-combining memory.
void store_as_memory(cpu::Thread* t, void* word, u64 value) {
    if (scheduler_of(t).exploration() != nullptr) {
        const cpu::Access relaxed{cpu::Order::relaxed, 2};
        exploration_of(t).store(fibre_of(t).agent, word, &value, sizeof value, relaxed, Site{"atom.cuh", 0});
    } else {
        cpu::ring(word, value);
    }
    scheduler_of(t).written(word, sizeof value);
}

cpu::RunnerApi make_api() {
    cpu::RunnerApi api{};
    api.yield = [](cpu::Thread* t) {
        scheduler_of(t).yield(fibre_of(t));
        back_on(t);
    };
    api.park = [](cpu::Thread* t, const cpu::Watched* list, int count, const cpu::WaitNote& note, u64 timeout_ns) {
        scheduler_of(t).settle();
        const bool in_time = scheduler_of(t).park(fibre_of(t), list, count, note, timeout_ns);
        back_on(t);
        return in_time;
    };
    api.copied = [](cpu::Thread* t, const void* there, u64 bytes, u64 began_ps, bool pull) {
        Nvlink& links = launcher_of(t).nvlink();
        if (!links.modelled()) return;
        t->clock_ps = larger(t->clock_ps, links.across(t->rank, there, bytes, began_ps, pull));
        if (t->clock_ps > t->horizon_ps) {
            scheduler_of(t).yield(fibre_of(t));
            back_on(t);
        }
    };
    api.steps = [](cpu::Thread* t, u64 cost_ps, u32 count) {
        scheduler_of(t).steps(fibre_of(t), cost_ps, count);
        back_on(t);
    };
    api.mark = [](cpu::Thread* t, u32 kind, u32 qpn, u64 index) {
        Trace& trace = launcher_of(t).trace();
        if (!trace.on()) return;
        const Fibre& fibre = fibre_of(t);
        const u64 block = t->block_index.x + u64{t->grid_size.x} * (t->block_index.y + u64{t->grid_size.y} * t->block_index.z);
        const u64 threads = u64{t->block_size.x} * t->block_size.y * t->block_size.z;
        const u64 warp = block * ((threads + kWarpThreads - 1) / kWarpThreads) + fibre.warp_in_block;
        trace.add({t->clock_ps, t->clock_ps, index, 0, kind, t->rank, qpn, static_cast<u32>(warp)});
    };
    api.written = [](cpu::Thread* t, const void* p, u64 bytes) { scheduler_of(t).written(p, bytes); };
    api.mmio64 = [](cpu::Thread* t, void* reg, u64 value) {
        if (scheduler_of(t).exploration() != nullptr) before_access(t);
        Launcher& l = launcher_of(t);
        if (!l.mmio64(l.world, reg, value)) store_as_memory(t, reg, value);
    };
    api.mmio32 = [](cpu::Thread* t, void* reg, u32 value) {
        Launcher& l = launcher_of(t);
        l.mmio32(l.world, reg, value);
    };
    api.barrier = [](cpu::Thread* t, Site site) {
        scheduler_of(t).settle();
        launcher_of(t).barrier(fibre_of(t), site);
        back_on(t);
    };
    api.gather = [](cpu::Thread* t, u32 mask, u64 value, Site site) {
        scheduler_of(t).settle();
        scheduler_of(t).end_if_endless(fibre_of(t));
        scheduler_of(t).meet(fibre_of(t));
        const u64* values = launcher_of(t).gather(fibre_of(t), mask, value, site);
        back_on(t);
        return values;
    };
    api.gathered = [](cpu::Thread* t) { launcher_of(t).gathered(fibre_of(t)); };
    api.trap = [](cpu::Thread* t, const char* why, Site site) {
        scheduler_of(t).fail_current(fibre_of(t), std::string(why) + " (" + site.file + ":" + std::to_string(site.line) + ")");
    };
    api.shared = [](cpu::Thread* t, const char* key, u64 bytes, u64 alignment) {
        return launcher_of(t).shared(fibre_of(t), key, bytes, alignment);
    };
    api.preempt = [](cpu::Thread* t, const void* pc) {
        scheduler_of(t).settle();
        scheduler_of(t).preempt(fibre_of(t), pc);
        back_on(t);
    };
    api.load = [](cpu::Thread* t, const void* p, void* out, u32 bytes, cpu::Access how, Site site) {
        if (how.order == cpu::Order::plain) scheduler_of(t).settle();
        else before_access(t);
        if (in_section(t, p)) std::memcpy(out, p, bytes);
        else exploration_of(t).load(fibre_of(t).agent, p, out, bytes, how, site);
    };
    api.store = [](cpu::Thread* t, void* p, const void* value, u32 bytes, cpu::Access how, Site site) {
        if (how.order == cpu::Order::plain) scheduler_of(t).settle();
        else before_access(t);
        if (in_section(t, p)) std::memcpy(p, value, bytes);
        else exploration_of(t).store(fibre_of(t).agent, p, value, bytes, how, site);
        scheduler_of(t).written(p, bytes);
    };
    api.update_begin = [](cpu::Thread* t, void* p, void* old, u32 bytes, cpu::Access how, Site site) {
        before_access(t);
        if (in_section(t, p)) std::memcpy(old, p, bytes);
        else exploration_of(t).update_begin(fibre_of(t).agent, p, old, bytes, how, site);
    };
    api.update_end = [](cpu::Thread* t, void* p, const void* fresh, u32 bytes) {
        if (in_section(t, p)) std::memcpy(p, fresh, bytes);
        else exploration_of(t).update_end(fibre_of(t).agent, p, fresh, bytes);
        scheduler_of(t).written(p, bytes);
    };
    api.fence = [](cpu::Thread* t, cpu::Access how, Site site) {
        scheduler_of(t).settle();
        exploration_of(t).fence(fibre_of(t).agent, how, site);
    };
    api.bulk_copy = [](cpu::Thread* t, const cpu::BulkCopy& copy, Site site) {
        scheduler_of(t).settle();
        launcher_of(t).bulk().issue(fibre_of(t), copy, site);
        back_on(t);
    };
    api.bulk_commit = [](cpu::Thread* t) { launcher_of(t).bulk().commit(fibre_of(t)); };
    api.bulk_wait = [](cpu::Thread* t, u32 pending, bool read, Site site) {
        scheduler_of(t).settle();
        Exploration* const exploration = scheduler_of(t).exploration();
        if (exploration != nullptr && exploration->removed(site, Primitive::bulk)) return;
        launcher_of(t).bulk().wait(fibre_of(t), pending, read, site);
        back_on(t);
    };
    api.proxy_fence = [](cpu::Thread* t, Site site) {
        scheduler_of(t).settle();
        if (exploration_of(t).removed(site, Primitive::bulk)) return;
        exploration_of(t).memory.proxy_fence(fibre_of(t).agent, where_site(site));
    };
    api.removed = [](cpu::Thread* t, Site site) { return exploration_of(t).removed(site); };
    api.raw = [](cpu::Thread* t, void* p, u32 bytes, u32 kind, const void* pc) {
        if (in_section(t, p)) {
            scheduler_of(t).settle();
            return;
        }
        scheduler_of(t).raw(fibre_of(t), p, bytes, kind, pc);
        back_on(t);
    };
    return api;
}
const cpu::RunnerApi kApi = make_api();
}  // namespace

const cpu::RunnerApi* Launcher::api() { return &kApi; }

}  // namespace rdmakit::emu
