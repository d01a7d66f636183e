// machine.hpp — the emulated HCAs of one process, as the kernel would drive them: who is there, who rings, who is told.
// Leans on emu/hca and wire.hpp. What libmlx5 writes to a UAR page is plain memory here; a thread looks at it and hands it to the HCA.
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "../hca/fabric.hpp"
#include "../hca/hca.hpp"
#include "../hca/remote.hpp"
#include "wire.hpp"

namespace rdmakit::uverbs {

using namespace rdmakit::emu;

// Who hears of an HCA's events: an open /dev/infiniband/uverbsN.
class Listener {
  public:
    virtual ~Listener() = default;
    virtual void event(AsyncEvent event) = 0;
};

class Machine final : public Environment {
  public:
    // HCAs as the tree at SYSFS_PATH lists them in class/infiniband: their names, ports and GIDs.
    static Machine& here();
    static Machine* if_any();
    // The child of a fork: this machine stays its parent's, and here() makes another.
    void leave();
    // Counters that others read are as they stand now.
    void publish();
    // Takes what other processes have sent here; whether there was anything.
    bool move_wire();

    Hca* find(const std::string& name);
    // Null where the table has none.
    const Gid* gid(const Hca* hca, u32 port, u32 index) const;
    // The Ethernet address behind a GID, as the kernel resolves it; false for a GID that no port of the tree has.
    bool resolve(const Gid& gid, u8 mac[6]) const;
    void listen(Hca* hca, Listener* listener);
    void forget(Listener* listener);
    // Doorbells written to this page of `hca` are looked for from now on.
    void watch(Hca* hca, void* page);
    void unwatch(const void* page);
    // Everything of this machine, HCAs included, is used by one thread at a time.
    std::recursive_mutex& lock() { return lock_; }
    // A QP that rings in this page; when a register there has been written its record is looked at as well, since in
    // memory a later store to the same register hides an earlier one.
    void add_qp(Hca* hca, u32 qpn, void* page);
    void remove_qp(Hca* hca, u32 qpn);
    // A CQ that is armed by this record's second word and the register at 0x20 of any page: all CQs share it.
    void add_cq(Hca* hca, u32 cqn, u32* dbrec);
    void remove_cq(Hca* hca, u32 cqn);

    // ---- Environment
    u64 now_ps() override { return 0; }
    bool timed() override { return false; }
    void at(u64, void (*)(void*, u64), void*, u64) override {}
    void memory_written(const void*, std::size_t) override {}
    u64 random(u64 bound) override;
    void ready(Hca&) override { work_ = true; }
    bool copy_payload() override { return true; }
    void async_event(Hca& hca, AsyncEvent event) override;
    bool elsewhere(u32 qpn) override { return wire_.number() != Wire::kAlone && qpn >> kQpnBits != wire_.number(); }
    bool carry(Hca& from, Hca& to, const RemoteRequest& request, const std::vector<u8>& data) override;

  private:
    Machine();

    static constexpr u32 kRegisters = 5;  // a CQ's at 0x20, and two alternating halves of each of two send registers
    struct Page {
        Hca* hca;
        u64* words;
    };
    struct Ringer {
        Hca* hca;
        u32 qpn;
        void* page;
    };
    struct Armed {
        Hca* hca;
        u32 cqn;
        u32* dbrec;
    };
    struct Hearing {
        Hca* hca;
        Listener* listener;
    };
    void poll();
    bool look();
    void arm(const Page& page);
    void ring_others(const Page& page);
    void execute();
    void tell();

    // between_processes.cpp
    static constexpr u32 kQpnBits = 15;  // of a QP number; above them is its process's number
    struct Pending {
        u32 process, requests;
        u64 since_ns;  // the last answer, or the first request
    };
    u32 index_of(const Hca& hca) const;
    void take(u32 from, const u8* message, std::size_t bytes);
    void give_up(u64 now_ns);

    std::recursive_mutex lock_;
    Wire wire_;
    Fabric fabric_;
    std::vector<std::unique_ptr<Hca>> hcas_;
    std::map<std::tuple<const Hca*, u32, u32>, Gid> gids_;  // by HCA, port, index
    std::vector<Page> pages_;
    std::vector<Ringer> ringers_;
    std::vector<Armed> armed_;
    std::vector<Hearing> listeners_;
    std::vector<std::pair<Hca*, AsyncEvent>> events_;
    u64 random_ = 0x9e3779b97f4a7c15ull;
    std::map<std::pair<Hca*, u32>, Pending> pending_;  // by HCA and QP number: requests that another process has
    u64 last_turn_ns_ = 0, last_check_ns_ = 0;
    bool work_ = false;
    bool started_ = false;
};

}  // namespace rdmakit::uverbs
