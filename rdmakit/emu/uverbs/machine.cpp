#include "machine.hpp"

#include <sched.h>
#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "counters.hpp"
#include "sysfs.hpp"

namespace rdmakit::uverbs {
namespace {

// MLX5_CQ_DOORBELL, and MLX5_BF_OFFSET with registers of 512 bytes, each in two halves.
constexpr u32 kOffsets[] = {0x20, 0x800, 0x900, 0xa00, 0xb00};

// What no software writes: left in a register, and in the arm word of a CQ's record, when what stood there has been taken.
// So the same value written twice is seen twice.
constexpr u64 kTaken = ~0ull;
constexpr u32 kTakenWord = ~0u;

// Retries: one turn of Hca::work is 20 µs, so that the usual time-out (14: 67 ms) is as long as the manual says.
constexpr u64 kTurnNs = 20'000;
constexpr u32 kRetryTurns = 3300;
constexpr u64 kCheckNs = 5'000'000;
constexpr u32 kSpins = 20, kQuiet = 20'000;

std::atomic<Machine*> current{nullptr};

// "0000:…:0001" → 16 bytes; false if it is no GID, or zero.
bool parse_gid(const std::string& text, Gid* gid) {
    unsigned group[8];
    if (std::sscanf(text.c_str(), "%4x:%4x:%4x:%4x:%4x:%4x:%4x:%4x", &group[0], &group[1], &group[2], &group[3],
                    &group[4], &group[5], &group[6], &group[7]) != 8)
        return false;
    bool any = false;
    for (u32 i = 0; i < 8; ++i) {
        gid->raw[2 * i] = static_cast<u8>(group[i] >> 8);
        gid->raw[2 * i + 1] = static_cast<u8>(group[i]);
        any |= group[i] != 0;
    }
    return any;
}

// Ports of a bond, and who chooses among them, from the network device of the first (tree.py).
void read_bond(const std::string& net, HcaConfig* config) {
    const std::vector<std::string> netdevs = sysfs::bonded(net);
    if (netdevs.empty()) return;
    config->ports = static_cast<u32>(netdevs.size());
    config->lag = sysfs::read(net + "/" + netdevs[0] + "/compat/devlink/lag_port_select_mode") == "hash"
                      ? LagMode::hash
                      : LagMode::queue_affinity;
}

u64 monotonic_ns() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<u64>(now.tv_sec) * 1'000'000'000ull + static_cast<u64>(now.tv_nsec);
}

}  // namespace

Machine& Machine::here() {
    static std::mutex making;
    const std::lock_guard<std::mutex> hold(making);
    Machine* machine = current.load(std::memory_order_acquire);
    if (machine == nullptr) {
        machine = new Machine();  // for good: libibverbs may close devices after static destructors
        current.store(machine, std::memory_order_release);
    }
    return *machine;
}

Machine* Machine::if_any() { return current.load(std::memory_order_acquire); }

void Machine::leave() {
    wire_.leave();
    current.store(nullptr, std::memory_order_release);
}

Machine::Machine() : wire_(sysfs::root() + "/wire") {
    if (wire_.number() != Wire::kAlone) random_ += wire_.number() * 0x632be59bd9b4e019ull;
    const std::string root = sysfs::root() + "/class/infiniband";
    for (const std::string& name : sysfs::entries(root)) {
        HcaConfig config;
        std::snprintf(config.name, sizeof config.name, "%s", name.c_str());
        const std::vector<std::string> ports = sysfs::entries(root + "/" + name + "/ports");
        config.ports = static_cast<u32>(ports.size());
        read_bond(root + "/" + name + "/device/net", &config);
        config.roce = sysfs::read(root + "/" + name + "/ports/1/link_layer") != "InfiniBand";
        config.retry_turns = kRetryTurns;
        if (wire_.number() != Wire::kAlone) {
            const u32 first = wire_.number() << kQpnBits;
            config.first_qpn = first + 0x100 + static_cast<u32>(random(0x1000));
            config.last_qpn = first + (1u << kQpnBits) - 1;
            config.max_qps = config.last_qpn - config.first_qpn + 1;
        }
        hcas_.push_back(std::make_unique<Hca>(*this, fabric_, config));
        for (u32 port = 1; port <= hcas_.back()->ib_ports(); ++port) {
            const std::string gids = root + "/" + name + "/ports/" + std::to_string(port) + "/gids";
            for (const std::string& index : sysfs::entries(gids)) {
                Gid gid;
                const u32 at = static_cast<u32>(std::strtoul(index.c_str(), nullptr, 10));
                if (!parse_gid(sysfs::read(gids + "/" + index), &gid)) continue;
                gids_[{hcas_.back().get(), port, at}] = gid;
                const Status status = hcas_.back()->add_address(port, gid);
                if (!status.ok()) std::fprintf(stderr, "rdmakit uverbs: %s: %s\n", name.c_str(), status.message);
            }
        }
    }
}

