// devx_capabilities.cpp — QUERY_HCA_CAP and QUERY_LAG: what the emulated device can do, in the words of the real one.
// Leans on devx.hpp. Each bit is answered from the HCA's configuration; what it cannot do stays 0.
#include "devx.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kFirstUdpSport = 0xc000, kLastUdpSport = 0xffff;
constexpr u32 kLogMany = 20;  // PDs, CQs, umems: bounded by memory alone

u32 log2_floor(u32 value) {
    u32 log = 0;
    while (value >> (log + 1) != 0) ++log;
    return log;
}

}  // namespace

Devx::Verdict Devx::query_capabilities(const Box& in, Box& out) const {
    const HcaConfig& config = hca_->config();
    const auto set = [&](Bits field, u64 value) { out.set(prm::kCapability + field, value); };
    switch (in.get32(prm::kOpMod) >> 1) {
        case prm::cap_general: {
            namespace cap = prm::hca_cap;
            set(cap::kLogMaxQpSize, config.max_log_sq_bbs);
            set(cap::kLogMaxQp, log2_floor(config.max_qps));
            set(cap::kLogMaxCqSize, config.max_log_cqes);
            set(cap::kLogMaxCq, kLogMany);
            set(cap::kLogMaxPd, kLogMany);
            set(cap::kLogMaxMkey, log2_floor(config.max_mrs));
            set(cap::kLogMaxMrSize, 64);
            set(cap::kRelaxedWrite, 1);
            set(cap::kLogMaxRaReqQp, log2_floor(config.max_rd_atomic));
            set(cap::kLogMaxRaResQp, log2_floor(config.max_rd_atomic));
            set(cap::kRts2RtsUdpSport, config.roce);
            set(cap::kRts2RtsLagPort, 1);
            set(cap::kInit2LagPort, 1);
            set(cap::kGidTableSize, 4);
            set(cap::kLocalCaAckDelay, 16);
            set(cap::kPortType, config.roce);
            set(cap::kNumPorts, hca_->ib_ports());
            set(cap::kLogMaxMsg, 30);
            set(cap::kScatterToCqe, 1);
            set(cap::kRoce, config.roce);
            set(cap::kAtomic, 1);
            set(cap::kCqOi, 1);
            set(cap::kRc, 1);
            set(cap::kUar4k, 1);
            set(cap::kLogPage, 12);
            set(cap::kBlueFlame, 1);
            set(cap::kLogBfRegSize, 9);
            set(cap::kLagTxPortAffinity, config.lag != LagMode::none);
            set(cap::kLagMaster, config.lag != LagMode::none);
            set(cap::kNumLagPorts, config.lag != LagMode::none ? config.ports : 1);
            set(cap::kMaxWqeSq, 1024);
            set(cap::kMaxWqeRq, 512);
            set(cap::kGeneralObjects, cap::kObjectUctx | cap::kObjectUmem);
            set(cap::kLogMaxUctx, kLogMany);
            set(cap::kLogMaxUmem, kLogMany);
            set(cap::kUarsPerPage, 1);
            return {};
        }
        case prm::cap_atomic:
            set(prm::atomic_cap::kHostEndianMode, config.atomic_8b_host_endian);
            set(prm::atomic_cap::kHostEndianPossible, 1);
            set(prm::atomic_cap::kOperations, prm::atomic_cap::kEveryOperation);
            set(prm::atomic_cap::kSizesQp, prm::atomic_cap::kFourAndEightBytes);
            return {};
        case prm::cap_roce:
            set(prm::roce_cap::kMinUdpSport, kFirstUdpSport);
            set(prm::roce_cap::kMaxUdpSport, kLastUdpSport);
            set(prm::roce_cap::kAddressTableSize, 4);
            return {};
        case prm::cap_ethernet:
        case prm::cap_odp:
        case prm::cap_ipoib:
        case prm::cap_nic_flow:
        case prm::cap_eswitch_flow:
        case prm::cap_qos:
        case prm::cap_memory:
        case prm::cap_second: return {};  // of all this, nothing
        default: return {prm::bad_param, EINVAL};
    }
}

Devx::Verdict Devx::query_lag(Box& out) const {
    if (hca_->config().lag == LagMode::none) return {};
    out.set(prm::kLagState, 1);
    out.set(prm::kPortSelectMode, hca_->config().lag == LagMode::hash);  // MLX5_LAG_PORT_SELECT_MODE_*
    out.set(prm::kTxRemapAffinity1, hca_->active_lag_port(1));
    out.set(prm::kTxRemapAffinity2, hca_->active_lag_port(2));
    return {};
}

}  // namespace rdmakit::uverbs
