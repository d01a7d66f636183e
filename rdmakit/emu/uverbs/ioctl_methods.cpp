// ioctl_methods.cpp — RDMA_VERBS_IOCTL for the objects that every device has: each method is a command in another wrapping.
// Leans on ioctl_attributes.hpp and open_device.hpp; devx.hpp has mlx5's own objects. rdma/ib_user_ioctl_cmds.h.
// What is not here is refused with EPROTONOSUPPORT, as kernels do that lack it, and libibverbs takes write(2).
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/mlx5_user_ioctl_cmds.h>
#include <rdma/mlx5_user_ioctl_verbs.h>

#include <cerrno>

#include "ioctl_attributes.hpp"
#include "open_device.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kLongest = 4096;  // one page, as the kernel allows (PAGE_SIZE in ib_uverbs_ioctl)

constexpr u32 method(u32 object, u32 number) { return object << 16 | number; }

template <class Request, class Response>
Command wrap(const Request& request, Response* response) {
    Command command;
    command.request = reinterpret_cast<const u8*>(&request);
    command.request_size = sizeof request;
    command.response = reinterpret_cast<u8*>(response);
    command.response_size = sizeof *response;
    return command;
}

}  // namespace

int OpenDevice::ioctl(void* argument) {
    ib_uverbs_ioctl_hdr& header = *static_cast<ib_uverbs_ioctl_hdr*>(argument);
    if (header.length > kLongest ||
        header.length != sizeof header + header.num_attrs * sizeof(ib_uverbs_attr))
        return EINVAL;
    if (header.reserved1 != 0 || header.reserved2 != 0) return EPROTONOSUPPORT;
    if (header.driver_id != RDMA_DRIVER_MLX5) return EINVAL;
    Attributes attributes(header.attrs, header.num_attrs);
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    if (header.object_id >= UVERBS_UDATA_DRIVER_DATA_FLAG)
        return devx_.run(header.object_id, header.method_id, attributes);
    return run(header.object_id, header.method_id, attributes);
}

int OpenDevice::run(u32 object, u32 number, Attributes& attributes) {
    switch (method(object, number)) {
        case method(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_INVOKE_WRITE): return invoke_write(attributes);
        case method(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_GET_CONTEXT): return ioctl_get_context(attributes);
        case method(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_CONTEXT): return query_context(attributes);
        case method(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_PORT): return ioctl_query_port(attributes);
        case method(UVERBS_OBJECT_DEVICE, MLX5_IB_METHOD_QUERY_PORT): return query_steering(attributes);
        case method(UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_GID_ENTRY): return query_gid_entry(attributes);
        case method(UVERBS_OBJECT_ASYNC_EVENT, UVERBS_METHOD_ASYNC_EVENT_ALLOC): return alloc_async(attributes);
        case method(UVERBS_OBJECT_PD, UVERBS_METHOD_PD_DESTROY): return ioctl_dealloc_pd(attributes);
        case method(UVERBS_OBJECT_PD, MLX5_IB_METHOD_PD_QUERY): return query_pd(attributes);
        case method(UVERBS_OBJECT_MR, UVERBS_METHOD_MR_DESTROY): return ioctl_dereg_mr(attributes);
        case method(UVERBS_OBJECT_MR, UVERBS_METHOD_QUERY_MR): return ioctl_query_mr(attributes);
        case method(UVERBS_OBJECT_MR, UVERBS_METHOD_REG_DMABUF_MR): return reg_dmabuf_mr(attributes);
        case method(UVERBS_OBJECT_MR, UVERBS_METHOD_DM_MR_REG): return reg_dm_mr(attributes);
        case method(UVERBS_OBJECT_DM, UVERBS_METHOD_DM_ALLOC): return alloc_dm(attributes);
        case method(UVERBS_OBJECT_DM, UVERBS_METHOD_DM_FREE): return free_dm(attributes);
        case method(UVERBS_OBJECT_DM, MLX5_IB_METHOD_DM_QUERY): return query_dm(attributes);
        case method(UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_CREATE): return ioctl_create_cq(attributes);
        case method(UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_DESTROY): return ioctl_destroy_cq(attributes);
        case method(UVERBS_OBJECT_QP, UVERBS_METHOD_QP_CREATE): return ioctl_create_qp(attributes);
        case method(UVERBS_OBJECT_QP, UVERBS_METHOD_QP_DESTROY): return ioctl_destroy_qp(attributes);
        default: return EPROTONOSUPPORT;
    }
}