Hca* Machine::find(const std::string& name) {
    for (const auto& hca : hcas_)
        if (name == hca->config().name) return hca.get();
    return nullptr;
}

const Gid* Machine::gid(const Hca* hca, u32 port, u32 index) const {
    const auto found = gids_.find({hca, port, index});
    return found == gids_.end() ? nullptr : &found->second;
}

// A port's link-local GID has its address in it (EUI-64 with the universal bit turned: RFC 4291, appendix A).
bool Machine::resolve(const Gid& gid, u8 mac[6]) const {
    for (const auto& [at, known] : gids_) {
        if (std::memcmp(known.raw, gid.raw, sizeof gid.raw) != 0) continue;
        const auto local = gids_.find({std::get<0>(at), std::get<1>(at), 0});
        if (local == gids_.end()) return false;
        const u8* const eui = local->second.raw + 8;
        const u8 found[6] = {static_cast<u8>(eui[0] ^ 2), eui[1], eui[2], eui[5], eui[6], eui[7]};
        std::memcpy(mac, found, sizeof found);
        return true;
    }
    return false;
}

void Machine::listen(Hca* hca, Listener* listener) {
    listeners_.push_back({hca, listener});
    if (started_) return;
    started_ = true;
    std::thread([this] { poll(); }).detach();
}

void Machine::forget(Listener* listener) {
    listeners_.erase(std::remove_if(listeners_.begin(), listeners_.end(),
                                    [listener](const Hearing& hearing) { return hearing.listener == listener; }),
                     listeners_.end());
}

void Machine::watch(Hca* hca, void* page) {
    u64* const words = static_cast<u64*>(page);
    for (const u32 offset : kOffsets) words[offset / 8] = kTaken;
    pages_.push_back({hca, words});
}

void Machine::unwatch(const void* page) {
    pages_.erase(std::remove_if(pages_.begin(), pages_.end(), [page](const Page& known) { return known.words == page; }),
                 pages_.end());
}

void Machine::add_qp(Hca* hca, u32 qpn, void* page) { ringers_.push_back({hca, qpn, page}); }

void Machine::remove_qp(Hca* hca, u32 qpn) {
    ringers_.erase(std::remove_if(ringers_.begin(), ringers_.end(),
                                  [=](const Ringer& ringer) { return ringer.hca == hca && ringer.qpn == qpn; }),
                   ringers_.end());
}

void Machine::add_cq(Hca* hca, u32 cqn, u32* dbrec) {
    dbrec[1] = kTakenWord;
    armed_.push_back({hca, cqn, dbrec});
}

void Machine::remove_cq(Hca* hca, u32 cqn) {
    armed_.erase(std::remove_if(armed_.begin(), armed_.end(),
                                [=](const Armed& cq) { return cq.hca == hca && cq.cqn == cqn; }),
                 armed_.end());
}

u64 Machine::random(u64 bound) {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return bound != 0 ? random_ % bound : 0;
}

void Machine::async_event(Hca& hca, AsyncEvent event) { events_.emplace_back(&hca, event); }

// Registers that have been written since the last look ring.
bool Machine::look() {
    bool rung = false;
    for (const Page& page : pages_) {
        bool sends = false;
        for (u32 i = 0; i < kRegisters; ++i) {
            u64* const word = page.words + kOffsets[i] / 8;
            if (__atomic_load_n(word, __ATOMIC_RELAXED) == kTaken) continue;
            const u64 value = __atomic_exchange_n(word, kTaken, __ATOMIC_ACQ_REL);
            rung = true;
            if (i == 0) {
                arm(page);
            } else {
                page.hca->mmio_write64(word, value);
                sends = true;
            }
        }
        if (sends) ring_others(page);
    }
    return rung;
}

