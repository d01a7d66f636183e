// port.cpp — port choice, packet and octet counts, and the ports' verbs.
#include "port.hpp"

#include "hca.hpp"

namespace rdmakit::emu {

namespace {
// RoCEv2 annex A17 and IBTA vol. 1 ch. 9.
constexpr u32 kEthernet = 14, kFcs = 4, kIpv4 = 20, kIpv6 = 40, kUdp = 8, kIcrc = 4;
constexpr u32 kLrh = 8, kGrh = 40, kVcrc = 2;
constexpr u32 kBth = 12, kReth = 16, kAeth = 4, kImmDt = 4, kAtomicEth = 28, kAtomicAckEth = 8;

bool is_ipv4_mapped(const Gid& gid) {
    for (u32 i = 0; i < 10; ++i)
        if (gid.raw[i] != 0) return false;
    return gid.raw[10] == 0xff && gid.raw[11] == 0xff;
}
}  // namespace

u32 packet_overhead(bool roce, const AddressVector& to) {
    if (roce) return kEthernet + (is_ipv4_mapped(to.dgid) ? kIpv4 : kIpv6) + kUdp + kBth + kIcrc + kFcs;
    return kLrh + (to.is_global ? kGrh : 0) + kBth + kIcrc + kVcrc;
}

Packets message_packets(u64 bytes, u32 mtu_shift, u32 overhead, u32 extra) {
    const u64 mtu = 1ull << mtu_shift;
    const u64 count = bytes <= mtu ? 1 : (bytes + mtu - 1) >> mtu_shift;
    const u64 padding = (4 - (bytes & 3)) & 3;
    return Packets{count, bytes + padding + extra + count * overhead, bytes};
}

Packets request_packets(const DecodedWqe& wqe, u32 mtu_shift, u32 overhead) {
    switch (static_cast<Opcode>(wqe.opcode)) {
        case Opcode::write: return message_packets(wqe.bytes, mtu_shift, overhead, kReth);
        case Opcode::write_imm: return message_packets(wqe.bytes, mtu_shift, overhead, kReth + kImmDt);
        case Opcode::send: return message_packets(wqe.bytes, mtu_shift, overhead, 0);
        case Opcode::send_imm: return message_packets(wqe.bytes, mtu_shift, overhead, kImmDt);
        case Opcode::read: return message_packets(0, mtu_shift, overhead, kReth);
        case Opcode::nop:
        case Opcode::dump: return Packets{0, 0, 0};
        default: return message_packets(0, mtu_shift, overhead, kAtomicEth);
    }
}

Packets part_of(const Packets& whole, u32 mtu_shift, u32 overhead, u32 first, u32 end) {
    const auto before = [&](u64 packets) { return smaller(packets << mtu_shift, whole.payload); };
    const u64 last = smaller<u64>(end, whole.count);
    if (first >= last) return Packets{0, 0, 0};
    const u64 payload = before(last) - before(first);
    // A request that goes on in the middle begins with a first packet again, and has its headers.
    const u64 extra = whole.octets - whole.count * overhead - ((whole.payload + 3) & ~3ull);
    return Packets{last - first, ((payload + 3) & ~3ull) + extra + (last - first) * overhead, payload};
}

Packets response_packets(const DecodedWqe& wqe, u32 mtu_shift, u32 overhead, bool acknowledged) {
    if (!acknowledged || !is_read_or_atomic(wqe.opcode)) return message_packets(0, mtu_shift, overhead, kAeth);
    if (wqe.atomic_width != 0) return message_packets(0, mtu_shift, overhead, kAeth + kAtomicAckEth);
    // The AETH is in the first and in the last response packet.
    return message_packets(wqe.bytes, mtu_shift, overhead, wqe.bytes > (1ull << mtu_shift) ? 2 * kAeth : kAeth);
}

u32 flow_label_to_source_port(u32 flow_label) {
    return ((flow_label & 0x3fff) ^ ((flow_label & 0xfc000) >> 14)) | 0xc000;
}

u32 flow_label_of_qpns(u32 local_qpn, u32 remote_qpn) {
    u64 v = static_cast<u64>(local_qpn) * remote_qpn;
    v ^= v >> 20;
    v ^= v >> 40;
    return static_cast<u32>(v & 0xfffff);
}

u32 Ports::usable(u32 preferred) const {
    if (preferred == 0 || preferred > config_.ports) return 0;
    if (at(preferred).up) return preferred;
    if (config_.lag == LagMode::none) return 0;
    for (u32 port = 1; port <= config_.ports; ++port)
        if (at(port).up) return port;
    return 0;
}

// Bonding hashes the outer headers. Within one flow only the UDP source port varies (the destination port is 4791),
// so two QPs with equal source ports to one peer share a link, as they do in hardware. Multiplicative hash; the
// hardware's own is not documented.
u32 Ports::hash_port(u32 udp_source_port, const Gid& to, u32 ports) {
    u32 h = udp_source_port;
    for (u32 i = 0; i < 16; i += 4) {
        h ^= static_cast<u32>(to.raw[i]) << 24 | static_cast<u32>(to.raw[i + 1]) << 16 |
             static_cast<u32>(to.raw[i + 2]) << 8 | to.raw[i + 3];
        h *= 0x9e3779b1u;
        h ^= h >> 15;
    }
    return h % ports + 1;
}

u32 Ports::receiving_port(u32 sent_from, u32 ib_port) const {
    return usable(config_.lag == LagMode::none ? ib_port : (sent_from - 1) % config_.ports + 1);
}

void Ports::count_xmit(u32 port, const Packets& packets) {
    PortCounters& c = at(port).counters;
    c.xmit_bytes += packets.octets;
    c.xmit_data = c.xmit_bytes / 4;
    c.xmit_packets += packets.count;
    c.xmit_payload += packets.payload;
}

void Ports::count_rcv(u32 port, const Packets& packets) {
    PortCounters& c = at(port).counters;
    c.rcv_bytes += packets.octets;
    c.rcv_data = c.rcv_bytes / 4;
    c.rcv_packets += packets.count;
    c.rcv_payload += packets.payload;
}

void Ports::enqueue(QueuePair& qp) {
    if (qp.queued) return;
    // With every port down the QP queues at the first one: its requests get lost, and retries count down.
    qp.queued_at = qp.tx_port ? qp.tx_port : 1;
    Port& port = at(qp.queued_at);
    qp.queued = true;
    qp.next = nullptr;
    qp.previous = port.last;
    (port.last ? port.last->next : port.first) = &qp;
    port.last = &qp;
}

void Ports::remove(QueuePair& qp) {
    if (!qp.queued) return;
    Port& port = at(qp.queued_at);
    (qp.previous ? qp.previous->next : port.first) = qp.next;
    (qp.next ? qp.next->previous : port.last) = qp.previous;
    qp.queued = false;
}

QueuePair* Ports::dequeue(u32 port) {
    QueuePair* qp = at(port).first;
    if (qp) remove(*qp);
    return qp;
}

bool Ports::any_queued() const {
    for (u32 port = 1; port <= config_.ports; ++port)
        if (at(port).first) return true;
    return false;
}

u32 Hca::ib_ports() const { return config_.lag == LagMode::none ? config_.ports : 1; }

bool Hca::port_up(u32 port) const { return port >= 1 && port <= config_.ports && ports_->at(port).up; }

PortCounters Hca::port_counters(u32 port) const {
    return port >= 1 && port <= config_.ports ? ports_->at(port).counters : PortCounters{};
}

// A bond as a whole is up while one of its links is; its IB port 1 reports changes of that.
void Hca::set_port_up(u32 port, bool up) {
    if (port < 1 || port > config_.ports || ports_->at(port).up == up) return;
    const bool bonded = config_.lag != LagMode::none;
    const bool before = bonded ? ports_->usable(port) != 0 : !up;
    ports_->at(port).up = up;
    const bool after = bonded ? ports_->usable(port) != 0 : up;
    if (before != after)
        report(after ? AsyncEventType::port_active : AsyncEventType::port_error, bonded ? 1 : port);
    for (const auto& qp : qps_) {
        if (qp) reroute(*qp);
    }
}

void Hca::reroute(QueuePair& qp) {
    const bool queued = qp.queued;
    ports_->remove(qp);
    choose_route(qp);
    if (queued) enqueue(qp);
}

void Hca::choose_route(QueuePair& qp) {
    if (qp.state() == QpState::reset) {
        qp.tx_port = 0;
        return;
    }
    u32 preferred = qp.info.attr.port_num;
    if (config_.lag != LagMode::none)
        preferred = qp.info.lag_affinity
                        ? qp.info.lag_affinity
                        : Ports::hash_port(qp.info.udp_source_port, qp.info.attr.ah.dgid, config_.ports);
    qp.tx_port = ports_->usable(preferred);
}

}  // namespace rdmakit::emu
