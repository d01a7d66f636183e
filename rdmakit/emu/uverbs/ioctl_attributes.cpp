#include "ioctl_attributes.hpp"

#include <rdma/ib_user_ioctl_cmds.h>

namespace rdmakit::uverbs {

ib_uverbs_attr* Attributes::find(u16 id) const {
    for (u32 i = 0; i < count_; ++i)
        if (first_[i].attr_id == id) return &first_[i];
    return nullptr;
}

int Attributes::check(std::initializer_list<u16> required, std::initializer_list<u16> optional) const {
    for (u32 i = 0; i < count_; ++i) {
        const u16 id = first_[i].attr_id;
        if (find(id) != &first_[i]) return EINVAL;
        const bool known = std::find(required.begin(), required.end(), id) != required.end() ||
                           std::find(optional.begin(), optional.end(), id) != optional.end();
        if (!known && (first_[i].flags & UVERBS_ATTR_F_MANDATORY)) return EPROTONOSUPPORT;
    }
    for (const u16 id : required)
        if (!has(id)) return EINVAL;
    return 0;
}

std::size_t Attributes::size(u16 id) const {
    const ib_uverbs_attr* const attribute = find(id);
    return attribute != nullptr ? attribute->len : 0;
}

const u8* Attributes::bytes(u16 id) const {
    const ib_uverbs_attr* const attribute = find(id);
    if (attribute == nullptr) return nullptr;
    if (attribute->len <= sizeof attribute->data) return reinterpret_cast<const u8*>(&attribute->data);
    return reinterpret_cast<const u8*>(attribute->data);
}

u32 Attributes::handle(u16 id) const {
    const ib_uverbs_attr* const attribute = find(id);
    return attribute != nullptr ? static_cast<u32>(attribute->data) : 0;
}

int Attributes::descriptor(u16 id) const {
    const ib_uverbs_attr* const attribute = find(id);
    return attribute != nullptr ? static_cast<int>(attribute->data_s64) : -1;
}

void Attributes::put_handle(u16 id, u64 handle) {
    if (ib_uverbs_attr* const attribute = find(id)) attribute->data = handle;
}

u8* Attributes::out(u16 id) {
    ib_uverbs_attr* const attribute = find(id);
    if (attribute == nullptr) return nullptr;
    attribute->flags |= UVERBS_ATTR_F_VALID_OUTPUT;
    return reinterpret_cast<u8*>(attribute->data);
}

void Attributes::driver_parts(Command& command) {
    command.driver = bytes(UVERBS_ATTR_UHW_IN);
    command.driver_size = size(UVERBS_ATTR_UHW_IN);
    command.driver_response = out(UVERBS_ATTR_UHW_OUT);
    command.driver_response_size = size(UVERBS_ATTR_UHW_OUT);
}

}  // namespace rdmakit::uverbs
