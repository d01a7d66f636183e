// network.hpp — the switches between HCAs, with a clock: which links a message crosses, and when it has crossed them.
// Leans on config.cuh. Two tiers: leaves, and spines with one link to each leaf of their plane; port p of every NIC hangs on
// leaves of its own. rdmakit/model/fabric.py says the same in Python; a test compares them.
//
// Links are taken a whole message at a time, cut through: its first byte goes on before its last has come. A queue that
// grows beyond a threshold stops the port that feeds it, as priority flow control does: whatever leaves by that port waits.
#pragma once
#include <vector>

#include "rdmakit/config.cuh"

namespace rdmakit::emu {

struct NetworkConfig {
    u32 hosts = 1, nics = 1, ports = 1;  // of the world; of a host; of a NIC
    u32 planes = 1, hosts_per_leaf = 1, spines = 1;
    bool rails = false;      // NICs with one number share leaves
    bool bonded = false;     // the ports of a NIC share port 1's address
    bool roce = true;        // a leaf hashes the 5-tuple; InfiniBand looks at the destination alone
    bool adaptive = false;   // a leaf takes the spine whose links are free first
    u32 hash_seed = 1;
    u64 uplink_bytes_per_second = 50'000'000'000ull;
    u64 hop_latency_ps = 300'000;      // of each switch beyond the first, which HcaTiming::wire_latency_ps has
    u64 pause_threshold_bytes = 1 << 19;
};

struct Attachment {
    u32 host, nic, port;  // port 1, 2, …
};

struct LinkUse {
    u32 leaf, spine;
    bool up;  // from the leaf to the spine
    u64 bytes, busy_ps;
};

class Network {
  public:
    static constexpr u32 kDirect = ~0u;  // instead of a spine: both ends hang on one leaf

    explicit Network(const NetworkConfig& config);
    const NetworkConfig& config() const { return config_; }
    u32 leaf(const Attachment& at) const;
    // By the flow's numbers alone; not for adaptive routing.
    u32 spine(const Attachment& from, const Attachment& to, u32 udp_source_port) const;

    struct Crossing {
        u64 first_ps, last_ps;  // when its first and its last byte come out of the network
        u64 paused_until_ps;    // the port that sent it stands still until then; 0: it does not
    };
    // A message of `octets`, whose first and last byte enter a leaf at these times.
    Crossing cross(const Attachment& from, const Attachment& to, u32 udp_source_port, u64 octets, u64 first_ps, u64 last_ps);
    // What the way takes longer than through one switch.
    u64 extra_latency_ps(const Attachment& from, const Attachment& to) const {
        return leaf(from) == leaf(to) ? 0 : 2 * config_.hop_latency_ps;
    }
    // A queue of `waiting_ps` in front of a link of `bytes_per_second`: for how long does it stop its feeder?
    u64 pause_ps(u64 waiting_ps, u64 bytes_per_second) const;
    std::vector<LinkUse> links() const;

  private:
    struct Link {
        u64 free_ps = 0, busy_ps = 0, bytes = 0;
    };
    Link& link(bool up, u32 leaf, u32 spine) { return links_[((up ? 0 : 1) * leaves_ + leaf) * config_.spines + spine]; }
    u32 choose(u32 near, u32 far, u64 first_ps);

    NetworkConfig config_;
    u32 leaves_ = 0;
    std::vector<Link> links_;
};

}  // namespace rdmakit::emu
