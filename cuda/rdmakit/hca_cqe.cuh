// rdmakit/hca_cqe.cuh — the completion entries that an HCA writes, and where in a CQ they go.
// Layer: hca (leans on wqe). Source: mlx5 PRM "Completion Queue Entry"; rdma-core providers/mlx5/cq.c reads them.
#pragma once
#include "wqe.cuh"

namespace rdmakit {

// The owner bit of the `produced`-th entry of a CQ. A collapsed CQ has one entry that is always in its first lap.
RDMAKIT_DEVICE constexpr u32 cqe_owner(u64 produced, u32 log_entries, bool collapsed) {
    return collapsed ? 0 : static_cast<u32>(produced >> log_entries) & 1;
}
RDMAKIT_DEVICE constexpr u64 cqe_slot(u64 produced, u32 log_entries, bool collapsed) {
    return collapsed ? 0 : produced & ((1ull << log_entries) - 1);
}
RDMAKIT_DEVICE constexpr u8 cqe_op_own(CqeOpcode opcode, u32 flags, u32 owner) {
    return static_cast<u8>((static_cast<u32>(opcode) << 4) | flags | owner);
}

// The builders leave the owner bit 0: whoever places the entry ORs it in.
RDMAKIT_DEVICE Cqe requester_cqe(u32 qpn, u32 send_opcode, u32 wqe_index, u32 bytes, u64 timestamp) {
    Cqe cqe = {};
    cqe.byte_count = swap_bytes(bytes);
    cqe.timestamp = swap_bytes(timestamp);
    cqe.sop_drop_qpn = swap_bytes((send_opcode << 24) | (qpn & 0xffffff));
    cqe.wqe_counter = swap_bytes(static_cast<u16>(wqe_index));
    cqe.op_own = cqe_op_own(CqeOpcode::requester, 0, 0);
    return cqe;
}

// imm as it stood in the sender's WQE, that is big endian.
RDMAKIT_DEVICE Cqe responder_cqe(CqeOpcode opcode, u32 qpn, u32 source_qpn, u32 user_index, u32 wqe_index, u32 bytes,
                                 u32 imm, bool solicited, u64 timestamp) {
    Cqe cqe = {};
    cqe.flags_rqpn = swap_bytes(source_qpn & 0xffffff);
    cqe.srqn_uidx = swap_bytes(user_index & 0xffffff);
    cqe.imm_inval_pkey = imm;
    cqe.byte_count = swap_bytes(bytes);
    cqe.timestamp = swap_bytes(timestamp);
    cqe.sop_drop_qpn = swap_bytes(qpn & 0xffffff);
    cqe.wqe_counter = swap_bytes(static_cast<u16>(wqe_index));
    cqe.op_own = cqe_op_own(opcode, solicited ? kSolicited : 0, 0);
    return cqe;
}

// The vendor syndrome that accompanies each syndrome. 0x53 and 0x88 stand so in public reports of real error CQEs;
// vendors document none of these, and the others are this model's own.
RDMAKIT_DEVICE constexpr u8 vendor_syndrome(Syndrome syndrome) {
    switch (syndrome) {
        case Syndrome::local_protection: return 0x53;
        case Syndrome::flushed: return 0xf9;
        case Syndrome::remote_invalid_request: return 0x8a;
        case Syndrome::remote_access: return 0x88;
        case Syndrome::remote_op: return 0x89;
        case Syndrome::transport_retry_exceeded: return 0x81;
        case Syndrome::rnr_retry_exceeded: return 0x87;
        case Syndrome::local_qp_op: return 0x68;
        default: return 0x01;
    }
}

// opcode is CqeOpcode::requester_error or responder_error; send_opcode is 0 for the latter.
RDMAKIT_DEVICE ErrorCqe error_cqe(CqeOpcode opcode, u32 qpn, u32 send_opcode, u32 user_index, u32 wqe_index,
                                  Syndrome syndrome) {
    ErrorCqe cqe = {};
    cqe.srqn = swap_bytes(user_index & 0xffffff);
    cqe.vendor_syndrome = vendor_syndrome(syndrome);
    cqe.syndrome = static_cast<u8>(syndrome);
    cqe.opcode_qpn = swap_bytes((send_opcode << 24) | (qpn & 0xffffff));
    cqe.wqe_counter = swap_bytes(static_cast<u16>(wqe_index));
    cqe.op_own = cqe_op_own(opcode, 0, 0);
    return cqe;
}

// Scatter-to-CQE: payload of up to 32 bytes goes into the entry itself, of up to 64 into the 64 bytes before it in a
// 128-byte entry. Returns the op_own flag, or 0 if it does not fit. The first 32 bytes hold nothing else that matters
// for a requester; a responder's source QP lies at 24, so libmlx5 does without it there.
RDMAKIT_DEVICE constexpr u32 scatter_flag(u64 bytes, u32 cqe_bytes) {
    if (bytes == 0) return 0;
    if (bytes <= 32) return kCqeScatter32;
    return bytes <= 64 && cqe_bytes == 128 ? kCqeScatter64 : 0;
}

}  // namespace rdmakit
