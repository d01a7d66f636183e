// ioctl_attributes.hpp — what a RDMA_VERBS_IOCTL brings and takes home: attributes by their number, in any order.
// Leans on command.hpp and rdma/rdma_user_ioctl_cmds.h. kernel drivers/infiniband/core/uverbs_ioctl.c has the rules:
// values of up to eight bytes lie in the attribute itself, an unknown attribute matters only if it is mandatory.
#pragma once
#include <rdma/rdma_user_ioctl_cmds.h>

#include <cerrno>
#include <initializer_list>

#include "command.hpp"

namespace rdmakit::uverbs {

class Attributes {
  public:
    Attributes(ib_uverbs_attr* first, u32 count) : first_(first), count_(count) {}

    // 0, or the errno of what is wrong: an attribute twice, one that is missing, one that is mandatory and not known.
    int check(std::initializer_list<u16> required, std::initializer_list<u16> optional = {}) const;
    bool has(u16 id) const { return find(id) != nullptr; }
    // The bytes of an attribute that comes in; none if it is not there.
    const u8* bytes(u16 id) const;
    std::size_t size(u16 id) const;
    // A number, or a struct of which as much is filled as the attribute has.
    template <class T>
    T get(u16 id, T otherwise = {}) const {
        const u8* const from = bytes(id);
        if (from == nullptr) return otherwise;
        T value = {};
        std::memcpy(&value, from, std::min(sizeof value, size(id)));
        return value;
    }
    // An object's number, or a descriptor.
    u32 handle(u16 id) const;
    int descriptor(u16 id) const;
    void put_handle(u16 id, u64 handle);
    // Where an answer goes, and its room; what is longer is cut. Marked as filled.
    u8* out(u16 id);
    template <class T>
    void put(u16 id, const T& value) {
        if (u8* const to = out(id)) std::memcpy(to, &value, std::min(sizeof value, size(id)));
    }
    // The driver's parts, as `command` has them.
    void driver_parts(Command& command);

  private:
    ib_uverbs_attr* find(u16 id) const;

    ib_uverbs_attr* const first_;
    const u32 count_;
};

}  // namespace rdmakit::uverbs
