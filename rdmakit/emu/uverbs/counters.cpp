#include "counters.hpp"

#include <cstdio>
#include <cstring>

#include "sysfs.hpp"

namespace rdmakit::uverbs {
namespace {

struct Name {
    const char* name;
    u32 counter, divisor;
};
constexpr Name kCounters[] = {{"port_xmit_data", kXmitBytes, 4}, {"port_rcv_data", kRcvBytes, 4},
                              {"port_xmit_packets", kXmitPackets, 1}, {"port_rcv_packets", kRcvPackets, 1}};
constexpr Name kHwCounters[] = {{"duplicate_request", kDuplicateRequest, 1}, {"out_of_sequence", kOutOfSequence, 1},
                                {"packet_seq_err", kPacketSeqErr, 1}, {"implied_nak_seq_err", kImpliedNakSeqErr, 1},
                                {"local_ack_timeout_err", kLocalAckTimeoutErr, 1},
                                {"rx_icrc_encapsulated", kRxIcrcEncapsulated, 1}};
constexpr Name kStatistics[] = {{"tx_bytes", kXmitBytes, 1}, {"rx_bytes", kRcvBytes, 1},
                                {"tx_packets", kXmitPackets, 1}, {"rx_packets", kRcvPackets, 1}};

template <std::size_t N>
const Name* find(const Name (&names)[N], const char* name) {
    for (const Name& known : names)
        if (std::strcmp(known.name, name) == 0) return &known;
    return nullptr;
}

std::string text(const std::string& root, const Name& name, u32 hca, u32 first_port, u32 last_port) {
    u64 total = 0;
    for (u32 port = first_port; port <= last_port; ++port)
        total += Wire::sum(root + "/wire", shared_counter(hca, port, name.counter));
    return std::to_string(total / name.divisor) + "\n";
}

}  // namespace

std::string counter_text(const char* path) {
    if (std::strstr(path, "/counters/") == nullptr && std::strstr(path, "/hw_counters/") == nullptr &&
        std::strstr(path, "/statistics/") == nullptr)
        return "";
    const std::string root = sysfs::root(), classes = root + "/class/";
    if (std::strncmp(path, classes.c_str(), classes.size()) != 0) return "";
    char device[64], folder[32], name[64];
    u32 port = 0;
    const bool of_port = std::sscanf(path + classes.size(), "infiniband/%63[^/]/ports/%u/%31[^/]/%63[^/]", device, &port,
                                     folder, name) == 4;
    const bool of_netdev = !of_port && std::sscanf(path + classes.size(), "net/%63[^/]/statistics/%63[^/]", device, name) == 2;
    if (!of_port && !of_netdev) return "";
    const std::vector<std::string> hcas = sysfs::entries(root + "/class/infiniband");
    for (u32 hca = 0; hca < hcas.size(); ++hca) {
        const std::vector<std::string> bond = sysfs::bonded(root + "/class/infiniband/" + hcas[hca] + "/device/net");
        if (of_port && hcas[hca] == device) {
            const Name* const found = std::strcmp(folder, "counters") == 0      ? find(kCounters, name)
                                      : std::strcmp(folder, "hw_counters") == 0 ? find(kHwCounters, name)
                                                                                : nullptr;
            if (found == nullptr) return "";
            return bond.empty() ? text(root, *found, hca, port, port)
                                : text(root, *found, hca, 1, static_cast<u32>(bond.size()));
        }
        for (u32 i = 0; of_netdev && i < bond.size(); ++i) {
            const Name* const found = bond[i] == device ? find(kStatistics, name) : nullptr;
            if (found != nullptr) return text(root, *found, hca, i + 1, i + 1);
        }
    }
    return "";
}

}  // namespace rdmakit::uverbs