int OpenDevice::invoke_write(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_WRITE_CMD}, {UVERBS_ATTR_CORE_IN, UVERBS_ATTR_CORE_OUT,
                                                             UVERBS_ATTR_UHW_IN, UVERBS_ATTR_UHW_OUT}))
        return error;
    const u32 number = in.get<u32>(UVERBS_ATTR_WRITE_CMD);
    Command command;
    command.request = in.bytes(UVERBS_ATTR_CORE_IN);
    command.request_size = in.size(UVERBS_ATTR_CORE_IN);
    if (command.request == nullptr) return ENOSPC;  // so libibverbs asks whether there is this method
    command.response = in.out(UVERBS_ATTR_CORE_OUT);
    command.response_size = in.size(UVERBS_ATTR_CORE_OUT);
    in.driver_parts(command);
    return run(number & IB_USER_VERBS_CMD_COMMAND_MASK, number & IB_USER_VERBS_CMD_FLAG_EXTENDED, command);
}

// ---- the device -------------------------------------------------------------------------------------------------
int OpenDevice::ioctl_get_context(Attributes& in) {
    if (const int error = in.check({}, {UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS, UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT,
                                        UVERBS_ATTR_UHW_IN, UVERBS_ATTR_UHW_OUT}))
        return error;
    Command command;
    in.driver_parts(command);
    if (const int error = open_context(command, 0, 0)) return error;
    in.put(UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS, u32{kCompVectors});
    in.put(UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT, u64{IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS});
    return 0;
}

// Of a context that is open already: another descriptor of it has come along (ibv_import_device).
int OpenDevice::query_context(Attributes& in) {
    if (const int error = in.check({}, {UVERBS_ATTR_QUERY_CONTEXT_NUM_COMP_VECTORS, UVERBS_ATTR_QUERY_CONTEXT_CORE_SUPPORT,
                                        MLX5_IB_ATTR_QUERY_CONTEXT_RESP_UCTX}))
        return error;
    if (!opened_) return EINVAL;
    in.put(UVERBS_ATTR_QUERY_CONTEXT_NUM_COMP_VECTORS, u32{kCompVectors});
    in.put(UVERBS_ATTR_QUERY_CONTEXT_CORE_SUPPORT, u64{IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS});
    in.put(MLX5_IB_ATTR_QUERY_CONTEXT_RESP_UCTX, describe_context());
    return 0;
}

// Events go to the first.
int OpenDevice::alloc_async(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE})) return error;
    const std::shared_ptr<EventFile> made = EventFile::create();
    if (!made) return EMFILE;
    if (!async_) async_ = made;
    in.put_handle(UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE, static_cast<u64>(made->fd()));
    return 0;
}

int OpenDevice::ioctl_query_port(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_QUERY_PORT_PORT_NUM, UVERBS_ATTR_QUERY_PORT_RESP})) return error;
    ib_uverbs_query_port request = {};
    request.port_num = in.get<u8>(UVERBS_ATTR_QUERY_PORT_PORT_NUM);
    ib_uverbs_query_port_resp_ex answer = {};
    Command command = wrap(request, &answer.legacy_resp);
    if (const int error = query_port(command)) return error;
    in.put(UVERBS_ATTR_QUERY_PORT_RESP, answer);
    return 0;
}

// How an embedded switch steers to a port (mlx5dv_query_port). Out of switchdev mode the kernel answers without a flag.
int OpenDevice::query_steering(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_QUERY_PORT_PORT_NUM, MLX5_IB_ATTR_QUERY_PORT})) return error;
    const u32 port = in.get<u32>(MLX5_IB_ATTR_QUERY_PORT_PORT_NUM);
    if (port < 1 || port > hca_->ib_ports()) return EINVAL;
    in.put(MLX5_IB_ATTR_QUERY_PORT, mlx5_ib_uapi_query_port{});
    return 0;
}

int OpenDevice::query_gid_entry(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_QUERY_GID_ENTRY_PORT, UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX,
                                    UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS, UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY}))
        return error;
    const u32 port = in.get<u32>(UVERBS_ATTR_QUERY_GID_ENTRY_PORT);
    const u32 index = in.get<u32>(UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX);
    if (in.get<u32>(UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS) != 0 || port < 1 || port > hca_->ib_ports()) return EINVAL;
    const Gid* const gid = Machine::here().gid(hca_, port, index);
    if (gid == nullptr) return index < kGidEntries ? ENODATA : EINVAL;
    ib_uverbs_gid_entry entry = {};
    std::memcpy(entry.gid, gid->raw, sizeof entry.gid);
    entry.gid_index = index;
    entry.port_num = port;
    entry.gid_type = hca_->config().roce ? IB_UVERBS_GID_TYPE_ROCE_V2 : IB_UVERBS_GID_TYPE_IB;
    in.put(UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY, entry);
    return 0;
}

