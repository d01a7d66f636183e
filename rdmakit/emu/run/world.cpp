// world.cpp — see world.hpp.
#include "world.hpp"

#include <cstring>

#include "fault.hpp"

namespace rdmakit::emu {
namespace {
// After a hang every parked fibre is told once that its time is up; who then parks again is told again, so many times.
constexpr int kTimeoutRounds = 4;
// Identities of agents of the memory model; those of fibres are below.
constexpr u64 kHostAgent = 1ull << 62, kNicAgent = 1ull << 63;
}  // namespace

World::World(const WorldConfig& config)
    : config_(config), launcher_(config.policy, config.seed, config.gpus, config.resident_warps), chance_(config.seed) {
    launcher_.world = this;
    launcher_.mmio64 = [](void* world, void* reg, u64 value) {
        Hca* const hca = static_cast<World*>(world)->owner_of(reg);
        if (hca != nullptr) hca->mmio_write64(reg, value);
        return hca != nullptr;
    };
    launcher_.scheduler().world = this;
    launcher_.scheduler().going_nowhere = [](void* world) { return static_cast<World*>(world)->going_nowhere(); };
    launcher_.mmio32 = [](void* world, void* reg, u32 value) {
        if (Hca* hca = static_cast<World*>(world)->owner_of(reg)) hca->mmio_write32(reg, value);
        else *static_cast<u32*>(reg) = value;
    };
}

// Timed, no launch left: an HCA whose peer posts no receive tries again for ever (rnr_retry 7), in its own events.
bool World::going_nowhere() {
    if (now_ps() >= wake_ps_) look_at_the_clock();  // kernels that only compute do not come by `at`
    if (!timed() || !launcher_.idle()) return false;
    u64 done = 0;
    for (auto& hca : hcas_) {
        const HcaCounters c = hca->counters();
        done += c.wqes + c.cqes + c.errors + c.flushed;
    }
    const bool same = done == done_;
    done_ = done;
    return same;
}

World::~World() {
    launcher_.abandon();  // fibres may stand inside calls that know the HCAs
}

Hca* World::add_hca(const HcaConfig& config) {
    hcas_.push_back(std::make_unique<Hca>(*this, fabric_, config));
    work_.push_back(std::make_unique<HcaWork>());
    work_.back()->hca = hcas_.back().get();
    work_.back()->world = this;
    return hcas_.back().get();
}

u32 World::index_of(const Hca& hca) const {
    u32 i = 0;
    while (hcas_[i].get() != &hca) ++i;
    return i;
}
// Asked for every doorbell: no look at each HCA of a large cluster.
Hca* World::owner_of(const void* address) {
    Hca*& last = owners_[reinterpret_cast<std::uintptr_t>(address) / kPage % kOwners];
    if (last != nullptr && last->owns(address)) return last;
    for (auto& hca : hcas_) {
        if (hca->owns(address)) return last = hca.get();
    }
    return nullptr;
}
void World::ready(Hca& hca) { launcher_.scheduler().add_work(*work_[index_of(hca)]); }
void World::async_event(Hca& hca, AsyncEvent event) { events_.push_back({index_of(hca), event}); }

u32 World::add_agent(Hca& hca, u32 qpn, bool requester) {
    const u32 agent = weak() != nullptr ? weak()->add_agent(kNowhere, kNowhere, kNicAgent + (u64{index_of(hca)} << 32) + 2 * qpn + requester) : 0;
    agents_.push_back({agent, index_of(hca), qpn, requester});
    return agent;
}
ClockRef World::published() {
    const Fibre* current = launcher_.scheduler().current();
    return weak() != nullptr && current != nullptr ? weak()->published(current->agent) : 0;
}

std::vector<DeviceError> World::take_errors() {
    std::vector<DeviceError> errors = launcher_.errors();
    launcher_.clear_errors();
    return errors;
}
std::vector<NamedEvent> World::take_events() {
    std::vector<NamedEvent> events;
    std::swap(events, events_);
    return events;
}
std::vector<LaunchTime> World::take_launch_times() {
    std::vector<LaunchTime> times;
    std::swap(times, launcher_.times());
    return times;
}

// HCAs with QPs that wait (for a receive WQE, for a peer) are silent: give each one turn before calling it a hang.
bool World::nudge_hcas() {
    if (timed()) return false;
    bool any = false;
    for (auto& hca : hcas_) {
        if (hca->waiting() != 0 && hca->work(64) != 0) any = true;
    }
    return any;
}

std::string World::launch(const LaunchSpec& spec) {
    if (launcher_.dead(spec.gpu)) return "that rank has died; World.revive brings it back";
    if (!keep_) return launcher_.launch(spec);
    const std::string wrong = launcher_.refusal(spec);
    if (!wrong.empty()) return wrong;
    const auto* bytes = static_cast<const u8*>(spec.arguments);
    kept_.push_back({spec, std::vector<u8>(bytes, bytes + spec.argument_bytes), {}});
    Kept& kept = kept_.back();
    for (u32 i = 0; i < spec.kernel->argument_count; ++i) kept.pointers.push_back(kept.arguments.data() + spec.offsets[i]);
    return "";
}

RunOutcome World::run() {
    const RunOutcome outcome = run_once();
    launcher_.scheduler().end_run(false);
    agents_.clear();
    launcher_.forget_agents();
    return outcome;
}

void World::undo_run() {
    launcher_.abandon();
    launcher_.scheduler().end_run(true);
    agents_.clear();
    launcher_.forget_agents();
    launcher_.clear_errors();
    launcher_.times().clear();
    events_.clear();
    mishap_due_ = false;
    for (u32 rank = 0; rank < config_.gpus; ++rank) {
        if (launcher_.dead(rank)) launcher_.revive(rank);
    }
    set_faults(faults_);
}

// What comes of it stays as it is until undo_run: the explorer looks at it first.
RunOutcome World::run_kept() {
    for (Kept& kept : kept_) {
        LaunchSpec spec = kept.spec;
        spec.which = static_cast<u32>(&kept - kept_.data());
        spec.pointers = kept.pointers.data();  // the same addresses each time: they tell states apart, too
        launcher_.launch(spec);
    }
    if (!actions_.all.empty()) {
        actions_.plan();
        launcher_.scheduler().add_work(actions_);
    }
    return run_once();
}

// ---- what the host does in the middle of a schedule
void World::add_action(void (*act)(void*), void* argument, u32 within) {
    actions_.all.push_back({act, argument, within});
    actions_.counts_messages |= within > 1;
    actions_.world = this;
    set_faults(faults_);
}
void World::Actions::plan() {
    agent = world->weak()->add_agent(kNowhere, kNowhere, kHostAgent);
    left.clear();
    for (u32 i = 0; i < all.size(); ++i) {
        const u32 messages = world->exploration()->choices.choose(ChoiceKind::other, all[i].within);
        if (all[i].within > 1) world->weak()->note(agent, "the host bides its time", i, messages);
        left.push_back({i, messages});
    }
}
void World::Actions::take(u32 index) {
    const u32 at = offered[index], which = left[at].which;
    left.erase(left.begin() + at);
    world->weak()->note(agent, "the host acts", which);
    all[which].act(all[which].argument);
}

bool World::outside_goes_on() {
    const u64 before = progress_then_;
    progress_then_ = launcher_.scheduler().progress();
    return outside_(outside_argument_, progress_then_ != before);
}

RunOutcome World::run_once() {
    FaultGuard guard;
    waiting_.clear();
    bool hung = false;
    progress_then_ = 0;
    for (int round = 0;;) {
        launcher_.scheduler().run();
        if (launcher_.scheduler().interrupted()) {
            launcher_.abandon();
            return RunOutcome::interrupted;
        }
        if (exploration() != nullptr && exploration()->pruned) break;
        if (nudge_hcas() || fire_timers(kNever)) continue;
        if (launcher_.idle()) break;
        if (outside_ != nullptr && !hung && outside_goes_on()) continue;
        if (launcher_.scheduler().expire_first()) continue;
        if (!hung) list_waiting();
        hung = true;
        launcher_.scheduler().others_may_write = nullptr;  // the outside has been given up
        if (keep_) break;  // one schedule of many: nobody need be told that its time is up
        if (++round > kTimeoutRounds || launcher_.scheduler().parked().empty()) {
            launcher_.abandon();
            break;
        }
        launcher_.scheduler().time_out_parked();
    }
    if (!launcher_.errors().empty()) return RunOutcome::failed;
    return hung ? RunOutcome::hung : RunOutcome::done;
}

void World::list_waiting() {
    launcher_.each_fibre([this](const Fibre& f, const Launch& launch, const Block& block) {
        Waiting w{};
        w.fibre = f.number;
        w.kernel = launch.spec.kernel->name;
        w.gpu = launch.spec.gpu;
        w.block = block.index;
        w.thread = f.thread_index.x + f.block_size.x * (f.thread_index.y + f.block_size.y * f.thread_index.z);
        w.state = launcher_.dead(launch.spec.gpu) ? "dead" : f.state == FibreState::parked ? "waits" : f.state == FibreState::at_barrier ? "at a barrier" : "at a collective";
        w.what = f.note.what;
        w.file = f.note.site.file;
        w.line = f.note.site.line;
        w.expected = f.note.expected;
        w.qpn = f.note.qpn;
        w.peer = f.note.peer;
        w.channel = f.note.channel;
        if (f.state == FibreState::parked && f.watcher_count > 0) {
            w.address = reinterpret_cast<std::uintptr_t>(f.watchers[0].address);
            w.bytes = f.watchers[0].bytes;
            std::memcpy(&w.seen, f.watchers[0].address, smaller<u64>(f.watchers[0].bytes, sizeof w.seen));
        }
        waiting_.push_back(std::move(w));
    });
}

}  // namespace rdmakit::emu
