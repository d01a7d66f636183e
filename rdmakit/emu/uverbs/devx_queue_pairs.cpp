// devx_queue_pairs.cpp — queue pairs by command: created over umems, taken through their states, steered, looked at.
// Leans on devx.hpp. Layouts: prm.hpp; rdma-core 44 sends RTS2RTS and QUERY_QP for verbs queue pairs too
// (providers/mlx5/mlx5.c _mlx5dv_query_qp_lag_port, modify_qp_lag_port, _mlx5dv_modify_qp_udp_sport).
#include <cstring>

#include "devx.hpp"

namespace rdmakit::uverbs {
namespace {

constexpr u32 kLogSge = 4;  // strides are counted in scatter entries of 16 bytes
constexpr u32 kMaxInline = 512;
constexpr u32 kRqRegular = 0, kRqShared = 1, kRqNone = 3;  // qpc.rq_type

// ibv_qp_state → qpc.state
u32 device_state(QpState state) {
    switch (state) {
        case QpState::reset: return prm::rst;
        case QpState::init: return prm::init;
        case QpState::rtr: return prm::rtr;
        case QpState::rts: return prm::rts;
        case QpState::sqd: return prm::sqd;
        case QpState::sqe: return prm::sqer;
        case QpState::err: return prm::err;
    }
    return prm::err;
}

u32 log2_of(u32 value) {
    u32 log = 0;
    while (value >> (log + 1) != 0) ++log;
    return log;
}

constexpr Bits path(Bits field) { return prm::kQpc + (prm::kPath + field); }

}  // namespace

Devx::Verdict Devx::create_qp(const Box& in, u32* number) {
    const auto asked = [&](Bits field) { return static_cast<u32>(in.get(prm::kQpc + field)); };
    const auto refuse = [&](const char* why) { return verdict("CREATE_QP", {EINVAL, why}); };
    if (asked(prm::qpc::kTransport) != 0) return refuse("RC alone (qpc.st 0)");
    const u32 rq_type = asked(prm::qpc::kRqType);
    if (rq_type != kRqRegular && rq_type != kRqShared && rq_type != kRqNone)
        return refuse("a receive queue of its own, a shared one, or none (qpc.rq_type)");
    if (asked(prm::qpc::kNoSq) != 0) return refuse("a queue pair without a send queue");
    const UarPage* const uar = uars_.find(asked(prm::qpc::kUarPage));
    if (uar == nullptr) return refuse("no such UAR page in this context");
    if (in.get(prm::kWqUmemValid) == 0 || asked(prm::qpc::kDbrUmemValid) == 0)
        return refuse("rings and record must lie in umems: a process has no physical addresses");
    QpAttr attr;
    attr.pd = asked(prm::qpc::kPd);
    attr.send_cq = asked(prm::qpc::kCqnSnd);
    attr.recv_cq = asked(prm::qpc::kCqnRcv);
    attr.log_sq_bbs = asked(prm::qpc::kLogSqSize);
    attr.max_inline = kMaxInline;
    attr.user_index = asked(prm::qpc::kUserIndex);
    attr.scatter_to_cqe_requester = asked(prm::qpc::kCsReq) != 0;
    attr.scatter_to_cqe_responder = asked(prm::qpc::kCsRes) != 0;
    attr.uar = uar->index;
    if (rq_type == kRqShared) attr.srq = asked(prm::qpc::kSrqn);
    u64 rq_bytes = 0;
    if (rq_type == kRqRegular) {
        attr.log_rq_wqes = asked(prm::qpc::kLogRqSize);
        attr.max_recv_sge = 1u << asked(prm::qpc::kLogRqStride);
        rq_bytes = u64{1} << (attr.log_rq_wqes + asked(prm::qpc::kLogRqStride) + kLogSge);
    }
    // The receive ring, behind it the send ring.
    u8* const rings = in_umem(in.get32(prm::kWqUmemId), in.get(prm::kWqUmemOffset), rq_bytes + (u64{64} << attr.log_sq_bbs));
    attr.dbrec = reinterpret_cast<u32*>(
        in_umem(asked(prm::qpc::kDbrUmemId), in.get(prm::kQpc + prm::qpc::kDbrAddr), 2 * sizeof(u32)));
    if (rings == nullptr || attr.dbrec == nullptr) return refuse("rings or record lie outside their umem");
    attr.rq_buffer = rq_bytes != 0 ? rings : nullptr;
    attr.sq_buffer = rings + rq_bytes;
    const Status status = hca_->create_qp(attr, number);
    if (status.ok()) Machine::here().add_qp(hca_, *number, uar->page);
    return verdict("CREATE_QP", status);
}

// Of a real device packets with another's address are lost; here that is told at once. Without any they arrive, as
// programs want it that find no network device to ask (rdma-core tests/base.py get_ip_mac_address).
bool Devx::reaches(const Box& in, const Gid& gid) const {
    const u64 given = in.get(path(prm::ads::kRmac));
    u8 mac[6] = {};
    if (!hca_->config().roce || given == 0 || !Machine::here().resolve(gid, mac)) return true;
    u64 address = 0;
    for (const u8 byte : mac) address = address << 8 | byte;
    return given == address;
}

Devx::Verdict Devx::modify_qp(u32 qpn, const Box& in) {
    const auto asked = [&](Bits field) { return static_cast<u32>(in.get(prm::kQpc + field)); };
    const u32 optional = in.get32(prm::kOptMask);
    if ((optional & prm::kOptAltPath) || ((optional & prm::kOptPmState) && asked(prm::qpc::kPmState) != prm::kPmMigrated))
        return verdict("modify a QP", {EINVAL, "no path migration (apm 0)"});
    QpModify attr;
    u32 mask = kQpAttrState;
    const u32 port = in.get32(path(prm::ads::kVhcaPortNum));
    attr.port_num = attr.ah.port_num = port != 0 ? port : 1;
    switch (in.get32(prm::kOpcode)) {
        case prm::kRst2Init:
            attr.qp_state = QpState::init;
            attr.pkey_index = in.get32(path(prm::ads::kPkeyIndex));
            attr.qp_access_flags = kAccessLocalWrite | (asked(prm::qpc::kRre) != 0 ? kAccessRemoteRead : 0) |
                                   (asked(prm::qpc::kRwe) != 0 ? kAccessRemoteWrite : 0) |
                                   (asked(prm::qpc::kRae) != 0 ? kAccessRemoteAtomic : 0);
            attr.lag_port = asked(prm::qpc::kLagTxPortAffinity);
            mask |= kQpAttrPkeyIndex | kQpAttrPort | kQpAttrAccessFlags;
            break;
        case prm::kInit2Rtr:
            attr.qp_state = QpState::rtr;
            attr.path_mtu = asked(prm::qpc::kMtu);
            attr.dest_qp_num = asked(prm::qpc::kRemoteQpn);
            attr.rq_psn = asked(prm::qpc::kNextRcvPsn);
            attr.max_dest_rd_atomic = 1u << asked(prm::qpc::kLogRraMax);
            attr.min_rnr_timer = asked(prm::qpc::kMinRnrNak);
            if (const u8* const gid = in.at(path({prm::ads::kRgid, 8}).at))
                std::memcpy(attr.ah.dgid.raw, gid, sizeof attr.ah.dgid.raw);
            if (!reaches(in, attr.ah.dgid))
                return verdict("INIT2RTR_QP", {EINVAL, "rmac is not the address behind rgid_rip: packets would reach nobody"});
            macs_[qpn] = in.get(path(prm::ads::kRmac));
            attr.ah.is_global = hca_->config().roce || in.get(path(prm::ads::kGrh)) != 0;
            attr.ah.dlid = in.get32(path(prm::ads::kRlid));
            attr.ah.flow_label = in.get32(path(prm::ads::kFlowLabel));
            attr.ah.sgid_index = in.get32(path(prm::ads::kSrcAddrIndex));
            attr.ah.hop_limit = in.get32(path(prm::ads::kHopLimit));
            attr.ah.traffic_class = in.get32(path(prm::ads::kTclass));
            attr.ah.sl = in.get32(path(hca_->config().roce ? prm::ads::kEthPrio : prm::ads::kSl));
            attr.ah.src_path_bits = hca_->config().roce ? 0 : in.get32(path(prm::ads::kMlid));
            if (in.get(path(prm::ads::kStatRate)) != 0)
                return verdict("INIT2RTR_QP", {EINVAL, "none of these rates is there (stat_rate_support 0)"});
            attr.udp_source_port = in.get32(path(prm::ads::kUdpSport));
            mask |= kQpAttrAv | kQpAttrPathMtu | kQpAttrDestQpn | kQpAttrRqPsn | kQpAttrMaxDestRdAtomic | kQpAttrMinRnrTimer;
            break;
        case prm::kRtr2Rts:
            attr.qp_state = QpState::rts;
            attr.timeout = in.get32(path(prm::ads::kAckTimeout));
            attr.retry_cnt = asked(prm::qpc::kRetryCount);
            attr.rnr_retry = asked(prm::qpc::kRnrRetry);
            attr.sq_psn = asked(prm::qpc::kNextSendPsn);
            attr.max_rd_atomic = 1u << asked(prm::qpc::kLogSraMax);
            mask |= kQpAttrTimeout | kQpAttrRetryCnt | kQpAttrRnrRetry | kQpAttrSqPsn | kQpAttrMaxQpRdAtomic;
            break;
        case prm::kRts2Rts: return rts2rts(qpn, in);
        case prm::k2Err: attr.qp_state = QpState::err; break;
        case prm::k2Rst: attr.qp_state = QpState::reset; break;
        default: return verdict("modify a QP", {EOPNOTSUPP, "no such transition"});
    }
    return verdict("modify a QP", hca_->modify_qp(qpn, attr, mask));
}

// What may change while it works, as the two masks say.
Devx::Verdict Devx::rts2rts(u32 qpn, const Box& in) {
    const auto asked = [&](Bits field) { return static_cast<u32>(in.get(prm::kQpc + field)); };
    const u32 low = in.get32(prm::kOptMask);
    const u64 high = in.get(prm::kOptMask95To32);
    constexpr u32 kAccess = prm::kOptRre | prm::kOptRae | prm::kOptRwe;
    QpInfo info;
    if (const Status status = hca_->query_qp(qpn, &info); !status.ok()) return verdict("RTS2RTS_QP", status);
    if (info.state != QpState::rts) return {prm::bad_qp_state, EINVAL};
    if ((low & ~(kAccess | prm::kOptRnrTimeout | prm::kOptLagPort | prm::kOptPmState)) != 0 || (high & ~prm::kOptUdpSport) != 0)
        return verdict("RTS2RTS_QP", {EINVAL, "of what may be changed: access rights, RNR timer, LAG port, UDP source port"});
    QpModify attr;
    u32 mask = 0;
    if (low & kAccess) {
        const auto choose = [&](u32 bit, Bits field, u32 right) {
            return low & bit ? (asked(field) != 0 ? right : 0) : info.attr.qp_access_flags & right;
        };
        attr.qp_access_flags = kAccessLocalWrite | choose(prm::kOptRre, prm::qpc::kRre, kAccessRemoteRead) |
                               choose(prm::kOptRwe, prm::qpc::kRwe, kAccessRemoteWrite) |
                               choose(prm::kOptRae, prm::qpc::kRae, kAccessRemoteAtomic);
        mask |= kQpAttrAccessFlags;
    }
    if (low & prm::kOptRnrTimeout) {
        attr.min_rnr_timer = asked(prm::qpc::kMinRnrNak);
        mask |= kQpAttrMinRnrTimer;
    }
    Status status = mask != 0 ? hca_->modify_qp(qpn, attr, mask) : Status{};
    if (status.ok() && (low & prm::kOptLagPort)) status = hca_->set_lag_port(qpn, asked(prm::qpc::kLagTxPortAffinity));
    if (status.ok() && (high & prm::kOptUdpSport))
        status = hca_->modify_qp_udp_sport(qpn, in.get32(path(prm::ads::kUdpSport)));
    return verdict("RTS2RTS_QP", status);
}

Devx::Verdict Devx::query_qp(u32 qpn, Box& out) const {
    QpInfo info;
    if (const Status status = hca_->query_qp(qpn, &info); !status.ok()) return verdict("QUERY_QP", status);
    const auto set = [&](Bits field, u64 value) { out.set(prm::kQpc + field, value); };
    const QpModify& attr = info.attr;
    set(prm::qpc::kState, device_state(info.state));
    set(prm::qpc::kLagTxPortAffinity, info.lag_affinity);
    set(prm::qpc::kPmState, prm::kPmMigrated);
    set(prm::qpc::kPd, info.create.pd);
    set(prm::qpc::kMtu, attr.path_mtu);
    set(prm::qpc::kLogSqSize, info.create.log_sq_bbs);
    set(prm::qpc::kLogRqSize, info.create.log_rq_wqes);
    set(prm::qpc::kUarPage, info.create.uar);
    set(prm::qpc::kUserIndex, info.create.user_index);
    set(prm::qpc::kRemoteQpn, attr.dest_qp_num);
    set(prm::qpc::kRetryCount, attr.retry_cnt);
    set(prm::qpc::kRnrRetry, attr.rnr_retry);
    set(prm::qpc::kNextSendPsn, attr.sq_psn);
    set(prm::qpc::kNextRcvPsn, attr.rq_psn);
    set(prm::qpc::kMinRnrNak, attr.min_rnr_timer);
    set(prm::qpc::kCqnSnd, info.create.send_cq);
    set(prm::qpc::kCqnRcv, info.create.recv_cq);
    set(prm::qpc::kRre, (attr.qp_access_flags & kAccessRemoteRead) != 0);
    set(prm::qpc::kRwe, (attr.qp_access_flags & kAccessRemoteWrite) != 0);
    set(prm::qpc::kRae, (attr.qp_access_flags & kAccessRemoteAtomic) != 0);
    set(prm::qpc::kHwSqCounter, info.sq_completed & 0xffff);
    set(prm::qpc::kSwSqCounter, info.sq_producer & 0xffff);
    set(prm::qpc::kHwRqCounter, info.rq_consumed & 0xffffffff);
    out.set(path(prm::ads::kPkeyIndex), attr.pkey_index);
    out.set(path(prm::ads::kMlid), attr.ah.src_path_bits);
    out.set(path(prm::ads::kRlid), attr.ah.dlid);
    out.set(path(prm::ads::kFlowLabel), attr.ah.flow_label);
    out.set(path(prm::ads::kSrcAddrIndex), attr.ah.sgid_index);
    out.set(path(prm::ads::kHopLimit), attr.ah.hop_limit);
    out.set(path(prm::ads::kTclass), attr.ah.traffic_class);
    out.set(path(hca_->config().roce ? prm::ads::kEthPrio : prm::ads::kSl), attr.ah.sl);
    for (u32 i = 0; i < sizeof attr.ah.dgid.raw; ++i) out.set(path({prm::ads::kRgid + 8 * i, 8}), attr.ah.dgid.raw[i]);
    const auto mac = macs_.find(qpn);
    if (mac != macs_.end()) out.set(path(prm::ads::kRmac), mac->second);
    set(prm::qpc::kLogSraMax, log2_of(attr.max_rd_atomic));
    set(prm::qpc::kLogRraMax, log2_of(attr.max_dest_rd_atomic));
    out.set(path(prm::ads::kUdpSport), info.udp_source_port);
    out.set(path(prm::ads::kVhcaPortNum), attr.port_num);
    out.set(path(prm::ads::kAckTimeout), attr.timeout);
    return {};
}

}  // namespace rdmakit::uverbs
