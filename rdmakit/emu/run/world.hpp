// world.hpp — hosts' GPUs, their HCAs and the fabric between them, under one clock and one seed. What Python binds.
#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "../hca/fabric.hpp"
#include "../hca/flight.hpp"
#include "../hca/hca.hpp"
#include "mishaps.hpp"
#include "mortals.hpp"

namespace rdmakit::emu {

struct WorldConfig {
    Policy policy = Policy::fast;
    u64 seed = 0;
    u32 gpus = 1;
    u32 resident_warps = 132 * 64;  // H100: 132 SMs of 64 warps
    bool data_in_order = false;     // readers see the bytes of one WRITE in their order
};

// One stream of instructions that waits, as a report names it.
struct Waiting {
    u64 fibre;
    std::string kernel, what, state, file;
    u32 gpu, thread, qpn, peer, channel;
    Dim block;
    int line;
    u64 expected, seen, address;
    u32 bytes;
};
// One side of a queue pair, as the memory model knows it.
struct HcaAgent {
    u32 agent, hca, qpn;
    bool requester;
};
struct NamedEvent {
    u32 hca;
    AsyncEvent event;
};
enum class RunOutcome : u32 { done = 0, hung = 1, failed = 2, interrupted = 3 };

class World final : public Environment {
  public:
    explicit World(const WorldConfig& config);
    ~World() override;

    Hca* add_hca(const HcaConfig& config);
    u32 hca_count() const { return static_cast<u32>(hcas_.size()); }
    Hca* hca(u32 index) { return hcas_[index].get(); }
    // Timed: the switches, NVLink, and what device code costs; before anything runs.
    void set_network(const NetworkConfig& config) { fabric_.set_network(config); }
    std::vector<LinkUse> links() const { return fabric_.network() ? fabric_.network()->links() : std::vector<LinkUse>(); }
    Nvlink& nvlink() { return launcher_.nvlink(); }
    u64* costs() { return launcher_.scheduler().costs(); }
    std::string launch(const LaunchSpec& spec);
    // What is to go wrong from now on; replaces what was to. Ranks that have died stay dead until revived.
    void set_faults(const WorldFaults& faults);
    void revive(u32 rank) { launcher_.revive(rank); }
    std::vector<u32> dead_ranks() const;
    u64 died_ps(u32 rank) const { return launcher_.died_ps(rank); }
    const FaultCounters& fault_counters() const { return chance_.counters(); }
    u64 mishaps_happened(MishapKind kind) const {
        return kind == MishapKind::rank_dies ? launcher_.deaths() : mishaps_happened_[static_cast<u32>(kind)];
    }
    u64 messages() const { return messages_; }  // that have left since faults were set
    // Runs until all launches have ended and all HCAs are idle. `hung`: waiting() says who waits for what; those who
    // can report have reported, and the launches have been ended.
    // `interrupted`: stop() has said so; all launches have been ended.
    RunOutcome run();
    // ---- for exploration (explore/explorer.hpp): launches are kept, and run again and again
    void keep_launches(bool on) { keep_ = on; }
    RunOutcome run_kept();
    void undo_run();  // memory, fibres and what was noted of the run: as before it
    Exploration* exploration() { return launcher_.scheduler().exploration(); }
    bool interrupted() { return launcher_.scheduler().interrupted(); }
    // Of the host's, once a run, at a moment that is chosen: from one of the first `within` messages on.
    void add_action(void (*act)(void*), void* argument, u32 within);
    const std::vector<HcaAgent>& hca_agents() const { return agents_; }
    const std::vector<FibreAgent>& fibre_agents() const { return launcher_.introduced(); }
    const std::vector<BulkAgent>& bulk_agents() { return launcher_.bulk().agents(); }
    const std::vector<const u64*>& mbarriers() { return launcher_.bulk().barriers(); }
    const std::vector<SharedName>& shared_names() const { return launcher_.shared_names(); }

    void ask_to_stop(bool (*stop)(void*), void* argument) {
        launcher_.scheduler().interrupt = stop;
        launcher_.scheduler().interrupt_argument = argument;
    }
    // Who writes into memory that kernels wait for without being of this world: real devices. Asked when nothing can go on
    // here; `moved`: something has since it was asked last. False: nothing will come any more.
    void ask_outside(bool (*outside)(void*, bool moved), void* argument) {
        outside_ = outside, outside_argument_ = argument;
        launcher_.scheduler().others_may_write = nullptr;
        if (outside != nullptr) launcher_.scheduler().others_may_write = [](void* world) { return static_cast<World*>(world)->outside_goes_on(); };
    }
    const std::vector<Waiting>& waiting() const { return waiting_; }
    std::vector<DeviceError> take_errors();
    std::vector<NamedEvent> take_events();
    std::vector<LaunchTime> take_launch_times();
    void set_copy_payload(bool on) { launcher_.copy_payload(on); }
    u64 now_ns() { return now_ps() / 1000; }
    const SchedulerCounters& counters() { return launcher_.scheduler().counters(); }
    Policy policy() const { return config_.policy; }