void Machine::arm(const Page& page) {
    for (const Armed& cq : armed_) {
        if (cq.hca != page.hca) continue;
        const u32 word = __atomic_exchange_n(&cq.dbrec[1], kTakenWord, __ATOMIC_ACQ_REL);
        if (word == kTakenWord) continue;
        page.hca->mmio_write64(page.words + kOffsets[0] / 8, word | static_cast<u64>(swap_bytes(cq.cqn)) << 32);
    }
}

void Machine::ring_others(const Page& page) {
    for (const Ringer& ringer : ringers_) {
        QpInfo info;
        if (ringer.page != page.words || !ringer.hca->query_qp(ringer.qpn, &info).ok()) continue;
        const u32 record = swap_bytes(__atomic_load_n(&info.create.dbrec[1], __ATOMIC_ACQUIRE)) & 0xffff;
        if (record == (info.sq_producer & 0xffff)) continue;
        const u64 value = swap_bytes(record << 8) | static_cast<u64>(swap_bytes(ringer.qpn << 8)) << 32;
        page.hca->mmio_write64(page.words + kOffsets[1] / 8, value);
    }
}

void Machine::execute() {
    do {
        work_ = false;
        for (const auto& hca : hcas_) hca->work(256);
    } while (work_);
    tell();
    publish();
}

void Machine::tell() {
    for (const auto& [hca, event] : events_)
        for (const Hearing& hearing : listeners_)
            if (hearing.hca == hca) hearing.listener->event(event);
    events_.clear();
}

void Machine::publish() {
    std::atomic<u64>* const shared = wire_.counters();
    if (shared == nullptr) return;
    for (u32 hca = 0; hca < hcas_.size(); ++hca) {
        const auto put = [&](u32 port, u32 counter, u64 value) {
            shared[shared_counter(hca, port, counter)].store(value, std::memory_order_relaxed);
        };
        for (u32 port = 1; port <= hcas_[hca]->ports(); ++port) {
            const PortCounters counters = hcas_[hca]->port_counters(port);
            put(port, kXmitBytes, counters.xmit_bytes);
            put(port, kRcvBytes, counters.rcv_bytes);
            put(port, kXmitPackets, counters.xmit_packets);
            put(port, kRcvPackets, counters.rcv_packets);
        }
        const HcaCounters counters = hcas_[hca]->counters();
        put(1, kDuplicateRequest, counters.duplicate_request);
        put(1, kOutOfSequence, counters.out_of_sequence);
        put(1, kPacketSeqErr, counters.packet_seq_err);
        put(1, kImpliedNakSeqErr, counters.implied_nak_seq_err);
        put(1, kLocalAckTimeoutErr, counters.local_ack_timeout_err);
        put(1, kRxIcrcEncapsulated, counters.rx_icrc_encapsulated);
    }
}

void Machine::poll() {
    prctl(PR_SET_TIMERSLACK, 1000);  // naps are of 10 µs, not of 60
    u32 idle = 0;
    for (;;) {
        bool busy;
        {
            const std::lock_guard<std::recursive_mutex> hold(lock_);
            const u64 now = monotonic_ns();
            busy = move_wire();
            busy |= look();
            u32 waiting = 0;
            for (const auto& hca : hcas_) waiting += hca->waiting();
            // What waits for a receive or for its peer is tried again at a pace of its own.
            const bool turn = waiting != 0 && now - last_turn_ns_ >= kTurnNs;
            if (busy || work_ || !events_.empty() || turn) execute();
            if (turn) last_turn_ns_ = now;
            if (!pending_.empty() && now - last_check_ns_ >= kCheckNs) give_up(now);
            busy |= turn;
        }
        idle = busy ? 0 : idle + 1;
        if (idle < kSpins) {
            sched_yield();
        } else {
            const timespec pause{0, idle < kQuiet ? 10'000 : 50'000};
            nanosleep(&pause, nullptr);
        }
    }
}

}  // namespace rdmakit::uverbs
