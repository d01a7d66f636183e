// write_commands.cpp — commands by write(2), as every kernel takes them: a header, a request, an address for the answer.
// Leans on open_device.hpp. kernel include/uapi/rdma/ib_user_verbs.h; the extended form has room for the driver's part.
#include <rdma/ib_user_verbs.h>

#include <cerrno>

#include "open_device.hpp"

namespace rdmakit::uverbs {

int OpenDevice::write(const u8* bytes, std::size_t size) {
    ib_uverbs_cmd_hdr header;
    if (size < sizeof header) return EINVAL;
    std::memcpy(&header, bytes, sizeof header);
    const bool extended = header.command & IB_USER_VERBS_CMD_FLAG_EXTENDED;
    const u32 number = header.command & IB_USER_VERBS_CMD_COMMAND_MASK;
    Command in;
    if (extended) {
        ib_uverbs_ex_cmd_hdr more;
        if (size < sizeof header + sizeof more) return EINVAL;
        std::memcpy(&more, bytes + sizeof header, sizeof more);
        in.request = bytes + sizeof header + sizeof more;
        in.request_size = header.in_words * 8u;
        in.driver = in.request + in.request_size;
        in.driver_size = more.provider_in_words * 8u;
        in.response = reinterpret_cast<u8*>(more.response);
        in.response_size = header.out_words * 8u;
        in.driver_response = in.response != nullptr ? in.response + in.response_size : nullptr;
        in.driver_response_size = more.provider_out_words * 8u;
        if (sizeof header + sizeof more + in.request_size + in.driver_size > size) return EINVAL;
    } else {
        if (header.in_words * 4u != size) return EINVAL;
        in.request = bytes + sizeof header;
        in.request_size = size - sizeof header;
        u64 response = 0;
        if (header.out_words != 0 && in.request_size >= sizeof response)
            std::memcpy(&response, in.request, sizeof response);
        in.response = reinterpret_cast<u8*>(response);
        in.response_size = header.out_words * 4u;
    }
    return run(number, extended, in);
}

int OpenDevice::run(u32 number, bool extended, Command& in) {
    const std::lock_guard<std::recursive_mutex> hold(Machine::here().lock());
    if (extended) {
        switch (number) {
            case IB_USER_VERBS_CMD_QUERY_DEVICE: return query_device(in, true);
            case IB_USER_VERBS_CMD_CREATE_CQ: return create_cq(in, true);
            case IB_USER_VERBS_CMD_CREATE_QP: return create_qp(in, true);
            case IB_USER_VERBS_CMD_MODIFY_QP: return modify_qp(in);
            default: return EOPNOTSUPP;
        }
    }
    switch (number) {
        case IB_USER_VERBS_CMD_GET_CONTEXT: return get_context(in);
        case IB_USER_VERBS_CMD_QUERY_DEVICE: return query_device(in, false);
        case IB_USER_VERBS_CMD_QUERY_PORT: return query_port(in);
        case IB_USER_VERBS_CMD_ALLOC_PD: return alloc_pd(in);
        case IB_USER_VERBS_CMD_DEALLOC_PD: return dealloc_pd(in);
        case IB_USER_VERBS_CMD_REG_MR: return reg_mr(in);
        case IB_USER_VERBS_CMD_DEREG_MR: return dereg_mr(in);
        case IB_USER_VERBS_CMD_REREG_MR: return rereg_mr(in);
        case IB_USER_VERBS_CMD_CREATE_AH: return create_ah(in);
        case IB_USER_VERBS_CMD_DESTROY_AH: return destroy_ah(in);
        case IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL: return create_channel(in);
        case IB_USER_VERBS_CMD_CREATE_CQ: return create_cq(in, false);
        case IB_USER_VERBS_CMD_DESTROY_CQ: return destroy_cq(in);
        case IB_USER_VERBS_CMD_CREATE_SRQ: return create_srq(in, false);
        case IB_USER_VERBS_CMD_CREATE_XSRQ: return create_srq(in, true);
        case IB_USER_VERBS_CMD_MODIFY_SRQ: return modify_srq(in);
        case IB_USER_VERBS_CMD_QUERY_SRQ: return query_srq(in);
        case IB_USER_VERBS_CMD_DESTROY_SRQ: return destroy_srq(in);
        case IB_USER_VERBS_CMD_CREATE_QP: return create_qp(in, false);
        case IB_USER_VERBS_CMD_MODIFY_QP: return modify_qp(in);
        case IB_USER_VERBS_CMD_QUERY_QP: return query_qp(in);
        case IB_USER_VERBS_CMD_DESTROY_QP: return destroy_qp(in);
        default: return EOPNOTSUPP;
    }
}

}  // namespace rdmakit::uverbs
