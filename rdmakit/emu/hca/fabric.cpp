// fabric.cpp — address lookup.
#include "fabric.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace rdmakit::emu {

Status Fabric::attach(Hca* hca, u32 port, const Gid& gid, u32 lid) {
    for (const Address& address : addresses_) {
        if (std::memcmp(address.gid.raw, gid.raw, sizeof gid.raw) == 0)
            return {EADDRINUSE, "this GID is attached to a port already"};
        if (lid != 0 && address.lid == lid) return {EADDRINUSE, "this LID is attached to a port already"};
    }
    addresses_.push_back(Address{gid, lid, Endpoint{hca, port}});
    return {};
}

void Fabric::detach(const Hca* hca) {
    const auto gone = std::remove_if(addresses_.begin(), addresses_.end(),
                                     [hca](const Address& address) { return address.endpoint.hca == hca; });
    addresses_.erase(gone, addresses_.end());
}

Fabric::Endpoint Fabric::find(const AddressVector& to, bool roce) const {
    for (const Address& address : addresses_) {
        const bool match = roce || to.is_global ? std::memcmp(address.gid.raw, to.dgid.raw, sizeof to.dgid.raw) == 0
                                                : to.dlid != 0 && address.lid == to.dlid;
        if (match) return address.endpoint;
    }
    return {};
}

}  // namespace rdmakit::emu