// ---- protection domains and memory regions ----------------------------------------------------------------------
int OpenDevice::ioctl_dealloc_pd(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_DESTROY_PD_HANDLE})) return error;
    const ib_uverbs_dealloc_pd request = {in.handle(UVERBS_ATTR_DESTROY_PD_HANDLE)};
    u8 nothing;
    Command command = wrap(request, &nothing);
    return dealloc_pd(command);
}

int OpenDevice::query_pd(Attributes& in) {
    if (const int error = in.check({MLX5_IB_ATTR_QUERY_PD_HANDLE, MLX5_IB_ATTR_QUERY_PD_RESP_PDN})) return error;
    const u32 pd = in.handle(MLX5_IB_ATTR_QUERY_PD_HANDLE);
    if (pds_.count(pd) == 0) return ENOENT;
    in.put(MLX5_IB_ATTR_QUERY_PD_RESP_PDN, pd);
    return 0;
}

int OpenDevice::ioctl_dereg_mr(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_DESTROY_MR_HANDLE})) return error;
    const ib_uverbs_dereg_mr request = {in.handle(UVERBS_ATTR_DESTROY_MR_HANDLE)};
    u8 nothing;
    Command command = wrap(request, &nothing);
    return dereg_mr(command);
}

int OpenDevice::ioctl_query_mr(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_QUERY_MR_HANDLE}, {UVERBS_ATTR_QUERY_MR_RESP_LKEY,
                                                                   UVERBS_ATTR_QUERY_MR_RESP_RKEY,
                                                                   UVERBS_ATTR_QUERY_MR_RESP_LENGTH,
                                                                   UVERBS_ATTR_QUERY_MR_RESP_IOVA}))
        return error;
    const auto found = mrs_.find(in.handle(UVERBS_ATTR_QUERY_MR_HANDLE));
    MrInfo info;
    if (found == mrs_.end() || !hca_->query_mr(found->second, &info).ok()) return EINVAL;
    in.put(UVERBS_ATTR_QUERY_MR_RESP_LKEY, info.key);
    in.put(UVERBS_ATTR_QUERY_MR_RESP_RKEY, info.key);
    in.put(UVERBS_ATTR_QUERY_MR_RESP_LENGTH, info.length);
    in.put(UVERBS_ATTR_QUERY_MR_RESP_IOVA, info.iova);
    return 0;
}

// ---- completion queues ------------------------------------------------------------------------------------------
int OpenDevice::ioctl_create_cq(Attributes& in) {
    if (const int error = in.check(
            {UVERBS_ATTR_CREATE_CQ_HANDLE, UVERBS_ATTR_CREATE_CQ_CQE, UVERBS_ATTR_CREATE_CQ_USER_HANDLE,
             UVERBS_ATTR_CREATE_CQ_COMP_VECTOR, UVERBS_ATTR_CREATE_CQ_RESP_CQE},
            {UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL, UVERBS_ATTR_CREATE_CQ_FLAGS, UVERBS_ATTR_CREATE_CQ_EVENT_FD,
             UVERBS_ATTR_UHW_IN, UVERBS_ATTR_UHW_OUT}))
        return error;
    ib_uverbs_ex_create_cq request = {};
    request.user_handle = in.get<u64>(UVERBS_ATTR_CREATE_CQ_USER_HANDLE);
    request.cqe = in.get<u32>(UVERBS_ATTR_CREATE_CQ_CQE);
    request.comp_vector = in.get<u32>(UVERBS_ATTR_CREATE_CQ_COMP_VECTOR);
    request.comp_channel = in.descriptor(UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL);
    request.flags = in.get<u32>(UVERBS_ATTR_CREATE_CQ_FLAGS);
    ib_uverbs_ex_create_cq_resp answer = {};
    Command command = wrap(request, &answer);
    in.driver_parts(command);
    if (const int error = create_cq(command, true)) return error;
    in.put_handle(UVERBS_ATTR_CREATE_CQ_HANDLE, answer.base.cq_handle);
    in.put(UVERBS_ATTR_CREATE_CQ_RESP_CQE, answer.base.cqe);
    return 0;
}

