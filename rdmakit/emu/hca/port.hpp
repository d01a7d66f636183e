// port.hpp — the physical ports of one HCA: link state, counters, who waits to send, and which port a flow takes.
// Leans on queue_pair.hpp for the lists. LAG facts: rdma-core providers/mlx5/mlx5.c (_mlx5dv_query_qp_lag_port), kernel
// drivers/infiniband/hw/mlx5/qp.c (get_tx_affinity_rr), drivers/net/ethernet/mellanox/mlx5/core/lag (hash mode).
#pragma once
#include "queue_pair.hpp"

namespace rdmakit::emu {

constexpr u32 kMaxPorts = 4;

struct Port {
    bool up = true;
    PortCounters counters;
    QueuePair* first = nullptr;  // QPs with something to send, in turn
    QueuePair* last = nullptr;
    u64 tx_free_ps = 0, rx_free_ps = 0;  // timed: when the link has sent, or received, all that it was given
    bool tick_pending = false;
};

// One message, or its response, on the wire.
struct Packets {
    u64 count, octets, payload;
};

class Ports {
  public:
    explicit Ports(const HcaConfig& config) : config_(config) {}
    Port& at(u32 port) { return ports_[port - 1]; }
    const Port& at(u32 port) const { return ports_[port - 1]; }
    u32 count() const { return config_.ports; }

    // `preferred` if it is up, or in a bond the other if that is; else 0.
    u32 usable(u32 preferred) const;
    // Which port a flow of this source port towards this address leaves by, before failover.
    static u32 hash_port(u32 udp_source_port, const Gid& to, u32 ports);
    // Where a packet that left the peer's physical port `sent_from` comes in; ib_port is what its address names.
    // Bonded: the switches of both rails know both ports and deliver on the rail that the packet is on.
    u32 receiving_port(u32 sent_from, u32 ib_port) const;
    // mlx5_ib: a counter of the context, incremented before use.
    u32 next_affinity() { return ++affinity_counter_ % config_.ports + 1; }

    void count_xmit(u32 port, const Packets& packets);
    void count_rcv(u32 port, const Packets& packets);

    void enqueue(QueuePair& qp);
    void remove(QueuePair& qp);
    QueuePair* dequeue(u32 port);
    bool any_queued() const;

  private:
    const HcaConfig& config_;
    Port ports_[kMaxPorts];
    u32 affinity_counter_ = 0;
};

// Octets of one packet besides payload and extended headers, from the Ethernet (or LRH) header to the last CRC.
u32 packet_overhead(bool roce, const AddressVector& to);
// Packets of a message of `bytes`, whose extended headers take `extra` octets in all.
Packets message_packets(u64 bytes, u32 mtu_shift, u32 overhead, u32 extra);
Packets request_packets(const DecodedWqe& wqe, u32 mtu_shift, u32 overhead);
// Of a message, the packets from `first` up to `end`, which may lie beyond the last.
Packets part_of(const Packets& whole, u32 mtu_shift, u32 overhead, u32 first, u32 end);
inline Packets request_part(const DecodedWqe& wqe, u32 mtu_shift, u32 overhead, u32 first, u32 end) {
    const Packets whole = request_packets(wqe, mtu_shift, overhead);
    return first == 0 && end >= whole.count ? whole : part_of(whole, mtu_shift, overhead, first, end);
}
// The ACK, the atomic response or the READ response.
Packets response_packets(const DecodedWqe& wqe, u32 mtu_shift, u32 overhead, bool acknowledged);

// ibv_flow_label_to_udp_sport and rdma_calc_flow_label.
u32 flow_label_to_source_port(u32 flow_label);
u32 flow_label_of_qpns(u32 local_qpn, u32 remote_qpn);

}  // namespace rdmakit::emu
