// modify_qp.cpp — taking a queue pair through its states (man ibv_modify_qp).
#include <cerrno>

#include "flight.hpp"
#include "hca.hpp"
#include "port.hpp"
#include "qp_state.hpp"

namespace rdmakit::emu {

Status Hca::check_attributes(const QueuePair& qp, const QpModify& attr, u32 mask) const {
    constexpr u32 access = kAccessLocalWrite | kAccessRemoteWrite | kAccessRemoteRead | kAccessRemoteAtomic;
    const auto over = [&](u32 bit, u32 value, u32 most) { return (mask & bit) && value > most; };
    if ((mask & kQpAttrPort) && (attr.port_num < 1 || attr.port_num > ib_ports()))
        return refuse(EINVAL, "port_num %u: %s has IB ports 1 to %u", attr.port_num, config_.name, ib_ports());
    if (over(kQpAttrPkeyIndex, attr.pkey_index, config_.roce ? 0 : 127))
        return refuse(EINVAL, "pkey_index %u is outside the table", attr.pkey_index);
    if ((mask & kQpAttrAccessFlags) && (attr.qp_access_flags & ~access))
        return refuse(EINVAL, "qp_access_flags 0x%x: unknown bits", attr.qp_access_flags);
    if ((mask & kQpAttrPathMtu) && (attr.path_mtu < 1 || attr.path_mtu > config_.active_mtu))
        return refuse(EINVAL, "path_mtu %u: the port's active MTU is %u (1 = 256 … 5 = 4096 bytes)", attr.path_mtu,
                      config_.active_mtu);
    if (over(kQpAttrDestQpn, attr.dest_qp_num, 0xffffff)) return refuse(EINVAL, "dest_qp_num has 24 bits");
    if (over(kQpAttrRqPsn, attr.rq_psn, 0xffffff) || over(kQpAttrSqPsn, attr.sq_psn, 0xffffff))
        return refuse(EINVAL, "a PSN has 24 bits");
    if (over(kQpAttrMaxQpRdAtomic, attr.max_rd_atomic, config_.max_rd_atomic) ||
        over(kQpAttrMaxDestRdAtomic, attr.max_dest_rd_atomic, config_.max_rd_atomic))
        return refuse(EINVAL, "outstanding READs and atomics: this device takes at most %u", config_.max_rd_atomic);
    if (over(kQpAttrMinRnrTimer, attr.min_rnr_timer, 31) || over(kQpAttrTimeout, attr.timeout, 31))
        return refuse(EINVAL, "min_rnr_timer and timeout have 5 bits");
    if (over(kQpAttrRetryCnt, attr.retry_cnt, 7) || over(kQpAttrRnrRetry, attr.rnr_retry, 7))
        return refuse(EINVAL, "retry_cnt and rnr_retry have 3 bits");
    if (config_.lag != LagMode::none && attr.lag_port != kDriversLagPort && attr.lag_port > config_.ports)
        return refuse(EINVAL, "LAG port %u: choose 1 to %u, or 0 for none", attr.lag_port, config_.ports);
    if (mask & kQpAttrAltPath) return refuse(EOPNOTSUPP, "alternate paths are not supported on this device");
    if (over(kQpAttrPathMigState, attr.path_mig_state, 0))
        return refuse(EOPNOTSUPP, "path_mig_state %u: this device migrates no paths, 0 (MIGRATED) alone",
                      attr.path_mig_state);
    if (mask & kQpAttrAv) {
        if (attr.ah.port_num < 1 || attr.ah.port_num > ib_ports())
            return refuse(EINVAL, "ah.port_num %u: %s has IB ports 1 to %u", attr.ah.port_num, config_.name,
                          ib_ports());
        if (config_.roce && !attr.ah.is_global)
            return refuse(EINVAL, "RoCE needs a global route: set ah.is_global and dgid");
        if (attr.ah.flow_label > 0xfffff) return refuse(EINVAL, "a flow label has 20 bits");
        if (attr.ah.traffic_class > 0xff || attr.ah.hop_limit > 0xff || attr.ah.sl > 15)
            return refuse(EINVAL, "traffic_class and hop_limit have 8 bits, sl has 4");
        if (attr.ah.static_rate != 0)
            return refuse(EOPNOTSUPP, "static_rate %u: this device limits no queue pair's rate", attr.ah.static_rate);
        if (attr.ah.src_path_bits > (config_.roce ? 0 : 0x7f))
            return refuse(EINVAL, config_.roce ? "src_path_bits %u: RoCE has no LIDs, so no bits of one"
                                               : "src_path_bits %u: 7 bits", attr.ah.src_path_bits);
        if (attr.udp_source_port > 0xffff) return refuse(EINVAL, "a UDP port has 16 bits");
        // The kernel resolves a RoCE destination to a MAC address before RTR, and times out if nobody answers.
        if (config_.roce && !fabric_.find(attr.ah, true).hca)
            return refuse(ETIMEDOUT, "QP 0x%x: no port answers to its destination GID", qp.info.qpn);
    }
    return {};
}

void Hca::apply_attributes(QueuePair& qp, const QpModify& attr, u32 mask) {
    QpModify& set = qp.info.attr;
    if (mask & kQpAttrAccessFlags) set.qp_access_flags = attr.qp_access_flags;
    if (mask & kQpAttrPkeyIndex) set.pkey_index = attr.pkey_index;
    if (mask & kQpAttrPort) set.port_num = attr.port_num;
    if (mask & kQpAttrPathMtu) {
        set.path_mtu = attr.path_mtu;
        qp.mtu_shift = 7 + attr.path_mtu;
    }
    if (mask & kQpAttrDestQpn) set.dest_qp_num = attr.dest_qp_num;
    if (mask & kQpAttrRqPsn) {
        qp.expected_psn = set.rq_psn = attr.rq_psn;
        qp.taken_psns = 0;
        qp.sequence_error_sent = false;
        qp.replay.clear();
        qp.early.clear();
    }
    if (mask & kQpAttrSqPsn) {
        qp.next_psn = set.sq_psn = attr.sq_psn;
        ++qp.connection;
        if (qp.timed) qp.timed->acknowledged_psn = attr.sq_psn;
    }
    if (mask & kQpAttrMaxQpRdAtomic) set.max_rd_atomic = attr.max_rd_atomic;
    if (mask & kQpAttrMaxDestRdAtomic) set.max_dest_rd_atomic = attr.max_dest_rd_atomic;
    if (mask & kQpAttrMinRnrTimer) set.min_rnr_timer = attr.min_rnr_timer;
    if (mask & kQpAttrTimeout) set.timeout = attr.timeout;
    if (mask & kQpAttrRetryCnt) set.retry_cnt = attr.retry_cnt;
    if (mask & kQpAttrRnrRetry) set.rnr_retry = attr.rnr_retry;
    if (mask & kQpAttrAv) {
        set.ah = attr.ah;
        qp.peer = fabric_.find(attr.ah, config_.roce);
        qp.header_octets = packet_overhead(config_.roce, attr.ah);
        const u32 label = attr.ah.flow_label ? attr.ah.flow_label : flow_label_of_qpns(qp.info.qpn, set.dest_qp_num);
        qp.info.udp_source_port = !config_.roce             ? 0
                                  : attr.udp_source_port ? attr.udp_source_port
                                                         : flow_label_to_source_port(label);
    }
}

void Hca::reset_queues(QueuePair& qp) {
    ports_->remove(qp);
    qp.producer = qp.issued = qp.completed = qp.rq_consumed = 0;
    qp.rnr_tries = qp.timeouts = qp.turns_left = 0;
    qp.stalled = qp.stalled_on_receiver = false;
    qp.communicated = qp.draining = false;
    qp.away.clear();
    qp.away_blocked = false;
    qp.peer = {};
    qp.info.udp_source_port = qp.info.lag_affinity = 0;
    ++qp.epoch;
    if (qp.timed) qp.timed->restart(0), qp.timed->forget_proxy();
    if (qp.flight) qp.flight->clear();
    // As the driver does (libmlx5 mlx5_modify_qp): a record left over would post the old WQEs again.
    qp.info.create.dbrec[kDbrecReceive] = qp.info.create.dbrec[kDbrecSend] = 0;
    environment_.memory_written(qp.info.create.dbrec, 2 * sizeof(u32));
}

// SQD: what was sent is completed, nothing more is sent. The event comes once, when the last completion is there.
void Hca::drained(QueuePair& qp) {
    if (!qp.draining || qp.state() != QpState::sqd || qp.completed != qp.issued) return;
    qp.draining = false;
    if (qp.info.attr.en_sqd_async_notify) report(AsyncEventType::sq_drained, qp.info.qpn);
}

Status Hca::modify_qp(u32 qpn, const QpModify& attr, u32 mask) {
    QueuePair* found = find_qp(qpn);
    if (!found) return refuse(EINVAL, "no QP 0x%x", qpn);
    QueuePair& qp = *found;
    const QpState from = qp.state();
    const QpState to = mask & kQpAttrState ? attr.qp_state : from;
    if ((mask & kQpAttrCurState) && attr.cur_qp_state != from)
        return refuse(EINVAL, "QP 0x%x is in %s, not in %s as cur_qp_state says", qpn, qp_state_name(from),
                      qp_state_name(attr.cur_qp_state));
    const QpTransition transition = qp_transition(from, to);
    if (!transition.valid)
        return refuse(EINVAL, "QP 0x%x: there is no transition from %s to %s", qpn, qp_state_name(from),
                      qp_state_name(to));
    char names[160];
    const u32 missing = transition.required & ~mask;
    if (missing)
        return refuse(EINVAL, "QP 0x%x, %s to %s: missing %s", qpn, qp_state_name(from), qp_state_name(to),
                      qp_attr_names(missing, names, sizeof names));
    const u32 excess = mask & ~(transition.required | transition.optional | kQpAttrState);
    if (excess)
        return refuse(EINVAL, "QP 0x%x, %s to %s: does not take %s", qpn, qp_state_name(from), qp_state_name(to),
                      qp_attr_names(excess, names, sizeof names));
    const Status values = check_attributes(qp, attr, mask);
    if (!values.ok()) return values;

    apply_attributes(qp, attr, mask);
    if (to == QpState::err) {
        enter_error(qp);
        return {};
    }
    qp.info.state = to;
    if (to == QpState::reset) reset_queues(qp);
    if (from == QpState::reset && to == QpState::init) {
        if (attr.lag_port != kDriversLagPort) {
            qp.info.lag_affinity = config_.lag == LagMode::none ? 0 : attr.lag_port;
        } else if (config_.ports > 1 && (config_.lag == LagMode::queue_affinity ||
                                         (config_.lag == LagMode::hash && !config_.port_select_flow_table_bypass))) {
            // mlx5_ib gives a bonded QP its port when it leaves RESET, unless the ports are chosen by hash and the device
            // can bypass that (port_select_flow_table_bypass).
            qp.info.lag_affinity = ports_->next_affinity();
        }
    }
    choose_route(qp);
    if (to == QpState::sqd) {
        ports_->remove(qp);
        qp.stalled = false;
        if (from == QpState::rts) {
            qp.info.attr.en_sqd_async_notify = (mask & kQpAttrEnSqdAsyncNotify) && attr.en_sqd_async_notify;
            qp.draining = true;
        }
        drained(qp);
    }
    if (to == QpState::rts && qp.has_work()) enqueue(qp);
    return {};
}

}  // namespace rdmakit::emu