int OpenDevice::ioctl_destroy_cq(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_DESTROY_CQ_HANDLE, UVERBS_ATTR_DESTROY_CQ_RESP})) return error;
    ib_uverbs_destroy_cq request = {};
    request.cq_handle = in.handle(UVERBS_ATTR_DESTROY_CQ_HANDLE);
    ib_uverbs_destroy_cq_resp answer = {};
    Command command = wrap(request, &answer);
    if (const int error = destroy_cq(command)) return error;
    in.put(UVERBS_ATTR_DESTROY_CQ_RESP, answer);
    return 0;
}

// ---- queue pairs ------------------------------------------------------------------------------------------------
int OpenDevice::ioctl_create_qp(Attributes& in) {
    if (const int error = in.check(
            {UVERBS_ATTR_CREATE_QP_HANDLE, UVERBS_ATTR_CREATE_QP_USER_HANDLE, UVERBS_ATTR_CREATE_QP_CAP,
             UVERBS_ATTR_CREATE_QP_TYPE, UVERBS_ATTR_CREATE_QP_RESP_QP_NUM},
            {UVERBS_ATTR_CREATE_QP_PD_HANDLE, UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE, UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE,
             UVERBS_ATTR_CREATE_QP_SRQ_HANDLE, UVERBS_ATTR_CREATE_QP_FLAGS, UVERBS_ATTR_CREATE_QP_EVENT_FD, UVERBS_ATTR_CREATE_QP_RESP_CAP,
             UVERBS_ATTR_UHW_IN, UVERBS_ATTR_UHW_OUT}))
        return error == EPROTONOSUPPORT ? EOPNOTSUPP : error;  // of XRC and the like this device knows nothing
    const auto cap = in.get<ib_uverbs_qp_cap>(UVERBS_ATTR_CREATE_QP_CAP);
    u32 flags = in.get<u32>(UVERBS_ATTR_CREATE_QP_FLAGS);
    ib_uverbs_ex_create_qp request = {};
    request.user_handle = in.get<u64>(UVERBS_ATTR_CREATE_QP_USER_HANDLE);
    request.pd_handle = in.handle(UVERBS_ATTR_CREATE_QP_PD_HANDLE);
    request.send_cq_handle = in.handle(UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE);
    request.recv_cq_handle = in.handle(UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE);
    request.is_srq = in.has(UVERBS_ATTR_CREATE_QP_SRQ_HANDLE);
    request.srq_handle = in.handle(UVERBS_ATTR_CREATE_QP_SRQ_HANDLE);
    request.max_send_wr = cap.max_send_wr;
    request.max_recv_wr = cap.max_recv_wr;
    request.max_send_sge = cap.max_send_sge;
    request.max_recv_sge = cap.max_recv_sge;
    request.max_inline_data = cap.max_inline_data;
    request.sq_sig_all = (flags & IB_UVERBS_QP_CREATE_SQ_SIG_ALL) != 0;
    flags &= ~u32{IB_UVERBS_QP_CREATE_SQ_SIG_ALL};
    request.create_flags = flags;
    const u64 type = in.get<u64>(UVERBS_ATTR_CREATE_QP_TYPE);
    if (type > 0xff) return EINVAL;
    request.qp_type = static_cast<u8>(type);
    ib_uverbs_ex_create_qp_resp answer = {};
    Command command = wrap(request, &answer);
    in.driver_parts(command);
    if (const int error = create_qp(command, true)) return error;
    const ib_uverbs_create_qp_resp& made = answer.base;
    in.put_handle(UVERBS_ATTR_CREATE_QP_HANDLE, made.qp_handle);
    in.put(UVERBS_ATTR_CREATE_QP_RESP_CAP, ib_uverbs_qp_cap{made.max_send_wr, made.max_recv_wr, made.max_send_sge,
                                                            made.max_recv_sge, made.max_inline_data});
    in.put(UVERBS_ATTR_CREATE_QP_RESP_QP_NUM, made.qpn);
    return 0;
}

int OpenDevice::ioctl_destroy_qp(Attributes& in) {
    if (const int error = in.check({UVERBS_ATTR_DESTROY_QP_HANDLE, UVERBS_ATTR_DESTROY_QP_RESP})) return error;
    ib_uverbs_destroy_qp request = {};
    request.qp_handle = in.handle(UVERBS_ATTR_DESTROY_QP_HANDLE);
    ib_uverbs_destroy_qp_resp answer = {};
    Command command = wrap(request, &answer);
    if (const int error = destroy_qp(command)) return error;
    in.put(UVERBS_ATTR_DESTROY_QP_RESP, answer);
    return 0;
}

}  // namespace rdmakit::uverbs
