#include "machine.hpp"

#include <dirent.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <sstream>
#include <thread>

namespace rdmakit::uverbs {
namespace {

// MLX5_CQ_DOORBELL, and MLX5_BF_OFFSET with registers of 512 bytes, each in two halves.
constexpr u32 kOffsets[] = {0x20, 0x800, 0x900, 0xa00, 0xb00};

// What no software writes: left in a register, and in the arm word of a CQ's record, when what stood there has been taken.
// So the same value written twice is seen twice.
constexpr u64 kTaken = ~0ull;
constexpr u32 kTakenWord = ~0u;

std::string sysfs() {
    const char* path = std::getenv("SYSFS_PATH");
    return path != nullptr ? path : "/sys";
}

std::string read_file(const std::string& path) {
    std::string text;
    if (std::FILE* file = std::fopen(path.c_str(), "r")) {
        char buffer[256];
        const std::size_t n = std::fread(buffer, 1, sizeof buffer, file);
        text.assign(buffer, n);
        std::fclose(file);
    }
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

std::vector<std::string> entries(const std::string& path) {
    std::vector<std::string> found;
    if (DIR* directory = opendir(path.c_str())) {
        while (const dirent* entry = readdir(directory))
            if (entry->d_name[0] != '.') found.push_back(entry->d_name);
        closedir(directory);
    }
    std::sort(found.begin(), found.end());
    return found;
}

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
    for (const std::string& netdev : entries(net)) {
        std::istringstream slaves(read_file(net + "/" + netdev + "/master/bonding/slaves"));
        const u32 count = static_cast<u32>(std::distance(std::istream_iterator<std::string>(slaves), {}));
        if (count < 2) continue;
        config->ports = count;
        config->lag = read_file(net + "/" + netdev + "/compat/devlink/lag_port_select_mode") == "hash"
                          ? LagMode::hash
                          : LagMode::queue_affinity;
    }
}

}  // namespace

Machine& Machine::here() {
    static Machine* const machine = new Machine();  // libibverbs may close devices after static destructors
    return *machine;
}

Machine::Machine() {
    const std::string root = sysfs() + "/class/infiniband";
    for (const std::string& name : entries(root)) {
        HcaConfig config;
        std::snprintf(config.name, sizeof config.name, "%s", name.c_str());
        const std::vector<std::string> ports = entries(root + "/" + name + "/ports");
        config.ports = static_cast<u32>(ports.size());
        read_bond(root + "/" + name + "/device/net", &config);
        config.roce = read_file(root + "/" + name + "/ports/1/link_layer") != "InfiniBand";
        hcas_.push_back(std::make_unique<Hca>(*this, fabric_, config));
        for (u32 port = 1; port <= hcas_.back()->ib_ports(); ++port) {
            const std::string gids = root + "/" + name + "/ports/" + std::to_string(port) + "/gids";
            for (const std::string& index : entries(gids)) {
                Gid gid;
                const u32 at = static_cast<u32>(std::strtoul(index.c_str(), nullptr, 10));
                if (!parse_gid(read_file(gids + "/" + index), &gid)) continue;
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
    for (const auto& [hca, event] : events_)
        for (const Hearing& hearing : listeners_)
            if (hearing.hca == hca) hearing.listener->event(event);
    events_.clear();
}

void Machine::poll() {
    u32 idle = 0;
    for (;;) {
        bool busy;
        {
            const std::lock_guard<std::recursive_mutex> hold(lock_);
            busy = look() || work_ || !events_.empty();
            u32 waiting = 0;
            for (const auto& hca : hcas_) waiting += hca->waiting();
            // What waits for a receive or for its peer is tried again at the pace of the thread, not of the bus.
            if (busy || (waiting != 0 && idle % 64 == 0)) execute();
        }
        idle = busy ? 0 : idle + 1;
        if (idle < 2000) {
            sched_yield();
        } else {
            const timespec pause{0, 50'000};
            nanosleep(&pause, nullptr);
        }
    }
}

}  // namespace rdmakit::uverbs
