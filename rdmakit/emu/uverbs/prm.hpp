// prm.hpp — where the fields of mlx5 commands lie: bit offsets and widths, big endian, as the device's manual counts.
// Leans on config.cuh. Offsets: rdma-core providers/mlx5/mlx5_ifc.h (mlx5_ifc_*_bits, whose gaps are named
// reserved_at_OFFSET) and, for CQ and mkey contexts, rdma-core tests/mlx5_prm_structs.py, which a test compares.
#pragma once
#include <cstddef>

#include "rdmakit/config.cuh"

namespace rdmakit::uverbs {

struct Bits {
    u32 at, width;
};
// A field of a structure that begins at bit `base`.
constexpr Bits operator+(u32 base, Bits field) { return {base + field.at, field.width}; }

// A command, or its answer. Beyond its end everything reads as 0, and nothing is written.
class Box {
  public:
    Box(u8* bytes, std::size_t size) : bytes_(bytes), size_(size) {}
    std::size_t size() const { return size_; }
    const u8* at(u32 bit) const { return bit / 8 < size_ ? bytes_ + bit / 8 : nullptr; }

    u64 get(Bits field) const {
        u64 value = 0;
        for (u32 bit = field.at; bit < field.at + field.width; ++bit)
            value = value << 1 | (bit / 8 < size_ ? bytes_[bit / 8] >> (7 - bit % 8) & 1 : 0);
        return value;
    }
    u32 get32(Bits field) const { return static_cast<u32>(get(field)); }
    void set(Bits field, u64 value) {
        for (u32 i = 0; i < field.width; ++i) {
            const u32 bit = field.at + field.width - 1 - i;
            if (bit / 8 >= size_) continue;
            const u8 mask = static_cast<u8>(0x80 >> bit % 8);
            bytes_[bit / 8] = static_cast<u8>((bytes_[bit / 8] & ~mask) | (value >> i & 1 ? mask : 0));
        }
    }

