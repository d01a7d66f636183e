// fabric.hpp — who is connected to whom: which HCA port answers to a GID or a LID.
// Leans on attributes.hpp. A plain lookup; where links and switches count, network.hpp has them.
#pragma once
#include <memory>
#include <vector>

#include "attributes.hpp"
#include "network.hpp"

namespace rdmakit::emu {

class Hca;

class Fabric {
  public:
    struct Endpoint {
        Hca* hca = nullptr;
        u32 port = 0;  // IB port number, 1..
    };

    // A port answers to the addresses attached to it; a taken address is refused with EADDRINUSE. lid 0: none.
    Status attach(Hca* hca, u32 port, const Gid& gid, u32 lid);
    void detach(const Hca* hca);
    Endpoint find(const AddressVector& to, bool roce) const;
    // Timed: the switches in between; null: one that is never the bottleneck.
    Network* network() const { return network_.get(); }
    void set_network(const NetworkConfig& config) { network_ = std::make_unique<Network>(config); }

  private:
    struct Address {
        Gid gid;
        u32 lid = 0;
        Endpoint endpoint;
    };
    std::vector<Address> addresses_;
    std::unique_ptr<Network> network_;
};

}  // namespace rdmakit::emu
