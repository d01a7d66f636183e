// network.cpp — see network.hpp.
#include "network.hpp"

#include "link.hpp"

namespace rdmakit::emu {

namespace {
constexpr u32 kRocePort = 4791, kUdpProtocol = 17;  // of RoCE v2: UDP destination port, IP protocol number

u32 fold(u32 h, u32 word) {
    h = (h ^ word) * 0x9e3779b1u;
    return h ^ (h >> 15);
}
}  // namespace

Network::Network(const NetworkConfig& config) : config_(config) {
    config_.spines = larger(1u, config_.spines);
    config_.hosts_per_leaf = larger(1u, config_.hosts_per_leaf);
    config_.uplink_bytes_per_second = larger<u64>(1, config_.uplink_bytes_per_second);
    const u32 pods = (config_.hosts + config_.hosts_per_leaf - 1) / config_.hosts_per_leaf;
    leaves_ = pods * (config_.rails ? config_.nics : 1) * config_.ports;
    links_.resize(2ull * leaves_ * config_.spines);
}

u32 Network::leaf(const Attachment& at) const {
    const u32 rails = config_.rails ? config_.nics : 1;
    const u32 rail = config_.rails ? at.nic : 0;
    return ((at.host / config_.hosts_per_leaf) * rails + rail) * config_.ports + at.port - 1;
}

u32 Network::spine(const Attachment& from, const Attachment& to, u32 udp_source_port) const {
    const u32 here = leaf(from);
    if (here == leaf(to)) return kDirect;
    if (!config_.roce) {  // a fat tree's forwarding tables (d-mod-k): neighbours on a leaf are reached by different spines
        const u32 place = to.host % config_.hosts_per_leaf;
        return (config_.rails ? place : place * config_.nics + to.nic) % config_.spines;
    }
    const auto ip = [&](const Attachment& at) {
        return (10u << 24) + (at.host << 16) + (at.nic << 8) + (config_.bonded ? 1 : at.port);
    };
    u32 h = fold(config_.hash_seed, here);
    for (const u32 word : {ip(from), ip(to), udp_source_port << 16 | kRocePort, kUdpProtocol}) h = fold(h, word);
    return h % config_.spines;
}

// Adaptive: the spine behind which both links are free first; of several the first behind the one taken last.
u32 Network::choose(u32 near, u32 far, u64 first_ps) {
    u32 best = 0;
    u64 least = ~0ull;
    for (u32 i = 0; i < config_.spines; ++i) {
        const u32 s = (i + near + far) % config_.spines;
        const u64 free = larger(larger(link(true, near, s).free_ps, link(false, far, s).free_ps), first_ps);
        if (free < least) least = free, best = s;
    }
    return best;
}

u64 Network::pause_ps(u64 waiting_ps, u64 bytes_per_second) const {
    const u64 most = duration_ps(config_.pause_threshold_bytes, bytes_per_second);
    return waiting_ps > most ? waiting_ps - most : 0;
}

Network::Crossing Network::cross(const Attachment& from, const Attachment& to, u32 udp_source_port, u64 octets, u64 first_ps,
                                 u64 last_ps) {
    const u32 near = leaf(from), far = leaf(to);
    Crossing crossing{first_ps, last_ps, 0};
    if (near == far) return crossing;
    const u32 by = config_.adaptive ? choose(near, far, first_ps) : spine(from, to, udp_source_port);
    const u64 length = duration_ps(octets, config_.uplink_bytes_per_second);
    const u64 sent_ps = first_ps;
    for (Link* at : {&link(true, near, by), &link(false, far, by)}) {
        const u64 waiting = at->free_ps > crossing.first_ps ? at->free_ps - crossing.first_ps : 0;
        if (const u64 pause = pause_ps(waiting, config_.uplink_bytes_per_second))
            crossing.paused_until_ps = larger(crossing.paused_until_ps, sent_ps + pause);
        at->free_ps = larger(at->free_ps, crossing.first_ps) + length;
        at->busy_ps += length;
        at->bytes += octets;
        crossing.last_ps = larger(at->free_ps, crossing.last_ps) + config_.hop_latency_ps;
        crossing.first_ps = at->free_ps - length + config_.hop_latency_ps;
    }
    return crossing;
}

std::vector<LinkUse> Network::links() const {
    std::vector<LinkUse> found;
    for (u64 i = 0; i < links_.size(); ++i) {
        const u32 row = static_cast<u32>(i / config_.spines);
        found.push_back({row % leaves_, static_cast<u32>(i % config_.spines), row < leaves_, links_[i].bytes, links_[i].busy_ps});
    }
    return found;
}

}  // namespace rdmakit::emu
