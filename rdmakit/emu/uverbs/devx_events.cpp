// devx_events.cpp — event channels of objects that commands made: completions of armed CQs, CQs and queue pairs that fail.
// Leans on devx.hpp. rdma/mlx5_user_ioctl_cmds.h; kernel drivers/infiniband/hw/mlx5/devx.c (dispatch_event_fd); event types:
// include/linux/mlx5/device.h enum mlx5_event. A channel that omits data tells an event once until it has been read.
#include <rdma/mlx5_user_ioctl_cmds.h>
#include <rdma/mlx5_user_ioctl_verbs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "devx.hpp"

namespace rdmakit::uverbs {
namespace {

enum : u16 { kComp = 0x00, kCommEst = 0x02, kSqDrained = 0x03, kCqError = 0x04, kWqCatas = 0x05, kSrqLastWqe = 0x13,
             kWqInvalReq = 0x10, kWqAccess = 0x11, kOther = 0xff };

u16 type_of(AsyncEventType type) {
    switch (type) {
        case AsyncEventType::completion: return kComp;
        case AsyncEventType::cq_error: return kCqError;
        case AsyncEventType::qp_fatal: return kWqCatas;
        case AsyncEventType::qp_request_error: return kWqInvalReq;
        case AsyncEventType::qp_access_error: return kWqAccess;
        case AsyncEventType::communication_established: return kCommEst;
        case AsyncEventType::sq_drained: return kSqDrained;
        case AsyncEventType::last_wqe_reached: return kSrqLastWqe;
        default: return kOther;
    }
}

// The header, and behind it an entry of an event queue (struct mlx5_eqe).
struct Told {
    u64 cookie;
    u8 eqe[64];
};

}  // namespace

int Devx::alloc_channel(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_ASYNC_EVENT_FD_ALLOC_HANDLE}, {MLX5_IB_ATTR_DEVX_ASYNC_EVENT_FD_ALLOC_FLAGS}))
        return error;
    if (!allowed_) return EINVAL;
    const std::shared_ptr<EventFile> made = EventFile::create();
    if (!made) return EMFILE;
    const u64 flags = in.get<u64>(MLX5_IB_ATTR_DEVX_ASYNC_EVENT_FD_ALLOC_FLAGS);
    omits_data_[made->fd()] = flags & MLX5_IB_UAPI_DEVX_CR_EV_CH_FLAGS_OMIT_DATA;
    in.put_handle(MLX5_IB_ATTR_DEVX_ASYNC_EVENT_FD_ALLOC_HANDLE, static_cast<u64>(made->fd()));
    return 0;
}

int Devx::subscribe(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_FD_HANDLE, MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_OBJ_HANDLE,
                                    MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_TYPE_NUM_LIST, MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_COOKIE}))
        return error == EPROTONOSUPPORT ? EOPNOTSUPP : error;  // an eventfd, or events that belong to no object
    const std::shared_ptr<EventFile> channel = EventFile::at(in.descriptor(MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_FD_HANDLE));
    const u32 handle = in.handle(MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_OBJ_HANDLE);
    const auto object = objects_.find(handle);
    if (!channel || object == objects_.end()) return EINVAL;
    const std::size_t bytes = in.size(MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_TYPE_NUM_LIST);
    if (bytes == 0 || bytes % sizeof(u16) != 0) return EINVAL;
    for (std::size_t at = 0; at < bytes; at += sizeof(u16)) {
        u16 type;
        std::memcpy(&type, in.bytes(MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_TYPE_NUM_LIST) + at, sizeof type);
        const bool of_cq = type == kComp || type == kCqError;
        if (object->second.kind != (of_cq ? Kind::cq : Kind::qp)) return EINVAL;
        subscriptions_.push_back({channel, handle, type, in.get<u64>(MLX5_IB_ATTR_DEVX_SUBSCRIBE_EVENT_COOKIE)});
    }
    return 0;
}

void Devx::event(AsyncEvent event) {
    const u16 type = type_of(event.type);
    const Kind kind = type == kComp || type == kCqError ? Kind::cq : Kind::qp;
    for (const Subscription& subscription : subscriptions_) {
        const auto object = objects_.find(subscription.handle);
        if (subscription.type != type || object == objects_.end()) continue;
        if (object->second.kind != kind || object->second.number != event.number) continue;
        const bool omit = omits_data_[subscription.channel->fd()];
        Told told = {subscription.cookie, {}};
        told.eqe[1] = static_cast<u8>(type);
        // What is not read of an object that goes is taken back: it is known by the subscription's handle.
        const void* const of = reinterpret_cast<const void*>(static_cast<std::uintptr_t>(subscription.handle));
        if (omit && subscription.channel->waits(of)) continue;
        subscription.channel->push(&told, omit ? sizeof told.cookie : sizeof told, of, std::make_shared<u32>(0));
    }
}

void Devx::forget_events(u32 handle) {
    const auto first = std::remove_if(subscriptions_.begin(), subscriptions_.end(), [&](const Subscription& subscription) {
        if (subscription.handle != handle) return false;
        subscription.channel->take_back(reinterpret_cast<const void*>(static_cast<std::uintptr_t>(handle)));
        return true;
    });
    subscriptions_.erase(first, subscriptions_.end());
}

}  // namespace rdmakit::uverbs