    // ---- Environment
    u64 now_ps() override { return launcher_.scheduler().now_ps(); }
    bool timed() override { return config_.policy == Policy::timed; }
    void at(u64 when_ps, void (*fn)(void*, u64), void* object, u64 arg) override {
        if (now_ps() >= wake_ps_) look_at_the_clock();
        launcher_.scheduler().at(when_ps, fn, object, arg);
    }
    void timer(u64 when_ps, void (*fn)(void*, u64), void* object, u64 arg, bool (*wanted)(void*, u64)) override;
    void memory_written(const void* address, std::size_t bytes) override { launcher_.scheduler().written(address, bytes); }
    u64 random(u64 bound) override { return launcher_.scheduler().random(bound); }
    void ready(Hca& hca) override;
    bool copy_payload() override { return launcher_.copy_payload(); }
    void async_event(Hca& hca, AsyncEvent event) override;
    bool stepwise() override { return config_.policy == Policy::explore; }
    WeakMemory* weak() override {
        Exploration* exploration = launcher_.scheduler().exploration();
        return exploration != nullptr ? &exploration->memory : nullptr;
    }
    bool data_in_order() override { return config_.data_in_order; }
    u64 run_number() override {
        const Exploration* exploration = launcher_.scheduler().exploration();
        return exploration != nullptr ? exploration->run : 1;
    }
    u32 add_agent(Hca& hca, u32 qpn, bool requester) override;
    ClockRef published() override;
    bool fault(FaultKind kind, u32) override {
        if (exploration() == nullptr) return chance_.strikes(kind);
        return chance_.happens(kind, exploration()->choices.fault(chance_.probability(kind)));
    }
    u64 fault_delay_ps(FaultKind kind) override { return chance_.delay_ps(kind); }
    u64 port_skew_ps(u32 port) override { return port > 1 ? chance_.plan().port_skew_ps : 0; }
    void mark(Hca& hca, Mark kind, u32 qpn, u32 port, u64 index, u64 bytes, u64 when_ps, u64 until_ps) override {
        launcher_.trace().add({when_ps, until_ps, index, bytes, static_cast<u32>(kind), index_of(hca), qpn, port});
    }
    // Timed: keep marks of all that happens from now on, at most so many.
    void start_trace(u64 most) { launcher_.trace().start(most), tracing = true; }
    void stop_trace() { launcher_.trace().stop(), tracing = false; }
    const Trace& trace() { return launcher_.trace(); }
    void message_left(Hca&, u32) override {
        if (++messages_ >= next_mishap_message_) mishap_is_due();
    }

  private:
    struct HcaWork final : WorkSource {
        World* world = nullptr;
        Hca* hca = nullptr;
        std::vector<HcaStep> next;
        void steps(std::vector<u32>& agents) override {
            next.clear();
            hca->next_steps(next);
            for (const HcaStep& step : next) agents.push_back(hca->agent_of(step));
        }
        void take(u32 index) override {
            hca->take(next[index]);
            if (world->mishap_due_) world->befall();
        }
        void work(u32 budget) override {
            hca->work(budget);
            if (world->mishap_due_) world->befall();
        }
    };
    RunOutcome run_once();
    static constexpr u64 kNever = ~0ull;
    // A time-out of an HCA. They lie here and not with the scheduler, lest a run go on until the last that nobody needs.
    struct Timer {
        u64 when_ps, order;
        void (*fn)(void*, u64);
        void* object;
        u64 arg;
        bool (*wanted)(void*, u64);
        static bool later(const Timer& a, const Timer& b) {
            return a.when_ps != b.when_ps ? a.when_ps > b.when_ps : a.order > b.order;
        }
    };
    void look_at_the_clock();
    bool fire_timers(u64 until_ps);
    void set_alarm();
    void mishap_is_due();
    void befall();
    void befall(const Mishap& mishap);
    void plan_next_mishap();
    bool nudge_hcas();
    bool going_nowhere();
    bool outside_goes_on();
    void list_waiting();
    u32 index_of(const Hca& hca) const;
    Hca* owner_of(const void* address);
    static constexpr u64 kPage = 4096, kOwners = 1024;

    WorldConfig config_;
    Fabric fabric_;
    MortalLauncher launcher_;
    std::vector<std::unique_ptr<Hca>> hcas_;
    std::vector<std::unique_ptr<HcaWork>> work_;
    std::array<Hca*, kOwners> owners_{};  // by page: who was found to own such a register last
    std::vector<Waiting> waiting_;
    std::vector<NamedEvent> events_;
    std::vector<HcaAgent> agents_;
    // What the host may do at any time, each once a run.
    struct Actions final : WorkSource {
        struct Action {
            void (*act)(void*);
            void* argument;
            u32 within;
        };
        struct Due {
            u32 which;
            u64 messages;
        };
        std::vector<Action> all;
        std::vector<Due> left;
        std::vector<u32> offered;
        u32 agent = 0;
        bool counts_messages = false;
        World* world = nullptr;
        void plan();
        void work(u32) override {}
        void steps(std::vector<u32>& agents) override {
            offered.clear();
            for (u32 i = 0; i < left.size(); ++i) {
                if (left[i].messages > world->messages_) continue;
                offered.push_back(i);
                agents.push_back(agent);
            }
        }
        void take(u32 index) override;
    } actions_;
    WorldFaults faults_;
    bool (*outside_)(void*, bool) = nullptr;
    void* outside_argument_ = nullptr;
    u64 progress_then_ = 0;  // of the scheduler, when the outside was asked last
    bool keep_ = false;
    struct Kept {
        LaunchSpec spec;
        std::vector<u8> arguments;
        std::vector<void*> pointers;
    };
    std::vector<Kept> kept_;
    u64 done_ = 0;
    Chance chance_;
    std::vector<Mishap> mishaps_;  // still to come
    std::vector<Timer> timers_;    // a heap, the earliest first
    u64 timers_set_ = 0;
    u64 wake_ps_ = kNever;         // when the next timer or mishap is due
    u64 next_mishap_ps_ = kNever, next_mishap_message_ = kNever, messages_ = 0;
    u64 mishaps_happened_[kMishapKinds] = {};
    bool mishap_due_ = false;  // no HCA may be called back from within a call into one: soon, then
};

}  // namespace rdmakit::emu
