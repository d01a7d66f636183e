// devx.hpp — what DevX makes, owned as every other handle: UAR pages, umems, objects created by command.
// Leans on boxes.hpp. man mlx5dv_devx_obj_create: an object is destroyed before the umems and the page that it uses, so
// its box holds theirs.
#pragma once
#include <cstring>

#include "boxes.hpp"

namespace rdmakit::verbs {

using UarBox = Box<DevxUar>;
using UmemBox = Box<DevxUmem>;
using DevxBox = Box<DevxObj>;
using Parents = std::vector<std::shared_ptr<void>>;

using EventsBox = Box<DevxEventChannel>;

inline int destroy_events(DevxEventChannel* channel) {
    std::string why;
    library(&why)->mlx5dv.devx_destroy_event_channel(channel);
    return 0;
}
inline std::shared_ptr<EventsBox> own(DevxEventChannel* raw, const std::shared_ptr<ContextBox>& context) {
    return std::make_shared<EventsBox>(raw, destroy_events, Parents{context});
}

inline int free_uar(DevxUar* uar) {
    std::string why;
    library(&why)->mlx5dv.devx_free_uar(uar);
    return 0;
}

inline std::shared_ptr<UarBox> own(DevxUar* raw, const std::shared_ptr<ContextBox>& context) {
    return std::make_shared<UarBox>(raw, free_uar, Parents{context});
}
// `memory` may be null: somebody else keeps it.
inline std::shared_ptr<UmemBox> own(DevxUmem* raw, const Library* calls, const std::shared_ptr<ContextBox>& context,
                                    const std::shared_ptr<void>& memory) {
    return std::make_shared<UmemBox>(raw, calls->mlx5dv.devx_umem_dereg, Parents{context, memory});
}
inline std::shared_ptr<DevxBox> own(DevxObj* raw, const Library* calls, Parents parents) {
    return std::make_shared<DevxBox>(raw, calls->mlx5dv.devx_obj_destroy, std::move(parents));
}

constexpr uint64_t kAdapterPages = ~0xfffull;  // any page of 4 KiB and more: queues are laid out in such (log_page_size 0)

inline DevxUmem* register_umem(const Library* calls, Context* context, void* address, size_t nbytes, uint32_t access) {
    return calls->mlx5dv.devx_umem_reg(context, address, nbytes, access);
}

inline DevxUmem* register_dmabuf(const Library* calls, Context* context, int fd, uint64_t offset, size_t nbytes,
                                 uint32_t access) {
    DevxUmemIn in = {};
    in.addr = reinterpret_cast<void*>(offset);
    in.size = nbytes;
    in.access = access;
    in.pgsz_bitmap = kAdapterPages;
    in.comp_mask = kUmemDmabuf;
    in.dmabuf_fd = fd;
    return calls->mlx5dv.devx_umem_reg_ex(context, &in);
}

// 0 or an errno: the number that commands name a PD by.
inline int pd_number(const Library* calls, Pd* pd, uint32_t* number) {
    if (calls->mlx5dv.init_obj == nullptr) return 95;  // EOPNOTSUPP
    Mlx5Pd found = {};
    Mlx5Obj object = {};
    object.pd.in = pd;
    object.pd.out = &found;
    const int error = calls->mlx5dv.init_obj(&object, kObjPd);
    *number = found.pdn;
    return error;
}

// 0 or an errno: the Ethernet address behind a GID, which the kernel resolves when an address handle is made (rdma-core
// providers/mlx5/verbs.c mlx5_create_ah; kernel drivers/infiniband/core/addr.c).
inline int resolve_mac(const Library* calls, Pd* pd, AhAttr* attributes, uint8_t mac[6]) {
    if (calls->mlx5dv.init_obj == nullptr) return 95;
    errno = 0;
    AddressHandle* const made = calls->create_ah(pd, attributes);
    if (made == nullptr) return errno != 0 ? errno : EINVAL;
    Mlx5Ah found = {};
    Mlx5Obj object = {};
    object.ah.in = made;
    object.ah.out = &found;
    const int error = calls->mlx5dv.init_obj(&object, kObjAh);
    if (error == 0) std::memcpy(mac, found.av->rmac, 6);
    calls->destroy_ah(made);
    return error;
}

}  // namespace rdmakit::verbs
