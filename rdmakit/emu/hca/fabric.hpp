// fabric.hpp — who is connected to whom: which HCA port answers to a GID or a LID.
// Leans on attributes.hpp. A plain lookup; links, switches and loss are not modelled here.
#pragma once
#include <vector>

#include "attributes.hpp"

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

  private:
    struct Address {
        Gid gid;
        u32 lid = 0;
        Endpoint endpoint;
    };
    std::vector<Address> addresses_;
};

}  // namespace rdmakit::emu