  private:
    u8* const bytes_;
    const std::size_t size_;
};

namespace prm {

// MLX5_CMD_OP_*
constexpr u32 kQueryHcaCap = 0x100, kCreateMkey = 0x200, kCreateCq = 0x400, kQueryCq = 0x402, kCreateQp = 0x500,
              kRst2Init = 0x502, kInit2Rtr = 0x503, kRtr2Rts = 0x504, kRts2Rts = 0x505, k2Err = 0x507, k2Rst = 0x50a,
              kQueryQp = 0x50b, kInit2Init = 0x50e, kAllocPd = 0x800, kQueryLag = 0x842;

// The head of every command, and of every answer.
constexpr Bits kOpcode{0x0, 16}, kOpMod{0x30, 16};
constexpr Bits kStatus{0x0, 8}, kSyndrome{0x20, 32};
// MLX5_CMD_STAT_*
enum : u8 { ok = 0, bad_op = 2, bad_param = 3, bad_resource = 5, resource_busy = 6, no_resources = 0xf, bad_qp_state = 0x10 };

// The number of what was created, and of what is asked of or modified: qpn, cqn, mkey_index, pd.
constexpr Bits kNumber{0x48, 24};

// ---- CREATE_QP, *2*_QP, QUERY_QP: the context begins at the same place in all of them
constexpr u32 kQpc = 0xc0;
constexpr Bits kOptMask{0x80, 32};          // where INIT2RTR, RTR2RTS and RTS2RTS have it
constexpr Bits kOptMask95To32{0x840, 64};   // RTS2RTS, INIT2INIT
constexpr Bits kWqUmemOffset{0x800, 64}, kWqUmemId{0x840, 32}, kWqUmemValid{0x860, 1};  // CREATE_QP
namespace qpc {
constexpr Bits kState{0x0, 4}, kLagTxPortAffinity{0x4, 4}, kTransport{0x8, 8}, kPmState{0x13, 2}, kPd{0x28, 24};
constexpr Bits kMtu{0x40, 3}, kLogRqSize{0x49, 4}, kLogRqStride{0x4d, 3}, kNoSq{0x50, 1}, kLogSqSize{0x51, 4};
constexpr Bits kUarPage{0x68, 24}, kUserIndex{0x88, 24}, kRemoteQpn{0xa8, 24};
constexpr Bits kLogSraMax{0x388, 3}, kRetryCount{0x38d, 3}, kRnrRetry{0x390, 3}, kNextSendPsn{0x3c8, 24};
constexpr Bits kCqnSnd{0x3e8, 24}, kLogRraMax{0x488, 3}, kRre{0x490, 1}, kRwe{0x491, 1}, kRae{0x492, 1};
constexpr Bits kMinRnrNak{0x4a3, 5}, kNextRcvPsn{0x4a8, 24}, kCqnRcv{0x4e8, 24}, kDbrAddr{0x500, 64};
constexpr Bits kRqType{0x565, 3}, kSrqn{0x568, 24}, kHwSqCounter{0x5a0, 16}, kSwSqCounter{0x5b0, 16}, kHwRqCounter{0x5c0, 32};
constexpr Bits kSwRqCounter{0x5e0, 32}, kCsReq{0x630, 8}, kCsRes{0x638, 8}, kDbrUmemValid{0x683, 1}, kDbrUmemId{0x720, 32};
}  // namespace qpc
// The primary address path, within the QP context.
constexpr u32 kPath = 0xc0;
namespace ads {
constexpr Bits kPkeyIndex{0x10, 16}, kGrh{0x28, 1}, kMlid{0x29, 7}, kRlid{0x30, 16}, kAckTimeout{0x40, 5};
constexpr Bits kSrcAddrIndex{0x48, 8}, kStatRate{0x54, 4}, kHopLimit{0x58, 8}, kTclass{0x64, 8}, kFlowLabel{0x6c, 20};
constexpr Bits kUdpSport{0x110, 16}, kSl{0x124, 4}, kEthPrio{0x121, 3}, kVhcaPortNum{0x128, 8}, kRmac{0x130, 48};
constexpr u32 kRgid = 0x80;  // 16 bytes
}  // namespace ads
// opt_param_mask: kernel include/linux/mlx5/qp.h MLX5_QP_OPTPAR_*; its upper part: MLX5_QPC_OPT_MASK_32_*
constexpr u32 kOptRre = 1u << 1, kOptRae = 1u << 2, kOptRwe = 1u << 3, kOptRnrTimeout = 1u << 6, kOptLagPort = 1u << 15;
constexpr u32 kOptAltPath = 1u << 0, kOptPmState = 1u << 10;
constexpr u64 kOptUdpSport = 1u << 2;
constexpr u32 kPmMigrated = 3;  // qpc.pm_state: MLX5_QPC_PM_STATE_MIGRATED
// qpc.state (mlx5 counts SQD and SQER the other way round than libibverbs)
enum : u32 { rst = 0, init = 1, rtr = 2, rts = 3, sqer = 4, sqd = 5, err = 6 };

// ---- CREATE_CQ, QUERY_CQ
constexpr u32 kCqc = 0x80;
constexpr Bits kCqUmemOffset{0x280, 64}, kCqUmemId{0x2c0, 32}, kCqUmemValid{0x2e0, 1};
namespace cqc {
constexpr Bits kStatus{0x0, 4}, kDbrUmemValid{0x6, 1}, kCqeSize{0x8, 3}, kCollapsed{0xb, 1}, kOverrunIgnore{0xe, 1};
constexpr Bits kCompression{0x11, 1}, kDbrUmemId{0x20, 32}, kLogSize{0x63, 5}, kUarPage{0x68, 24}, kEqn{0xb8, 8};
constexpr Bits kConsumer{0x148, 24}, kProducer{0x168, 24}, kDbrAddr{0x1c0, 64};
}  // namespace cqc

// ---- CREATE_MKEY
constexpr u32 kMkc = 0x80;
constexpr Bits kMkeyUmemValid{0x61, 1}, kMkeyUmemId{0x320, 32}, kMkeyUmemOffset{0x340, 64};
namespace mkc {
constexpr Bits kFree{0x1, 1}, kAccessMode4To2{0x3, 3}, kRelaxedWrite{0xd, 1}, kUmr{0x10, 1}, kAtomic{0x11, 1};
constexpr Bits kRemoteWrite{0x12, 1}, kRemoteRead{0x13, 1}, kLocalWrite{0x14, 1}, kLocalRead{0x15, 1};
constexpr Bits kAccessMode1To0{0x16, 2}, kQpn{0x20, 24}, kLowByte{0x38, 8}, kLength64{0x60, 1}, kPd{0x68, 24};
constexpr Bits kStart{0x80, 64}, kLength{0xc0, 64};
constexpr u32 kMtt = 1;  // MLX5_MKC_ACCESS_MODE_MTT
}  // namespace mkc

// ---- QUERY_HCA_CAP: op_mod is the kind times two, plus 1 for what is in use rather than possible
constexpr u32 kCapability = 0x80;
enum : u32 { cap_general = 0, cap_ethernet = 1, cap_odp = 2, cap_atomic = 3, cap_roce = 4, cap_ipoib = 5, cap_nic_flow = 7,
             cap_eswitch_flow = 8, cap_qos = 0xc, cap_memory = 0xf, cap_second = 0x20 };
namespace hca_cap {
constexpr Bits kLogMaxQpSize{0x88, 8}, kLogMaxQp{0x9b, 5}, kLogMaxCqSize{0xc8, 8};
constexpr Bits kLogMaxCq{0xdb, 5}, kRelaxedWrite{0xe8, 1}, kLogMaxMkey{0xea, 6}, kLogMaxMrSize{0x109, 7};
constexpr Bits kLogMaxRaReqQp{0x14a, 6}, kRts2RtsUdpSport{0x151, 1}, kRts2RtsLagPort{0x152, 1}, kLogMaxRaResQp{0x15a, 6};
constexpr Bits kGidTableSize{0x170, 16}, kLocalCaAckDelay{0x1ab, 5}, kPortType{0x1b6, 2}, kNumPorts{0x1b8, 8};
constexpr Bits kLogMaxMsg{0x1c3, 5}, kInit2LagPort{0x1f8, 1}, kScatterToCqe{0x215, 1}, kRoce{0x21d, 1}, kAtomic{0x21e, 1};
constexpr Bits kCqOi{0x220, 1}, kRc{0x23f, 1}, kUar4k{0x240, 1}, kLogPage{0x258, 8}, kBlueFlame{0x260, 1};
constexpr Bits kLogBfRegSize{0x26b, 5}, kLagTxPortAffinity{0x278, 1}, kLagMaster{0x27b, 1}, kNumLagPorts{0x27c, 4};
constexpr Bits kMaxWqeSq{0x290, 16}, kMaxWqeRq{0x2b0, 16}, kLogMaxPd{0x32b, 5}, kGeneralObjects{0x400, 64};
constexpr Bits kLogMaxUctx{0x463, 5}, kLogMaxUmem{0x46b, 5}, kUarsPerPage{0x520, 32};
constexpr u64 kObjectUctx = 1u << 4, kObjectUmem = 1u << 5;  // MLX5_GENERAL_OBJ_TYPES_CAP_*
}  // namespace hca_cap
namespace atomic_cap {
constexpr Bits kHostEndianMode{0x40, 2}, kHostEndianPossible{0x46, 1}, kOperations{0x90, 16}, kSizesQp{0xb0, 16};
constexpr u32 kEveryOperation = 0xf;     // compare-swap 1, fetch-add 2, and masked 4, 8
constexpr u32 kFourAndEightBytes = 0xc;  // each bit is its size
}  // namespace atomic_cap
namespace roce_cap {
constexpr Bits kMaxUdpSport{0xc0, 16}, kMinUdpSport{0xd0, 16}, kAddressTableSize{0xf0, 16};
}  // namespace roce_cap

// ---- QUERY_LAG
constexpr Bits kPortSelectMode{0x55, 3}, kLagState{0x5d, 3}, kTxRemapAffinity2{0x74, 4}, kTxRemapAffinity1{0x7c, 4};

}  // namespace prm
}  // namespace rdmakit::uverbs
