// rdmakit/wqe.cuh — mlx5 work queue entries, completion entries and doorbells: their bytes and how to build them.
// Layer: wqe (leans on config). Nothing here touches shared state; it is arithmetic on bytes.
// Sources: rdma-core providers/mlx5/mlx5dv.h and wqe.h, Mellanox Adapters PRM ("Send Work Request", "CQE Format").
#pragma once
#include "config.cuh"

namespace rdmakit {

// ---- constants -------------------------------------------------------------------------------------------------
constexpr u32 kWqebb = 64;           // bytes of a work queue entry basic block (MLX5_SEND_WQE_BB)
constexpr u32 kDs = 16;              // bytes of the unit that a WQE's size is counted in
constexpr u32 kDsPerBb = kWqebb / kDs;
constexpr u32 kMaxDs = 63;           // the size field has six bits
constexpr u32 kCqe = 64;
constexpr u32 kInlineFlag = 0x80000000u;  // MLX5_INLINE_SEG
constexpr u32 kInvalidLkey = 0x100u;      // MLX5_INVALID_LKEY ends an RQ WQE's scatter list
constexpr u32 kMaxWrite = 1u << 30;       // log_msg_max 30: bytes that one WQE may move

enum class Opcode : u32 {
    nop = 0x00, send_inval = 0x01, write = 0x08, write_imm = 0x09, send = 0x0a, send_imm = 0x0b, read = 0x10,
    cmp_swap = 0x11, fetch_add = 0x12, masked_cmp_swap = 0x14, masked_fetch_add = 0x15, dump = 0x23,
};

// fm_ce_se: completion mode in bits 3:2, solicited event in bit 1, fence mode in bits 7:5.
constexpr u32 kSolicited = 1u << 1;
constexpr u32 kCqUpdate = 2u << 2;          // MLX5_WQE_CTRL_CQ_UPDATE; 0 means "a CQE on error only"
constexpr u32 kSmallFence = 1u << 5;        // wait for earlier UMR and local operations
constexpr u32 kReadAtomicFence = 2u << 5;   // wait for earlier READs and atomics; never orders WRITE after WRITE
constexpr u32 kStrongOrder = 3u << 5;
constexpr u32 kFence = 4u << 5;             // what IBV_SEND_FENCE gives
constexpr u32 kFenceMode = 7u << 5;

// Masked ("extended") atomics say their width in opmod.
constexpr u32 kOpmodMasked4 = 0x08;
constexpr u32 kOpmodMasked8 = 0x09;

enum class CqeOpcode : u32 {
    requester = 0, responder_write_imm = 1, responder_send = 2, responder_send_imm = 3, responder_send_inval = 4,
    resize = 5, requester_error = 13, responder_error = 14, invalid = 15,
};

enum class Syndrome : u32 {
    none = 0, local_length = 0x01, local_qp_op = 0x02, local_protection = 0x04, flushed = 0x05, mw_bind = 0x06,
    bad_response = 0x10, local_access = 0x11, remote_invalid_request = 0x12, remote_access = 0x13, remote_op = 0x14,
    transport_retry_exceeded = 0x15, rnr_retry_exceeded = 0x16, remote_aborted = 0x22,
};

// ---- segments as they lie in memory, every field big endian -----------------------------------------------------
struct CtrlSeg {
    u32 opmod_idx_opcode;  // opmod[31:24] | index of the WQE's first basic block[23:8] | opcode[7:0]
    u32 qpn_ds;            // qpn[31:8] | size in DS[5:0]
    u8 signature;
    u8 dci_stream_channel_id[2];
    u8 fm_ce_se;
    u32 imm;
};
struct RemoteAddrSeg {
    u64 raddr;
    u32 rkey;
    u32 reserved;
};
struct DataSeg {
    u32 byte_count;
    u32 lkey;
    u64 addr;
};
struct InlineSeg {
    u32 byte_count;  // length | kInlineFlag; the bytes follow at once
};
struct AtomicSeg {
    u64 swap_add;
    u64 compare;
};
struct MaskedFetchAdd4Seg {
    u32 add, field_boundary;
    u32 reserved[2];
};
struct MaskedFetchAdd8Seg {
    u64 add, field_boundary;
};
struct MaskedCmpSwap4Seg {
    u32 swap, compare, swap_mask, compare_mask;
};
struct MaskedCmpSwap8Seg {
    u64 swap, compare, swap_mask, compare_mask;
};
static_assert(sizeof(CtrlSeg) == 16 && sizeof(RemoteAddrSeg) == 16 && sizeof(DataSeg) == 16, "16-byte segments");
static_assert(sizeof(AtomicSeg) == 16 && sizeof(MaskedFetchAdd4Seg) == 16 && sizeof(MaskedFetchAdd8Seg) == 16, "");
static_assert(sizeof(MaskedCmpSwap4Seg) == 16 && sizeof(MaskedCmpSwap8Seg) == 32, "");

struct Cqe {
    u8 inline_data[24];       // bytes 0..31 hold scattered data when op_own says so
    u32 flags_rqpn;           // @24
    u8 inline_data_2[4];
    u32 srqn_uidx;            // @32
    u32 imm_inval_pkey;       // @36
    u8 app, app_op;           // @40
    u16 app_info;
    u32 byte_count;           // @44
    u64 timestamp;            // @48
    u32 sop_drop_qpn;         // @56 send opcode[31:24] | qpn[23:0]
    u16 wqe_counter;          // @60 index of the completed WQE's first basic block (RQ: of the receive WQE)
    u8 signature;
    u8 op_own;                // @63 opcode[7:4] | scatter and format bits[3:2] | solicited[1] | owner[0]
};
struct ErrorCqe {
    u8 reserved0[32];
    u32 srqn;                 // @32
    u8 reserved1[16];
    u8 hw_syndrome, hw_syndrome_type;  // @52
    u8 vendor_syndrome;       // @54
    u8 syndrome;              // @55
    u32 opcode_qpn;           // @56
    u16 wqe_counter;          // @60
    u8 signature;
    u8 op_own;                // @63
};
static_assert(sizeof(Cqe) == kCqe && sizeof(ErrorCqe) == kCqe, "CQE64");

constexpr u32 kCqeScatter32 = 0x4;  // payload lies in bytes 0..31 of this CQE
constexpr u32 kCqeScatter64 = 0x8;  // payload lies in the 64 bytes before it, in a 128-byte CQE

// Doorbell records, be32 each.
constexpr u32 kDbrecReceive = 0;   // counts receive WQEs
constexpr u32 kDbrecSend = 1;      // index of the next send basic block, 16 bits
constexpr u32 kDbrecSetCi = 0;     // CQ: consumer index, 24 bits
constexpr u32 kDbrecArm = 1;

// ---- builders: one 16-byte vector a segment, ready to store ------------------------------------------------------
RDMAKIT_DEVICE constexpr u32 wqebbs(u32 ds) { return ceil_div(ds, kDsPerBb); }

RDMAKIT_DEVICE Vec16 ctrl_segment(Opcode opcode, u32 opmod, u32 index, u32 qpn, u32 ds, u32 fm_ce_se, u32 imm = 0) {
    return Vec16{{swap_bytes((opmod << 24) | ((index & 0xffff) << 8) | static_cast<u32>(opcode)),
                  swap_bytes((qpn << 8) | ds), swap_bytes(fm_ce_se & 0xff), swap_bytes(imm)}};
}
RDMAKIT_DEVICE Vec16 pair64(u64 first, u64 second) {
    return Vec16{{swap_bytes(static_cast<u32>(first >> 32)), swap_bytes(static_cast<u32>(first)),
                  swap_bytes(static_cast<u32>(second >> 32)), swap_bytes(static_cast<u32>(second))}};
}
RDMAKIT_DEVICE Vec16 remote_segment(u64 raddr, u32 rkey) { return pair64(raddr, static_cast<u64>(rkey) << 32); }
RDMAKIT_DEVICE Vec16 data_segment(u64 addr, u32 bytes, u32 lkey) {
    return pair64((static_cast<u64>(bytes) << 32) | lkey, addr);
}
// swap_add then compare. FETCH_ADD ignores the second.
RDMAKIT_DEVICE Vec16 atomic_segment(u64 swap_add, u64 compare) { return pair64(swap_add, compare); }
RDMAKIT_DEVICE Vec16 masked_fetch_add4_segment(u32 add, u32 boundary) {
    return pair64((static_cast<u64>(add) << 32) | boundary, 0);
}
RDMAKIT_DEVICE Vec16 masked_cmp_swap4_segment(u32 swap, u32 compare, u32 swap_mask, u32 compare_mask) {
    return pair64((static_cast<u64>(swap) << 32) | compare, (static_cast<u64>(swap_mask) << 32) | compare_mask);
}

// The 8-byte doorbell register value has two dialects. libmlx5, mori and rocSHMEM write the first eight bytes of the
// last posted WQE; NVSHMEM, DeepEP and DOCA write the index of the *next* basic block, with opcode and size 0.
// Both are big-endian words in memory order, hence a u64 whose low half is the first word.
RDMAKIT_DEVICE u64 doorbell_next(u32 qpn, u64 next_bb) {
    const u32 first = swap_bytes(static_cast<u32>(next_bb & 0xffff) << 8);
    return (static_cast<u64>(swap_bytes(qpn << 8)) << 32) | first;
}
RDMAKIT_DEVICE u64 doorbell_last(const Vec16& last_ctrl) {
    return (static_cast<u64>(last_ctrl.w[1]) << 32) | last_ctrl.w[0];
}

// A CQ entry is software's when its opcode is not "invalid" and its owner bit equals the parity of the lap.
// Initialise CQEs to 0xf1, not libmlx5's 0xf0: whoever polls the owner bit alone would read 0xf0 as ready on lap 0.
constexpr u8 kCqeInitial = 0xf1;
RDMAKIT_DEVICE constexpr bool cqe_ready(u32 op_own, u64 consumer_index, u32 log_entries) {
    return (op_own >> 4) != static_cast<u32>(CqeOpcode::invalid) &&
           (op_own & 1) == ((consumer_index >> log_entries) & 1);
}

}  // namespace rdmakit
