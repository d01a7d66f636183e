// lag.cpp — steering a queue pair to a port of a bond: affinity and UDP source port, and what libmlx5 refuses.
// Leans on port.hpp. rdma-core providers/mlx5/mlx5.c _mlx5dv_modify_qp_lag_port; man mlx5dv_modify_qp_lag_port,
// mlx5dv_modify_qp_udp_sport.
#include <cerrno>

#include "hca.hpp"
#include "port.hpp"
#include "qp_state.hpp"

namespace rdmakit::emu {

Status Hca::query_qp_lag_port(u32 qpn, u32* configured, u32* active) const {
    const QueuePair* qp = find_qp(qpn);
    if (!qp) return refuse(EINVAL, "no QP 0x%x", qpn);
    if (config_.lag == LagMode::none || config_.ports < 2)
        return refuse(EOPNOTSUPP, "%s is not bonded: num_lag_ports is 1", config_.name);
    if (qp->info.lag_affinity == 0)
        return refuse(EOPNOTSUPP, "QP 0x%x has no port affinity (hash mode, or still in RESET)", qpn);
    *configured = qp->info.lag_affinity;
    *active = active_lag_port(*configured);
    return {};
}

u32 Hca::active_lag_port(u32 port) const {
    const u32 usable = ports_->usable(port);
    return usable != 0 ? usable : port;
}

Status Hca::set_lag_port(u32 qpn, u32 port) {
    QueuePair* qp = find_qp(qpn);
    if (!qp) return refuse(EINVAL, "no QP 0x%x", qpn);
    if (config_.lag == LagMode::none) return {};
    if (port > config_.ports) return refuse(EINVAL, "LAG port %u: choose 1 to %u, or 0 for none", port, config_.ports);
    qp->info.lag_affinity = port;
    reroute(*qp);
    return {};
}

Status Hca::modify_qp_lag_port(u32 qpn, u32 port) {
    // libmlx5 asks first what is configured, so whatever makes the query fail makes this fail.
    u32 configured = 0, active = 0;
    const Status query = query_qp_lag_port(qpn, &configured, &active);
    if (!query.ok()) return query;
    QueuePair& qp = *find_qp(qpn);
    if (port < 1 || port > config_.ports) return refuse(EINVAL, "LAG port %u: choose 1 to %u", port, config_.ports);
    if (qp.state() != QpState::rts)
        return refuse(EINVAL, "QP 0x%x is in %s: its LAG port can be changed in RTS only", qpn,
                      qp_state_name(qp.state()));
    return set_lag_port(qpn, port);
}

Status Hca::modify_qp_udp_sport(u32 qpn, u32 source_port) {
    QueuePair* qp = find_qp(qpn);
    if (!qp) return refuse(EINVAL, "no QP 0x%x", qpn);
    if (!config_.roce) return refuse(EOPNOTSUPP, "%s is InfiniBand: it has no UDP source ports", config_.name);
    if (source_port < 0xc000 || source_port > 0xffff)
        return refuse(EINVAL, "UDP source port 0x%x: r_roce_min_src_udp_port is 0xc000, the maximum 0xffff",
                      source_port);
    if (qp->state() != QpState::rts)
        return refuse(EINVAL, "QP 0x%x is in %s: its UDP source port can be changed in RTS only", qpn,
                      qp_state_name(qp->state()));
    qp->info.udp_source_port = source_port;
    reroute(*qp);
    return {};
}

}  // namespace rdmakit::emu
